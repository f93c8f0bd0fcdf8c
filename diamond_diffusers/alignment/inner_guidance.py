"""A `Guidance` as a part of another method, which uses its gradient, strength, scaling, limits and levels."""

from __future__ import annotations

from dataclasses import fields

from ..posteriors.base import PosteriorSampler
from ..posteriors.denoiser import DenoiserPoint
from ..transitions.base import Transition
from .base import check_comparable
from .methods.guidance import Guidance

COURSE = (
    "num_particles",
    "num_corrections",
    "num_guided_steps",
    "num_jump_steps",
    "num_warm_up_steps",
    "keeps_best",
)
"""Options of a run that is a guidance's own."""


def check_inner_guidance(
    guidance: Guidance, owner: str, posterior: PosteriorSampler, transition: Transition | None
) -> None:
    """Raises a `ValueError` for a guidance with options that a method would ignore, or that its look-aheads forbid.

    Args:
        guidance: of the method.
        owner: name of the method.
        posterior: its own look-aheads, which the guidance may repeat.
        transition: its own transition, which the guidance may repeat.
    """
    check_comparable(guidance.gradient, posterior)
    defaults = {field.name: field.default for field in fields(guidance)}
    for name in COURSE:
        if (value := getattr(guidance, name)) != defaults[name]:
            raise ValueError(
                f"guidance has {name}={value}, but {owner} runs a course of its own and would ignore it; leave it at "
                f"{defaults[name]}"
            )
    if guidance.transition not in (None, transition):
        raise ValueError(
            f"guidance has transition={guidance.transition}, but particles move by that of {owner}; give it there"
        )
    if guidance.posterior not in (DenoiserPoint(), posterior):
        raise ValueError(
            f"guidance has posterior={guidance.posterior}, but look-aheads are those of {owner}; give it there, or to "
            "both"
        )
