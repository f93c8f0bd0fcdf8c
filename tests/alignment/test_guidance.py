"""Guidance: what its steps cost, which are guided and by how much; the shift is each network's known correction."""

import math
from dataclasses import replace

import pytest
import torch

from diamond_diffusers import (
    AncestralTransition,
    DenoiserPoint,
    DiamondPosterior,
    DiamondTransition,
    GlassPosterior,
    GlassTransition,
    Guidance,
    Guide,
    NoAlignment,
    ODETransition,
    RenoiseTransition,
    WeightedPosterior,
)
from diamond_diffusers.alignment.look_ahead import look_ahead
from diamond_diffusers.alignment.random_source import RandomSource
from diamond_diffusers.core.glass import EarlyStop, inner_times, query_level
from diamond_diffusers.core.interval import Interval

from ..core.mixture import coefficients, make_gaussian, make_mixture, seeded
from ..core.mixture_model import (
    FAMILIES_AT_PURE_NOISE,
    LINEAR,
    QUADRATIC,
    SIGMA_DATA,
    MixtureMapFamily,
    MixtureModel,
    at_rows,
    law_of,
    make_law,
    make_map_law,
    unconditional,
)
from ..core.test_diamond import DiamondMixture
from .runs import COARSE_LEVELS, run
from .test_weighted_look_aheads import assert_same, run_images

MIXTURE = make_mixture(3)
GAUSSIAN = make_gaussian()


def test_look_aheads_of_a_diamond_map_cost_one_evaluation_each():
    """The base gives the drift of the ODE, which its map does not need."""
    costs = {}
    for transition in (ODETransition(), DiamondTransition()):
        conditions = unconditional(2)
        guided = type(conditions)(conditions.features, conditions.features, 3.0)
        law = law_of(DiamondMixture(MIXTURE), guided, ["", ""], LINEAR)
        run(Guidance(DiamondPosterior(4), Guide("pathwise"), transition=transition, num_particles=3), law)
        costs[type(transition)] = law.cost
    rows = 2 * 3 * (len(COARSE_LEVELS) - 1)
    # Classifier-free guidance is baked into the map, and doubles the cost of the base alone.
    assert costs[ODETransition].network_evaluations == rows * (4 + 2)
    assert costs[DiamondTransition].network_evaluations == rows * (4 + 1)
    assert {cost.backward_passes for cost in costs.values()} == {rows * 4}


@pytest.mark.parametrize("num_corrections", [1, 2, 5])
def test_corrections_are_parts_of_the_step_at_the_state_that_those_before_have_reached(num_corrections):
    """Of a Gaussian, a quadratic reward and the denoiser point the shift is affine in the state, so they are powers."""
    kappa, next_kappa = 1.5, 0.5
    x = GAUSSIAN.observation(kappa).sample(4, seeded(1))
    law = GAUSSIAN.posterior(x, kappa)
    covariance, quadratic = law.covariance[0], QUADRATIC.quadratic
    first = (QUADRATIC.linear[""] - quadratic * law.mean) @ covariance
    # A unit of y moves the denoised sample by covariance / kappa^2.
    moved = 1 - next_kappa / kappa
    change = -quadratic * moved * covariance @ covariance / kappa**2 / num_corrections
    one = torch.eye(3, dtype=torch.float64)
    powers = [torch.linalg.matrix_power(one + change, part) for part in range(num_corrections)]
    shift = first @ torch.stack(powers).mean(0)

    def step(strength):
        guidance = Guidance(
            guide=Guide("pathwise", strength=strength, max_shift=None),
            transition=ODETransition(),
            num_particles=4,
            num_corrections=num_corrections,
        )
        law = make_law(GAUSSIAN, QUADRATIC)
        latents = run(guidance, law, (kappa, next_kappa), x=x).latents[0]
        assert law.cost.network_evaluations == law.cost.backward_passes == 4 * num_corrections
        return latents

    next_alpha, _ = coefficients(next_kappa)
    torch.testing.assert_close(step(1.0) - step(0.0), next_alpha * moved * shift, atol=1e-6, rtol=1e-6)


def test_pure_noise_is_not_corrected():
    law = make_law(MIXTURE, LINEAR)
    run(Guidance(num_corrections=3, transition=ODETransition()), law, (math.inf, 1.0, 0.0))
    assert law.cost.network_evaluations == 1 + 3


