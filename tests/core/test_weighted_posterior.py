"""The Weighted Diamond Map against closed forms: its draws, weights, values and gradients with an exact flow map."""

import math
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler

from diamond_diffusers import WeightedPosterior
from diamond_diffusers.alignment.law import ScoreModel
from diamond_diffusers.alignment.look_ahead import look_ahead
from diamond_diffusers.alignment.random_source import RandomSource
from diamond_diffusers.core.model import Conditions
from diamond_diffusers.core.network import Network
from diamond_diffusers.families.stable_diffusion import StableDiffusionFamily
from diamond_diffusers.posteriors.weighted import WEIGHTS

from ..products import diagonal
from .mixture import GaussianMixture, coefficients, make_gaussian, make_mixture, seeded
from .mixture_model import (
    FAMILIES,
    FAMILIES_AT_PURE_NOISE,
    MixtureMapFamily,
    MixtureModel,
    QuadraticReward,
    at_rows,
    make_map_law,
)

MIXTURE, GAUSSIAN = make_mixture(3), make_gaussian()
LEVELS = (0.3, 1.0, 3.0)
NUM_SAMPLES = 8


def exact_network(mixture, dtype=torch.float64, max_noise_to_signal=math.inf):
    """A few-step model with the exact map and the exact scores."""

    def in_double(function):
        return lambda x, *levels: function(x.double(), *levels).to(dtype)

    denoise = in_double(lambda x, level: mixture.posterior(x, level).mean)
    flow_map = in_double(lambda x, level, low: mixture.flow(x, float(level), float(low)))
    return Network(None, denoise, flow_map, False, max_noise_to_signal)


def draw(posterior, network, x, level, seed=1):
    noise = torch.randn(len(x) * posterior.num_samples, *x.shape[1:], generator=seeded(seed), dtype=x.dtype)
    return posterior.sample(network, x, level, None, noise), noise


def centred(log_weights):
    return log_weights - log_weights.mean(1, keepdim=True)


def law_of_states(mixture, alpha, sigma):
    """The law of `alpha z + sigma eps`."""
    return mixture.affine(*(torch.tensor(number, dtype=torch.float64) for number in (alpha, [0.0] * 3, sigma**2)))


def exact_log_weights(mixture, x, level, noise, snr_factor):
    """`log N(y; z, kappa^2 I) + log p_kappa'(y') + |eps|^2 / 2` in the coordinate `y`, `[N, K]`."""
    new_level = level * math.sqrt(snr_factor)
    count = len(noise) // len(x)
    y = (x / coefficients(level)[0]).repeat_interleave(count, 0)
    moved = y + math.sqrt(new_level**2 - level**2) * noise
    z = mixture.flow(coefficients(new_level)[0] * moved, new_level)
    likelihood = -((y - z) ** 2).sum(1) / (2 * level**2)
    density = law_of_states(mixture, 1.0, new_level).log_density(moved)
    return (likelihood + density + (noise**2).sum(1) / 2).unflatten(0, (-1, count))


@pytest.mark.parametrize("snr_factor", [1.5, 4.0, 20.0])
@pytest.mark.parametrize("level", LEVELS)
def test_weights_are_the_exact_ones_where_the_score_is_linear(level, snr_factor):
    """For one normal the quadrature is exact, so the weights are a closed form."""
    x = GAUSSIAN.observation(level).sample(4, seeded(1))
    posterior = WeightedPosterior(NUM_SAMPLES, snr_factor)
    drawn, noise = draw(posterior, exact_network(GAUSSIAN), x, level)
    exact = exact_log_weights(GAUSSIAN, x, level, noise, snr_factor)
    torch.testing.assert_close(centred(drawn.log_weights), centred(exact), atol=1e-9, rtol=1e-9)
    assert exact.std() > 0.05


