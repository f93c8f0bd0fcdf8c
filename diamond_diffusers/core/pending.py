"""Results that are awaited later, so that something else can be computed meanwhile."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
Made = TypeVar("Made")

MAX_PENDING = 8
"""How many results `in_order` leaves pending: what they need stays in memory until they are there."""


def _nothing() -> None:
    """Of what is there already, nothing can be called off."""


@dataclass(frozen=True)
class Pending(Generic[T]):
    """A result that is computed elsewhere, such as by a service.

    Attributes:
        result: waits for the result and returns it, or raises the exception that came in its place.
        cancel: calls off what nobody waits for any longer; without effect once the result is there.

    Example:
        >>> Pending(lambda: 3).then(lambda result: 2 * result).result()
        6
    """

    result: Callable[[], T]
    cancel: Callable[[], None] = _nothing

    def then(self, function: Callable[[T], Made]) -> Pending[Made]:
        """What a function makes of the result; it is called by who waits."""
        return Pending(lambda: function(self.result()), self.cancel)


def together(begins: Iterable[Callable[[], Pending[T]]]) -> Pending[list[T]]:
    """The results of what several functions begin, in their order; after an exception the others are called off."""
    begun: list[Pending[T]] = []

    def cancel() -> None:
        for each in begun:
            each.cancel()

    @contextmanager
    def cancelled_by_errors() -> Iterator[None]:
        try:
            yield
        except BaseException:
            cancel()
            raise

    def results() -> list[T]:
        with cancelled_by_errors():
            return [each.result() for each in begun]

    with cancelled_by_errors():
        for begin in begins:
            begun.append(begin())
    return Pending(results, cancel)


def in_order(started: Iterable[T | Pending[T]]) -> list[T]:
    """The results of what an iterator starts, in its order: the next is started while earlier ones are pending.

    At most `MAX_PENDING` are. After an exception, of a result or of the iterator, the others are called off.
    """
    results: list[T] = []
    pending: deque[Pending[T]] = deque()
    try:
        for each in started:
            pending.append(each if isinstance(each, Pending) else Pending(lambda made=each: made))  # type: ignore[misc]
            while pending and (len(pending) > MAX_PENDING or not isinstance(each, Pending)):
                results.append(pending.popleft().result())
        while pending:
            results.append(pending.popleft().result())
    finally:
        for left in pending:
            left.cancel()
    return results
