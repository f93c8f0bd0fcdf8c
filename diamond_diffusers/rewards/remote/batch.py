"""The scores of a batch, which are on their way."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import Future, wait
from typing import Any

from ...core.cost import charge
from ...core.interruption import POLL_SECONDS, check_interruption
from ..errors import UnavailableError
from .event_loop import event_loop
from .usage import Usage


class Batch:
    """The scores of a batch, and what they cost, which is charged to the run that waits for them or calls them off.

    Args:
        name: of the reward, for errors.
        url: of the service, for errors.

    Attributes:
        tally: what the batch has used so far.
    """

    def __init__(self, name: str, url: str) -> None:
        self.name, self.url = name, url
        self.tally = Usage()
        self._charged = Usage()
        self._future: Future[list[float]]

    def start(self, scoring: Coroutine[Any, Any, list[float]]) -> None:
        """Has the scores computed on the event loop."""
        self._future = asyncio.run_coroutine_threadsafe(scoring, event_loop())

    def result(self) -> list[float]:
        """Waits for the scores, for as long as the run goes on.

        Raises:
            Interrupted: it is to end; nothing more is sent then.
            OSError: there are none.
        """
        try:
            while not self._future.done():
                check_interruption()
                wait([self._future], POLL_SECONDS)
        finally:
            # An exception, such as that of control and C, calls off what is not done.
            self.cancel()
        if self._future.cancelled():
            raise UnavailableError(f"Reward '{self.name}' was closed while {self.url} scored; close it later.")
        return self._future.result()

    def cancel(self) -> None:
        """Calls off what is not done."""
        self._future.cancel()
        used = self.tally
        charge(used.requests - self._charged.requests, used.price - self._charged.price)
        self._charged = Usage(requests=used.requests, price=used.price)
