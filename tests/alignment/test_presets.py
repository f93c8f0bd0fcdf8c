"""Published methods by name: each is its cell of the grid, and runs through the classes that users call."""

import math
from dataclasses import replace

import pytest
import torch

from benchmarks.zoo.flux import build_tiny_flux
from diamond_diffusers import (
    SMC,
    AncestralTransition,
    BeamSearch,
    DenoiserPoint,
    DiamondMapPipeline,
    DiamondPosterior,
    DiamondTransition,
    DiffusionTreeSearch,
    FlowMapPoint,
    FlowMapTransition,
    GlassPosterior,
    GlassTransition,
    Guidance,
    NoAlignment,
    NoiseOptimization,
    ODETransition,
    PosteriorResampling,
    RolloverSearch,
    ValueDecoding,
    VPSDETransition,
    WeightedPosterior,
)
from diamond_diffusers.alignment.named import as_method
from diamond_diffusers.alignment.presets import PRESETS
from diamond_diffusers.alignment.presets.das import DASTransition, das
from diamond_diffusers.alignment.presets.fk_steering import fk_steering
from diamond_diffusers.alignment.presets.fmrg import fmrg
from diamond_diffusers.alignment.presets.fmtt import fmtt
from diamond_diffusers.alignment.presets.posterior_diamond_map import posterior_diamond_map
from diamond_diffusers.alignment.presets.weighted_diamond_map import weighted_diamond_map
from diamond_diffusers.alignment.random_source import RandomSource
from diamond_diffusers.cli.method import method_request

from ..conftest import redness
from ..core.mixture import coefficients, make_mixture, seeded, standard_error
from ..core.mixture_model import (
    LINEAR,
    QUADRATIC,
    MixtureMapFamily,
    MixtureModel,
    at_rows,
    law_of,
    make_map_law,
    unconditional,
)
from ..core.test_diamond import DiamondMixture
from .runs import COARSE_LEVELS, run

MIXTURE = make_mixture(3)
IMAGES, STEPS = 120, len(COARSE_LEVELS) - 1

CELLS = {
    "fk_steering": (SMC, DenoiserPoint, AncestralTransition),
    "das": (SMC, DenoiserPoint, DASTransition),
    "glass_fk": (SMC, DenoiserPoint, GlassTransition),
    "posterior_diamond_map_smc": (SMC, DiamondPosterior, GlassTransition),
    "dps": (Guidance, DenoiserPoint, AncestralTransition),
    "fmtt": (Guidance, FlowMapPoint, GlassTransition),
    "fmrg": (Guidance, FlowMapPoint, ODETransition),
    "fmrg_smc": (SMC, FlowMapPoint, type(None)),
    "reno": (NoiseOptimization, None, type(None)),
    "posterior_diamond_map": (Guidance, DiamondPosterior, ODETransition),
    "diamond_guided_resampling": (PosteriorResampling, DiamondPosterior, type(None)),
    "weighted_diamond_map": (Guidance, WeightedPosterior, ODETransition),
    "rbf": (RolloverSearch, DenoiserPoint, VPSDETransition),
    "svdd": (ValueDecoding, DenoiserPoint, AncestralTransition),
    "code": (ValueDecoding, DenoiserPoint, AncestralTransition),
    "narrow_tree_search": (DiffusionTreeSearch, None, type(None)),
    "look_ahead_beam_search": (BeamSearch, DiamondPosterior, DiamondTransition),
}
# Evaluations and backward passes of an image on an ordinary model, for which a flow map takes 4 steps of its ODE.
COSTS = {
    "fk_steering": (4 * STEPS, 0),
    "das": (4 * STEPS, 4 * STEPS),
    "glass_fk": (4 * 4 * STEPS, 0),
    "posterior_diamond_map_smc": (10 * (8 * STEPS + STEPS - 1), 0),
    "dps": (STEPS, STEPS),
    "fmtt": (4 * STEPS, 4 * STEPS),
    # Three guided steps and one more of three particles, their comparison, and one step of the best.
    "fmrg": (3 * (3 * 4 + 1 + 4) + 1, 3 * 3 * 4),
    # Below pure noise, of four particles.
    "fmrg_smc": (4 * (1 + 4 * (STEPS - 1)), 4 * 4 * (STEPS - 1)),
    # All steps but the last.
    "posterior_diamond_map": (STEPS + STEPS - 1, STEPS - 1),
    # Below pure noise, of each look-ahead its map, by whose first evaluation both gradients go.
    "weighted_diamond_map": (STEPS + (STEPS - 1) * 4 * 4, (STEPS - 1) * 4 * (4 + 1)),
    # Of ten steps the 500 of its authors.
    "rbf": (2 * 25 * STEPS, 0),
    "svdd": (1 + 20 * (STEPS - 1), 0),
    "code": (1 + 40 * (STEPS - 1), 0),
}


