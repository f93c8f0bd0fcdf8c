"""The value of a look-ahead cloud and its gradients, against closed forms."""

import itertools
import math

import pytest
import torch

from diamond_diffusers import DenoiserPoint, GlassPosterior, WeightedPosterior
from diamond_diffusers.alignment.look_ahead import look_ahead
from diamond_diffusers.alignment.random_source import RandomSource
from diamond_diffusers.core.values import (
    hybrid_shift,
    isotropic_coefficient,
    isotropic_gradient,
    tilted_log_weights,
    tilted_mean_shift,
    value,
)

from ..documentation import documented
from ..products import diagonal
from .mixture import GaussianMixture, make_gaussian, make_mixture, make_spread_mixture, seeded, standard_error
from .mixture_model import (
    FAMILIES,
    FAMILIES_AT_PURE_NOISE,
    LINEAR,
    QUADRATIC,
    QuadraticReward,
    at_rows,
    images_of,
    make_law,
)

MIXTURE = make_mixture(3)
REPLICATES, NUM_SAMPLES = 250, 96
POSTERIOR = GlassPosterior(16, NUM_SAMPLES, "multistep")


def rewards_of(reward, z):
    return reward.score(images_of(z), [""] * len(z))


def look_aheads(family, reward, level, gradient, num_observations=2):
    """Replicated look-aheads `[num_observations, REPLICATES, ...]` next to the exact posteriors."""
    x = MIXTURE.observation(level).sample(num_observations, seeded(5))
    law = make_law(MIXTURE, reward, family)
    random = RandomSource(seeded(6), 1, dtype=torch.float64)
    ahead = look_ahead(law, POSTERIOR, x.repeat_interleave(REPLICATES, 0), level, random, gradient)
    law = MIXTURE.posterior(x, level)
    tilted, exact_value = reward.tilt(law)
    shape = (num_observations, REPLICATES)
    return ahead.values.unflatten(0, shape), ahead.shift.unflatten(0, shape), exact_value, tilted.mean - law.mean


@pytest.mark.parametrize(("reward", "level"), diagonal([LINEAR, QUADRATIC], [0.4, 1.5, math.inf]))
def test_the_bias_of_the_value_falls_as_one_over_the_samples(reward, level):
    """`E[V_K] = V - var(w) / (2 K) + O(K^-2)` for `w = exp(r) / E[exp r]`, whose variance is known too."""
    law = MIXTURE.posterior(torch.tensor([[0.5, -0.8, 0.9]], dtype=torch.float64), level)
    _, exact = reward.tilt(law)
    _, exact_of_square = reward.tilt(law, scale=2.0)
    constant = (torch.exp(exact_of_square - 2 * exact) - 1).item() / 2
    for num_samples in (32, 128):
        rewards = rewards_of(reward, law.sample(8192 * num_samples, seeded(num_samples))[0]).reshape(8192, num_samples)
        error = value(rewards, torch.zeros_like(rewards)) - exact
        # The mean weight has expectation 1: subtracting its deviation leaves the second order, which is the bias.
        error = error - (torch.exp(rewards - exact).mean(1) - 1)
        # Four standard errors, and the next order in 1 / K.
        tolerance = 4 * num_samples * standard_error(error).item() + 8 * constant / num_samples
        assert -num_samples * error.mean().item() == pytest.approx(constant, abs=tolerance)
    assert tolerance < 0.2 * constant


