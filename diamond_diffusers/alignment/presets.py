"""Published methods by the names that people know, each a cell of the grid with its authors' settings.

A preset takes the model, so far as its settings depend on it (None for those of no model in particular), and options of
the method that it returns, which replace its own: `fk_steering(num_particles=8)`.

Settings that a call has of its own are not part of a method: where authors give a `reward_scale` and a number of steps,
the docstring says which.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..backbones.base import Denoising
from ..diamond import DiamondPosterior
from ..flow_map import has_map_to_data
from ..posteriors import DenoiserPoint, FlowMapPoint
from ..transitions import AncestralTransition, FlowMapTransition, GlassTransition, ODETransition
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

    Theirs runs 1000 steps on inverse problems, whose gradient they divide by the norm of the residual and apply after
    the step; here it is the exact one of any reward, and its size is limited to half the deviation of the posterior,
    without which few steps make worse images than plain ones.
    """
    guidance = Guidance(DenoiserPoint(), "pathwise", max_shift=0.5, transition=AncestralTransition())
    return replace(guidance, **options)


@register_preset
def fmtt(model: Denoising | None = None, **options: Any) -> Guidance:
    """Flow map trajectory tilting (Sabour et al., arXiv 2511.22688): guidance x flow-map point, pathwise.

    Particles move at random, which their search and their weights build on, and several may be drawn: the best is
    returned. The reward counts in full at every level, and the size of the shift is limited. For exact sampling make
    it the proposal of SMC, with the same point: `SMC(posterior=FlowMapPoint(), guidance=fmtt(transition=None))`.
    """
    transition = GlassTransition() if model is None else model.stochastic_transition()
    return replace(Guidance(flow_map_point(model), "pathwise", transition=transition), **options)


@register_preset
def fmrg(model: Denoising | None = None, **options: Any) -> Guidance:
    """FMRG (Huang et al., arXiv 2604.27147): guidance x flow map x flow-map point, the shift as large as the drift.

    FMRG-J, theirs for rewards that are networks: the gradient goes through the flow map, is scaled to the norm of the
    velocity, and times 3 is added to it. The first half of the steps is guided; after four of them the best of three
    particles goes on alone, by the reward at its look-ahead; two steps of the flow map, even in time, lead from there
    to the image. Particles follow the flow map from level to level, two evaluations a step; those of a few-step model,
    and of an ordinary one, whose map is 4 steps of its ODE and does not jump, take Euler steps. FMRG-E, theirs for
    inverse problems, is `fmrg(gradient="isotropic")`: the gradient at the look-ahead is applied without going through
    the map. The size of the reward, and so `reward_scale`, does not count.

    Where this is not what they ran: their scripts take the first steps of Adam, which are signs of the gradient times a
    rate that falls linearly, and leave the scaling by the velocity, which their sampler has and their text describes,
    without effect. Mostly they guide the first quarter to eighth of a finer grid, of 16 to 208 steps, at strengths of 2
    to 5 and with no, 2, 4 or more steps of warm-up; only their example for GenEval guides half of ten steps, the last
    of which is the jump. Some runs take one evaluation a step: the map to the end gives the step too. Their weight of
    the shift of FMRG-E is `t (1 - t')`, in place of the step that the ODE would make of it.
    """
    fmrg_j = Guidance(
        flow_map_point(model),
        "pathwise",
        guidance_strength=3.0,
        max_shift=None,
        transition=FlowMapTransition() if follows_flow_map(model) else ODETransition(),
        num_particles=3,
        scaling="auto",
        num_guided_steps=0.5,
        num_warm_up_steps=4,
        num_jump_steps=2 if model is None or has_map_to_data(model) else None,
    )
    return replace(fmrg_j, **options)