def law_of_preset(reward=LINEAR, num_images=1, family=DiamondMixture, **options):
    return law_of(family(MIXTURE), unconditional(num_images), [""] * num_images, reward, **options)


def test_each_name_is_its_cell_of_the_grid():
    assert set(PRESETS.names()) == set(CELLS)
    for name, (method, posterior, transition) in CELLS.items():
        alignment = as_method(name)
        assert type(alignment) is method and type(alignment.transition) is transition
        assert posterior is None or type(alignment.posterior) is posterior
        assert as_method(name, MixtureModel(MIXTURE)).needs_reward
        assert "arXiv" in PRESETS.get(name).__doc__


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name == "rbf" else []) for name in COSTS]
)
@pytest.mark.parametrize("reward", [LINEAR, QUADRATIC], ids=["linear", "quadratic"])
def test_presets_raise_the_reward_at_their_cost(name, reward):
    family = DiamondMixture if "posterior_diamond_map" in name else MixtureModel
    plain = run(NoAlignment(), law_of_preset(reward, IMAGES)).rewards
    law = law_of_preset(reward, IMAGES, family)
    alignment = as_method(name, law.model)
    result = run(alignment, law)
    chosen = result.select(alignment.default_selection, RandomSource(seeded(1), IMAGES))
    gain = (result.rewards.gather(1, chosen) - plain)[:, 0]
    assert gain.mean() > 4 * standard_error(gain)
    evaluations, backwards = COSTS[name]
    assert (law.cost.network_evaluations, law.cost.backward_passes) == (IMAGES * evaluations, IMAGES * backwards)


def test_reno_raises_the_reward_of_a_flow_map():
    law = make_map_law(MIXTURE, LINEAR, num_images=2, num_steps=4)
    reno = as_method("reno", law.model)
    assert (reno.num_iterations, reno.learning_rate, reno.max_gradient_norm) == (50, 5.0, 0.1)
    short = replace(reno, num_iterations=5)
    before, after = (run(method, law, (math.inf, 0.0)).rewards for method in (NoAlignment(), short))
    assert (after > before).all()


# FMRG: three particles over three guided steps and the two of the jump.
@pytest.mark.parametrize(
    ("name", "evaluations"),
    [("fmtt", STEPS), ("fmrg", 3 * (3 + 2)), ("weighted_diamond_map", STEPS + (STEPS - 1) * 4)],
)
def test_presets_of_flow_maps_take_one_evaluation_of_a_map_a_look_ahead(name, evaluations):
    law = make_map_law(MIXTURE, LINEAR, num_images=IMAGES, num_steps=4)
    alignment = as_method(name, law.model)
    plain = run(NoAlignment(ODETransition()), make_map_law(MIXTURE, LINEAR, IMAGES, num_steps=4)).rewards
    gain = (run(alignment, law).rewards - plain)[:, 0]
    assert gain.mean() > 4 * standard_error(gain)
    assert law.cost.network_evaluations == IMAGES * evaluations


