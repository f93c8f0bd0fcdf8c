"""What a run ends with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.values import final_values
from .random_source import RandomSource
from .smc_parts.resampling import invert, uniform
from .trace import Trace

FINAL_SELECTIONS = ("sample", "heaviest", "best", "all")


@dataclass(frozen=True)
class AlignmentResult:
    """What a method returns.

    Attributes:
        latents: clean latents `[B, P, ...]`.
        log_weights: `[B, P]`, normalised per image.
        rewards: `[B, P]`, unscaled; NaN for images without one, which are never the best; None without a reward.
        reward_terms: each term of the reward, `[B, P]`.
        images: the final images `[B, P, 3, H, W]` in [0, 1]; None without a reward, for which nothing is decoded.
        log_evidence: estimate of `log E[exp(reward_scale * reward)]`, `[B]`, for methods that have one; under the law
            that their transitions sample.
        trace: figures of each step.
        scales: multiplied the reward of each image, `[B]`: the best particle is that of the highest product, the first
            of equals.
        violation: of constraints, `[B, P]`, as of `RewardOutput`; None where there are none. A particle that violates
            one is never better than one that does not.
        places: of the particles in the order that the stages of a reward give them, `[B, P]` on the CPU, where 0 is the
            best; None where the rewards order them.
    """

    latents: Tensor
    log_weights: Tensor
    rewards: Tensor | None
    reward_terms: dict[str, Tensor]
    images: Tensor | None
    log_evidence: Tensor | None
    trace: Trace
    scales: Tensor
    violation: Tensor | None = None
    places: Tensor | None = None

    @property
    def values(self) -> Tensor:
        """The final values of the particles, `[B, P]`, as of `final_values`."""
        assert self.rewards is not None, "only rewards give values"
        return final_values(self.rewards, self.scales, self.violation)

    def select(self, final_selection: str, random: RandomSource) -> Tensor:
        """Indices `[B, n]` of the particles to return: one drawn by weight, the heaviest, the best, or all."""
        if final_selection == "all":
            return torch.arange(self.log_weights.shape[1]).expand(self.log_weights.shape)
        if final_selection == "heaviest":
            return self.log_weights.cpu().argmax(1, keepdim=True)
        if final_selection == "best" and self.places is not None and self.rewards is not None:
            # An image that a safety checker has blacked out since has lost its reward.
            lost = self.rewards.isnan().cpu()
            return self.places.masked_fill(lost, self.places.shape[1]).argmin(1, keepdim=True)
        if final_selection == "best" and self.rewards is not None:
            return self.values.cpu().argmax(1, keepdim=True)
        weights = self.log_weights.exp().cpu()
        if weights.shape[1] == 1:
            return torch.zeros(weights.shape, dtype=torch.long)
        # Aside, so that the next call starts from the noise that it would after plain sampling.
        return torch.stack([invert(row, uniform(1, random.aside.of_image(i))) for i, row in enumerate(weights)])
