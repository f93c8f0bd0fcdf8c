"""DPS."""

from __future__ import annotations

from typing import Any

from ...core.model import Model
from ...core.serial import with_options
from ...posteriors.denoiser import DenoiserPoint
from ...transitions.ancestral import AncestralTransition
from ..guide import Guide
from ..methods.guidance import Guidance
from . import PRESETS


@PRESETS.register("dps")
def dps(model: Model | None = None, **options: Any) -> Guidance:
    """DPS (Chung et al., arXiv 2209.14687): guidance x ancestral transitions x denoiser point, pathwise.

    Theirs runs 1000 steps on inverse problems, whose gradient they divide by the norm of the residual and apply after
    the step; here it is the exact one of any reward, and its size is limited to half the deviation of the posterior,
    without which few steps make worse images than plain ones.
    """
    guidance = Guidance(DenoiserPoint(), Guide("pathwise", max_shift=0.5), AncestralTransition())
    return with_options(guidance, options)