def test_levels_beyond_guidance_are_plain_and_cost_no_look_aheads():
    options = {"transition": ODETransition(), "num_particles": 4}
    posterior = GlassPosterior(3, 4)

    def sampled(method):
        law = make_law(MIXTURE, LINEAR)
        return run(method, law), law.cost

    plain, plain_cost = sampled(NoAlignment(ODETransition(), 4))
    nowhere, cost = sampled(Guidance(posterior, Guide(max_noise_to_signal=0.01, min_noise_to_signal=0.001), **options))
    assert torch.equal(nowhere.latents, plain.latents)
    assert cost.network_evaluations == plain_cost.network_evaluations and cost.decodes == 4
    windowed, cost = sampled(Guidance(posterior, Guide(max_noise_to_signal=1.2, min_noise_to_signal=0.5), **options))
    assert cost.decodes == 4 * (2 * 4 + 1)
    assert [step.gradient_norm is not None for step in windowed.trace.steps] == [False, False, True, True, False]
    assert windowed.rewards.mean() > plain.rewards.mean()


def test_queries_within_a_transition_are_guided_by_their_own_level():
    law = make_law(MIXTURE, LINEAR)
    transition = GlassTransition(3)
    guidance = Guidance(guide=Guide(max_noise_to_signal=1.5), transition=transition)
    run(guidance, law, (2.0, 0.5), x=torch.zeros(1, 3))
    # Only the last query is below 1.5.
    levels = [
        2.0,
        *(query_level(2.0, s) for s in inner_times(3, 2.0, EarlyStop(Interval(2.0, 0.5), 0.25).stop).tolist()[1:-1]),
    ]
    guided = sum(level <= 1.5 for level in levels)
    assert guided == 1 and levels[-1] < 1.5 < levels[-2]
    assert law.cost.decodes == guided + 1 and law.cost.network_evaluations == 3


