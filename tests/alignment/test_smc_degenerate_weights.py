"""SMC with weights of zero, or as large as floats can be: numbers stay numbers, and the law stays right."""

import math

import pytest
import torch

from diamond_diffusers import SMC, AdaptiveTempering, GlassPosterior, GlassTransition, NoAlignment
from diamond_diffusers.alignment.random_source import RandomSource

from ..core.exact_transition import ExactTransition
from ..core.mixture import make_mixture, seeded, standard_error
from ..core.mixture_model import LINEAR, QuadraticReward, make_law
from .runs import falling_levels, run

MIXTURE = make_mixture(3)
EXACT = ExactTransition(MIXTURE)


def is_number(result):
    figures = [getattr(step, name) for step in result.trace.steps for name in result.trace.figures()]
    tensors = [result.latents, result.log_weights, result.log_evidence, *(f for f in figures if f is not None)]
    return not any(tensor.isnan().any() for tensor in tensors)


@pytest.mark.parametrize("potential", ["value", "max", "sum"])
@pytest.mark.parametrize("scale", [1e6, -1e6, 1e30, -1e30])
def test_unbounded_rewards_keep_numbers(potential, scale):
    smc = SMC(8, GlassPosterior(2, 2), GlassTransition(2), potential=potential, tempering=AdaptiveTempering())
    result = run(smc, make_law(MIXTURE, LINEAR, num_images=3, reward_scale=scale), falling_levels(6))
    assert is_number(result)
    best = (scale * result.rewards).argmax(1)
    assert torch.equal(result.log_weights.argmax(1), best)
    torch.testing.assert_close(result.log_weights.exp().sum(1), torch.ones(3, dtype=torch.float64))


class HalfSpace(QuadraticReward):
    """0 where the first coordinate is above a bound, and as low as a score can be elsewhere."""

    def __init__(self, bound):
        super().__init__({"": (0.0, 0.0, 0.0)})
        self.bound = bound

    def score(self, images, prompts):
        first = 1000.0 * (images[:, 0, 0, 0].double() - 0.5)
        return torch.where(first > self.bound, 0.0, torch.finfo(torch.float32).min)


def probability_above(bound):
    """That the first coordinate of the mixture is above a bound, and its mean there."""
    means, stds = MIXTURE.means[:, 0], MIXTURE.covariances[:, 0, 0].sqrt()
    normal = torch.distributions.Normal(0.0, 1.0)
    scores = (means - bound) / stds
    masses = MIXTURE.log_weights.exp() * normal.cdf(scores)
    moments = masses * means + MIXTURE.log_weights.exp() * stds * normal.log_prob(scores).exp()
    return masses.sum(), moments.sum() / masses.sum()


@pytest.mark.parametrize("potential", ["value", "max", "sum"])
def test_weights_of_zero_come_back_where_nothing_is_resampled(potential):
    """A scaled score below all floats is `-inf`: the law of the half-space, whatever the look-aheads said."""
    smc = SMC(128, GlassPosterior(2, 1), EXACT, "none", potential=potential)
    result = run(smc, make_law(MIXTURE, HalfSpace(0.5), num_images=64, reward_scale=10.0), (math.inf, 1.0, 0.0))
    assert is_number(result)
    probability, mean = probability_above(0.5)
    ratio = result.log_evidence.exp() / probability
    assert (ratio.mean() - 1).abs() < 4 * standard_error(ratio) < 0.1
    means = torch.einsum("bp,bp->b", result.log_weights.exp(), result.latents[..., 0].double())
    assert (means.mean() - mean).abs() < 4 * standard_error(means) + 1 / 128
    assert (result.latents[result.log_weights.exp() > 0][:, 0] > 0.5).all()


@pytest.mark.parametrize("tempering", [None, AdaptiveTempering()], ids=["cold", "adaptive"])
def test_resampling_drops_weights_of_zero_while_others_are_left(tempering):
    smc = SMC(64, GlassPosterior(2, 1), EXACT, resampling_threshold=1.0, tempering=tempering)
    result = run(smc, make_law(MIXTURE, HalfSpace(1.0), num_images=8, reward_scale=10.0))
    assert is_number(result)
    plain = run(NoAlignment(EXACT, 64), make_law(MIXTURE, HalfSpace(1.0), num_images=8))
    shares = [(drawn.rewards == 0).double().mean() for drawn in (result, plain)]
    assert shares[0] > 0.7 > 2 * shares[1]


def test_a_cloud_without_weight_goes_on_and_ends_equally_weighted():
    smc = SMC(8, GlassPosterior(2, 1), GlassTransition(2), resampling_threshold=1.0)
    result = run(smc, make_law(MIXTURE, HalfSpace(100.0), num_images=2, reward_scale=10.0))
    assert is_number(result)
    assert (result.log_evidence == -math.inf).all()
    torch.testing.assert_close(result.log_weights.exp(), torch.full((2, 8), 1 / 8, dtype=torch.float64))
    assert not any(step.resampled.any() for step in result.trace.steps[:-1])
    assert all((step.effective_sample_size == 0).all() for step in result.trace.steps)
    assert result.select("sample", RandomSource(seeded(0), 2)).shape == (2, 1)


def test_values_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match=r"the largest value is inf, .* lower reward_scale"):
        run(SMC(2), make_law(MIXTURE, HalfSpace(100.0), reward_scale=-10.0))
