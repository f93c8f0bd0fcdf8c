"""A reward beside the one that a run follows, whose scores are counted apart."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..alignment.out_of_memory import with_smaller_chunks
from ..core.cost import Cost, charged_to
from ..rewards import Reward, RewardLike
from ..rewards.output import RewardOutput
from ..rewards.stages import stages_of
from .resolution import check_has_prompts, loaded_reward

if TYPE_CHECKING:
    from ..alignment.law import Law
    from .call import Call


class SecondReward:
    """A reward that looks at the finished images of a run now and then.

    Args:
        argument: of the call that names it, for errors.
        reward: in any form that a call takes.
        call: the call.
        named: rewards that were loaded by name before; a new one is added.

    Attributes:
        reward: as it is loaded.
        cost: what it has been asked for.

    Raises:
        TypeError, ValueError: it is no reward, is in stages, needs latents or cannot be asked about the prompts.
    """

    def __init__(self, argument: str, reward: RewardLike, call: Call, named: dict[str, Reward]) -> None:
        self.reward = loaded_reward(reward, named).to(device=call.device)
        self.cost = Cost()
        if stages_of(self.reward) is not None:
            raise ValueError(f"{argument} is of {self.name!r}, which is in stages; give the reward of one of them")
        if self.reward.wanted_context.get("latents"):
            raise ValueError(f"{argument} is of {self.name!r}, which needs latents; give one of images alone")
        check_has_prompts(self.reward, call.texts)
        self.reward.check_prompts(call.texts)

    @property
    def name(self) -> str:
        return self.reward.name

    def try_on(self, call: Call) -> None:
        """Tries it on one random image, so that a broken one fails before the work; as of `Reward.probe`."""
        size = (call.arguments.height or 64, call.arguments.width or 64)
        with charged_to(self.cost):
            self.cost.reward_calls += self.reward.probe(call.device, size, call.texts[0] or None)

    @torch.no_grad()
    def scores(self, law: Law, images: Tensor) -> list[Tensor]:
        """The scores `[B]` of one image of each of the law's, `[B, 3, H, W]`, and violations `[B]` where it has some.

        Both are float64 on the CPU, and NaN where it fails and the law's `reward_errors` skip that.
        """
        execution = replace(law.execution, cost=self.cost)

        def count(index: Tensor) -> None:
            self.cost.reward_calls += len(index)

        def score(index: Tensor, images: Tensor) -> RewardOutput:
            return self.reward.evaluate(images, [law.prompts[row] for row in index.tolist()])

        def score_rows(index: Tensor, images: Tensor) -> Tensor:
            return law.reward_errors.scores(execution, self.reward, score, index, images).differentiated()

        scored = partial(execution.over_chunks, score_rows, [1] * len(images), images, count=count)
        return list(with_smaller_chunks(execution, scored).cpu().double().unbind(1))