@pytest.mark.parametrize("level", LEVELS)
def test_quadratures_converge_to_the_density_ratio(level):
    x = MIXTURE.observation(level).sample(50, seeded(2))
    errors = {}
    for quadrature in ("trapezoid", "simpson"):
        drawn, noise = draw(WeightedPosterior(16, 4.0, quadrature=quadrature), exact_network(MIXTURE), x, level)
        error = centred(drawn.log_weights) - centred(exact_log_weights(MIXTURE, x, level, noise, 4.0))
        errors[quadrature] = error.square().mean().sqrt().item()
    drawn, noise = draw(WeightedPosterior(16, 4.0, weights="likelihood"), exact_network(MIXTURE), x, level)
    missing = centred(drawn.log_weights) - centred(exact_log_weights(MIXTURE, x, level, noise, 4.0))
    assert errors["simpson"] < errors["trapezoid"] / 5
    assert errors["trapezoid"] < missing.square().mean().sqrt() / 4


@pytest.mark.parametrize("quadrature", ["trapezoid", "simpson"])
@pytest.mark.parametrize("level", LEVELS)
def test_the_gradient_of_the_weights_is_exact_whatever_the_quadrature(level, quadrature):
    x = MIXTURE.observation(level).sample(3, seeded(3)).requires_grad_()
    posterior = WeightedPosterior(NUM_SAMPLES, 4.0, quadrature=quadrature)
    drawn, noise = draw(posterior, exact_network(MIXTURE), x, level)
    exact = exact_log_weights(MIXTURE, x, level, noise, 4.0)
    for k in range(1, NUM_SAMPLES):
        gradients = [
            torch.autograd.grad((weights[:, k] - weights[:, 0]).sum(), x, retain_graph=True)[0]
            for weights in (drawn.log_weights, exact)
        ]
        torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("level", LEVELS)
def test_weights_of_the_paper_are_the_mixed_level_trapezoid_of_rectified_flow(level):
    x = MIXTURE.observation(level).sample(4, seeded(4))
    drawn, noise = draw(WeightedPosterior(NUM_SAMPLES, 4.0, "paper"), exact_network(MIXTURE), x, level)
    y = (x / coefficients(level)[0]).repeat_interleave(NUM_SAMPLES, 0)
    t, new_t = level / (1 + level), 2 * level / (1 + 2 * level)
    state = (1 - t) * y
    new_state = (1 - new_t) * (y + math.sqrt(3) * level * noise)

    def score(state, t):
        """By automatic differentiation of the law of `(1 - t) z + t eps`."""
        state = state.requires_grad_()
        return torch.autograd.grad(law_of_states(MIXTURE, 1 - t, t).log_density(state).sum(), state)[0]

    ratio = ((score(state, t) + score(new_state, new_t)) * (new_state - state)).sum(1).detach() / 2
    z = MIXTURE.flow(new_state / math.hypot(1 - new_t, new_t), 2 * level)
    likelihood = -((state - (1 - t) * z) ** 2).sum(1) / (2 * t**2)
    expected = (likelihood + ratio + (noise**2).sum(1) / 2).unflatten(0, (-1, NUM_SAMPLES)).detach()
    torch.testing.assert_close(centred(drawn.log_weights), centred(expected), atol=1e-9, rtol=1e-9)
    heuristic, _ = draw(WeightedPosterior(NUM_SAMPLES, 4.0, "likelihood"), exact_network(MIXTURE), x, level)
    likelihood = likelihood.unflatten(0, (-1, NUM_SAMPLES))
    torch.testing.assert_close(centred(heuristic.log_weights), centred(likelihood), atol=1e-9, rtol=1e-9)


def small_gaussian():
    """Independent normals of variance 1/4."""
    mean, covariance = torch.zeros(1, 3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)[None] / 4
    return GaussianMixture(torch.zeros(1, dtype=torch.float64), mean, covariance)


def small_gaussian_network(largest, dtype):
    """In closed form: `E[z | x] = alpha x / 4 / (alpha^2 / 4 + sigma^2)`, and `X` has half the scale of `x`."""

    def denoise(x, level):
        alpha, sigma = (c.reshape(-1, *[1] * (x.ndim - 1)) for c in coefficients(level))
        return (alpha / 4 / (alpha**2 / 4 + sigma**2) * x).to(dtype)

    def flow_map(x, level, next_level):
        alpha, sigma = (c.reshape(-1, *[1] * (x.ndim - 1)) for c in coefficients(level))
        return (x / 2 / torch.sqrt(alpha**2 / 4 + sigma**2)).to(dtype)

    return Network(None, denoise, flow_map, False, largest)