def test_look_aheads_of_which_none_is_possible_say_nothing():
    """Their value is `-inf`, and no gradient is made of it."""
    rewards = torch.tensor([[-math.inf] * 3, [0.3, -math.inf, -0.2]], requires_grad=True)
    log_weights = torch.tensor([[0.1, -0.5, 0.2], [0.0, 0.4, -1.0]], requires_grad=True)
    samples = torch.randn(2, 3, 4, generator=seeded(1))
    values = value(rewards, log_weights)
    assert values[0] == -math.inf and values[1].isfinite()
    gradients = torch.autograd.grad(values, [rewards, log_weights], torch.ones(2))
    assert all((gradient[0] == 0).all() and gradient.isfinite().all() for gradient in gradients)
    rewards, log_weights = rewards.detach(), log_weights.detach()
    shift = tilted_mean_shift(samples, rewards, log_weights)
    assert (shift[0] == 0).all() and shift[1].isfinite().all() and (shift[1] != 0).all()
    hybrid = hybrid_shift(torch.zeros(2, 4), shift, samples, rewards, log_weights, 1.0)
    assert (hybrid[0] == 0).all() and hybrid.isfinite().all()
    tilted = tilted_log_weights(rewards, log_weights)
    assert torch.equal(tilted[0], log_weights[0]) and torch.equal(tilted[1], log_weights[1] + rewards[1])


def test_weights_of_look_aheads_count_as_repetitions():
    rewards, samples = torch.randn(2, 3, generator=seeded(1)), torch.randn(2, 3, 4, generator=seeded(2))
    log_weights = torch.log(torch.tensor([1.0, 2.0, 3.0])).expand(2, 3)
    index = torch.tensor([0, 1, 1, 2, 2, 2])
    equal = torch.full((2, 6), 0.7)
    torch.testing.assert_close(value(rewards, log_weights), value(rewards[:, index], equal))
    torch.testing.assert_close(
        tilted_mean_shift(samples, rewards, log_weights), tilted_mean_shift(samples[:, index], rewards[:, index], equal)
    )


def assert_matches(estimates, exact, bias=3):
    """Within four standard errors, and a bias that falls as one over the samples."""
    error, scale = (estimates.mean(1) - exact).abs(), exact.abs().max()
    tolerance = 4 * standard_error(estimates.transpose(0, 1)) + bias * scale / NUM_SAMPLES
    assert (error < tolerance).all()
    assert tolerance.max() < 0.22 * scale


@pytest.mark.parametrize(
    ("family", "gradient", "at"),
    diagonal([*FAMILIES], ["pathwise", "tilted_mean", "hybrid"], [(0.4, LINEAR), (1.5, LINEAR), (1.0, QUADRATIC)]),
)
def test_consistent_gradients_are_the_exact_gradient(family, gradient, at):
    level, reward = at
    values, shifts, exact_value, exact_shift = look_aheads(family, reward, level, gradient)
    # The hybrid leaves out pathwise outliers, which are not as often on one side as on the other.
    assert_matches(shifts, exact_shift, bias=6 if gradient == "hybrid" else 3)
    assert_matches(values, exact_value)


@pytest.mark.parametrize("family", FAMILIES_AT_PURE_NOISE)
def test_gradients_at_pure_noise_are_finite(family):
    """There the tilted mean tells the shift of the prior's mean, and the pathwise gradient nothing."""
    for gradient in ("tilted_mean", "hybrid"):
        _, shifts, _, exact_shift = look_aheads(family, LINEAR, math.inf, gradient, num_observations=1)
        assert_matches(shifts, exact_shift)
    _, shifts, _, _ = look_aheads(family, LINEAR, math.inf, "pathwise", num_observations=1)
    assert torch.equal(shifts, torch.zeros_like(shifts))


