"""Early-stopped Diamond Maps."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..core.checks import check_counts
from ..core.flow_map import map_inner_flow
from ..core.glass import EarlyStop
from ..core.interval import Interval
from ..core.network import Network
from ..core.tensors import working_dtype
from . import TRANSITIONS
from .inner_flow import InnerFlowTransition


@TRANSITIONS.register("diamond")
@dataclass(frozen=True)
class DiamondTransition(InnerFlowTransition):
    """A stochastic step by a Diamond Map whose inner flow is stopped early.

    Args:
        num_map_steps: number of evaluations of a step.
        correlation: correlation `rho` in `[0, 1]` between the noises before and after the step; `"ddpm"` is
            `kappa_next / kappa`, for which the chain is Markov.

    Example:
        >>> method = BestOfN(num_particles=2, transition=DiamondTransition())
        >>> pipe("a red star", alignment=method, num_inference_steps=2)
    """

    num_map_steps: int = 1
    correlation: float | str = "ddpm"

    needs_diamond_map = True
    uses_prediction = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(num_map_steps=self.num_map_steps)

    def step(self, network: Network, x: Tensor, interval: Interval, predicted: Tensor | None, noise: Tensor) -> Tensor:
        correlation = interval.correlation(self.correlation)
        early_stop = EarlyStop(interval, correlation)
        if early_stop.stays:
            return x.to(working_dtype(x))
        xbar = map_inner_flow(network, x, interval.start, noise, self.num_map_steps, early_stop.stop)
        return early_stop.observation(x, xbar)