@pytest.mark.parametrize("largest", [math.inf, 2.0])
@pytest.mark.parametrize("level", [0.05, 0.7, 1.9, 40.0, 1e5, math.inf])
def test_the_default_renoising_draws_from_the_posterior_of_small_gaussian_data(level, largest):
    """Equal weights and the exact mean and deviation, at the largest level of the model and at pure noise too."""
    x = torch.randn(5, 3, generator=seeded(5), dtype=torch.float64)
    drawn, noise = draw(WeightedPosterior(6), small_gaussian_network(largest, torch.float64), x, level)
    law = small_gaussian().posterior(x, level)
    exact = law.mean[:, None] + law.covariance[:, :1, :1].sqrt() * noise.unflatten(0, (5, 6))
    torch.testing.assert_close(drawn.samples, exact)
    torch.testing.assert_close(drawn.log_weights, torch.zeros(5, 6, dtype=torch.float64), atol=1e-7, rtol=0)


@pytest.mark.parametrize("snr_factor", [None, 4.0])
@pytest.mark.parametrize("level", [0.8, 2.0, 30.0])
def test_levels_above_the_largest_are_not_asked_about(level, snr_factor):
    """And the weights account for how the samples were drawn instead."""
    asked = []
    exact = exact_network(GAUSSIAN, max_noise_to_signal=2.0)

    def watched(function):
        return lambda x, *levels: asked.append(float(levels[0])) or function(x, *levels)

    x = GAUSSIAN.observation(level).sample(2, seeded(6))
    posterior = WeightedPosterior(20000, snr_factor)
    network = Network(None, watched(exact.denoise), watched(exact.flow_map), False, 2.0)
    drawn, _ = draw(posterior, network, x, level)
    assert max(asked) <= 2.0
    mean = torch.einsum("nk,nkd->nd", torch.softmax(drawn.log_weights, 1), drawn.samples)
    # Four standard errors, with three quarters of the samples left by their weights.
    torch.testing.assert_close(mean, GAUSSIAN.posterior(x, level).mean, atol=0.02, rtol=0)
    assert (drawn.samples.mean(1) - mean).abs().max() > 0.04


def test_discrete_time_families_declare_their_largest_level():
    family = StableDiffusionFamily(SimpleNamespace(scheduler=DDIMScheduler()))
    abar = DDIMScheduler().alphas_cumprod[-1].item()
    assert family.max_noise_to_signal == pytest.approx(math.sqrt((1 - abar) / abar))
    scores = MixtureModel(MIXTURE)
    scores.max_noise_to_signal = 7.0
    law = make_map_law(MIXTURE)
    law = replace(law, score_model=ScoreModel(scores, law.conditions))
    assert at_rows(law, 1).network.max_noise_to_signal == 7.0


CONVERGENCE_LEVELS = (0.5, 1.0, 2.0)


@cache
def mean_errors(weights, num_samples, gradient, snr_factor=10.0, dimension=2, replicates=1):
    """Mean error of the value, and that of the gradient relative to the exact one, over levels and observations."""
    mixture = make_mixture(dimension)
    reward = QuadraticReward({"": (0.9, -0.7, 0.6, -0.5)[:dimension]})
    posterior = WeightedPosterior(num_samples, snr_factor, weights)
    value_errors, shift_errors = [], []
    for index, level in enumerate(CONVERGENCE_LEVELS):
        x = mixture.observation(level).sample(16, seeded(3 + index))
        law = mixture.posterior(x, level)
        tilted, value = reward.tilt(law)
        shift = tilted.mean - law.mean
        random = RandomSource(seeded(10 + index), 1, dtype=torch.float64)
        law = make_map_law(mixture, reward, num_steps=8)
        ahead = look_ahead(law, posterior, x.repeat_interleave(replicates, 0), level, random, gradient)
        value_errors.append((ahead.values.unflatten(0, (-1, replicates)) - value[:, None]).abs().mean().item())
        error = ahead.shift.unflatten(0, (-1, replicates)) - shift[:, None]
        shift_errors.append((error.norm(dim=-1).mean() / shift.norm(dim=-1).mean()).item())
    return sum(value_errors) / len(value_errors), sum(shift_errors) / len(shift_errors)


