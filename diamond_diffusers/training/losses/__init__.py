"""Losses that the trainer can minimise: those of this folder, with one file each, or a user's own.

Nothing heavy is imported here, so that the command line can name the losses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from ...core.registry import Registry

if TYPE_CHECKING:
    from .base import DistillationLoss

T = TypeVar("T", bound="type[DistillationLoss]")

LOSSES: Registry[type[DistillationLoss]] = Registry(
    "loss", "losses", __name__, helpers=("base", "forward_mode", "residuals", "steps")
)
"""Classes of losses by name."""


def register_loss(name: str) -> Callable[[T], T]:
    """Makes the decorated class the loss that `--loss name` takes, and returns it unchanged.

    The trainer has to import the file first, by `--import file.py`. An installed package needs neither: it declares the
    class as an entry point of the group `diamond_diffusers.losses`.

    Args:
        name: an identifier.

    Raises:
        TypeError: the decorated object is no subclass of `DistillationLoss`.
        ValueError: the name is no identifier, or belongs to another loss.

    Example:
        >>> from diamond_diffusers import register_loss
        >>> from diamond_diffusers.training.losses.residuals import squared, student_denoised, teacher_denoised
        >>> from diamond_diffusers.training.losses.steps import StepLoss
        >>> @register_loss("velocity_only")
        ... class VelocityOnly(StepLoss):
        ...     def squared_residuals(self, diamond_map, batch):
        ...         taught = teacher_denoised(diamond_map, batch, batch.xbar, batch.s)
        ...         return squared(student_denoised(diamond_map, batch, batch.xbar, batch.s, batch.s) - taught)
    """

    def register(loss: T) -> T:
        from .base import DistillationLoss

        if not (isinstance(loss, type) and issubclass(loss, DistillationLoss)):
            raise TypeError(f"the loss {name!r} is {loss!r}; register a subclass of DistillationLoss, as StepLoss is")
        return LOSSES.register(name)(loss)

    return register
