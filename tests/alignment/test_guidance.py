"""Guidance: the flow of the tilted denoiser samples the tilted law, and every family's network terms agree with it."""

import math

import pytest
import torch

from diamond_diffusers.alignment import Guidance, NoAlignment
from diamond_diffusers.alignment.look_ahead import look_ahead
from diamond_diffusers.alignment.model import TiltedModel
from diamond_diffusers.alignment.random_source import RandomSource
from diamond_diffusers.posteriors import DenoiserPoint, GlassPosterior
from diamond_diffusers.transitions import AncestralTransition, GlassTransition, ODETransition

from ..core.mixture import energy_distance, make_gaussian, make_mixture, seeded
from ..core.mixture_model import (
    FAMILIES,
    FAMILIES_AT_PURE_NOISE,
    LINEAR,
    QUADRATIC,
    SIGMA_DATA,
    MixtureBackbone,
    MixtureMapBackbone,
    make_model,
    unconditional,
)
from .runs import COARSE_LEVELS, falling_levels, run

MIXTURE = make_mixture(3)
GAUSSIAN = make_gaussian()
PARTICLES = 600


def exactly_distributed(law, count):
    """Draws `[count, d]` whose own mean and covariance are those of a single normal."""
    draws = torch.randn(3, count, generator=seeded(1), dtype=torch.float64)
    draws = draws - draws.mean(1, keepdim=True)
    white = torch.linalg.solve(torch.linalg.cholesky(draws.cov()), draws)
    return law.mean + (torch.linalg.cholesky(law.covariance) @ white).T


@pytest.mark.parametrize("family", FAMILIES)
def test_the_denoiser_point_samples_the_tilted_law_of_a_gaussian_and_a_linear_reward(family):
    """Its gradient is exact there. All maps are affine, so moments carry over without Monte-Carlo error."""
    model = make_model(GAUSSIAN, LINEAR, family, reward_scale=1.5)
    tilted, _ = LINEAR.tilt(GAUSSIAN, scale=1.5)
    x = exactly_distributed(tilted.observation(20.0), 50)
    errors = []
    for num_steps in (20, 40):
        result = run(
            Guidance(gradient="pathwise", max_shift=None, transition=ODETransition(), num_particles=50),
            model,
            falling_levels(num_steps, 20.0),
            x=x,
        )
        z = result.latents[0]
        torch.testing.assert_close(z.mean(0), tilted.mean, atol=1e-6, rtol=0)
        errors.append((z.T.cov() - tilted.covariance).abs().max())
    # First order in the step.
    assert errors[1] < 0.55 * errors[0] < 0.03


def test_the_tilted_mean_moves_a_gaussian_by_as_much():
    model = make_model(GAUSSIAN, LINEAR, reward_scale=1.5)
    tilted, _ = LINEAR.tilt(GAUSSIAN, scale=1.5)
    x = exactly_distributed(tilted.observation(20.0), 100)
    guidance = Guidance(
        GlassPosterior(16, 64, "multistep"),
        "tilted_mean",
        max_shift=None,
        transition=ODETransition(),
        num_particles=100,
    )
    z = run(guidance, model, falling_levels(15, 20.0), x=x).latents[0]
    # A finite cloud of look-aheads sees a little less than the whole shift.
    moved, exact = z.mean(0) - GAUSSIAN.mean, tilted.mean - GAUSSIAN.mean
    torch.testing.assert_close(moved, exact, atol=0.05 * exact.norm().item(), rtol=0)


@pytest.mark.parametrize(
    ("transition", "num_steps"),
    [(ODETransition(), 20), (AncestralTransition(), 40), (GlassTransition(4), 6), (GlassTransition(8, 0.5), 5)],
    ids=str,
)
@pytest.mark.parametrize("gradient", ["pathwise", "tilted_mean"])
def test_guided_particles_have_the_tilted_law(gradient, transition, num_steps):
    """Transitions of several inner steps are guided in each: few long steps do as well as many short ones."""
    tilted, _ = LINEAR.tilt(MIXTURE)
    x = tilted.observation(20.0).sample(PARTICLES, seeded(3)).float()
    posterior = GlassPosterior(4, 16, "multistep") if gradient == "pathwise" else GlassPosterior(8, 16, "multistep")
    guidance = Guidance(posterior, gradient, max_shift=None, transition=transition, num_particles=PARTICLES)
    exact = tilted.sample(PARTICLES, seeded(4)).float()
    again = tilted.sample(20 * PARTICLES, seeded(5)).reshape(20, PARTICLES, 3).float()
    # Four standard deviations of the distance of equal laws, and a twentieth of the distance to the plain law for the
    # finite steps and look-aheads.
    plain = energy_distance(MIXTURE.sample(PARTICLES, seeded(6)).float(), exact)
    tolerance = 4 * energy_distance(again, exact).std() + plain / 20
    result = run(guidance, make_model(MIXTURE, LINEAR), falling_levels(num_steps, 20.0), x=x)
    assert energy_distance(result.latents[0], exact) < tolerance < plain / 6


def test_guidance_of_the_tilted_mean_starts_at_pure_noise():
    tilted, _ = LINEAR.tilt(MIXTURE)
    guidance = Guidance(
        GlassPosterior(8, 16, "multistep"),
        "tilted_mean",
        max_shift=None,
        transition=ODETransition(),
        num_particles=PARTICLES,
    )
    z = run(guidance, make_model(MIXTURE, LINEAR, "v_prediction"), falling_levels(20)).latents[0]
    exact = tilted.sample(PARTICLES, seeded(4)).float()
    assert energy_distance(z, exact) < energy_distance(MIXTURE.sample(PARTICLES, seeded(6)).float(), exact) / 8


