"""Shares the budget of a call between its images: those that are good enough leave the rest of theirs to the others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..alignment.budget import Budget
from ..alignment.random_source import RandomSource
from ..alignment.shared_rounds import ImageRounds, SharedRounds
from ..core.checks import check_finite
from ..core.cost import Cost
from ..core.wording import shown
from ..rewards import Reward, RewardLike
from .second_reward import SecondReward

if TYPE_CHECKING:
    from ..alignment.base import Method
    from ..alignment.law import Law
    from ..alignment.progress import Progress
    from .call import Call


@dataclass(frozen=True)
class SharedBudget:
    """When an image is good enough, so that what its budget has left goes to the images of the call that are not.

    Given as `shared_budget` to a call whose method works in rounds. After each of its rounds, the best image so far is
    looked at. It is good enough where it holds every constraint, of the followed reward and of the verifier, and its
    score is at least the threshold. All others go on in turns, a round each, until they are good enough too or
    the budgets of all images together are spent, which is never exceeded. That is the number of images times
    `max_network_evaluations` and `max_reward_calls`, where they are given, and else what the method would cost.

    Each image of a prompt counts by itself. It is what its own generator makes of it in as many rounds as it gets,
    which depend on the other images. So the promise that an image is the same in every batch holds for equal numbers of
    rounds. Images are evaluated one after the other, as with a `particle_batch_size`.

    Args:
        threshold: of the score, in the units of its reward; where the followed one has a negative `reward_scale`, the
            most that it may be. None where constraints alone decide.
        verifier: the reward whose score it is, in any form that a call takes, such as `"ocr"` or `"nsfw < 0.2"`; None
            for the followed one, whose scores are known. Its scores of the best images so far count apart.

    Raises:
        ValueError: the threshold is not finite.

    Example:
        >>> search, sharing = RandomSearch(num_candidates=2, round_size=1), SharedBudget(threshold=40.0)
        >>> prompts = ["a red star", "a blue ring"]
        >>> out = pipe(prompts, alignment=search, shared_budget=sharing, num_inference_steps=1)
        >>> sum(out.shared.num_rounds) <= 4
        True
    """

    threshold: float | None = None
    verifier: RewardLike | None = None

    def __post_init__(self) -> None:
        if self.threshold is not None:
            check_finite(threshold=self.threshold)
        if isinstance(self.verifier, type):
            raise TypeError(f"verifier is {shown(self.verifier)}; give an instance, {self.verifier.__name__}()")


@dataclass
class Shared:
    """What became of a shared budget, one entry for each image of the call.

    Attributes:
        has_passed: whether it was found good enough.
        num_rounds: that it has taken.
        scores: of its best image, by the verifier; NaN where constraints alone decide.
        costs: of its rounds. What belongs to no single image, such as a trial of the reward, is in `out.cost` alone.
        verifier: name of the reward that decided.
        reward_calls: images that a verifier of its own has scored, with the one on which it was tried. `out.cost`
            counts only what the followed reward takes, here and in the next two.
        reward_requests, reward_price: requests to services for that, and what these charge.
    """

    has_passed: list[bool]
    num_rounds: list[int]
    scores: list[float]
    costs: list[Cost]
    verifier: str
    reward_calls: int = 0
    reward_requests: int = 0
    reward_price: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """As plain numbers and lists, for JSON."""
        return asdict(self)


def check_shareable(method: Method, given: str) -> None:
    """Raises a `ValueError` where a method has no rounds between which it could be ended, or no number of them.

    Args:
        given: the argument and its value, as `shared_budget is ...`.
    """
    if not method.works_in_rounds or method.grows is None:
        raise ValueError(
            f"{given}, but alignment {type(method).__name__} does not draw an image in rounds, after "
            "each of which it could stop; leave it out, or take a method in rounds, such as 'random_search', which is "
            "best-of-N in rounds"
        )


class Sharing:
    """A shared budget in one run.

    Args:
        shared_budget: when an image is good enough.
        method: of the run.
        followed: the reward that it follows.
        call: the call.
        named: rewards that were loaded by name before; a new one is added.

    Raises:
        TypeError, ValueError: the method does not work in rounds, nothing says what is good enough, or the verifier is
            none, is in stages, cannot be asked about the prompts, or fails on an image.
    """

    def __init__(
        self,
        shared_budget: SharedBudget,
        method: Method,
        followed: Reward | None,
        call: Call,
        named: dict[str, Reward],
    ) -> None:
        check_shareable(method, f"shared_budget is {shared_budget}")
        assert followed is not None, "methods in rounds need a reward"
        self.threshold = shared_budget.threshold
        self.verifier = None
        if shared_budget.verifier is not None:
            self.verifier = SecondReward("verifier", shared_budget.verifier, call, named)
            self.verifier.try_on(call)
        judges = [followed] if self.verifier is None else [followed, self.verifier.reward]
        if self.threshold is None and not any(judge.is_constrained for judge in judges):
            raise ValueError(
                f"shared_budget has no threshold, and {judges[-1].name!r} has no constraint; give "
                "SharedBudget(threshold=...), or a verifier with a constraint, such as 'nsfw < 0.2'"
            )
        self._best: list[float] = [-math.inf] * call.num_images
        self._scores: list[float] = [math.nan] * call.num_images
        self._name = judges[-1].name
        self._images: Sequence[ImageRounds] = ()
        self._rounds: SharedRounds | None = None

    def plan(self, method: Method, law: Law, levels: Sequence[float], budget: Budget) -> None:
        """Says what is shared: the budget of each image, or what the method would cost.

        Raises:
            ValueError: it does not pay for a round.
        """
        self._rounds = SharedRounds(method, law, levels, budget)

    @property
    def rounds(self) -> SharedRounds:
        """The rounds that share the budget."""
        assert self._rounds is not None, "`plan` comes before the first round"
        return self._rounds

    def iterate(self, law: Law, x: Tensor, random: RandomSource) -> Iterator[Progress]:
        """The stages of the run, a turn of all images each."""
        self._images = self.rounds.start(law, x, random)
        return self.rounds.iterate(law, self._images, self._passes)

    @property
    def shared(self) -> Shared:
        """What became of the budget so far."""
        cost = Cost() if self.verifier is None else self.verifier.cost
        return Shared(
            has_passed=[image.has_passed for image in self._images],
            num_rounds=[image.num_rounds for image in self._images],
            scores=list(self._scores),
            costs=[image.cost for image in self._images],
            verifier=self._name,
            reward_calls=cost.reward_calls,
            reward_requests=cost.reward_requests,
            reward_price=cost.reward_price,
        )

    def _passes(self, image: int, progress: Progress) -> bool:
        """Whether the best image so far of one image of the call is good enough; seen anew where it has changed."""
        cloud, law = progress.cloud, progress.law
        assert cloud.values is not None and cloud.final is not None, "a method in rounds has scored what it has drawn"
        best = cloud.values.flatten().argmax()
        value = cloud.values.flatten()[best].item()
        if not value > self._best[image]:
            return False
        self._best[image] = value
        followed = cloud.final.rows(best[None])
        score, sign, violations = followed.total, 1.0, [followed.violation]
        if self.verifier is not None:
            score, *others = self.verifier.scores(law, progress.best_known())
            violations += others
        else:
            sign = math.copysign(1.0, law.scales().item())
        is_barred = any(violation is not None and violation.item() != 0 for violation in violations)
        if self.threshold is None:
            return not is_barred
        self._scores[image] = score.item()
        return not is_barred and sign * self._scores[image] >= sign * self.threshold