@pytest.mark.parametrize(
    "guidance",
    [
        Guidance(num_particles=5, transition=ODETransition()),
        Guidance(guide=Guide("pathwise", max_shift=None), num_particles=5, transition=ODETransition()),
        Guidance(GlassPosterior(3, 4), Guide("pathwise"), transition=ODETransition(), num_particles=5),
        Guidance(GlassPosterior(3, 4), Guide("tilted_mean"), transition=ODETransition(), num_particles=5),
        Guidance(GlassPosterior(3, 4), Guide("hybrid"), transition=ODETransition(), num_particles=5),
        Guidance(guide=Guide(scaling="norm", max_coefficient=3.0), transition=ODETransition(), num_particles=5),
        Guidance(WeightedPosterior(4, num_map_steps=2), Guide("pathwise", scaling="norm"), transition=ODETransition()),
        Guidance(GlassPosterior(3, 4), Guide("hybrid", scaling="auto"), transition=ODETransition(), num_particles=5),
        Guidance(num_corrections=3, transition=ODETransition(), num_particles=5),
        Guidance(
            guide=Guide(max_noise_to_signal=2.0, min_noise_to_signal=0.3), transition=ODETransition(), num_particles=5
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("family", FAMILIES_AT_PURE_NOISE)
def test_without_a_reward_scale_the_plain_sample_is_reproduced_bit_for_bit(guidance, family):
    plain = run(NoAlignment(num_particles=guidance.num_particles), make_law(MIXTURE, LINEAR, family, 2))
    unscaled = run(guidance, make_law(MIXTURE, LINEAR, family, 2, reward_scale=0.0))
    assert torch.equal(unscaled.latents, plain.latents)
    assert torch.equal(unscaled.rewards, plain.rewards)
    powerless = run(
        replace(guidance, guide=replace(guidance.guide, strength=0.0)), make_law(MIXTURE, LINEAR, family, 2)
    )
    assert torch.equal(powerless.latents, plain.latents)
    scaled = run(guidance, make_law(MIXTURE, LINEAR, family, 2))
    assert scaled.rewards.mean() > plain.rewards.mean()


@pytest.mark.parametrize(
    "transition", [AncestralTransition(), GlassTransition(3), RenoiseTransition(), DiamondTransition()], ids=str
)
def test_without_a_reward_scale_stochastic_transitions_draw_what_plain_sampling_draws(transition):
    def sampled(method):
        law = law_of(DiamondMixture(MIXTURE), unconditional(2), ["", ""], LINEAR, reward_scale=0.0)
        return run(method, law).latents, law.cost.network_evaluations

    guided, cost = sampled(Guidance(GlassPosterior(3, 4), transition=transition, num_particles=3))
    plain, plain_cost = sampled(NoAlignment(transition, 3))
    assert torch.equal(guided, plain) and cost == plain_cost


# What is subtracted from the network's prediction is `b grad_x V`, in the family's own scale of x.
NETWORK_TERMS = {
    "rectified_flow": lambda t: t / (1 - t),
    "epsilon": torch.sin,
    "v_prediction": torch.tan,
    # Of F; `dx / dt = SIGMA_DATA F` has the square.
    "trigonometric": lambda t: SIGMA_DATA * torch.tan(t),
}


@pytest.mark.parametrize("family", NETWORK_TERMS)
@pytest.mark.parametrize("kappa", [0.3, 2.0])
def test_the_shift_is_the_known_correction_of_each_network(family, kappa):
    law = make_law(MIXTURE, QUADRATIC, family)
    x = MIXTURE.observation(kappa).sample(6, seeded(1))
    ahead = look_ahead(law, DenoiserPoint(), x, kappa, RandomSource(seeded(2), 1), "pathwise")
    path, network = law.model.path, law.model.network
    time = path.time(kappa)
    noisy = path.from_bounded(x, time).requires_grad_()
    prediction = network(noisy, time, None)
    value = at_rows(law, 6).tilt(path.denoised(noisy, prediction, time))
    (gradient,) = torch.autograd.grad(value.sum(), noisy)
    corrected = path.denoised(noisy, prediction - NETWORK_TERMS[family](time) * gradient, time)
    torch.testing.assert_close(ahead.predicted + ahead.shift, corrected.detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kappa", [0.3, 2.0, math.inf])
def test_the_limit_bounds_the_shift_and_keeps_its_direction(kappa):
    law = make_law(MIXTURE, LINEAR, reward_scale=3.0)
    x = torch.randn(50, 3, generator=seeded(1))
    posterior = GlassPosterior(4, 8)
    ahead = look_ahead(law, posterior, x, kappa, RandomSource(seeded(2), 1), "tilted_mean")
    limited = Guide("tilted_mean", strength=2.0, max_shift=0.2).shift(ahead, kappa)
    free = Guide("tilted_mean", strength=2.0, max_shift=None).shift(ahead, kappa)
    assert torch.equal(free, 2.0 * ahead.shift)
    limit = 0.2 * math.sin(math.atan(kappa))
    sizes, limited_sizes = free.square().mean(1).sqrt(), limited.square().mean(1).sqrt()
    torch.testing.assert_close(limited_sizes, sizes.clamp(max=limit))
    assert (sizes > limit).any()
    assert (torch.cosine_similarity(limited, free) > 1 - 1e-6).all()


@pytest.mark.parametrize(
    "guidance",
    [
        Guidance(WeightedPosterior(4), Guide("hybrid"), num_particles=2),
        Guidance(WeightedPosterior(4), Guide("pathwise", scaling="norm", max_coefficient=2.0), num_particles=2),
        Guidance(GlassPosterior(2, 3), Guide("hybrid", scaling="auto", max_noise_to_signal=2.0), num_corrections=2),
    ],
    ids=str,
)
@torch.no_grad()
def test_images_depend_neither_on_their_neighbours_nor_on_chunks(guidance):
    together = run_images(guidance, [0, 1, 2])
    for image in range(3):
        assert_same(together, run_images(guidance, [image]), slice(image, image + 1))
    assert_same(together, run_images(guidance, [0, 1, 2], particle_batch_size=5))


def test_the_trace_records_values_and_the_size_of_the_shift():
    guidance = Guidance(guide=Guide(max_shift=0.1), num_particles=3, transition=ODETransition())
    result = run(guidance, make_law(MIXTURE, LINEAR, num_images=2, reward_scale=5.0))
    assert [step.noise_to_signal for step in result.trace.steps] == list(COARSE_LEVELS[:-1])
    for step in result.trace.steps[1:]:
        assert (step.best_value >= step.mean_value).all()
        assert (step.gradient_norm <= 0.1 + 1e-6).all() and (step.gradient_norm > 0).all()
    assert result.trace.figures() == ["mean_value", "best_value", "gradient_norm"]
    (legend,) = result.trace.plot().legends
    assert [text.get_text() for text in legend.get_texts()] == ["image 0", "image 1"]
    assert not run(guidance, make_law(MIXTURE, LINEAR)).trace.plot().legends
    nowhere = replace(guidance, guide=replace(guidance.guide, max_noise_to_signal=0.01))
    with pytest.raises(ValueError, match=r"none of its 5 steps took look-aheads; .* guidance at some of its levels"):
        run(nowhere, make_law(MIXTURE, LINEAR)).trace.plot()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient": "finite"}, "gradient is 'finite'; choose one of pathwise, isotropic, tilted_mean"),
        ({"strength": math.nan}, "strength is nan; give a number"),
        ({"strength": math.inf}, "strength is inf; give a finite number"),
        ({"max_shift": 0.0}, r"max_shift is 0\.0"),
        ({"max_shift": math.nan}, "max_shift is nan"),
        ({"max_shift": -1.0}, r"max_shift is -1\.0"),
        ({"min_noise_to_signal": 2.0, "max_noise_to_signal": 1.0}, r"min_noise_to_signal is 2\.0 and max_noise"),
        ({"min_noise_to_signal": -1.0}, r"min_noise_to_signal is -1\.0"),
    ],
)
def test_unusable_options_of_a_guide_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Guide(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_corrections": 0}, "num_corrections is 0; give a whole number of at least 1"),
        ({"num_corrections": 1.5}, r"num_corrections is 1\.5; give a whole number"),
        ({"num_warm_up_steps": 2.5}, r"num_warm_up_steps is 2\.5; give a whole number"),
        ({"num_particles": 2.0}, r"num_particles is 2\.0; give a whole number"),
    ],
)
def test_unusable_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Guidance(**options)


@pytest.mark.parametrize("num_corrections", [1, 2])
def test_look_aheads_of_a_few_step_model_are_made_once_for_a_step_from_its_posterior_mean(num_corrections):
    """The shift that they give is the one that is used, and the trace shows it."""
    guidance = Guidance(
        GlassPosterior(2), Guide(max_shift=None), transition=GlassTransition(), num_corrections=num_corrections
    )
    x, law = torch.ones(1, 3), make_map_law(MIXTURE, QUADRATIC)
    result = run(guidance, law, (0.8, 0.0), x=x)
    mean = at_rows(law, 1).network.denoise(x, 0.8)
    used = (result.latents[0] - mean).square().mean(1).sqrt()
    torch.testing.assert_close(result.trace.steps[0].gradient_norm, used, atol=1e-6, rtol=1e-5)
    plain, point = (make_map_law(MIXTURE, LINEAR) for _ in range(2))
    run(NoAlignment(GlassTransition(3)), plain)
    run(Guidance(transition=GlassTransition(3)), point)
    queries = 3 * (len(COARSE_LEVELS) - 1)
    # Beside the posterior mean, guidance evaluates the flow map, whose end is the look-ahead.
    assert (plain.cost.network_evaluations, plain.cost.decodes) == (queries, 1)
    assert (point.cost.network_evaluations, point.cost.decodes) == (2 * queries, queries + 1)


def test_inner_queries_of_a_few_step_model_are_guided_at_the_posterior_mean():
    """Its predicted sample is the end of the flow map, which a GLASS transition must not take for `E[z | x]`."""
    scores, conditions, transition = MixtureModel(MIXTURE), unconditional(), GlassTransition(num_inner_steps=3)
    law = law_of(MixtureMapFamily(MIXTURE, scores), conditions, [""], LINEAR, score_model=(scores, conditions))
    x = torch.randn(5, 3, generator=seeded(1))
    unguided = Guidance(guide=Guide(strength=0.0), transition=transition, num_particles=5)
    result = run(unguided, law, levels=(3.0, 1.0), x=x, seed=4)
    noise = RandomSource(seeded(4), 1).normal(5, (3,))
    network = at_rows(make_law(MIXTURE), 5).network
    expected = transition.step(network, x, Interval(3.0, 1.0), network.predict(x, 3.0), noise)
    torch.testing.assert_close(result.latents[0], expected, atol=1e-5, rtol=1e-5)
