"""FK steering."""

from __future__ import annotations

from typing import Any

from ...core.model import Model
from ...core.serial import with_options
from ...posteriors.denoiser import DenoiserPoint
from ...transitions.ancestral import AncestralTransition
from ..methods.smc import SMC
from . import PRESETS


@PRESETS.register("fk_steering")
def fk_steering(model: Model | None = None, **options: Any) -> SMC:
    """FK steering (Singhal et al., arXiv 2501.06848): SMC x ancestral transitions x denoiser point.

    Their setting of Stable Diffusion and SDXL, with 100 steps, `reward_scale=10` and ImageReward: four particles, the
    `max` potential from 0 upwards, multinomial resampling after 20, 40, 60 and 80 % of the steps, whatever the
    effective sample size; the best particle is returned.

    Their code differs in this: it resamples after the step that made the look-aheads, so that copies of a particle
    share the noise of one step more; it draws anew where all weights are equal, too; its weights end at `1e10`; the
    last factor takes the highest reward of the path for the last one, whereas here the product of all is `exp(r(z))`;
    its last reward is that of the last denoised sample; and it resamples clean particles once more before it takes the
    best of them.
    """
    smc = SMC(
        4,
        DenoiserPoint(),
        AncestralTransition(),
        "multinomial",
        1.0,
        potential="max",
        num_valuations=4,
        default_selection="best",
    )
    return with_options(smc, options)
