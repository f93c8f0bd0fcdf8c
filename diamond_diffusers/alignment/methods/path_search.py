"""Search over paths: particles are noised again a little and denoised anew, and the best are kept."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ...core.checks import check_counts
from ...core.levels import renoise
from ...core.model import Model
from ...transitions.base import Transition
from ..law import TiltedModel
from ..look_ahead_search import LookAheadSearch
from ..random_source import RandomSource, driving_noise
from . import METHODS


@METHODS.register("path_search")
@dataclass(frozen=True)
class PathSearch(LookAheadSearch):
    """Search over paths (Ma et al., arXiv 2501.09732): branches go back up in noise and come down another way.

    From the first level at or below `max_noise_to_signal`, one branch of a particle takes the step as it is, so that
    nothing is lost, and each of the others

        is noised forward by `forward_step` in the time `t = kappa / (1 + kappa)` of rectified flow,
        comes back in `num_backward_steps` equal steps of that time, and takes the step then.

    With W particles and M branches such a step costs `W (M - 1) (num_backward_steps + 1)` evaluations and, but for the
    last, W M look-aheads, whose predictions serve the next step; a step above costs W. What a budget sets is the width.
    How branches compete, and what a `reward_scale` of 0 returns: see `LookAheadSearch`.

    Args:
        num_particles: width W of the search: particles of each image (N of the paper).
        branching: branches M of each particle.
        posterior: draws the look-aheads from which values are estimated.
        transition: how particles move down; None for how the stock pipeline moves them.
        max_noise_to_signal: above this level, where look-aheads say little, particles do not branch.
        forward_step: rise of the time, in (0, 1); it ends at pure noise, or at the highest level of the model.
        num_backward_steps: network evaluations of the way back to the level from which a branch rose.
    """

    max_noise_to_signal: float = 3.0
    forward_step: float = 0.2
    num_backward_steps: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.forward_step < 1:
            raise ValueError(f"forward_step is {self.forward_step}; it must lie between 0 and 1")
        check_counts(num_backward_steps=self.num_backward_steps)
        if not self.max_noise_to_signal > 0:
            raise ValueError(f"max_noise_to_signal is {self.max_noise_to_signal}; it must be positive")

    def default_transition(self, model: Model) -> Transition:
        return model.stock_transition()

    def branch(
        self,
        model: TiltedModel,
        x: Tensor,
        predicted: Tensor | None,
        noise_to_signal: float,
        next_noise_to_signal: float,
        random: RandomSource,
    ) -> Tensor:
        noise = driving_noise(random, self.transition, x, self.num_particles, noise_to_signal, next_noise_to_signal)
        network = model.network(model.owners(self.num_particles, x.device))
        onward = self.transition.step(network, x, noise_to_signal, next_noise_to_signal, predicted, noise)
        others = self.branching - 1
        levels = self.detour(noise_to_signal, network.max_noise_to_signal)
        if others == 0 or noise_to_signal > self.max_noise_to_signal or levels[0] <= noise_to_signal:
            return onward
        per_image, shape = self.num_particles * others, x.shape[1:]
        network = model.network(model.owners(per_image, x.device))
        rows = x.repeat_interleave(others, 0)
        rows = renoise(rows, noise_to_signal, levels[0], random.aside.normal(per_image, shape))
        for level, next_level in pairwise((*levels, next_noise_to_signal)):
            noise = driving_noise(random.aside, self.transition, rows, per_image, level, next_level)
            rows = self.transition.step(network, rows, level, next_level, self.predicted(model, rows, level), noise)
        branches = [part.unflatten(0, (len(x), -1)) for part in (onward, rows)]
        return torch.cat(branches, 1).flatten(0, 1)

    def detour(self, noise_to_signal: float, max_noise_to_signal: float) -> list[float]:
        """Falling levels from the height of the detour down to where it began."""
        start = _time(noise_to_signal)
        top = min(start + self.forward_step, _time(max_noise_to_signal))
        steps = self.num_backward_steps
        return [*(_level(top + (start - top) * index / steps) for index in range(steps)), noise_to_signal]


def _time(noise_to_signal: float) -> float:
    """The time of rectified flow at a level."""
    return 1 / (1 + 1 / noise_to_signal)


def _level(time: float) -> float:
    return float("inf") if time >= 1 else time / (1 - time)