@pytest.mark.parametrize(
    ("name", "evaluations", "backwards"),
    [
        ("fmtt", STEPS + STEPS, STEPS),
        ("fmrg", 3 * (3 * 2 + 2), 3 * 3),
        ("weighted_diamond_map", STEPS + (STEPS - 1) * 4 * 2, (STEPS - 1) * 4 * 2),
    ],
)
def test_the_flow_map_of_a_diamond_map_costs_one_evaluation_a_look_ahead(name, evaluations, backwards):
    law = law_of_preset(num_images=IMAGES)
    alignment = as_method(name, law.model)
    plain = run(NoAlignment(ODETransition()), law_of_preset(num_images=IMAGES)).rewards
    gain = (run(alignment, law).rewards - plain)[:, 0]
    assert gain.mean() > 4 * standard_error(gain)
    assert (law.cost.network_evaluations, law.cost.backward_passes) == (IMAGES * evaluations, IMAGES * backwards)


# Plain sampling by posterior samples is of its own kind; see test_posterior_resampling.
@pytest.mark.parametrize("name", [name for name in CELLS if name not in ("reno", "diamond_guided_resampling")])
def test_without_a_reward_scale_presets_are_plain_samples_bit_for_bit(name):
    alignment = as_method(name, DiamondMixture(MIXTURE))
    transition = alignment.transition or GlassTransition()
    unscaled = run(alignment, law_of_preset(reward_scale=0.0))
    plain = run(NoAlignment(transition, alignment.num_particles), law_of_preset())
    # The candidates of a search are drawn aside, as all particles but the first are.
    kept = 1 if isinstance(alignment, RolloverSearch) else alignment.num_particles
    assert torch.equal(unscaled.latents[:, :kept], plain.latents[:, :kept])


def test_settings_follow_the_model():
    few_step, ordinary = MixtureMapFamily(MIXTURE), MixtureModel(MIXTURE)
    assert fmtt(few_step).posterior == fmtt(ordinary).posterior == fmtt().posterior == FlowMapPoint()
    assert weighted_diamond_map(few_step) == weighted_diamond_map()
    assert weighted_diamond_map().posterior == WeightedPosterior(4, 1.1, "reward_softmax")
    assert fmrg().num_jump_steps == fmrg(few_step).num_jump_steps == 2 and fmrg(ordinary).num_jump_steps is None
    few_step.name, ordinary.name = "flux", "sdxl"
    flux = weighted_diamond_map(few_step)
    assert flux.posterior == WeightedPosterior(16, 1.1, "reward_softmax")
    assert (flux.guide.scaling, flux.guide.strength, flux.guide.max_coefficient) == ("norm", 20 / 256, 20.0)
    few_step.name = "sana_sprint"
    sprint = weighted_diamond_map(few_step)
    assert sprint.posterior == WeightedPosterior(4, 20.0, "equal")
    assert (sprint.guide.scaling, sprint.guide.max_coefficient) == ("sana_sprint_norm", 3.0)
    assert sprint.num_guided_steps == 5
    assert sprint.guide.strength == pytest.approx(20 / 181, rel=1e-3)
    with_map = DiamondMixture(MIXTURE)
    for preset in (fmrg, weighted_diamond_map):
        assert preset(with_map).transition == FlowMapTransition()
        assert preset(few_step).transition == preset(ordinary).transition == ODETransition()


def test_the_posterior_diamond_map_adds_as_much_as_the_drift():
    """One look-ahead, through which the gradient goes; a strength of 3 adds three times as much."""
    kappa, next_kappa = 1.4, 0.9
    x = MIXTURE.observation(kappa).sample(20, seeded(1)).float()

    def step(**options):
        law, states = law_of_preset(), []
        method = posterior_diamond_map(law.model, num_particles=20, **options)
        run(method, law, (kappa, next_kappa, 0.0), x=x, on_step=lambda index, x: states.append(x.clone()))
        assert (law.cost.network_evaluations, law.cost.backward_passes) == (20 * 3, 20)
        return states[0]

    plain = run(NoAlignment(ODETransition(), 20), law_of_preset(), (kappa, next_kappa), x=x).latents[0]
    drift = (plain / coefficients(next_kappa)[0] - x / coefficients(kappa)[0]) / (next_kappa - kappa)
    predicted = x / coefficients(kappa)[0] - kappa * drift
    # x_t of rectified flow, whose velocity is (x_t - E[z | x_t]) / t, with t = kappa / (1 + kappa).
    velocity = (x / sum(coefficients(kappa)) - predicted) * (1 + kappa) / kappa
    for strength in (1.0, 3.0):
        moved = (step(guide={"strength": strength}) - plain) * (1 / sum(coefficients(next_kappa)))
        time_step = kappa / (1 + kappa) - next_kappa / (1 + next_kappa)
        expected = strength * time_step * velocity.square().mean(1).sqrt()
        torch.testing.assert_close(moved.square().mean(1).sqrt(), expected.float(), atol=1e-4, rtol=1e-3)