@pytest.mark.parametrize(
    ("gradient", "many"),
    [
        ("tilted_mean", 512),
        pytest.param("tilted_mean", 2048, marks=pytest.mark.slow),
        ("pathwise", 512),
        pytest.param("pathwise", 2048, marks=pytest.mark.slow),
    ],
)
def test_consistent_values_and_gradients_converge_to_the_exact_ones(gradient, many):
    """With 32 times the samples a fifth to a sixth of the error, with 8 times about a third."""
    few_value, few_shift = mean_errors("consistent", 64, gradient, replicates=4)
    many_value, many_shift = mean_errors("consistent", many, gradient, replicates=4)
    assert 0.05 < few_value < 0.08 and 0.1 < few_shift < 0.2
    gain = 0.8 * math.sqrt(many / 64)
    assert many_value < few_value / gain
    assert many_shift < few_shift / gain


@pytest.mark.parametrize(
    ("weights", "gradient"), diagonal(["paper", "likelihood", "reward_softmax"], ["tilted_mean", "pathwise"])
)
def test_other_weights_converge_elsewhere(weights, gradient):
    value, shift = mean_errors(weights, 2048, gradient)
    exact_value, exact_shift = mean_errors("consistent", 2048, gradient)
    assert value > 4 * exact_value
    assert shift > 1.6 * exact_shift


@pytest.mark.parametrize(("dimension", "tilted_mean", "pathwise"), [(2, 0.2, 0.17), (4, 0.3, 0.3)])
def test_a_few_samples_of_the_default_renoising_do_as_well_as_of_the_best_fixed_one(dimension, tilted_mean, pathwise):
    options = {"snr_factor": None, "dimension": dimension, "replicates": 4}
    assert mean_errors("consistent", 64, "tilted_mean", **options)[1] < tilted_mean
    assert mean_errors("consistent", 64, "pathwise", **options)[1] < pathwise


def ordinary(family):
    family = MixtureModel(MIXTURE, family)

    def denoise(x, level):
        return family.predict(x, level, Conditions({}))

    return Network(denoise, denoise)


@cache
def observed(level):
    """Observations, their posterior means, and noise of four look-aheads of each."""
    x = MIXTURE.observation(level).sample(20, seeded(8))
    return x, MIXTURE.posterior(x, level).mean, torch.randn(80, 3, generator=seeded(9), dtype=torch.float64)


@cache
def drawn_by_the_exact_map(weights, level):
    x, mean, noise = observed(level)
    return WeightedPosterior(4, weights=weights).sample(exact_network(MIXTURE), x, level, mean, noise)


@pytest.mark.parametrize(
    ("family", "weights"),
    [*((family, "consistent") for family in FAMILIES), *(("rectified_flow", weights) for weights in WEIGHTS[1:])],
)
def test_ordinary_models_of_every_path_map_along_their_ode(family, weights):
    """As the exact map does, in float32, from small levels to pure noise."""
    levels = (0.2, 2.0, 100.0, math.inf)
    posterior = WeightedPosterior(4, weights=weights, num_map_steps=16)
    for level in levels if family in FAMILIES_AT_PURE_NOISE else levels[:2]:
        x, mean, noise = observed(level)
        drawn = posterior.sample(ordinary(family), x.float(), level, mean.float(), noise.float())
        expected = drawn_by_the_exact_map(weights, level)
        assert drawn.samples.dtype == drawn.log_weights.dtype == torch.float32
        assert (drawn.samples - expected.samples).norm(dim=2).mean() < 0.02
        importance = [torch.softmax(weighted.log_weights.double(), 1) for weighted in (drawn, expected)]
        assert (importance[0] - importance[1]).abs().mean() < 0.01