@pytest.mark.parametrize("level", [0.2, 1.0, 30.0])
def test_the_denoiser_point_has_the_exact_gradient_of_a_linear_reward_of_a_gaussian(level):
    """`V = a . D(y) + const` there, and `kappa^2 grad_y V` the posterior covariance times `a`."""
    gaussian = make_gaussian()
    x = gaussian.observation(level).sample(4, seeded(1))
    ahead = look_ahead(
        make_law(gaussian, LINEAR), DenoiserPoint(), x, level, RandomSource(seeded(2), 1), gradient="pathwise"
    )
    law = gaussian.posterior(x, level)
    torch.testing.assert_close(ahead.shift, LINEAR.tilt(law)[0].mean - law.mean, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(ahead.predicted, law.mean)
    torch.testing.assert_close(ahead.values, rewards_of(LINEAR, law.mean), atol=1e-6, rtol=1e-6)


def test_rows_may_have_levels_of_their_own():
    levels = torch.tensor([0.2, 1.0, math.inf], dtype=torch.float64)
    x = torch.randn(3, 3, generator=seeded(1), dtype=torch.float64)
    for batch_size in (None, 2):
        law = make_law(MIXTURE, particle_batch_size=batch_size)
        together = at_rows(law, 3).network.predict(x, levels)
        torch.testing.assert_close(together, MIXTURE.posterior(x, levels).mean)


def test_look_aheads_count_by_the_softmax_of_their_scaled_rewards():
    """`d V / d z_k` is the share of the look-ahead in the tilted law times the gradient of its reward."""
    direction = torch.tensor([0.7, -1.1], dtype=torch.float64)
    samples = torch.randn(1, 5, 2, generator=seeded(1), dtype=torch.float64, requires_grad=True)
    for scale in (0.5, 3.0):
        rewards = scale * samples @ direction
        exponentials = rewards[0].detach().exp()
        (gradient,) = torch.autograd.grad(value(rewards, torch.zeros_like(rewards)).sum(), samples)
        shares = exponentials / exponentials.sum()
        torch.testing.assert_close(gradient[0], scale * shares[:, None] * direction)


@pytest.mark.parametrize("kappa", [0.3, 1.0, 4.0, math.inf])
def test_isotropic_shift_is_exact_for_unit_variance_data_and_a_linear_reward(kappa):
    """There `Cov[z | y]` is `kappa^2 / (1 + kappa^2)` times the identity, and `kappa^2 grad V = Cov[z | y] a`."""
    direction = torch.tensor([0.7, -1.1, 0.4], dtype=torch.float64)
    samples = torch.randn(5, 4, 3, dtype=torch.float64, requires_grad=True)
    values = value(samples @ direction, torch.zeros(5, 4, dtype=torch.float64))
    variance = 1.0 if math.isinf(kappa) else kappa**2 / (1 + kappa**2)
    shift = isotropic_coefficient(kappa) * isotropic_gradient(values, samples)
    torch.testing.assert_close(shift, (variance * direction).expand(5, 3))


def gradient_errors(mixture, num_samples, level, num_observations=32):
    """Relative errors `[cases, 3]` of the pathwise shift, the tilted mean and their hybrid."""
    dimension = mixture.means.shape[-1]
    direction = torch.randn(dimension, generator=seeded(3), dtype=torch.float64)
    direction = 1.3 * direction / direction.norm()
    rewards = [
        QuadraticReward({"": (scale * direction).tolist()}, quadratic)
        for scale, quadratic in [(1, 0), (1, 0.5), (4, 0)]
    ]
    posteriors = [GlassPosterior(4, num_samples), WeightedPosterior(num_samples, num_map_steps=4)]
    errors = []
    for reward, posterior in itertools.product(rewards, posteriors):
        x = mixture.observation(level).sample(num_observations, seeded(5))
        law = mixture.posterior(x, level)
        exact = reward.tilt(law)[0].mean - law.mean
        law = make_law(mixture, reward)
        estimates = [
            look_ahead(law, posterior, x, level, RandomSource(seeded(9), 1, dtype=torch.float64), gradient).shift
            for gradient in ("pathwise", "tilted_mean", "hybrid")
        ]
        errors.append([((shift - exact).square().sum() / exact.square().sum()).sqrt() for shift in estimates])
    return torch.tensor(errors)


@pytest.mark.parametrize(("level", "dimension"), diagonal([0.1, 0.3, 0.6, 1.0, 3.0], [1, 3, 8, 32], also=[(0.6, 1)]))
def test_the_hybrid_errs_as_little_as_the_better_gradient(level, dimension):
    """Of the errors, root mean squares over rewards and look-aheads: with 16, the table of docs/methods.md."""
    mixture = make_mixture(dimension) if dimension < 4 else make_spread_mixture(dimension)
    for num_samples in (4, 16):
        pathwise, tilted_mean, hybrid = gradient_errors(mixture, num_samples, level).square().mean(0).sqrt()
        few = dimension == 1 and num_samples == 4 and level == 0.6
        assert hybrid < (1.25 if few else 1.1) * min(pathwise, tilted_mean) + 0.002
    table = {(int(row[0]), float(row[1])): [float(cell) for cell in row[2:]] for row in documented("dimensions")}
    assert len(table) == 16
    if level != 0.6:
        figures = torch.stack([pathwise, tilted_mean, hybrid]).tolist()
        assert figures == pytest.approx(table[dimension, level], abs=0.006, rel=0.01)


@pytest.mark.parametrize("level", [1.0, 3.0, 10.0])
def test_the_hybrid_errs_less_than_the_tilted_mean_where_it_does_not_reach_the_pathwise_gradient(level):
    """On a skewed law, of nine parts of a wide cluster and one of a narrow, far one, which rewards lead away from."""
    means = torch.tensor([[0.2], [-2.0]], dtype=torch.float64)
    covariances = torch.tensor([0.5, 0.02], dtype=torch.float64)[:, None, None]
    mixture = GaussianMixture(torch.tensor([0.9, 0.1], dtype=torch.float64).log(), means, covariances)
    pathwise, tilted_mean, hybrid = gradient_errors(mixture, 16, level).square().mean(0).sqrt()
    assert pathwise < hybrid < 0.95 * tilted_mean
    assert hybrid < 3.5 * pathwise


def test_the_hybrid_is_the_pathwise_shift_within_the_noise_of_the_tilted_mean_and_leaves_it_far_beyond():
    samples = torch.randn(5, 8, 3, generator=seeded(1))
    rewards, log_weights = torch.randn(5, 8, generator=seeded(2)), torch.randn(5, 8, generator=seeded(3))
    tilted_mean = tilted_mean_shift(samples, rewards, log_weights)
    near, far = tilted_mean + 0.01, tilted_mean + 100.0
    torch.testing.assert_close(hybrid_shift(near, tilted_mean, samples, rewards, log_weights, math.inf), near)
    beyond = hybrid_shift(far, tilted_mean, samples, rewards, log_weights, math.inf)
    assert (beyond - tilted_mean).norm(dim=1).max() < 0.1
    # Without a reward there is neither noise nor a shift to argue about.
    unmoved = hybrid_shift(far, 0 * far, samples, 0 * rewards, log_weights, math.inf)
    assert torch.equal(unmoved, 0 * far)


def test_the_noise_of_the_tilted_mean_is_what_the_hybrid_takes_it_for():
    """In directions that the reward does not see, the tilted mean is noise of variance `s^2 sum_k c_k^2`."""
    samples = torch.randn(20000, 8, 6, generator=seeded(1), dtype=torch.float64)
    rewards = torch.randn(1, 8, generator=seeded(2), dtype=torch.float64).expand(20000, 8)
    log_weights = torch.randn(1, 8, generator=seeded(3), dtype=torch.float64).expand(20000, 8)
    tilted_mean = tilted_mean_shift(samples, rewards, log_weights)
    # So far off that its share is twice the noise over the squared gap.
    gap = 1e4
    pathwise = tilted_mean + gap / math.sqrt(6)
    moved = hybrid_shift(pathwise, tilted_mean, samples, rewards, log_weights, math.inf) - tilted_mean
    noise = moved.norm(dim=1) * gap / 2
    expected = tilted_mean.square().sum(1)
    error = noise - expected
    assert error.mean().abs() < 4 * standard_error(error) < 0.05 * expected.mean()