def test_both_forms_of_fmrg_move_by_three_times_the_drift():
    """FMRG-E takes the gradient at the end of the map, which costs no backward pass of the network."""
    kappa, next_kappa = 2.0, 1.5
    x = MIXTURE.observation(kappa).sample(20, seeded(1)).float()

    def step(gradient, strength):
        law = make_map_law(MIXTURE, LINEAR, num_steps=6)
        method = fmrg(guide={"gradient": gradient, "strength": strength}, num_particles=20)
        latents = run(method, law, (kappa, next_kappa), x=x).latents[0]
        assert law.cost.backward_passes == (20 if gradient == "pathwise" else 0)
        return latents

    plain = step("pathwise", 0.0)
    end = at_rows(make_map_law(MIXTURE, LINEAR, num_steps=6), 20).network.predict(x, kappa)
    (alpha, sigma), (next_alpha, _) = coefficients(kappa), coefficients(next_kappa)
    drift = (x / (alpha + sigma) - end).square().mean(1).sqrt()
    for gradient in ("pathwise", "isotropic"):
        moved = step(gradient, 3.0) - plain
        expected = 3 * next_alpha * (1 - next_kappa / kappa) * drift
        torch.testing.assert_close(moved.square().mean(1).sqrt(), expected.float())
    direction = LINEAR.linear[""].float().expand(20, 3)
    assert (torch.cosine_similarity(moved, direction) > 1 - 1e-5).all()


def test_options_replace_the_settings_of_a_preset():
    assert fk_steering(num_particles=8) == replace(fk_steering(), num_particles=8)
    assert fmrg(guide={"gradient": "isotropic"}) == replace(fmrg(), guide=replace(fmrg().guide, gradient="isotropic"))
    with pytest.raises(ValueError, match="has no option 'num_beams'"):
        fk_steering(num_beams=2)


def test_the_pipeline_knows_presets_by_name():
    pipe = DiamondMapPipeline.from_pipe(build_tiny_flux(guidance_embeds=False))
    call = {"height": 16, "width": 16, "num_inference_steps": 3, "max_sequence_length": 12, "reward": redness}
    for name in ("fk_steering", "das", "dps", "fmrg", "weighted_diamond_map"):
        by_name, by_object = (
            pipe("a red circle", alignment=alignment, generator=seeded(1), output_type="latent", **call)
            for alignment in (name, PRESETS.get(name)(pipe.family))
        )
        assert torch.equal(by_name.images, by_object.images)
        assert by_name.cost.network_evaluations == by_object.cost.network_evaluations
    with pytest.raises(ValueError, match=r"needs a Diamond Map.*load_diamond_map"):
        pipe("a red circle", alignment="posterior_diamond_map", **call)


def test_the_command_line_knows_presets_and_changes_what_is_given():
    family = MixtureModel(MIXTURE)
    for name in PRESETS.names():
        assert method_request(name, {}).build(family) == as_method(name, family)
    flags = {"--num-particles": 6, "--posterior": "glass", "--num-lookaheads": 3, "--guidance-strength": 0.5}
    assert method_request("das", flags).build() == das(
        num_particles=6,
        posterior=GlassPosterior(num_samples=3),
        guide={"strength": 0.5},
    )
