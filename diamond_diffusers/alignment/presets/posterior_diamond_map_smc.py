"""SMC with a Posterior Diamond Map."""

from __future__ import annotations

from typing import Any

from ...core.model import Model
from ...core.serial import with_options
from ...posteriors.diamond import DiamondPosterior
from ...transitions.glass import GlassTransition
from ..methods.smc import SMC
from . import PRESETS


@PRESETS.register("posterior_diamond_map_smc")
def posterior_diamond_map_smc(model: Model | None = None, **options: Any) -> SMC:
    """SMC with a Posterior Diamond Map (arXiv 2602.05993): SMC x GLASS transitions x Diamond look-aheads.

    Their setting on ImageNet: six steps of the base model with eight Euler steps of the inner flow each, ten particles,
    valued after every step by one look-ahead of the map, which is loaded (`pipe.load_diamond_map`), and resampled
    systematically wherever weights differ; the best is returned. Their temperature of 0.05 is `reward_scale=20`.

    Their code differs in this: of several look-aheads it takes the value `log mean exp` at temperature 1 and divides it
    by the temperature afterwards, whereas here `exp(reward_scale * reward)` is averaged; it neither weighs clean
    particles nor estimates the evidence, and its inner flow has a uniform grid that ends at 0.99.
    """
    smc = SMC(
        10,
        DiamondPosterior(1),
        GlassTransition(num_inner_steps=8, solver="euler"),
        "systematic",
        1.0,
        num_valuations=None,
        default_selection="best",
    )
    return with_options(smc, options)
