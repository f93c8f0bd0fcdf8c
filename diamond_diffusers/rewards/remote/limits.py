"""How long a request may take, how often it is repeated, and how many are sent in a second."""

from __future__ import annotations

import asyncio
import math
import random
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from numbers import Real

from ...core.checks import check_counts
from ...core.wording import shown


def check_positive(**numbers: float | None) -> None:
    """Raises a `ValueError` for one that is given and is no positive finite number."""
    for name, number in numbers.items():
        is_number = isinstance(number, Real) and not isinstance(number, bool)
        if number is not None and not (is_number and math.isfinite(number) and number > 0):
            raise ValueError(f"{name} is {shown(number)}; give a positive number")


@dataclass(frozen=True)
class Timeouts:
    """How long one request may take, in seconds.

    Args:
        connect: until the connection stands.
        read: until the next bytes of the answer come.
        total: from the connection to the last byte of the answer. It ends a service that drips slowly.

    Raises:
        ValueError: one is no positive number.

    Example:
        >>> Timeouts(total=300)
        Timeouts(connect=10.0, read=60.0, total=300)
    """

    connect: float = 10.0
    read: float = 60.0
    total: float = 120.0

    def __post_init__(self) -> None:
        check_positive(connect=self.connect, read=self.read, total=self.total)


@dataclass(frozen=True)
class Retries:
    """How often a request that failed is repeated, and after how long.

    The k-th delay is `first_delay * 2^(k-1)`, at most `max_delay`, of which a random share up to `jitter` is left out,
    so that many clients do not come back together. A service that says how long to wait (`Retry-After`) is given that
    time, unless it is longer than `max_delay`: then the reward fails at once.

    Args:
        attempts: the most requests for one batch, the first one included.
        first_delay: in seconds.
        max_delay: in seconds.
        jitter: from 0, with which delays are always the same, to 1.

    Raises:
        ValueError: one is out of range.

    Example:
        >>> [Retries(jitter=0).delay(k, random.Random()) for k in range(4)]
        [0.5, 1.0, 2.0, 4.0]
    """

    attempts: int = 5
    first_delay: float = 0.5
    max_delay: float = 30.0
    jitter: float = 0.5

    def __post_init__(self) -> None:
        check_counts(attempts=self.attempts)
        check_positive(first_delay=self.first_delay, max_delay=self.max_delay)
        if not isinstance(self.jitter, Real) or not 0 <= self.jitter <= 1:
            raise ValueError(f"jitter is {shown(self.jitter)}; give a number from 0 to 1")

    def delay(self, index: int, generator: random.Random) -> float:
        """Seconds before the repetition of that index, from 0."""
        # An exponent that floats can hold.
        longest = min(self.max_delay, self.first_delay * 2.0 ** min(index, 60))
        return longest * (1 - self.jitter * generator.random())


def retry_after(header: str | None) -> float | None:
    """The seconds that a service's `Retry-After` asks for, as a number or as a date; None where it says nothing."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            date = parsedate_to_datetime(header)
        except ValueError:
            return None
        seconds = (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


class Turns:
    """Turns to send a request, so many a second; of one event loop.

    Args:
        per_second: None for any number.
    """

    def __init__(self, per_second: float | None) -> None:
        self._interval = 0.0 if per_second is None else 1 / per_second
        self._next = 0.0

    async def wait(self) -> None:
        """Waits for a turn."""
        now = asyncio.get_running_loop().time()
        turn = max(now, self._next)
        self._next = turn + self._interval
        await asyncio.sleep(turn - now)

    def stop_for(self, seconds: float) -> None:
        """Gives no turn for so long."""
        self._next = max(self._next, asyncio.get_running_loop().time() + seconds)
