"""How a run is ended in the middle of a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

POLL_SECONDS = 0.05
"""How often who waits asks whether the run is to end."""


class Interrupted(Exception):
    """Raised between two evaluations of a run that has been told to end; whoever started the run catches it."""


def never() -> bool:
    """What tells a run that nobody can end to go on."""
    return False


_is_to_end: ContextVar[Callable[[], bool]] = ContextVar("is_to_end", default=never)


@contextmanager
def ended_by(is_to_end: Callable[[], bool]) -> Iterator[None]:
    """Context of a run, in which `check_interruption` asks this whether the run is to end."""
    token = _is_to_end.set(is_to_end)
    try:
        yield
    finally:
        _is_to_end.reset(token)


def check_interruption() -> None:
    """Raises `Interrupted` where the run within which this is called is to end; for a reward that waits for answers."""
    if _is_to_end.get()():
        raise Interrupted


def pause(seconds: float) -> None:
    """Waits, unless the run is to end.

    Raises:
        Interrupted: it is.
    """
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        check_interruption()
        time.sleep(min(left, POLL_SECONDS))
