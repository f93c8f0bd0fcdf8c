"""Guided particles have the tilted law: of a Gaussian without Monte-Carlo error, of a mixture within it."""

from functools import cache

import pytest
import torch

from diamond_diffusers import (
    AncestralTransition,
    DiamondPosterior,
    DiamondTransition,
    GlassPosterior,
    GlassTransition,
    Guidance,
    Guide,
    ODETransition,
)

from ..core.mixture import energy_distance, make_gaussian, make_mixture, seeded
from ..core.mixture_model import FAMILIES, LINEAR, QUADRATIC, law_of, make_law, unconditional
from ..core.test_diamond import DiamondMixture
from ..products import diagonal
from .runs import falling_levels, run

MIXTURE = make_mixture(3)
GAUSSIAN = make_gaussian()
PARTICLES = 600
GRADIENTS = ["pathwise", "tilted_mean", "hybrid"]


def exactly_distributed(law, count):
    """Draws `[count, d]` whose own mean and covariance are those of a single normal."""
    draws = torch.randn(3, count, generator=seeded(1), dtype=torch.float64)
    draws = draws - draws.mean(1, keepdim=True)
    white = torch.linalg.solve(torch.linalg.cholesky(draws.cov()), draws)
    return law.mean + (torch.linalg.cholesky(law.covariance) @ white).T


@pytest.mark.parametrize("family", FAMILIES)
def test_the_denoiser_point_samples_the_tilted_law_of_a_gaussian_and_a_linear_reward(family):
    """Its gradient is exact there. All maps are affine, so moments carry over without Monte-Carlo error."""
    law = make_law(GAUSSIAN, LINEAR, family, reward_scale=1.5)
    tilted, _ = LINEAR.tilt(GAUSSIAN, scale=1.5)
    x = exactly_distributed(tilted.observation(20.0), 50)
    errors = []
    for num_steps in (20, 40):
        result = run(
            Guidance(guide=Guide("pathwise", max_shift=None), transition=ODETransition(), num_particles=50),
            law,
            falling_levels(num_steps, 20.0),
            x=x,
        )
        z = result.latents[0]
        torch.testing.assert_close(z.mean(0), tilted.mean, atol=1e-6, rtol=0)
        errors.append((z.T.cov() - tilted.covariance).abs().max())
    # First order in the step.
    assert errors[1] < 0.55 * errors[0] < 0.03


def test_the_tilted_mean_moves_a_gaussian_by_as_much():
    law = make_law(GAUSSIAN, LINEAR, reward_scale=1.5)
    tilted, _ = LINEAR.tilt(GAUSSIAN, scale=1.5)
    x = exactly_distributed(tilted.observation(20.0), 100)
    guidance = Guidance(
        GlassPosterior(16, 64, "multistep"),
        Guide("tilted_mean", max_shift=None),
        transition=ODETransition(),
        num_particles=100,
    )
    z = run(guidance, law, falling_levels(15, 20.0), x=x).latents[0]
    # A finite cloud of look-aheads sees a little less than the whole shift.
    moved, exact = z.mean(0) - GAUSSIAN.mean, tilted.mean - GAUSSIAN.mean
    torch.testing.assert_close(moved, exact, atol=0.05 * exact.norm().item(), rtol=0)


@pytest.mark.parametrize(
    ("gradient", "moves"),
    diagonal(
        GRADIENTS,
        [(ODETransition(), 20), (AncestralTransition(), 40), (GlassTransition(4), 6), (GlassTransition(8, 0.5), 5)],
    ),
    ids=str,
)
def test_guided_particles_have_the_tilted_law(gradient, moves):
    """Transitions of several inner steps are guided in each: few long steps do as well as many short ones."""
    transition, num_steps = moves
    posterior = GlassPosterior(8 if gradient == "tilted_mean" else 4, 16, "multistep")
    guidance = Guidance(posterior, Guide(gradient, max_shift=None), transition=transition, num_particles=PARTICLES)
    assert_has_the_tilted_law(guidance, make_law(MIXTURE, LINEAR), falling_levels(num_steps, 20.0))


@pytest.mark.parametrize(("gradient", "num_corrections"), diagonal(GRADIENTS, [1, 3]))
def test_guided_particles_have_the_law_that_a_quadratic_reward_tilts(gradient, num_corrections):
    guidance = Guidance(
        GlassPosterior(6, 16),
        Guide(gradient, max_shift=None),
        transition=ODETransition(),
        num_particles=PARTICLES,
        num_corrections=num_corrections,
    )
    assert_has_the_tilted_law(guidance, make_law(MIXTURE, QUADRATIC), falling_levels(12, 20.0))


@pytest.mark.parametrize(
    ("gradient", "moves"),
    diagonal(GRADIENTS, [(ODETransition(), 12), (GlassTransition(4), 5), (DiamondTransition(), 40)]),
    ids=str,
)
def test_look_aheads_of_a_diamond_map_guide_to_the_tilted_law(gradient, moves):
    transition, num_steps = moves
    family = DiamondMixture(MIXTURE)
    family.max_step = 0.2
    law = law_of(family, unconditional(), [""], LINEAR)
    guidance = Guidance(
        DiamondPosterior(8), Guide(gradient, max_shift=None), transition=transition, num_particles=PARTICLES
    )
    assert_has_the_tilted_law(guidance, law, falling_levels(num_steps, 20.0))


def test_guidance_of_the_tilted_mean_starts_at_pure_noise():
    tilted, _ = LINEAR.tilt(MIXTURE)
    guidance = Guidance(
        GlassPosterior(8, 16, "multistep"),
        Guide("tilted_mean", max_shift=None),
        transition=ODETransition(),
        num_particles=PARTICLES,
    )
    z = run(guidance, make_law(MIXTURE, LINEAR, "v_prediction"), falling_levels(20)).latents[0]
    exact = tilted.sample(PARTICLES, seeded(4)).float()
    assert energy_distance(z, exact) < energy_distance(MIXTURE.sample(PARTICLES, seeded(6)).float(), exact) / 8


@cache
def samples_of(reward):
    """Particles of the tilted law, the distance of the plain law to them, and the deviation of that of equal laws."""
    tilted, _ = reward.tilt(MIXTURE)
    exact = tilted.sample(PARTICLES, seeded(4)).float()
    again = tilted.sample(20 * PARTICLES, seeded(5)).reshape(20, PARTICLES, 3).float()
    plain = energy_distance(MIXTURE.sample(PARTICLES, seeded(6)).float(), exact)
    return exact, plain, energy_distance(again, exact).std()


def assert_has_the_tilted_law(guidance, law, levels):
    """Of particles that start in the tilted law of the first level."""
    exact, plain, deviation = samples_of(law.reward)
    # Four standard deviations of the distance of equal laws, and a twentieth of the distance to the plain law for the
    # finite steps and look-aheads.
    tolerance = 4 * deviation + plain / 20
    x = law.reward.tilt(MIXTURE)[0].observation(levels[0]).sample(PARTICLES, seeded(3)).float()
    result = run(guidance, law, levels, x=x)
    assert energy_distance(result.latents[0], exact) < tolerance < plain / 6
