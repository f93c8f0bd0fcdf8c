"""Alignment methods, and the names under which they are known."""

from __future__ import annotations

from ..backbones.base import Denoising
from .base import Alignment, AlignmentResult
from .beam_search import BeamSearch
from .budget import fit_to_budget
from .guidance import Guidance
from .noise_optimization import NoiseEvolution, NoiseOptimization
from .noise_search import RandomSearch, ZeroOrderSearch
from .path_search import PathSearch
from .plain import BestOfN, NoAlignment
from .posterior_resampling import PosteriorResampling
from .posterior_smc import PosteriorSMC
from .presets import PRESETS
from .smc import SMC
from .tempering import AdaptiveTempering, ScheduledTempering

ALIGNMENTS: dict[str, type[Alignment]] = {
    "none": NoAlignment,
    "best_of_n": BestOfN,
    "smc": SMC,
    "guidance": Guidance,
    "beam_search": BeamSearch,
    "path_search": PathSearch,
    "random_search": RandomSearch,
    "zero_order_search": ZeroOrderSearch,
    "noise_optimization": NoiseOptimization,
    "noise_evolution": NoiseEvolution,
    "posterior_resampling": PosteriorResampling,
    "posterior_smc": PosteriorSMC,
}


def as_alignment(alignment: Alignment | str, model: Denoising | None = None) -> Alignment:
    """An alignment object, or the one that a name stands for with its defaults.

    Args:
        alignment: an object, a name in `ALIGNMENTS`, or the name of a published method in `PRESETS`.
        model: on which the settings of a published method may depend.

    Raises:
        TypeError: it is neither.
        ValueError: the name is unknown.
    """
    if isinstance(alignment, Alignment):
        return alignment
    if not isinstance(alignment, str):
        raise TypeError(f"alignment is {alignment!r}; give an Alignment, such as SMC(num_particles=4), or its name")
    if alignment in PRESETS:
        return PRESETS[alignment](model)
    if alignment not in ALIGNMENTS:
        names = ", ".join((*ALIGNMENTS, *PRESETS))
        raise ValueError(f"alignment is {alignment!r}; choose one of {names} or give an object")
    return ALIGNMENTS[alignment]()


__all__ = [
    "ALIGNMENTS",
    "PRESETS",
    "SMC",
    "AdaptiveTempering",
    "Alignment",
    "AlignmentResult",
    "BeamSearch",
    "BestOfN",
    "Guidance",
    "NoAlignment",
    "NoiseEvolution",
    "NoiseOptimization",
    "PathSearch",
    "PosteriorResampling",
    "PosteriorSMC",
    "RandomSearch",
    "ScheduledTempering",
    "ZeroOrderSearch",
    "as_alignment",
    "fit_to_budget",
]
