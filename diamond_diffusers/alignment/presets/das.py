"""DAS."""

from __future__ import annotations

import math
from typing import Any

from ...core.model import Model
from ...core.serial import with_options
from ...posteriors.denoiser import DenoiserPoint
from ...transitions.das import DASTransition
from ..guide import Guide
from ..methods.smc import SMC
from ..smc_parts.tempering import AdaptiveTempering, ScheduledTempering
from . import PRESETS


@PRESETS.register("das")
def das(model: Model | None = None, **options: Any) -> SMC:
    """DAS (Kim et al., arXiv 2501.05803): tempered, guided SMC x ancestral transitions x denoiser point.

    Four particles, valued after every step, with SSP resampling below half of them; proposals guided by the pathwise
    gradient at the temperature of the level that they lead to, without a limit; the heaviest particle is returned.
    Tempering follows their schedule where they give one, which reaches the whole reward near the end of so many steps:
    on Stable Diffusion and SDXL of 100 (`gamma=0.008`, noise `eta=1`), on few-step models of 8 (`gamma=0.1`,
    `eta=0.5`). Elsewhere settings are ours: `eta=0.5`, since images of few steps with all the noise are below plain
    ones, and adaptive tempering, which fits any number of steps, as `das(tempering=AdaptiveTempering())` does there
    too.
    Their `reward_scale` is 200 for the aesthetic score and 10000 for PickScore.

    Their code differs in this: where it resamples, it leaves values and gradients behind, so that a particle goes on
    with those of the one whose place it takes, and is weighed against its value; here they go with the ancestor. It
    finds adaptive temperatures by gradient descent, takes numbers that are none for 0, and pairs particles for SSP in
    another order. On models that are not variance-preserving the gradient is that in their coordinate.
    """
    eta = 0.5
    tempering: AdaptiveTempering | ScheduledTempering = AdaptiveTempering()
    if model is not None and not model.predicts_mean:
        tempering = ScheduledTempering(0.1)
    elif model is not None and model.name in ("stable_diffusion", "sdxl"):
        eta, tempering = 1.0, ScheduledTempering(0.008)
    smc = SMC(
        4,
        DenoiserPoint(),
        DASTransition(eta),
        "ssp",
        0.5,
        guide=Guide("pathwise", max_shift=None),
        max_tilt=math.inf,
        tempering=tempering,
        num_valuations=None,
        default_selection="heaviest",
    )
    return with_options(smc, options)
