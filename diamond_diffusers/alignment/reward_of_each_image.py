"""Different rewards for the images of one run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Self

import torch
from torch import Tensor

from ..core.pending import Pending, together
from ..rewards.base import CompositeReward, Reward
from ..rewards.output import RewardOutput


class RewardOfEachImage(CompositeReward):
    """A reward for each of the rows that it scores: the images of a run, or rows that belong to them.

    Rows of one reward are scored together, as they would be without the others. The terms are those of all rewards; a
    row whose reward has no such term has NaN there. Terms of one name are one term, whichever reward they are of.

    Args:
        rewards: of each row.
        whole: the rewards of a run, of which these are some rows, and whose outputs these have the form of; None where
            these are all.

    Example:
        >>> from diamond_diffusers.rewards import as_reward
        >>> reward = RewardOfEachImage([as_reward("brightness"), as_reward("colour")])
        >>> reward(torch.ones(2, 3, 8, 8), ["a white dove", "a green field"]).tolist()[0]
        1.0
        >>> reward.rows(torch.tensor([0, 0, 1])).rewards_of_rows[-1].name
        'colour'
    """

    def __init__(self, rewards: Sequence[Reward], whole: RewardOfEachImage | None = None) -> None:
        self.rewards_of_rows = tuple(rewards)
        distinct = list({id(reward): reward for reward in rewards}.values())
        super().__init__(distinct, ", ".join(dict.fromkeys(reward.name for reward in distinct)))
        found = dict.fromkeys(name for reward in distinct for name in reward.term_names)
        self._term_names = list(found) if whole is None else whole.term_names
        self._is_constrained = super().is_constrained if whole is None else whole.is_constrained

    @property
    def term_names(self) -> list[str]:
        """Those of all rewards, each once."""
        return list(self._term_names)

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """The prompt of each row, by its own reward; see `Reward.check_prompts`."""
        for reward, prompt in zip(self.rewards_of_rows, prompts, strict=True):
            reward.check_prompts([prompt])

    @property
    def is_constrained(self) -> bool:  # type: ignore[override]
        """Whether any of the rewards is, also where none of these rows' is."""
        return self._is_constrained

    @property
    def is_concurrent(self) -> bool:  # type: ignore[override]
        """Whether any of the rewards is: the others are computed while it is awaited."""
        return any(reward.is_concurrent for reward in self.rewards)

    def rows(self, index: Tensor) -> Self:
        """The rewards of the rows `index [N]`, whose outputs have the same form."""
        return type(self)([self.rewards_of_rows[row] for row in index.tolist()], self)

    def evaluate(self, images: Tensor, prompts: Sequence[str], **context: Tensor | float) -> RewardOutput:
        """The score of each row by its own reward; see `Reward.evaluate`.

        Raises:
            TypeError, ValueError: as of `Reward.evaluate`; or the number of images is not that of the rewards.
        """
        return self.begin(images, prompts, **context).result()

    def begin(self, images: Tensor, prompts: Sequence[str], **context: Tensor | float) -> Pending[RewardOutput]:
        """As `evaluate`. The rewards that are concurrent are begun first, so that the others are computed meanwhile."""
        if len(images) != len(self.rewards_of_rows):
            raise ValueError(f"Reward '{self.name}' has {len(self.rewards_of_rows)} rows for {len(images)} images.")
        begins, order = [], []
        for reward in sorted(self.rewards, key=lambda reward: not reward.is_concurrent):
            mine = [row for row, other in enumerate(self.rewards_of_rows) if other is reward]
            texts = [prompts[row] for row in mine]
            begins.append(partial(reward.begin, _rows(images, mine), texts, **_context(context, mine)))
            order += mine
        return together(begins).then(partial(self._joined, torch.tensor(order).argsort().to(images.device)))

    def _joined(self, back: Tensor, outputs: Sequence[RewardOutput]) -> RewardOutput:
        """The outputs of all rewards, brought to the order of the rows."""
        terms: dict[str, list[Tensor]] = {name: [] for name in self._term_names}
        for output in outputs:
            nan = torch.full_like(output.total.detach(), torch.nan)
            for name, parts in terms.items():
                parts.append(output.terms.get(name, nan))
        return RewardOutput(
            torch.cat([output.total for output in outputs])[back],
            {name: torch.cat(parts)[back] for name, parts in terms.items()},
            # A reward without constraints violates none.
            torch.cat([_violation(output) for output in outputs])[back] if self.is_constrained else None,
        )


def rewards_and_images(reward: Reward | None) -> list[tuple[Reward, int]]:
    """The distinct rewards of a run, each with the first of the images that it scores."""
    if not isinstance(reward, RewardOfEachImage):
        return [] if reward is None else [(reward, 0)]
    return [(each, [other is each for other in reward.rewards_of_rows].index(True)) for each in reward.rewards]


def check_tilted(reward: Reward | None, scales: Tensor) -> None:
    """Raises a `ValueError` where a scale of 0 leaves some images plain samples, and constraints restrict others.

    Args:
        reward: of the images.
        scales: of each image, `[B]`.
    """
    if not isinstance(reward, RewardOfEachImage) or scales.any():
        return
    free = [each.name for each in reward.rewards if not each.is_constrained]
    if reward.is_constrained and free:
        # As where some scales alone are 0: methods draw no look-aheads for these.
        raise ValueError(
            f"reward_scale is 0, so that images of the reward {free[0]!r} are plain samples, which are drawn otherwise "
            "than those of rewards that have constraints; draw them in a call of their own"
        )


def _rows(values: Tensor, index: list[int]) -> Tensor:
    # All of them are those that a reward alone is given.
    return values if len(index) == len(values) else values[torch.tensor(index, device=values.device)]


def _violation(output: RewardOutput) -> Tensor:
    return torch.zeros_like(output.total) if output.violation is None else output.violation


def _context(context: dict[str, Tensor | float], index: list[int]) -> dict[str, Tensor | float]:
    """The context of some rows; what all rows share stays as it is."""
    return {
        name: _rows(value, index) if isinstance(value, Tensor) and value.ndim else value
        for name, value in context.items()
    }
