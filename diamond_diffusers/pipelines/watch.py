"""Watches a reward that a run does not follow, and ends the run where following goes on at its expense."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..alignment.cloud import Cloud
from ..core.checks import check_counts
from ..core.tensors import where_rows
from ..core.values import final_values
from ..core.wording import shown
from ..rewards import Reward, RewardLike
from ..rewards.parts import names_within
from .second_reward import SecondReward

if TYPE_CHECKING:
    from ..alignment.base import Method
    from ..alignment.progress import Progress
    from .call import Call


@dataclass(frozen=True)
class Watch:
    """Early stopping by a held-out reward: given as `watch` to a call whose method works in rounds.

    After every round, or every few of them, the best image so far by the followed reward is scored by the held-out one.
    A run ends once that score has been below its own best for `patience` checks in a row, for every image of the call.
    Each image is returned as it was where its held-out score was the highest. Where one of the two rewards has
    constraints, an image that violates any is below all that hold them, as everywhere.

    Methods in rounds are those whose particles are clean after every stage: `noise_optimization`, `noise_evolution`,
    `random_search`, `zero_order_search`, `diffusion_tree_sampling`, `diffusion_tree_search` and presets of these.
    Others carry half-noisy particles to a single end. What a reward says of look-aheads on the way there rises and
    falls with the noise, so that it tells nothing of over-optimisation: a call with such a method refuses a watch.

    Args:
        reward: held out, in any form that a call takes; no term of the followed reward, and not in stages. Where it
            fails, the call does what its `on_reward_error` says; a check that is skipped tells nothing.
        patience: checks in a row.
        every: rounds from one check to the next.

    Raises:
        ValueError: a count is no whole number of at least 1.

    Example:
        >>> watch = Watch("symmetry", patience=2)
        >>> out = pipe("a red star", alignment="random_search", watch=watch, num_inference_steps=1)
        >>> len(out.watched.held_out) <= 4
        True
    """

    reward: RewardLike
    patience: int = 3
    every: int = 1

    def __post_init__(self) -> None:
        check_counts(patience=self.patience, every=self.every)
        if isinstance(self.reward, type):
            raise TypeError(f"reward is {shown(self.reward)}; give an instance, {self.reward.__name__}()")


@dataclass
class Watched:
    """What a watch has seen, one list a check.

    Attributes:
        reward: name of the held-out reward.
        rounds: number of the round of each check, from 0.
        followed: the followed reward of the best image so far of each prompt's, `[B]` each.
        held_out: the held-out reward of the same images; NaN where it has failed and was skipped.
        chosen: for each image the check at which it was taken.
        is_ended: whether the watch has ended the run.
        reward_calls: images that the held-out reward has scored, with the one on which it was tried. The `Cost` of the
            run counts only what the followed one takes, here and in the next two.
        reward_requests, reward_price: requests to services for that, and what these charge.
    """

    reward: str
    rounds: list[int] = field(default_factory=list)
    followed: list[list[float]] = field(default_factory=list)
    held_out: list[list[float]] = field(default_factory=list)
    chosen: list[int] = field(default_factory=list)
    is_ended: bool = False
    reward_calls: int = 0
    reward_requests: int = 0
    reward_price: float = 0.0


def check_watchable(method: Method) -> None:
    """Raises a `ValueError` where a held-out reward tells nothing on a method's way."""
    if not method.works_in_rounds:
        raise ValueError(
            f"watch is given, but alignment {type(method).__name__} has half-noisy particles until its end, of which a "
            "held-out reward tells nothing; leave it out, or take a method in rounds, such as 'noise_optimization' or "
            "'random_search'"
        )