@register_preset
def reno(model: Denoising | None = None, **options: Any) -> NoiseOptimization:
    """ReNO (Eyring et al., arXiv 2406.04312): noise optimisation x the steps of the stock pipeline.

    Theirs is one step of a few-step model. Of a model with a Diamond Map `reno(transition=FlowMapTransition())` follows
    the flow map; by itself all steps of the stock pipeline are differentiated.

    Fifty iterations of gradient ascent in the starting noise of a one-step model, with their optimiser (momentum 0.9,
    Nesterov's), learning rate 5, gradients clipped at a norm of 0.1 and regularisation 0.01; the best image by the
    reward alone is kept. Their reward is `"imagereward + 5*hpsv2 + 0.01*clip + 0.05*pickscore"`, in float16; here
    gradients and noises are in float32.
    """
    return replace(NoiseOptimization(), **options)


@register_preset
def posterior_diamond(model: Denoising | None = None, **options: Any) -> Guidance:
    """Posterior Diamond Map (arXiv 2602.05993): guidance x ODE x Diamond look-ahead, pathwise.

    One evaluation a step, of one look-ahead by a map that is loaded (`pipe.load_diamond_map`), beside that of the base
    model, whose ODE is followed; the shift is as large as the drift (`scaling="auto"`). The strength is 1, theirs for
    inverse problems in 12 steps; for prompts, in 48 steps, it is 3. The size of the reward does not count.

    Theirs is guided at pure noise, where our maps do not depend on the state, so that there is no guidance, and in the
    last step, which here is not: of few steps it is a long one, and a change as large as the drift would show in the
    image. `posterior_diamond(num_guided_steps=None)` guides it too.
    """
    guidance = Guidance(
        DiamondPosterior(1),
        "pathwise",
        max_shift=None,
        transition=ODETransition(),
        scaling="auto",
        num_guided_steps=-1,
    )
    return replace(guidance, **options)


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
    option: `weighted_diamond(posterior=WeightedPosterior(16, snr_factor=1.1))`.

    Where this is not what they ran: the norm of the gradient grows with the image, and is 20 at the sizes above; on
    SANA-Sprint particles follow the ODE, where theirs move by `(x - z) / tau`, the velocity in another time than that
    of the step; a look-ahead takes two evaluations and two backward passes, where their code takes four and two on
    FLUX, one and two on SANA-Sprint (one pass would not do: what the gradients of reward and likelihood are divided by
    is known when both are); scores are not clipped, which theirs are at values that guided steps do not reach.
    """
    family = None if model is None else model.family
    if family == "sana_sprint":
        posterior = WeightedPosterior(4, snr_factor=20.0, weights="equal")
        own = {"guidance_strength": 20 / 32768**0.5, "scaling": "sana_sprint_norm", "max_coefficient": 3.0}
        own |= {"num_guided_steps": 5, "num_jump_steps": 1, "keeps_best": True}
    else:
        count = 16 if family == "flux" else 4
        posterior = WeightedPosterior(count, snr_factor=1.1, weights="reward_softmax", num_map_steps=map_steps(model))
        own = {"guidance_strength": 20 / 65536**0.5, "scaling": "norm", "max_coefficient": 20.0}
    guidance = Guidance(
        posterior,
        "pathwise",
        max_shift=None,
        transition=FlowMapTransition() if follows_flow_map(model) else ODETransition(),
        max_noise_to_signal=1000.0,
        **own,
    )
    return replace(guidance, **options)


def follows_flow_map(model: Denoising | None) -> bool:
    """Whether a flow map leads from level to level; that of a few-step model does, along its Euler steps, anyway."""
    return model is not None and has_map_to_data(model) and model.predicts_mean


def map_steps(model: Denoising | None) -> int:
    """Evaluations of a look-ahead along the flow map: one where the model has such a map, or is not known."""
    return 1 if model is None or has_map_to_data(model) else ODE_MAP_STEPS


def flow_map_point(model: Denoising | None) -> FlowMapPoint:
    return FlowMapPoint(map_steps(model))
