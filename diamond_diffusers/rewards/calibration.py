"""The terms of a sum in a common unit: deviations of the plain model's images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from .base import CompositeReward, Reward, WeightedSum
from .expressions import RewardLike, as_reward
from .output import RewardOutput
from .parts import measured_terms, terms_of
from .shared_features import one_evaluation
from .transformed import StandardisedReward


@dataclass(frozen=True)
class ScoreStatistics:
    """Mean and deviation of a reward's scores, in its own unit.

    Attributes:
        mean: of the scores.
        standard_deviation: of the scores, above 0.

    Example:
        >>> ScoreStatistics.of("brightness", torch.tensor([0.25, 0.75, 0.5]))
        ScoreStatistics(mean=0.5, standard_deviation=0.25)
    """

    mean: float
    standard_deviation: float

    @classmethod
    def of(cls, name: str, scores: Tensor) -> Self:
        """Those of scores `[N]`; the deviation is the unbiased one, over `N - 1`.

        Args:
            name: of the reward, for errors.
            scores: at least two.

        Raises:
            ValueError: there are fewer, one is not finite, or they are equal up to the rounding of float32.
        """
        scores = scores.cpu().double()
        if len(scores) < 2:
            raise ValueError(f"reward {name!r} has {len(scores)} scores to be calibrated by; give at least 2")
        if not scores.isfinite().all():
            raise ValueError(f"reward {name!r} has scores that are not finite, so that it has no unit; mend it")
        deviation = scores.std().item()
        if deviation <= 8 * torch.finfo(torch.float32).eps * scores.abs().amax().item():
            raise ValueError(
                f"reward {name!r} is {scores[0].item():.6g} for all {len(scores)} plain samples, so that it has no "
                "deviation to be measured in; draw more samples, or leave this term out"
            )
        return cls(scores.mean().item(), deviation)


def calibrated(reward: RewardLike, statistics: Mapping[str, ScoreStatistics]) -> Reward:
    """The same sum with each term measured in standard deviations from its mean, so that weights compare.

    Args:
        reward: in any form that `as_reward` reads.
        statistics: of each term of the sum by its name, as `calibrate(...).terms` holds them.

    Returns:
        The sum of `weight * StandardisedReward(term, mean, standard_deviation)`, under the same constraints. It reports
        the terms as they were.

    Raises:
        ValueError: the statistics are those of other terms, or no mean and deviation.

    Example:
        >>> reward = calibrated("2*brightness - jpeg_size", {
        ...     "brightness": ScoreStatistics(mean=0.5, standard_deviation=0.25),
        ...     "jpeg_size": ScoreStatistics(mean=2.0, standard_deviation=0.5),
        ... })
        >>> reward.name
        '2*standardised(brightness) - standardised(jpeg_size)'
    """
    reward = as_reward(reward)
    terms = measured_terms(reward)
    if set(statistics) != set(terms):
        raise ValueError(
            f"statistics are of {', '.join(statistics) or 'nothing'}, but the terms of the reward are "
            f"{', '.join(terms)}; give those of just these terms, or calibrate anew"
        )
    measured: list[tuple[float, Reward]] = []
    for name, (weight, term) in terms_of(reward).items():
        if name in terms:
            term = StandardisedReward(term, statistics[name].mean, statistics[name].standard_deviation)
        measured.append((weight, term))
    return measured[0][1] if len(measured) == 1 and measured[0][0] == 1 else WeightedSum(measured)


class TermScores(CompositeReward):
    """Reports for each term of a sum what counts in it: the term's total, after its own transforms.

    Args:
        reward: the sum, of which constraints are left out.

    Raises:
        ValueError: it consists of constraints alone.
    """

    def __init__(self, reward: Reward) -> None:
        self._terms = measured_terms(reward)
        if not self._terms:
            raise ValueError(f"reward {reward.name!r} has constraints alone, which have no unit; calibrate a sum")
        super().__init__([term for _, term in self._terms.values()], reward.name)

    @property
    def term_names(self) -> list[str]:
        return list(self._terms)

    @property
    def is_constrained(self) -> bool:  # type: ignore[override]
        """False, also where a term is: all plain samples tell of its unit."""
        return False

    def evaluate(self, images: Tensor, prompts: Sequence[str], **context: Tensor | float) -> RewardOutput:
        """The sum, and the total of each term. See `Reward.evaluate`."""
        with torch.set_grad_enabled(self._tracks(images, *context.values())), one_evaluation():
            totals = [term.evaluate(images, prompts, **context).total for term in self.rewards]
        weighted = [weight * score for (weight, _), score in zip(self._terms.values(), totals, strict=True)]
        total = sum(weighted, torch.zeros_like(weighted[0]))
        return RewardOutput(total, {name: score.detach() for name, score in zip(self._terms, totals, strict=True)})
