"""The oracle itself, against quadrature on a grid and automatic differentiation."""

import math

import pytest
import torch

from .mixture import coefficients, energy_distance, make_mixture, seeded, standard_error
from .mixture_model import QuadraticReward, images_of

REWARD = QuadraticReward({"": (0.9, -0.7)}, 0.6)


@pytest.fixture(scope="module")
def grid():
    """Points `[M, 2]` and the area that each stands for."""
    axis = torch.linspace(-7, 7, 561, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis), (axis[1] - axis[0]) ** 2


def rewards_of(z):
    return REWARD.score(images_of(z), [""] * len(z))


def test_posterior_value_and_tilted_mean_agree_with_quadrature(grid):
    points, area = grid
    mixture = make_mixture(2)
    density = mixture.log_density(points).exp()
    assert (density.sum() * area).item() == pytest.approx(1, abs=1e-6)
    x = torch.tensor([0.4, -0.6], dtype=torch.float64)
    for kappa in (0.4, 1.5, math.inf):
        alpha, sigma = coefficients(kappa)
        joint = density * torch.exp(-((x - alpha * points) ** 2).sum(1) / (2 * sigma**2))
        posterior = mixture.posterior(x[None], kappa)
        torch.testing.assert_close(posterior.mean[0], joint @ points / joint.sum())
        tilted, value = REWARD.tilt(posterior)
        tilted_joint = joint * rewards_of(points).exp()
        torch.testing.assert_close(value[0], torch.log(tilted_joint.sum() / joint.sum()))
        torch.testing.assert_close(tilted.mean[0], tilted_joint @ points / tilted_joint.sum())


@pytest.mark.parametrize("kappa", [0.5, 2.0])
def test_the_scaled_gradient_of_the_value_is_the_shift_of_the_mean(kappa):
    mixture = make_mixture(2)
    alpha, _ = coefficients(kappa)
    y = torch.tensor([[0.4, -0.6], [1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    posterior = mixture.posterior(alpha * y, kappa)
    tilted, value = REWARD.tilt(posterior)
    (gradient,) = torch.autograd.grad(value.sum(), y)
    torch.testing.assert_close(kappa**2 * gradient, (tilted.mean - posterior.mean).detach())


def test_the_denoiser_is_tweedies_formula():
    mixture = make_mixture(3)
    kappa = 0.7
    alpha, sigma = coefficients(kappa)
    x = mixture.observation(kappa).sample(5, seeded(0)).requires_grad_()
    (score,) = torch.autograd.grad(mixture.observation(kappa).log_density(x).sum(), x)
    torch.testing.assert_close(mixture.posterior(x, kappa).mean.detach(), (x.detach() + sigma**2 * score) / alpha)


def test_a_transition_keeps_the_laws_of_the_levels():
    """Averaged over `x_t`, every correlation gives the law of `x_u`; drawn here by Monte Carlo."""
    mixture = make_mixture(2)
    x = mixture.observation(2.0).sample(20_000, seeded(1))
    for correlation in (0.0, 0.3, 0.9):
        moved = mixture.transition(x, 2.0, 0.6, correlation).sample(1, seeded(2))[:, 0]
        expected = mixture.observation(0.6)
        assert ((moved.mean(0) - expected.mean).abs() < 4 * standard_error(moved)).all()
        torch.testing.assert_close(moved.T.cov(), expected.covariance, atol=0.03, rtol=0)


def test_rows_may_have_levels_of_their_own():
    mixture = make_mixture(3)
    x = mixture.sample(3, seeded(3))
    levels = torch.tensor([0.2, 1.0, math.inf], dtype=torch.float64)
    rows = [mixture.posterior(x[i : i + 1], float(kappa)).mean for i, kappa in enumerate(levels)]
    torch.testing.assert_close(mixture.posterior(x, levels).mean, torch.cat(rows))


def test_energy_distance_is_unbiased_and_tells_laws_apart():
    mixture = make_mixture(3)
    first, second = mixture.sample(400 * 60, seeded(4)).reshape(2, 200, 60, 3)
    same = energy_distance(first, second)
    assert same.mean().abs() < 4 * standard_error(same)
    wider = energy_distance(first, 1.2 * second)
    assert wider.mean() > 8 * standard_error(wider)


@pytest.mark.parametrize("levels", [0.0, 0.01, 0.7, 30.0, math.inf, torch.tensor([0.02, 0.9, 4.0, math.inf])], ids=str)
@pytest.mark.parametrize("dimension", [2, 4])
def test_the_mean_that_networks_return_is_that_of_the_posterior(dimension, levels):
    """By another way to it; gradients too."""
    mixture = make_mixture(dimension)
    x = mixture.observation(1.0).sample(4, seeded(3)).requires_grad_()
    mean = mixture.denoised(x, *coefficients(levels))
    (gradient,) = torch.autograd.grad(mean.square().sum(), x)
    if isinstance(levels, float) and levels == 0:
        # What the posterior ends at, where its own formula divides by zero.
        torch.testing.assert_close(mean, x)
        torch.testing.assert_close(gradient, 2 * x)
        return
    expected = mixture.posterior(x, levels).mean
    torch.testing.assert_close(mean, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.square().sum(), x)[0])
