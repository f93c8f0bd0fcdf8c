"""Search over paths: particles are noised again a little and denoised anew, and the best are kept."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise, starmap

import torch
from torch import Tensor

from ...core.checks import check_counts
from ...core.interval import Interval
from ...core.levels import renoise
from ...transitions.base import Transition
from ...transitions.sampled_model import SampledModel
from ..law import Law
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

    Example:
        >>> pipe("a red star", alignment=PathSearch(1, branching=2, num_backward_steps=1), num_inference_steps=2)
    """

    max_noise_to_signal: float = 3.0
    forward_step: float = 0.2
    num_backward_steps: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.forward_step < 1:
            raise ValueError(f"forward_step is {self.forward_step}; give a number between 0 and 1")
        check_counts(num_backward_steps=self.num_backward_steps)
        if not self.max_noise_to_signal > 0:
            raise ValueError(f"max_noise_to_signal is {self.max_noise_to_signal}; give a number above 0")

    def default_transition(self, model: SampledModel) -> Transition:
        return model.stock_transition()

    def branch(
        self,
        law: Law,
        x: Tensor,
        predicted: Tensor | None,
        interval: Interval,
        random: RandomSource,
    ) -> Tensor:
        noise = driving_noise(random, self.moves, x, self.num_particles, interval)
        network = law.rows(x).network
        onward = self.moved(network, x, interval, predicted, noise)
        others, start = self.branching - 1, interval.start
        levels = self.detour(start, network.max_noise_to_signal)
        if others == 0 or start > self.max_noise_to_signal or levels[0] <= start:
            return onward
        per_image, shape = self.num_particles * others, x.shape[1:]
        rows = x.repeat_interleave(others, 0)
        network = law.rows(rows).network
        rows = renoise(rows, start, levels[0], random.aside.normal(per_image, shape))
        for back in [*starmap(Interval, pairwise(levels)), interval]:
            noise = driving_noise(random.aside, self.moves, rows, per_image, back)
            rows = self.moved(network, rows, back, self.predicted(law, rows, back.start), noise)
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
    return math.inf if time >= 1 else time / (1 - time)
