"""Alignment methods, and the names under which they are known."""

from __future__ import annotations

from .base import Alignment, AlignmentResult
from .guidance import Guidance
from .plain import BestOfN, NoAlignment
from .smc import SMC

ALIGNMENTS: dict[str, type[Alignment]] = {
    "none": NoAlignment,
    "best_of_n": BestOfN,
    "smc": SMC,
    "guidance": Guidance,
}


def as_alignment(alignment: Alignment | str) -> Alignment:
    """An alignment object, or the one that a name stands for with its defaults.

    Raises:
        ValueError: the name is unknown.
    """
    if isinstance(alignment, Alignment):
        return alignment
    if alignment not in ALIGNMENTS:
        raise ValueError(f"alignment is {alignment!r}; choose one of {', '.join(ALIGNMENTS)} or give an object")
    return ALIGNMENTS[alignment]()


__all__ = ["ALIGNMENTS", "SMC", "Alignment", "AlignmentResult", "BestOfN", "Guidance", "NoAlignment", "as_alignment"]
