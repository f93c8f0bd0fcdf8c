"""The options of a call that are this package's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ..alignment.auto_scale import AutoRewardScale
from ..alignment.budget import Budget
from ..alignment.processes import DistributedState
from ..alignment.result import FINAL_SELECTIONS
from ..alignment.reward_errors import RewardErrors
from ..alignment.reward_scales import check_reward_scale, check_reward_scales
from ..core.checks import check_choice, check_counts
from ..core.typed import Typed
from ..core.wording import shown
from ..rewards import RewardLike
from .callbacks import UserCallback, check_callback_signature
from .output import OUTPUT_TYPES
from .planning import AUTO
from .shared_budget import SharedBudget
from .watch import Watch


@dataclass(frozen=True)
class RunOptions(Typed):
    """The options of a call besides the stock pipeline's arguments; see `DiamondMapPipeline.__call__`."""

    reward: RewardLike | list[RewardLike] | None = None
    # A preset's name may need the model, so that `as_method` looks at it later.
    alignment: Any = None
    reward_scale: float | list[float] | AutoRewardScale | Literal["auto"] | None = None
    max_network_evaluations: int | None = None
    max_reward_calls: int | None = None
    final_selection: str | None = None
    particle_batch_size: int | Literal["auto"] | None = None
    gradient_checkpointing: bool | Literal["auto"] | None = None
    on_reward_error: str = "raise"
    watch: Watch | None = None
    shared_budget: SharedBudget | None = None
    distributed_state: DistributedState | None = None
    output_type: str = "pil"
    callback_on_step_end: UserCallback | None = None

    def __post_init__(self) -> None:
        size = self.particle_batch_size
        Budget(self.max_network_evaluations, self.max_reward_calls)
        check_counts(particle_batch_size=None if size == AUTO else size)
        RewardErrors(self.on_reward_error)
        for reward in self.reward if isinstance(self.reward, list) else [self.reward]:
            if isinstance(reward, type):
                raise TypeError(f"reward is {shown(reward)}; give an instance, {reward.__name__}()")
        if isinstance(self.reward_scale, list):
            check_reward_scales(self.reward_scale)
        elif self.reward_scale is not None and not isinstance(self.reward_scale, AutoRewardScale | str):
            check_reward_scale(self.reward_scale)
        if self.final_selection is not None:
            check_choice("final_selection", self.final_selection, FINAL_SELECTIONS)
        check_choice("output_type", self.output_type, OUTPUT_TYPES)
        if self.watch is not None and self.shared_budget is not None:
            raise ValueError(
                f"watch is {self.watch} and shared_budget is {self.shared_budget}, which both say when an image is at "
                "its end; give one of them"
            )
        check_callback_signature(self.callback_on_step_end)
