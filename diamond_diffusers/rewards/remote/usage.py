"""What a remote reward has used, and what that costs."""

from __future__ import annotations

import threading
from dataclasses import dataclass, fields, replace

from ...core.wording import shown
from ..errors import LimitError


@dataclass(frozen=True)
class Prices:
    """What a service charges, in whichever currency.

    Args:
        per_request: for each request.
        per_image: for each image in a request.
        per_million_input_tokens: of prompts and images, where answers say how many they were.
        per_million_output_tokens: of answers.

    Raises:
        ValueError: one is negative or not finite.

    Example:
        >>> Prices(per_image=0.01).of(Usage(requests=1, images=8))
        0.08
    """

    per_request: float = 0.0
    per_image: float = 0.0
    per_million_input_tokens: float = 0.0
    per_million_output_tokens: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            price = getattr(self, field.name)
            if not isinstance(price, int | float) or not 0 <= price < float("inf"):
                raise ValueError(f"{field.name} is {shown(price)}; give a price of at least 0")

    def of(self, usage: Usage) -> float:
        """The price of what was used."""
        tokens = (
            self.per_million_input_tokens * usage.input_tokens + self.per_million_output_tokens * usage.output_tokens
        )
        return self.per_request * usage.requests + self.per_image * usage.images + tokens / 1e6


@dataclass
class Usage:
    """What a remote reward has used.

    What was sent is counted, also if it failed or was repeated: a service may charge it. What did not get as far as to
    a connection is no request.

    Attributes:
        requests: that were sent.
        images: in these requests.
        retries: requests that were repeated.
        cache_hits: images whose scores were known.
        input_tokens: of the requests, as answers tell.
        output_tokens: of the answers.
        price: by the prices that the reward was given.

    Example:
        >>> Usage(requests=3, images=17)
        Usage(requests=3, images=17, retries=0, cache_hits=0, input_tokens=0, output_tokens=0, price=0.0)
    """

    requests: int = 0
    images: int = 0
    retries: int = 0
    cache_hits: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    price: float = 0.0


class Meter:
    """Counts what all threads use, and knows the limits.

    Args:
        name: of the reward, for errors.
        prices: of the service.
        max_cost: the most that may be charged; None for no limit.
        max_requests: the most requests; None for no limit.
    """

    def __init__(self, name: str, prices: Prices, max_cost: float | None, max_requests: int | None) -> None:
        self.name, self.prices, self.max_cost, self.max_requests = name, prices, max_cost, max_requests
        self._total = Usage()
        self._lock = threading.Lock()

    def read(self) -> Usage:
        """What was used until now."""
        with self._lock:
            return replace(self._total)

    def send(self, num_images: int, tally: Usage) -> None:
        """Counts a request that is about to be sent.

        Args:
            num_images: in the request.
            tally: of the batch, which is counted in too, as in the other methods.

        Raises:
            LimitError: a limit does not allow it.
        """
        with self._lock:
            self._check(num_images)
            self._add(tally, requests=1, images=num_images)

    def take_back(self, num_images: int, tally: Usage) -> None:
        """Counts a request out that has not got as far as to a connection."""
        self.add(tally, requests=-1, images=-num_images)

    def add(self, tally: Usage, **amounts: int) -> None:
        """Counts something else, such as `retries=1`."""
        with self._lock:
            self._add(tally, **amounts)

    def _add(self, tally: Usage, **amounts: int) -> None:
        for usage in (self._total, tally):
            for name, amount in amounts.items():
                setattr(usage, name, getattr(usage, name) + amount)
            usage.price = self.prices.of(usage)

    def _check(self, num_images: int) -> None:
        now = self._total
        if self.max_requests is not None and now.requests >= self.max_requests:
            raise LimitError(
                f"Reward '{self.name}' has sent {now.requests} requests, which is its max_requests; raise that, or use "
                "a method that scores fewer images."
            )
        then = self.prices.of(replace(now, requests=now.requests + 1, images=now.images + num_images))
        if self.max_cost is not None and (then > self.max_cost or now.price >= self.max_cost):
            raise LimitError(
                f"Reward '{self.name}' has cost {now.price:.6g}, and the next request would exceed its "
                f"max_cost={self.max_cost:g}; raise that, or use a method that scores fewer images."
            )
