"""Look-ahead beam search: each particle takes several stochastic steps, and the most promising are kept."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...core.interval import Interval
from ..law import Law
from ..look_ahead_search import LookAheadSearch
from ..random_source import RandomSource, driving_noise
from . import METHODS


@METHODS.register("beam_search")
@dataclass(frozen=True)
class BeamSearch(LookAheadSearch):
    """Look-ahead beam search over transitions: the branches of a particle are draws of one stochastic step.

    With T steps, W particles and B branches, a step whose outcome is random costs W B look-aheads, and W B transitions
    beyond the shared prediction. With `DenoiserPoint` and `GlassTransition()`, whose last step is not random, an image
    costs `W (1 + (T - 1) B)` network evaluations and `W (1 + (T - 1) B)` decodes. What a budget sets is the width.

    The transition is stochastic; None for `GlassTransition()`, and `RenoiseTransition()` where the model is a few-step
    one. How branches compete, further options, and what a `reward_scale` of 0 returns: see `LookAheadSearch`.

    Example:
        >>> pipe("a red star", alignment=BeamSearch(num_particles=1, branching=2), num_inference_steps=2)
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_moves_are_random("the branches of a particle", "path_search")

    def branch(
        self,
        law: Law,
        x: Tensor,
        predicted: Tensor | None,
        interval: Interval,
        random: RandomSource,
    ) -> Tensor:
        per_image = len(x) // law.num_images
        # Branches that are not compared yet go on as they are.
        parts = per_image == self.num_particles and self.moves.is_random(interval)
        count = self.branching if parts else 1
        rows, per_image = x.repeat_interleave(count, 0), per_image * count
        noise = driving_noise(random, self.moves, rows, per_image, interval)
        predicted = None if predicted is None else predicted.repeat_interleave(count, 0)
        return self.moved(law.rows(rows).network, rows, interval, predicted, noise)
