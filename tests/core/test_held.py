"""A change of a shared object lasts for as long as anyone holds it, whenever forgotten holders are collected."""

import gc
import threading
from collections.abc import Callable

from diamond_diffusers.core.held import HeldChange


class Shared:
    """What is changed; weakly referable, as modules are."""


def forget_holder(held: HeldChange[Shared], shared: Shared) -> None:
    """Leaves a holder in a cycle, which only the garbage collector ends."""

    def holder():
        with held.of(shared):
            yield

    forgotten = holder()
    next(forgotten)
    cycle = [forgotten]
    cycle.append(cycle)


def test_the_last_holder_undoes_it() -> None:
    events = []

    def change(shared: Shared) -> Callable[[], object]:
        events.append("changed")
        return lambda: events.append("undone")

    held, shared = HeldChange(change), Shared()
    with held.of(shared):
        with held.of(shared):
            pass
        assert events == ["changed"]
    assert events == ["changed", "undone"]


def test_a_forgotten_holder_may_be_collected_while_another_comes_or_goes() -> None:
    """The collector runs wherever memory is allocated, in a thread that holds the lock as in any."""
    events = []

    def change(shared: Shared) -> Callable[[], object]:
        gc.collect()
        events.append("changed")
        return undo

    def undo() -> None:
        events.append("undone")
        gc.collect()

    held, first, second = HeldChange(change), Shared(), Shared()

    def come_and_go() -> None:
        forget_holder(held, first)
        with held.of(second):
            forget_holder(held, first)

    gc.disable()
    try:
        thread = threading.Thread(target=come_and_go, daemon=True)
        thread.start()
        thread.join(20)
    finally:
        gc.enable()
    assert not thread.is_alive()
    assert events.count("changed") == events.count("undone") >= 2