@pytest.mark.parametrize("weights", WEIGHTS)
def test_at_pure_noise_samples_are_fresh_and_equally_weighted(weights):
    x = torch.randn(3, 3, generator=seeded(1), dtype=torch.float64)
    asked = []
    exact = exact_network(MIXTURE)
    network = Network(None, lambda *arguments: asked.append(arguments), exact.flow_map, False)
    for snr_factor in (None, 4.0):
        drawn, noise = draw(WeightedPosterior(4, snr_factor, weights), network, x, math.inf)
        torch.testing.assert_close(drawn.samples.flatten(0, 1), MIXTURE.flow(noise, math.inf))
        assert torch.equal(drawn.log_weights, torch.zeros(3, 4, dtype=torch.float64))
    assert not asked


@pytest.mark.parametrize("level", [0.2, 2.0, 1e3])
def test_float32_rows_of_many_dimensions_keep_their_weights(level):
    """In 65536 dimensions the terms of a log-weight are in the ten thousands and its true differences zero."""
    x = torch.randn(2, 65536, generator=seeded(2))
    drawn, _ = draw(WeightedPosterior(3), small_gaussian_network(math.inf, torch.float32), x, level)
    assert drawn.log_weights.dtype == torch.float32
    # Sums in float32 leave 0.005.
    assert drawn.log_weights.abs().max() < 0.001


def test_rows_may_have_levels_of_their_own():
    x, levels = torch.randn(3, 4, generator=seeded(4)).double(), torch.tensor([0.4, 2.0, math.inf]).double()
    network = small_gaussian_network(3.0, torch.float64)
    for posterior in (WeightedPosterior(5, 2.0), WeightedPosterior(5, 4.0, "paper", num_map_steps=1)):
        together, noise = draw(posterior, network, x, levels)
        for i in range(2):
            rows = slice(i, i + 1), slice(5 * i, 5 * i + 5)
            alone = posterior.sample(network, x[rows[0]], levels[i].item(), None, noise[rows[1]])
            torch.testing.assert_close(together.samples[rows[0]], alone.samples)
            torch.testing.assert_close(together.log_weights[rows[0]], alone.log_weights)
        assert together.log_weights.isfinite().all()


def test_the_temperature_evens_out_the_weights():
    x = MIXTURE.observation(1.0).sample(4, seeded(5))
    sharp, _ = draw(WeightedPosterior(NUM_SAMPLES), exact_network(MIXTURE), x, 1.0)
    even, _ = draw(WeightedPosterior(NUM_SAMPLES, weight_temperature=3.0), exact_network(MIXTURE), x, 1.0)
    torch.testing.assert_close(even.log_weights, sharp.log_weights / 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 0}, "num_samples is 0"),
        ({"snr_factor": 1.0}, r"snr_factor is 1\.0; give a number above 1"),
        ({"snr_factor": math.nan}, "snr_factor is nan"),
        ({"weights": "softmax"}, "weights is 'softmax'; choose one of consistent, paper, likelihood, reward_softmax"),
        ({"quadrature": "midpoint"}, "quadrature is 'midpoint'; choose one of trapezoid, simpson"),
        ({"quadrature": "simpson", "weights": "paper"}, "weights='paper' does not integrate"),
        ({"weight_temperature": 0.0}, r"weight_temperature is 0\.0; give a positive, finite number"),
        ({"weight_temperature": 2.0, "weights": "reward_softmax"}, "lower reward_scale instead"),
        ({"num_map_steps": 0}, "num_map_steps is 0"),
    ],
)
def test_unusable_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        WeightedPosterior(**options)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_scores_are_asked_of_models_that_have_them(weights):
    few_step = MixtureMapFamily(MIXTURE)
    if weights in ("consistent", "paper"):
        with pytest.raises(ValueError, match=r"give its base model as score_model=.* use weights='likelihood' or"):
            WeightedPosterior(weights=weights).check(few_step)
    else:
        WeightedPosterior(weights=weights).check(few_step)
    WeightedPosterior(weights=weights).check(MixtureMapFamily(MIXTURE, MixtureModel(MIXTURE)))
    for num_map_steps in (None, 2):
        WeightedPosterior(weights=weights, num_map_steps=num_map_steps).check(MixtureModel(MIXTURE))
    with pytest.raises(ValueError, match=r"num_map_steps is 1, but .* give num_map_steps=4"):
        WeightedPosterior(weights=weights, num_map_steps=1).check(MixtureModel(MIXTURE))
