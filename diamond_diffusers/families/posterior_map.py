"""What a family asks of a Diamond Map that is loaded around its network."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor, nn

from ..core.levels import Level
from ..core.model import Conditions


class PosteriorMap(Protocol):
    """A Diamond Map around the network of a family's model."""

    guidance: dict[str, Any]
    training_facts: dict[str, Any]

    @property
    def conditioning(self) -> nn.Module:
        """The map's layers beside the network."""

    def weights(self) -> Mapping[str, Tensor]:
        """The map's own weights, by the names under which they are saved."""

    def __call__(
        self, xbar: Tensor, s: Level, r: Level, x: Tensor, noise_to_signal: Level, conditions: Conditions
    ) -> Tensor:
        """Evaluates the map; see `Model.diamond_map`."""

    def away(self) -> AbstractContextManager[None]:
        """Context in which the network is without the map."""

    def remove(self) -> None:
        """Takes the map out of the network; it cannot be used again."""

    def take_out(self) -> dict[str, Tensor] | None:
        """Removes the map as `remove` does; returns the pieces that `put_back` takes."""

    def put_back(self, weights: Mapping[str, Tensor] | None) -> None:
        """Puts the pieces from `take_out` into the network again."""
