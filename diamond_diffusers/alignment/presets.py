"""Published methods by the names that people know, each a cell of the grid with its authors' settings.

A preset takes the model, so far as its settings depend on it (None for those of no model in particular), and options of
the method that it returns, which replace its own: `fk_steering(num_particles=8)`.

Settings that a call has of its own are not part of a method: each preset says which `reward_scale` and number of steps
its authors used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..backbones.base import Denoising
from ..diamond import DiamondPosterior
from ..flow_map import has_map_to_data
from ..posteriors import DenoiserPoint, FlowMapPoint
from ..transitions import AncestralTransition, ODETransition
from ..weighted_posterior import WeightedPosterior
from .base import Alignment
from .guidance import Guidance
from .noise_optimization import NoiseOptimization
from .posterior_resampling import PosteriorResampling
from .smc_presets import das, fk_steering, glass_fk, posterior_diamond_smc

Preset = Callable[..., Alignment]
PRESETS: dict[str, Preset] = {}

ODE_MAP_STEPS = 4
"""Evaluations of the flow map of a model that is none, by integrating its ODE."""


def register_preset(preset: Preset) -> Preset:
    """Adds a preset to `PRESETS` under its own name."""
    PRESETS[preset.__name__] = preset
    return preset


for _preset in (fk_steering, das, glass_fk, posterior_diamond_smc):
    register_preset(_preset)


@register_preset
def dps(model: Denoising | None = None, **options: Any) -> Guidance:
    """DPS (Chung et al., arXiv 2209.14687): guidance x ancestral transitions x denoiser point, pathwise.

    Theirs runs 1000 steps on inverse problems, whose gradient they divide by the norm of the residual; here it is the
    exact one, and its size is limited.
    """
    return replace(Guidance(DenoiserPoint(), "pathwise", transition=AncestralTransition()), **options)


@register_preset
def fmtt(model: Denoising | None = None, **options: Any) -> Guidance:
    """Flow map trajectory tilting (Sabour et al., arXiv 2511.22688): guidance x flow-map point, pathwise.

    Particles move at random, which their search and their weights build on, and several may be drawn: the best is
    returned. For exact sampling make it the proposal of SMC, with the same point:
    `SMC(posterior=FlowMapPoint(), guidance=fmtt())`.
    """
    return replace(Guidance(flow_map_point(model), "pathwise"), **options)


@register_preset
def fmrg(model: Denoising | None = None, **options: Any) -> Guidance:
    """FMRG (Huang et al., arXiv 2604.27147): guidance x ODE x flow-map point, the shift as large as the drift.

    The gradient goes through the flow map (FMRG-J, theirs for rewards that are networks); `gradient="isotropic"` takes
    it at the look-ahead and applies it directly (FMRG-E, theirs for inverse problems). The strength is 3, as on FLUX
    with ten steps, the first five guided; here guidance stops at half time, `kappa = 1`. The size of the reward, and so
    `reward_scale`, does not count.
    """
    fmrg_j = Guidance(
        flow_map_point(model),
        "pathwise",
        guidance_strength=3.0,
        max_shift=None,
        transition=ODETransition(),
        scaling="auto",
        min_noise_to_signal=1.0,
    )
    return replace(fmrg_j, **options)


@register_preset
def reno(model: Denoising | None = None, **options: Any) -> NoiseOptimization:
    """ReNO (Eyring et al., arXiv 2406.04312): noise optimisation x flow map.

    Fifty iterations of gradient ascent in the starting noise of a one-step model, with their learning rate, gradient
    clipping and norm regularisation; their reward is `"imagereward + 5*hpsv2 + 0.01*clip + 0.05*pickscore"`.
    """
    return replace(NoiseOptimization(), **options)


@register_preset
def posterior_diamond(model: Denoising | None = None, **options: Any) -> Guidance:
    """Posterior Diamond Map (arXiv 2602.05993): guidance x ODE x Diamond look-aheads, pathwise.

    One evaluation a look-ahead, by a map that is loaded (`pipe.load_diamond_map`). Theirs draws samples of ImageNet
    along the ODE of the base model, with the shift as large as the drift (`scaling="auto"`) times a strength that they
    choose for each task; here its size is the exact one, and limited.
    """
    return replace(Guidance(DiamondPosterior(4), "pathwise", transition=ODETransition()), **options)


@register_preset
def guided_diamond(model: Denoising | None = None, **options: Any) -> PosteriorResampling:
    """Posterior resampling x Diamond look-aheads, guided: our own use of a Diamond Map (arXiv 2602.05993).

    A look-ahead is all that a step evaluates: it is moved by the gradient of the reward at it, and noised to the next
    level. The best of the particles is returned.
    """
    return replace(PosteriorResampling(4, DiamondPosterior(1), guidance=Guidance(gradient="isotropic")), **options)


@register_preset
def weighted_diamond(model: Denoising | None = None, **options: Any) -> Guidance:
    """Weighted Diamond Map (arXiv 2602.05993): guidance x ODE x weighted look-aheads of a flow map, pathwise.

    On FLUX 16 look-aheads at `snr_factor=1.1`, 25 steps; on SANA-Sprint and others 4 at 20, 20 steps of which the first
    five below pure noise are guided. Terms of the gradient have unit size (`scaling="norm"`), with the coefficient
    clipped at 3, and their factor 20 at 512 x 512 pixels of FLUX and 1024 x 1024 of SANA. Look-aheads are weighed by
    the reward alone, as their code does by default; `consistent` weights need a posterior mean:
    `weighted_diamond(posterior=WeightedPosterior(16, snr_factor=1.1))`. Their `reward_scale` is 250, which the
    normalised gradient heeds in the proportions of the look-aheads alone.
    """
    is_flux = model is not None and model.family == "flux"
    num_samples, snr_factor, strength, lowest = (16, 1.1, 20 / 256, 0.0) if is_flux else (4, 20.0, 20 / 181, 2.0)
    posterior = WeightedPosterior(
        num_samples, snr_factor=snr_factor, weights="reward_softmax", num_map_steps=map_steps(model)
    )
    guidance = Guidance(
        posterior,
        "pathwise",
        guidance_strength=strength,
        max_shift=None,
        transition=ODETransition(),
        scaling="norm",
        max_coefficient=3.0,
        max_noise_to_signal=1000.0,
        min_noise_to_signal=lowest,
    )
    return replace(guidance, **options)


def map_steps(model: Denoising | None) -> int:
    """Evaluations of a look-ahead along the flow map: one where the model has such a map, or is not known."""
    return 1 if model is None or has_map_to_data(model) else ODE_MAP_STEPS


def flow_map_point(model: Denoising | None) -> FlowMapPoint:
    return FlowMapPoint(map_steps(model))
