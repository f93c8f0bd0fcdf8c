"""Transitions against the exact law of the next level, and against the steps that they contain as special cases."""

import math

import pytest
import torch

from diamond_diffusers import AncestralTransition, GlassTransition, ODETransition, VPSDETransition
from diamond_diffusers.core.glass import sample_transition
from diamond_diffusers.core.interval import Interval
from diamond_diffusers.core.levels import ode_step
from diamond_diffusers.core.model import Conditions
from diamond_diffusers.core.network import Network

from ..products import diagonal
from .mixture import coefficients, energy_distance, excess_variance, make_gaussian, make_mixture, seeded, standard_error
from .mixture_model import FAMILIES, FAMILIES_AT_PURE_NOISE, MixtureModel

MIXTURE = make_mixture(3)
STEPS = [(0.8, 0.3), (2.0, 0.8), (6.0, 0.5), (math.inf, 2.0)]
CORRELATIONS = [0.0, 0.3, "ddpm", 0.9, 1.0]
OBSERVATIONS, SAMPLES = 8, 600
UNUSED = Network(None)
"""Of steps of one evaluation, which is handed to them."""


def denoiser_of(family):
    return lambda x, level: family.denoise(x, level, Conditions({}))


def observations(level):
    return MIXTURE.observation(level).sample(OBSERVATIONS, seeded(7)).float()


def stepped(transition, family, x, level, next_level, noise):
    denoise = denoiser_of(family)
    return transition.step(Network(denoise, denoise), x, Interval(level, next_level), denoise(x, level), noise)


def errors_of_the_joint_law(transition, family, correlation, steps):
    """Energy distances and excess variances `[steps x observations]`, and both of the exact law to itself."""
    family = MixtureModel(MIXTURE, family)
    errors, null = [], []
    for seed, (level, next_level) in enumerate(steps):
        x = observations(level)
        rho = next_level / level if correlation == "ddpm" else correlation
        law = MIXTURE.transition(x, level, next_level, rho)
        exact, again = (law.sample(SAMPLES, seeded(10 * seed + pair)).float() for pair in (1, 2))
        noise = torch.randn(OBSERVATIONS * SAMPLES, 3, generator=seeded(10 * seed + 3))
        moved = stepped(transition, family, x.repeat_interleave(SAMPLES, 0), level, next_level, noise)
        moved = moved.unflatten(0, (OBSERVATIONS, SAMPLES))
        errors.append(torch.stack([energy_distance(moved, exact), excess_variance(moved, law)], 1))
        null.append(torch.stack([energy_distance(again, exact), excess_variance(again, law)], 1))
    return torch.cat(errors), torch.cat(null)


@pytest.mark.parametrize(
    ("family", "correlation"), diagonal(["rectified_flow", "epsilon", "v_prediction", "trigonometric"], CORRELATIONS)
)
def test_early_stopped_flows_have_the_exact_joint_law(family, correlation):
    steps = STEPS if family in FAMILIES_AT_PURE_NOISE else STEPS[:-1]
    transition = GlassTransition(num_inner_steps=24, correlation=correlation)
    errors, null = errors_of_the_joint_law(transition, family, correlation, steps)
    distance, excess = errors.mean(0).abs()
    # Four standard errors, and one percent of the variance for the finite inner steps.
    assert distance < 4 * standard_error(null[:, 0])
    assert excess < 4 * standard_error(null[:, 1]) + 0.01


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_one_inner_step_does_not_have_it(correlation):
    """So that the test above can tell laws apart."""
    transition = GlassTransition(num_inner_steps=1, correlation=correlation)
    errors, null = errors_of_the_joint_law(transition, "rectified_flow", correlation, STEPS)
    assert (errors.mean(0).abs() > 20 * standard_error(null)).all()


