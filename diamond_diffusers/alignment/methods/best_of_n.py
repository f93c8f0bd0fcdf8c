"""The best of several plain samples."""

from __future__ import annotations

from dataclasses import dataclass

from . import METHODS
from .none import NoAlignment


@METHODS.register("best_of_n")
@dataclass(frozen=True)
class BestOfN(NoAlignment):
    """Draws `num_particles` plain samples of each image and keeps the one of highest reward.

    The first is the plain sample itself, which a `reward_scale` of 0 returns. All are drawn at once; see `RandomSearch`
    for rounds.

    Example:
        >>> out = pipe("a red star", alignment=BestOfN(num_particles=2), num_inference_steps=2)
        >>> out.rewards.shape
        torch.Size([1])
    """

    num_particles: int = 4

    needs_reward = True
    default_selection = "best"
    grows = "num_particles"
