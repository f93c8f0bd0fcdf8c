"""What a run has cost, so that methods can be compared at equal cost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass


@dataclass
class Cost:
    """Counts over all images and particles of a run: of everything that was evaluated, even if in vain for memory.

    Attributes:
        network_evaluations: forward passes of the network, one a row; a row under classifier-free guidance counts 2.
        backward_passes: backward passes through the network, counted like its evaluations.
        decodes: latents brought to images.
        reward_calls: images scored, with those on which a call tries its reward before it samples.
        reward_requests: requests to services that score, with those that were repeated.
        reward_price: what these services charge for them, by the prices that the rewards were given.
        seconds: wall-clock time of the sampling loop, rewards and decoding included.

    Example:
        >>> Cost(network_evaluations=24).network_evaluations
        24
    """

    network_evaluations: int = 0
    backward_passes: int = 0
    decodes: int = 0
    reward_calls: int = 0
    reward_requests: int = 0
    reward_price: float = 0.0
    seconds: float = 0.0

    @property
    def equivalent_evaluations(self) -> int:
        """Network evaluations with each backward pass counted as two."""
        return self.network_evaluations + 2 * self.backward_passes

    def as_dict(self) -> dict[str, float]:
        return {**asdict(self), "equivalent_evaluations": self.equivalent_evaluations}

    def __str__(self) -> str:
        requests = f" by {self.reward_requests} requests" if self.reward_requests else ""
        price = f" for {self.reward_price:.4g}" if self.reward_price else ""
        return (
            f"{self.network_evaluations} network evaluations, {self.backward_passes} backward passes, "
            f"{self.decodes} decodes, {self.reward_calls} reward calls{requests}{price}, {self.seconds:.1f} s"
        )


_payer: ContextVar[Cost | None] = ContextVar("payer", default=None)


@contextmanager
def charged_to(cost: Cost) -> Iterator[None]:
    """Context of a run, to whose cost `charge` adds."""
    token = _payer.set(cost)
    try:
        yield
    finally:
        _payer.reset(token)


def charge(requests: int, price: float) -> None:
    """Adds requests to a service to the cost of the run within which this is called, if there is one."""
    if (cost := _payer.get()) is not None:
        cost.reward_requests += requests
        cost.reward_price += price
