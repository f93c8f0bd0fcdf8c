"""What a loss is, and what it says of its needs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from ...core.model import Conditions

if TYPE_CHECKING:
    from ...maps.diamond_map import DiamondMap


@dataclass(frozen=True)
class DistillationLoss(ABC):
    """What the trainer minimises. Derive from `StepLoss` for a loss of pairs of inner times.

    Fields of a loss that are named like an option of the trainer, such as `diagonal_fraction`, are set by it.

    Attributes:
        needs_forward_mode: whether the network is differentiated in forward mode. Then neither checkpointed gradients
            nor a search for unused parameters is allowed, which have no rule for it.
        needs_trajectories: whether the loss learns from trajectories of the teacher's inner flow, instead of from clean
            latents.
    """

    needs_forward_mode: ClassVar[bool] = False
    needs_trajectories: ClassVar[bool] = False

    @abstractmethod
    def __call__(
        self, diamond_map: DiamondMap, data: Any, conditions: Conditions, batch_number: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and its parts to log, all of them scalars.

        Args:
            diamond_map: that is trained.
            data: clean latents `[N, ...]`, or `Trajectories` of `N` observations where the loss needs those.
            conditions: of the `N` rows; negative prompts and guidance scale are the teacher's.
            batch_number: counts all batches of the run. What decides how often the network is evaluated must follow
                from it alone, since all processes have to evaluate the network alike.
        """
