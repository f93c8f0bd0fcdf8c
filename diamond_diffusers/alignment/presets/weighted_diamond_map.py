"""The Weighted Diamond Map."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...core.model import Model
from ...core.serial import with_options
from ...posteriors.weighted import WeightedPosterior
from ...transitions.flow_map import FlowMapTransition
from ...transitions.ode import ODETransition
from ..guide import Guide
from ..methods.guidance import Guidance
from . import PRESETS
from .base import follows_flow_map


@PRESETS.register("weighted_diamond_map")
def weighted_diamond_map(model: Model | None = None, **options: Any) -> Guidance:
    """Weighted Diamond Map (arXiv 2602.05993): guidance x ODE x weighted look-aheads of a flow map, pathwise.

    The gradients of the rewards, of the likelihoods and of the scores, averaged over the look-aheads, are brought to
    one size each (`scaling="norm"`), that of a norm of 20 at their number of latents. Likelihoods and scores are those
    of the velocity that the sampler follows, so that no score model is needed. Their `reward_scale` is 250, which does
    not count.

    The guidance scale is 1. On FLUX with a flow-map LoRA, which particles follow from level to level: 25 steps at
    512 x 512 pixels, all but the first guided; 16 look-aheads at `snr_factor=1.1`, averaged by the softmax of the
    unscaled reward; the coefficient limited to 20. (Those are the defaults of their inference; their benchmarks guide
    ten steps, at 1.5, with 1 to 32 look-aheads: `num_guided_steps=10`.) Models that they have not used get the same
    with 4 look-aheads. On SANA-Sprint: 20 steps at 1024 x 1024 pixels, of which the first five below pure noise are
    guided and the next jumps to the end; 4 look-aheads at 20, averaged evenly; the best image seen on the way kept; the
    coefficient limited to 3.
    It is theirs, `sigma_d^2 (sin^3 s / cos s - sin s cos s)`, whose sign is wrong below `s = pi / 4`, which five steps
    of 20 do not reach (see `scalings.sana_sprint_norm`). `consistent` weights, which need a posterior mean, are an
    option: `weighted_diamond_map(posterior=WeightedPosterior(16, snr_factor=1.1))`.

    Where this is not what they ran: the norm of the gradient grows with the image, and is 20 at the sizes above; on
    SANA-Sprint particles follow the ODE, where theirs move by `(x - z) / tau`, the velocity in another time than that
    of the step; a look-ahead takes two evaluations and two backward passes, where their code takes four and two on
    FLUX, one and two on SANA-Sprint (one pass would not do: what the gradients of reward and likelihood are divided by
    is known when both are); scores are not clipped, which theirs are at values that guided steps do not reach.
    """
    family = None if model is None else model.name
    if family == "sana_sprint":
        posterior = WeightedPosterior(4, snr_factor=20.0, weights="equal")
        guide = Guide("pathwise", 20 / 32768**0.5, "sana_sprint_norm", max_coefficient=3.0)
        course = {"num_guided_steps": 5, "num_jump_steps": 1, "keeps_best": True}
    else:
        count = 16 if family == "flux" else 4
        posterior = WeightedPosterior(count, snr_factor=1.1, weights="reward_softmax")
        guide = Guide("pathwise", 20 / 65536**0.5, "norm", max_coefficient=20.0)
        course = {}
    guide = replace(guide, max_shift=None, max_noise_to_signal=1000.0)
    transition = FlowMapTransition() if follows_flow_map(model) else ODETransition()
    return with_options(Guidance(posterior, guide, transition), {**course, **options})
