"""Early-stopped GLASS flows."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..core.glass import check_inner_options, sample_transition
from ..core.interval import Interval
from ..core.network import Network
from . import TRANSITIONS
from .inner_flow import InnerFlowTransition


@TRANSITIONS.register("glass")
@dataclass(frozen=True)
class GlassTransition(InnerFlowTransition):
    """A stochastic step by an inner GLASS flow that is stopped early (arXiv 2509.25170).

    It is exact for its correlation as `num_inner_steps` grows. A step costs `num_inner_steps` evaluations, including
    that of the denoised sample at its start.

    Args:
        num_inner_steps: number of steps of the inner flow.
        correlation: correlation `rho` in `[0, 1]` between the noises before and after the step; `"ddpm"` is
            `kappa_next / kappa`, for which the chain is Markov.
        solver: solver of the inner flow: `euler`, `multistep` or `exponential`.

    Example:
        >>> SMC(num_particles=8, transition=GlassTransition(num_inner_steps=2))
    """

    num_inner_steps: int = 1
    correlation: float | str = "ddpm"
    solver: str = "exponential"

    needs_denoiser = True
    without_denoiser = "RenoiseTransition() or AncestralTransition()"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_inner_options(self.num_inner_steps, self.solver)

    def needs_prediction(self, network: Network) -> bool:
        # It starts from the posterior mean.
        return network.predicts_mean

    def step(self, network: Network, x: Tensor, interval: Interval, predicted: Tensor | None, noise: Tensor) -> Tensor:
        return sample_transition(
            network.denoise,
            x,
            interval,
            interval.correlation(self.correlation),
            noise,
            num_inner_steps=self.num_inner_steps,
            solver=self.solver,
            denoised=network.mean(x, interval.start, predicted),
        )

    def tilt_gain(self, interval: Interval) -> float:
        runs_through = interval.end == 0 or interval.correlation(self.correlation) == 1
        if runs_through and self.num_inner_steps == 1:
            # One inner step ends at the denoised sample, whatever the noise.
            return 0.0
        return super().tilt_gain(interval)
