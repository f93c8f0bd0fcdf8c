"""Judges in stages: a cheap reward leads a run, and dearer ones choose among what it ends with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..core.checks import check_counts
from ..core.pending import Pending
from ..core.wording import shown
from .base import CompositeReward, Reward
from .expressions import RewardLike, as_reward
from .output import RewardOutput


@dataclass(frozen=True)
class Stage:
    """A later stage.

    Attributes:
        reward: which scores.
        keep: how many of an image's candidates, the best of the stage before.
    """

    reward: Reward
    keep: int


class StagedReward(CompositeReward):
    """A reward in stages, as `staged` makes it.

    As a function of images it is its first stage, which is all that a run follows on its way: its law, weights,
    gradients and evidence are those of the first stage. The later stages score the candidates that the run ends with;
    see `alignment/stages.py`.

    Args:
        first: the first stage.
        later: those after it.
        name: under which it is reported; by default it tells the stages.

    Raises:
        ValueError: there is no later stage, or one keeps more than the one before.
    """

    def __init__(self, first: Reward, later: Sequence[Stage], name: str | None = None) -> None:
        if not later:
            raise ValueError(f"stages are {first.name!r} alone; give a second one, such as ('imagereward', 4)")
        for before, stage in pairwise(later):
            if stage.keep > before.keep:
                raise ValueError(
                    f"the stage {stage.reward.name!r} keeps {stage.keep}, but the one before it hands on "
                    f"{before.keep}; give at most as many"
                )
        self.first, self.later = first, tuple(later)
        texts = [first.name, *(f"{stage.reward.name} of the best {stage.keep}" for stage in later)]
        super().__init__([first, *(stage.reward for stage in later)], name or ", then ".join(texts))

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        """Whether the first stage is."""
        return self.first.differentiable

    @property
    def is_free(self) -> bool:  # type: ignore[override]
        """Whether the first stage is; the others score what the caller has counted."""
        return self.first.is_free

    @property
    def is_dear(self) -> bool:  # type: ignore[override]
        """Whether the first stage is, likewise."""
        return self.first.is_dear

    @property
    def is_constrained(self) -> bool:  # type: ignore[override]
        """Whether the first stage is; constraints of later ones order what these score."""
        return self.first.is_constrained

    @property
    def is_concurrent(self) -> bool:  # type: ignore[override]
        """Whether the first stage is."""
        return self.first.is_concurrent

    @property
    def default_reward_scale(self) -> float | None:  # type: ignore[override]
        """That of the first stage."""
        return self.first.default_reward_scale

    @property
    def term_names(self) -> list[str]:
        """Those of the first stage."""
        return self.first.term_names

    def evaluate(self, images: Tensor, prompts: Sequence[str], **context: Tensor | float) -> RewardOutput:
        """The scores of the first stage. See `Reward.evaluate`."""
        return self.first.evaluate(images, prompts, **context)

    def begin(self, images: Tensor, prompts: Sequence[str], **context: Tensor | float) -> Pending[RewardOutput]:
        """See `Reward.begin`."""
        return self.first.begin(images, prompts, **context)

    def probe(
        self,
        device: torch.device | str = "cpu",
        image_size: tuple[int, int] = (64, 64),
        prompt: str | None = None,
        needs_gradient: bool = False,
        **context: Tensor | float,
    ) -> int:
        """Probes every stage, of which only the first is differentiated; an image counts once. See `Reward.probe`."""
        needed = [needs_gradient, *(False for _ in self.later)]
        return max(
            reward.probe(device, image_size, prompt, is_needed, **context)
            for reward, is_needed in zip(self.rewards, needed, strict=True)
        )

    def num_scores(self, num_candidates: int) -> int:
        """How many scores the later stages give to the candidates of one image."""
        return sum(min(stage.keep, num_candidates) for stage in self.later)


def staged(stages: Sequence[RewardLike | tuple[RewardLike, int]], name: str | None = None) -> StagedReward:
    """A reward in stages: the first leads the run, and each later one scores the best few that it ends with.

    The candidates are the particles of one image at the end of a run, such as the `num_particles` of best-of-N, SMC or
    beam search. What the last stage has scored is ordered by its scores, and stands above what only the stage before
    has scored, and so on down to what the first alone has.

    Args:
        stages: the first reward, and pairs of a later one and how many candidates of an image it scores; each in any
            form that `as_reward` reads.
        name: name of the reward, such as that under which it is registered; by default it tells the stages.

    Raises:
        TypeError: a stage is no such pair.
        ValueError: there are fewer than two stages, or a count is no whole number of at least 1 or rises.

    Example:
        >>> reward = staged(["brightness", ("colour", 4), ("symmetry", 2)])
        >>> reward.name
        'brightness, then colour of the best 4, then symmetry of the best 2'
    """
    if isinstance(stages, str) or not isinstance(stages, Sequence) or not stages:
        raise TypeError(f"stages is {shown(stages)}; give a list such as ['brightness', ('imagereward', 4)]")
    later = []
    for number, stage in enumerate(stages[1:], 1):
        if not isinstance(stage, tuple) or len(stage) != 2:
            raise TypeError(f"stages[{number}] is {shown(stage)}; give a pair such as ('imagereward', 4)")
        check_counts(**{f"stages[{number}][1]": stage[1]})
        later.append(Stage(as_reward(stage[0]), int(stage[1])))
    if isinstance(stages[0], tuple):
        raise TypeError(f"stages[0] is {shown(stages[0])}; give a reward alone, which scores all candidates")
    return StagedReward(as_reward(stages[0]), later, name)


def stages_of(reward: Reward | None) -> StagedReward | None:
    """The reward itself if it has stages; None if it has none.

    Raises:
        ValueError: it is a part of another reward, which could not follow it.
    """
    if isinstance(reward, StagedReward):
        _refuse_within(reward, reward.rewards)
        return reward
    if reward is not None:
        _refuse_within(reward, getattr(reward, "rewards", ()))
    return None


def _refuse_within(outer: Reward, parts: Sequence[Reward]) -> None:
    for part in parts:
        if isinstance(part, StagedReward):
            raise ValueError(
                f"reward {outer.name!r} is made of one in stages, whose order no other reward can take over; sum, "
                "place or calibrate the rewards of single stages instead"
            )
        _refuse_within(outer, getattr(part, "rewards", ()))