class Watching:
    """A watch over one run.

    Args:
        watch: what to look at.
        method: of the run.
        followed: the reward that it follows.
        call: the call.
        named: rewards that were loaded by name before; a new one is added.

    Raises:
        TypeError, ValueError: the method does not work in rounds, or the reward is followed, is in stages, cannot be
            asked about the prompts, or fails on an image.
    """

    def __init__(
        self, watch: Watch, method: Method, followed: Reward | None, call: Call, named: dict[str, Reward]
    ) -> None:
        check_watchable(method)
        self.watch = watch
        self.reward = SecondReward("watch", watch.reward, call, named)
        if followed is not None and (shared := sorted(names_within(self.reward.reward) & names_within(followed))):
            raise ValueError(f"watch is of {shared[0]!r}, which the run follows; hold another reward out")
        self.reward.try_on(call)
        self.watched = Watched(self.reward.name)
        self._best: Tensor | None = None
        self._cloud: Cloud | None = None
        self._num_below = torch.zeros(call.num_images, dtype=torch.long)
        self._count()

    @torch.no_grad()
    def check(self, progress: Progress) -> None:
        """Looks at a run after one of its rounds, at its first and last ones always."""
        is_last = progress.index + 1 == progress.num_stages
        if progress.index % self.watch.every and not is_last:
            return
        try:
            scores, *violation = self.reward.scores(progress.law, progress.best_known())
        finally:
            self._count()
        self._keep(progress, scores, _violations(progress.cloud, *violation))

    def _count(self) -> None:
        watched, cost = self.watched, self.reward.cost
        watched.reward_calls, watched.reward_requests = cost.reward_calls, cost.reward_requests
        watched.reward_price = cost.reward_price

    def _keep(self, progress: Progress, scores: Tensor, violations: Tensor | None) -> None:
        cloud, watched = progress.cloud, self.watched
        values = final_values(scores, torch.ones_like(scores), violations)
        if self._best is None or self._cloud is None:
            self._best, self._cloud, watched.chosen = values, cloud, [0] * len(scores)
        else:
            better, is_scored = values > self._best, scores.isfinite()
            num_below = torch.where(values < self._best, self._num_below + 1, 0)
            self._num_below = torch.where(is_scored, num_below, self._num_below)
            self._cloud = _of_images(better, cloud, self._cloud)
            self._best = torch.where(better, values, self._best)
            check = len(watched.rounds)
            watched.chosen = [
                check if is_new else old for is_new, old in zip(better.tolist(), watched.chosen, strict=True)
            ]
        watched.rounds.append(progress.index)
        watched.followed.append(_followed(cloud).tolist())
        watched.held_out.append(scores.tolist())
        is_last = progress.index + 1 == progress.num_stages
        watched.is_ended = not is_last and bool((self._num_below >= self.watch.patience).all())

    def best(self, progress: Progress) -> Progress:
        """Where the run stood for each image when its held-out score was the highest."""
        return progress if self._cloud is None else replace(progress, cloud=self._cloud)


def _followed(cloud: Cloud) -> Tensor:
    """The followed reward of the best particle of each image, `[B]`; NaN where the method has not kept it."""
    if cloud.final is None:
        return torch.full((len(cloud.log_weights),), torch.nan)
    return _of_best(cloud, cloud.final.total)


def _violations(cloud: Cloud, held_out: Tensor | None = None) -> Tensor | None:
    """How far the best particle of each image is from holding the constraints of both rewards, `[B]`, if there are any.

    Args:
        cloud: scored by the followed reward.
        held_out: of the held-out reward.
    """
    followed = None if cloud.final is None or cloud.final.violation is None else cloud.final.violation
    parts = [] if followed is None else [_of_best(cloud, followed).cpu().double()]
    parts += [] if held_out is None else [held_out]
    return torch.stack(parts).sum(0) if parts else None


def _of_best(cloud: Cloud, figures: Tensor) -> Tensor:
    """The figure of the best particle of each image, `[B]`, of figures `[B P]`."""
    assert cloud.values is not None, "a method in rounds has scored what it has drawn"
    best = cloud.values.argmax(1, keepdim=True)
    return figures.reshape(cloud.values.shape).gather(1, best.to(figures.device))[:, 0]


def _of_images(is_new: Tensor, new: Cloud, old: Cloud) -> Cloud:
    """The particles of each image in one cloud or in the other; `is_new` is `[B]`."""
    assert new.values is not None and old.values is not None, "rounds have scored their particles"
    rows = is_new.repeat_interleave(new.values.shape[1])

    final = None
    if new.final is not None and old.final is not None:
        final = new.final.map(partial(where_rows, rows), old.final)
    x, values = where_rows(rows, new.x, old.x), where_rows(is_new, new.values, old.values)
    return replace(new, x=x, final=final, values=values)