@pytest.mark.parametrize(
    "guidance",
    [
        Guidance(num_particles=5, transition=ODETransition()),
        Guidance(gradient="pathwise", num_particles=5, max_shift=None, transition=ODETransition()),
        Guidance(GlassPosterior(3, 4), "pathwise", transition=ODETransition(), num_particles=5),
        Guidance(GlassPosterior(3, 4), "tilted_mean", transition=ODETransition(), num_particles=5),
    ],
    ids=str,
)
@pytest.mark.parametrize("family", FAMILIES_AT_PURE_NOISE)
def test_without_a_reward_scale_the_plain_sample_is_reproduced_bit_for_bit(guidance, family):
    plain = run(NoAlignment(num_particles=5), make_model(MIXTURE, LINEAR, family, 2))
    unscaled = run(guidance, make_model(MIXTURE, LINEAR, family, 2, reward_scale=0.0))
    assert torch.equal(unscaled.latents, plain.latents)
    assert torch.equal(unscaled.rewards, plain.rewards)
    scaled = run(guidance, make_model(MIXTURE, LINEAR, family, 2))
    assert scaled.rewards.mean() > plain.rewards.mean()


# What is subtracted from the network's prediction is `b grad_x V`, in the family's own scale of x.
NETWORK_TERMS = {
    "rectified_flow": lambda t: t / (1 - t),
    "epsilon": torch.sin,
    "v_prediction": torch.tan,
    "trigonometric": lambda t: SIGMA_DATA * torch.tan(t),
}


@pytest.mark.parametrize("family", NETWORK_TERMS)
@pytest.mark.parametrize("kappa", [0.3, 2.0])
def test_the_shift_is_the_known_correction_of_each_network(family, kappa):
    model = make_model(MIXTURE, QUADRATIC, family)
    x = MIXTURE.observation(kappa).sample(6, seeded(1))
    ahead = look_ahead(model, DenoiserPoint(), x, kappa, RandomSource(seeded(2), 1), "pathwise")
    path, network = model.backbone.path, model.backbone.network
    time = path.time(kappa)
    noisy = path.from_bounded(x, time).requires_grad_()
    prediction = network(noisy, time, None)
    value = model.tilt(path.denoised(noisy, prediction, time), model.owners(6))
    (gradient,) = torch.autograd.grad(value.sum(), noisy)
    corrected = path.denoised(noisy, prediction - NETWORK_TERMS[family](time) * gradient, time)
    torch.testing.assert_close(ahead.predicted + ahead.shift, corrected.detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kappa", [0.3, 2.0, math.inf])
def test_the_limit_bounds_the_shift_and_keeps_its_direction(kappa):
    model = make_model(MIXTURE, LINEAR, reward_scale=3.0)
    x = torch.randn(50, 3, generator=seeded(1))
    posterior = GlassPosterior(4, 8)
    ahead = look_ahead(model, posterior, x, kappa, RandomSource(seeded(2), 1), "tilted_mean")
    limited = Guidance(posterior, "tilted_mean", guidance_strength=2.0, max_shift=0.2).shift(ahead, kappa)
    free = Guidance(posterior, "tilted_mean", guidance_strength=2.0, max_shift=None).shift(ahead, kappa)
    assert torch.equal(free, 2.0 * ahead.shift)
    limit = 0.2 * math.sin(math.atan(kappa))
    sizes, limited_sizes = free.square().mean(1).sqrt(), limited.square().mean(1).sqrt()
    torch.testing.assert_close(limited_sizes, sizes.clamp(max=limit))
    assert (sizes > limit).any()
    assert (torch.cosine_similarity(limited, free) > 1 - 1e-6).all()


def test_the_trace_records_values_and_the_size_of_the_shift():
    guidance = Guidance(num_particles=3, max_shift=0.1, transition=ODETransition())
    result = run(guidance, make_model(MIXTURE, LINEAR, num_images=2, reward_scale=5.0))
    assert [step.noise_to_signal for step in result.trace.steps] == list(COARSE_LEVELS[:-1])
    for step in result.trace.steps[1:]:
        assert (step.best_value >= step.mean_value).all()
        assert (step.gradient_norm <= 0.1 + 1e-6).all() and (step.gradient_norm > 0).all()
    assert result.trace.figures() == ["mean_value", "best_value", "gradient_norm"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient": "finite"}, "gradient is 'finite'; choose one of pathwise, isotropic, tilted_mean"),
        ({"gradient": "tilted_mean"}, "compares look-aheads"),
        ({"max_shift": 0.0}, r"max_shift is 0\.0"),
        ({"max_shift": -1.0}, r"max_shift is -1\.0"),
    ],
)
def test_unusable_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Guidance(**options)


def test_inner_queries_of_a_few_step_model_are_guided_at_the_posterior_mean():
    """Its predicted sample is the end of the flow map, which a GLASS transition must not take for `E[z | x]`."""
    scores, conditions, transition = MixtureBackbone(MIXTURE), unconditional(), GlassTransition(num_inner_steps=3)
    model = TiltedModel(MixtureMapBackbone(MIXTURE, scores), conditions, [""], LINEAR, score_model=(scores, conditions))
    x = torch.randn(5, 3, generator=seeded(1))
    unguided = Guidance(guidance_strength=0.0, transition=transition, num_particles=5)
    result = run(unguided, model, levels=(3.0, 1.0), x=x, seed=4)
    random = RandomSource(seeded(4), 1)
    _, noise = random.normal(5, (3,)), random.normal(5, (3,))
    network = make_model(MIXTURE).network(torch.zeros(5, dtype=torch.long))
    expected = transition.step(network, x, 3.0, 1.0, network.predict(x, 3.0), noise)
    torch.testing.assert_close(result.latents[0], expected, atol=1e-5, rtol=1e-5)
