"""A transition that draws the mixture's clean sample in closed form: what an inner flow of many steps approaches."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from diamond_diffusers.core.interval import Interval
from diamond_diffusers.core.network import Network
from diamond_diffusers.core.tensors import working_dtype
from diamond_diffusers.transitions.inner_flow import InnerFlowTransition

from .mixture import GaussianMixture


@dataclass(frozen=True)
class ExactTransition(InnerFlowTransition):
    """Moves particles by the exact law of the next level, without the network.

    It stands for `GlassTransition` of infinitely many inner steps where a test is about something else, and costs a
    fraction of it. The step is a deterministic map of the driving noise, as every transition is: leading digits of the
    noise place the particle within a component of the law, and digits past the third choose the component. Both are
    independent up to a thousandth of a standard deviation, which no smooth function of the particles can tell.

    Args:
        mixture: the law of the clean samples, of all rows alike.
        correlation: `rho` in `[0, 1]` between the noises before and after; `"ddpm"` is `kappa_next / kappa`.
    """

    mixture: GaussianMixture = field(repr=False)
    correlation: float | str = "ddpm"

    uses_prediction = False

    def step(self, network: Network, x: Tensor, interval: Interval, predicted: Tensor | None, noise: Tensor) -> Tensor:
        correlation = interval.correlation(self.correlation)
        law = self.mixture.transition(x.flatten(1), interval.start, interval.end, correlation)
        moved = _drawn(law, noise.double().flatten(1))
        return moved.reshape(x.shape).to(working_dtype(x))


def _drawn(law: GaussianMixture, noise: Tensor) -> Tensor:
    """A sample `[N, d]` of each of `N` laws with common covariances, as a map of standard normal noise `[N, d]`."""
    uniform = (1000 * noise.sum(1, keepdim=True)).remainder(1)
    component = (law.log_weights.exp().cumsum(1) < uniform).sum(1).clamp(max=law.means.shape[1] - 1)
    means = law.means[torch.arange(len(noise)), component]
    roots = torch.linalg.cholesky(law.covariances)[component]
    return means + torch.einsum("nij,nj->ni", roots, noise)
