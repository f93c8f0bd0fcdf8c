"""Guided resampling of Diamond look-aheads."""

from __future__ import annotations

from typing import Any

from ...core.model import Model
from ...core.serial import with_options
from ...posteriors.diamond import DiamondPosterior
from ..guide import Guide
from ..methods.posterior_resampling import PosteriorResampling
from . import PRESETS


@PRESETS.register("diamond_guided_resampling")
def diamond_guided_resampling(model: Model | None = None, **options: Any) -> PosteriorResampling:
    """Posterior resampling x Diamond look-aheads, guided: our own use of a Diamond Map (arXiv 2602.05993).

    A look-ahead is all that a step evaluates: it is moved by the gradient of the reward at it, and noised to the next
    level. The best of the particles is returned.
    """
    return with_options(PosteriorResampling(4, DiamondPosterior(1), guide=Guide("isotropic")), options)
