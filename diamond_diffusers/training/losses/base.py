"""The base class of distillation losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from ...core.checks import check_finite
from ...core.model import Conditions
from ...core.typed import Typed
from ..levels import PURE_NOISE_SHARE

if TYPE_CHECKING:
    from ...maps.diamond_map import DiamondMap


@dataclass(frozen=True)
class DistillationLoss(Typed, ABC):
    """The function that the trainer minimises. Derive from `StepLoss` for a loss of pairs of inner times.

    The trainer sets fields of a loss that are named like one of its options, such as `diagonal_fraction`.

    Args:
        pure_noise_share: share of the rows that are observed at pure noise, where every run begins. Where it is 1, the
            map learns to be a flow map of its base alone. Trajectories are drawn with this share, too.

    Attributes:
        needs_forward_mode: whether the network is differentiated in forward mode. Checkpointed gradients and a search
            for unused parameters are then refused, since they have no rule for it.
        needs_trajectories: whether the loss learns from trajectories of the teacher's inner flow, instead of from clean
            latents.
    """

    pure_noise_share: float = field(default=PURE_NOISE_SHARE, kw_only=True)

    needs_forward_mode: ClassVar[bool] = False
    needs_trajectories: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        numbers = {each.name: getattr(self, each.name) for each in fields(self)}
        check_finite(**{name: number for name, number in numbers.items() if isinstance(number, float)})

    @abstractmethod
    def __call__(
        self, diamond_map: DiamondMap, data: Any, conditions: Conditions, batch_number: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and its parts to log, all of them scalars.

        Args:
            diamond_map: the map that is trained.
            data: clean latents `[N, ...]`, or `Trajectories` of `N` observations if the loss needs those.
            conditions: conditions of the `N` rows; negative prompts and guidance scale are the teacher's.
            batch_number: number of the batch in the run. The number of evaluations of the network may depend on this
                number alone, since all processes have to evaluate the network equally often.
        """
