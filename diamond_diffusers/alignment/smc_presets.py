"""Published methods of sequential Monte Carlo by name; see `presets`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from ..backbones.base import Denoising
from ..diamond import DiamondPosterior
from ..levels import signal_and_noise
from ..posteriors import DenoiserPoint
from ..transitions import AncestralTransition, GlassTransition
from .guidance import Guidance
from .smc import SMC
from .tempering import AdaptiveTempering, ScheduledTempering


def fk_steering(model: Denoising | None = None, **options: Any) -> SMC:
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
    return replace(smc, **options)


@dataclass(frozen=True)
class DASTransition(AncestralTransition):
    """The ancestral step, whose noise DAS tilts by the gradient at the present state in place of that at the next.

    In the coordinate `x = y / sqrt(1 + kappa^2)` of variance-preserving models the mean of the step moves by its
    variance times `grad_x V`, `(alpha' / alpha) (kappa' / kappa)^2` times what the shift of the denoised sample would
    move it by; equal as steps shrink.
    """

    def tilt_gain(self, noise_to_signal: float, next_noise_to_signal: float) -> float:
        if math.isinf(noise_to_signal):
            return 0.0
        (alpha, _), (next_alpha, _) = signal_and_noise(noise_to_signal), signal_and_noise(next_noise_to_signal)
        fresh = self._fresh_noise(noise_to_signal, next_noise_to_signal)
        return float(next_alpha / alpha) * fresh / noise_to_signal**2


def das(model: Denoising | None = None, **options: Any) -> SMC:
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
    eta, tempering = 0.5, AdaptiveTempering()
    if model is not None and not model.predicts_mean:
        tempering = ScheduledTempering(0.1)
    elif model is not None and model.family in ("stable_diffusion", "sdxl"):
        eta, tempering = 1.0, ScheduledTempering(0.008)
    smc = SMC(
        4,
        DenoiserPoint(),
        DASTransition(eta),
        "ssp",
        0.5,
        guidance=Guidance(gradient="pathwise", max_shift=None),
        max_tilt=math.inf,
        tempering=tempering,
        num_valuations=None,
        default_selection="heaviest",
    )
    return replace(smc, **options)


def glass_fk(model: Denoising | None = None, **options: Any) -> SMC:
    """FK steering on GLASS flows (Holderrieth et al., arXiv 2509.25170): SMC x GLASS transitions x denoiser point.

    Transitions of several inner steps are what tells it from `fk_steering`: with one they are ancestral steps. The
    noises before and after a step have the correlation 0.4 of their FLUX runs, which had 74.3 on GenEval, where that of
    DDPM had 68.2. Take fewer steps than for plain sampling, since each costs `num_inner_steps` evaluations: particles
    are valued after every one. The best is returned.

    Ours are the number of particles and of inner steps, the solver of the inner flow, and that particles are resampled
    systematically, where their effective sample size is below half of them.
    """
    smc = SMC(
        4,
        DenoiserPoint(),
        GlassTransition(num_inner_steps=4, correlation=0.4),
        num_valuations=None,
        default_selection="best",
    )
    return replace(smc, **options)


def posterior_diamond_smc(model: Denoising | None = None, **options: Any) -> SMC:
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
    return replace(smc, **options)
