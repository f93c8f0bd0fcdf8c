"""How well a Diamond Map draws from its teacher's laws, as its training measured it: facts, and a part of its card."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..files.foreign import ForeignFileError
from ..files.json_forms import fitted

ACCURACY = "accuracy"
"""The name among the facts of a training."""


@dataclass(frozen=True)
class LawAccuracy:
    """How far look-aheads at one level are from those of the teacher's GLASS in many steps, in latents.

    Attributes:
        sampler: its name.
        level: of the observations, as a time of rectified flow in (0, 1].
        energy_distance: mean over observations; its expectation is 0 where the laws are equal.
        energy_distance_error: its standard error.
        deviation_ratio: the total standard deviation over the sampler's noise, divided by the reference's.
        deviation_ratio_error: its standard error.

    All figures are None where they are no numbers, as those of a map may be whose training went astray.
    """

    sampler: str
    level: float
    energy_distance: float | None
    energy_distance_error: float | None
    deviation_ratio: float | None
    deviation_ratio_error: float | None


@dataclass(frozen=True)
class MapAccuracy:
    """The figures of a map, and of the teacher's GLASS in few steps beside it.

    Attributes:
        num_observations: held-out rows that were observed at each level.
        num_samples: look-aheads of each observation.
        reference_steps: steps of GLASS that drew what all is compared with.
        laws: of every sampler, at every level.
    """

    num_observations: int
    num_samples: int
    reference_steps: int
    laws: list[LawAccuracy]

    @classmethod
    def read(cls, facts: Mapping[str, Any]) -> MapAccuracy | None:
        """That among the facts of a training, which others may have written; None where there is none."""
        try:
            return fitted(facts.get(ACCURACY), cls, ACCURACY, "train it anew")
        except ForeignFileError:
            return None

    @property
    def levels(self) -> list[float]:
        """The levels at which laws are compared, in their order."""
        return list(dict.fromkeys(law.level for law in self.laws))

    def by_sampler(self, text: Callable[[LawAccuracy], str]) -> dict[str, list[str]]:
        """A text of each law of each sampler, level by level."""
        found: dict[str, list[str]] = {}
        for law in self.laws:
            found.setdefault(law.sampler, []).append(text(law))
        return found


def distance_text(law: LawAccuracy) -> str:
    """The energy distance with its standard error."""
    return _with_error(law.energy_distance, law.energy_distance_error, ".3g")


def ratio_text(law: LawAccuracy) -> str:
    """The deviation ratio with its standard error."""
    return _with_error(law.deviation_ratio, law.deviation_ratio_error, ".3f")


def _with_error(value: float | None, error: float | None, form: str) -> str:
    return "–" if value is None or error is None else f"{value:{form}} ± {error:.1g}"