@pytest.mark.parametrize("family", FAMILIES_AT_PURE_NOISE)
@pytest.mark.parametrize(("level", "next_level"), [*STEPS, (0.5, 0.0), (math.inf, 0.0)])
def test_one_inner_step_contains_the_euler_and_the_ancestral_step(family, level, next_level):
    family = MixtureModel(MIXTURE, family)
    x, noise = observations(level), torch.randn(OBSERVATIONS, 3, generator=seeded(1))
    euler = stepped(GlassTransition(1, correlation=1.0), family, x, level, next_level, noise)
    ddpm = stepped(GlassTransition(1, correlation="ddpm"), family, x, level, next_level, noise)
    ode = ode_step(x, MIXTURE.posterior(x, level).mean, level, next_level).float()
    ancestral = stepped(AncestralTransition(), family, x, level, next_level, noise)
    torch.testing.assert_close(euler, ode, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(stepped(ODETransition(), family, x, level, next_level, noise), ode)
    torch.testing.assert_close(ddpm, ancestral, atol=1e-5, rtol=1e-5)


def test_one_inner_step_is_the_ddim_step_of_matching_eta():
    family = MixtureModel(MIXTURE)
    x, noise = observations(2.0), torch.randn(OBSERVATIONS, 3, generator=seeded(1))
    # Fresh noise: kappa' sqrt(1 - rho^2) = eta kappa' sqrt(1 - (kappa' / kappa)^2).
    eta = math.sqrt((1 - 0.9**2) / (1 - 0.4**2))
    glass = stepped(GlassTransition(1, correlation=0.9), family, x, 2.0, 0.8, noise)
    ddim = stepped(AncestralTransition(eta), family, x, 2.0, 0.8, noise)
    torch.testing.assert_close(glass, ddim, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("level", [2.0, math.inf])
def test_the_ancestral_step_is_the_formula_of_ddim(eta, level):
    x, denoised, noise = torch.randn(3, 5, 3, generator=seeded(1), dtype=torch.float64).unbind(0)
    next_level = 0.7
    (alpha, sigma), (next_alpha, next_sigma) = coefficients(level), coefficients(next_level)
    fresh = eta * next_sigma / sigma * torch.sqrt(1 - (alpha / next_alpha) ** 2)
    predicted = (x - alpha * denoised) / sigma
    expected = next_alpha * denoised + torch.sqrt(next_sigma**2 - fresh**2) * predicted + fresh * noise
    torch.testing.assert_close(
        AncestralTransition(eta).step(UNUSED, x, Interval(level, next_level), denoised, noise), expected
    )


def vp_coefficients(r):
    """`alpha`, `sigma` and their slopes at a time of the variance-preserving path whose beta rises from 0.1 to 20."""
    log_variance, beta = 0.1 * r + 19.9 * r**2 / 2, 0.1 + 19.9 * r
    alpha, sigma = math.exp(-log_variance / 2), math.sqrt(1 - math.exp(-log_variance))
    return alpha, sigma, -beta / 2 * alpha, beta / 2 * alpha**2 / sigma


def vp_time(level):
    return (math.sqrt(0.01 + 2 * 19.9 * math.log1p(level**2)) - 0.1) / 19.9


@pytest.mark.parametrize(("level", "next_level"), [(152.0, 13.0), (6.0, 2.4), (2.0, 0.5), (0.3, 0.1)])
@pytest.mark.parametrize("diffusion", [3.0, 1.5])
def test_the_vp_sde_step_is_what_the_sde_of_its_authors_comes_to_for_a_fixed_denoised_sample(
    level, next_level, diffusion
):
    """Many Euler-Maruyama steps of `dx = (-u + g^2 / 2 score) dr + g dw`, with the score from the velocity `u`."""
    x, denoised, count = 0.8, -0.4, 4000
    start, end = vp_time(level), vp_time(next_level)
    mean, variance, width = x, 0.0, (start - end) / count
    for index in range(count):
        r = start - index * width
        alpha, sigma, alpha_slope, sigma_slope = vp_coefficients(r)
        # Of the velocity and of the score, which are affine in the state: the slope and the rest.
        velocity = sigma_slope / sigma, (alpha_slope - sigma_slope * alpha / sigma) * denoised
        ratio = alpha / alpha_slope
        spread = sigma**2 - ratio * sigma_slope * sigma
        score = (ratio * velocity[0] - 1) / spread, ratio * velocity[1] / spread
        g = diffusion * r**2
        slope, rest = (g**2 / 2 * of_score - of_u for of_score, of_u in zip(score, velocity, strict=True))
        mean, variance = mean + (slope * mean + rest) * width, (1 + slope * width) ** 2 * variance + g**2 * width
    transition, interval = VPSDETransition(diffusion), Interval(level, next_level)
    state, clean = torch.tensor([[x], [x]], dtype=torch.float64), torch.full((2, 1), denoised, dtype=torch.float64)
    moved = transition.step(UNUSED, state, interval, clean, torch.tensor([[0.0], [1.0]], dtype=torch.float64))
    assert moved[0].item() == pytest.approx(mean, abs=2e-3)
    assert (moved[1] - moved[0]).item() == pytest.approx(math.sqrt(variance), abs=2e-3)


def test_the_vp_sde_begins_at_its_noisiest_level_and_ends_at_the_denoised_sample():
    transition = VPSDETransition()
    for level, kept in [(13.0, 0.48), (6.0, 0.435), (2.4, 0.41), (0.01, 0.40)]:
        x, still = torch.zeros(2, 1, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64)
        noise = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        fresh = transition.step(UNUSED, x, Interval(math.inf, level), still, noise).diff(dim=0) / coefficients(level)[1]
        assert math.sqrt(1 - fresh.item() ** 2) == pytest.approx(kept, abs=0.006)
    assert not transition.is_random(Interval(math.inf, 200.0)) and transition.is_random(Interval(math.inf, 100.0))
    assert not transition.is_random(Interval(0.3, 0.0)) and transition.is_stochastic
    x, denoised, noise = torch.randn(3, 5, 3, generator=seeded(1), dtype=torch.float64).unbind(0)
    torch.testing.assert_close(transition.step(UNUSED, x, Interval(0.3, 0.0), denoised, noise), denoised)
    for diffusion in (0.0, -1.0, math.inf):
        with pytest.raises(ValueError, match=r"diffusion is .*; give a positive number"):
            VPSDETransition(diffusion)


@pytest.mark.parametrize(
    "transition",
    [
        GlassTransition(1),
        GlassTransition(1, 0.3),
        AncestralTransition(),
        AncestralTransition(0.5),
        VPSDETransition(),
        ODETransition(),
    ],
    ids=str,
)
@pytest.mark.parametrize(("level", "next_level"), [*STEPS, (0.5, 0.0)])
def test_tilted_noise_moves_the_mean_as_a_shifted_denoised_sample_does(transition, level, next_level):
    x, denoised, noise, shift = torch.randn(4, 5, 3, generator=seeded(1), dtype=torch.float64).unbind(0)
    gain = transition.tilt_gain(Interval(level, next_level))
    shifted = transition.step(UNUSED, x, Interval(level, next_level), denoised + shift, noise)
    tilted = transition.step(UNUSED, x, Interval(level, next_level), denoised, noise + gain * shift)
    assert transition.is_stochastic == (not isinstance(transition, ODETransition))
    if gain == 0:
        assert next_level == 0 or not transition.is_stochastic
        torch.testing.assert_close(tilted, transition.step(UNUSED, x, Interval(level, next_level), denoised, 5 * noise))
    else:
        torch.testing.assert_close(tilted, shifted)


def test_the_final_tilt_of_a_full_inner_flow_moves_its_mean_by_about_the_shift():
    """The noise of the inner flow spans the whole posterior: exact for data of unit variance."""
    gaussian = make_gaussian()
    gaussian = type(gaussian)(gaussian.log_weights, gaussian.means, torch.eye(3, dtype=torch.float64)[None])
    family = MixtureModel(gaussian)
    x, noise, shift = torch.randn(3, 5, 3, generator=seeded(1), dtype=torch.float64).unbind(0)
    transition = GlassTransition(64)
    for level in (0.5, 3.0, math.inf):
        tilted = noise + transition.tilt_gain(Interval(level, 0.0)) * shift
        moved = stepped(transition, family, x, level, 0.0, tilted) - stepped(transition, family, x, level, 0.0, noise)
        torch.testing.assert_close(moved, shift, atol=0, rtol=5e-3)


@pytest.mark.parametrize("num_inner_steps", [1, 3])
def test_a_step_costs_its_inner_steps(num_inner_steps):
    family = MixtureModel(MIXTURE)
    stepped(GlassTransition(num_inner_steps), family, observations(2.0), 2.0, 0.8, torch.zeros(OBSERVATIONS, 3))
    assert family.evaluations == OBSERVATIONS * num_inner_steps


@pytest.mark.parametrize("correlation", [-0.1, 1.1, math.nan, "ode"])
def test_a_correlation_out_of_range_is_refused(correlation):
    with pytest.raises(ValueError, match="correlation is"):
        GlassTransition(correlation=correlation)
    if isinstance(correlation, float):
        denoise = denoiser_of(MixtureModel(MIXTURE))
        x = observations(2.0)
        with pytest.raises(ValueError, match="correlation is"):
            sample_transition(denoise, x, Interval(2.0, 0.8), correlation, x, num_inner_steps=2)


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_an_eta_out_of_range_is_refused(eta):
    with pytest.raises(ValueError, match="eta is"):
        AncestralTransition(eta)


@pytest.mark.parametrize("options", [{"num_inner_steps": 0}, {"solver": "heun"}], ids=["num_inner_steps", "solver"])
def test_unusable_options_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        GlassTransition(**options)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("transition", [GlassTransition(4, 0.3), AncestralTransition(), ODETransition()], ids=str)
def test_half_precision_particles_move_in_float32(family, transition):
    family = MixtureModel(MIXTURE, family)
    level = math.inf if family in FAMILIES_AT_PURE_NOISE else 6.0
    x, noise = torch.randn(2, 5, 3, generator=seeded(5)).bfloat16().unbind(0)
    moved = stepped(transition, family, x, level, 0.8, noise)
    assert moved.dtype == torch.float32
    torch.testing.assert_close(moved, stepped(transition, family, x.float(), level, 0.8, noise.float()))
