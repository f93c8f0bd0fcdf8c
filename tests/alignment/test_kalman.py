"""Sequential Monte Carlo against the Kalman filter: every level of a linear-Gaussian model, in closed form."""

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch

from diamond_diffusers import (
    SMC,
    AdaptiveTempering,
    AncestralTransition,
    DenoiserPoint,
    PosteriorSampler,
    ScheduledTempering,
)
from diamond_diffusers.posteriors.base import PosteriorSamples

from ..core.exact_transition import ExactTransition
from ..core.mixture import GaussianMixture, coefficients, make_gaussian, seeded, standard_error
from ..core.mixture_model import QuadraticReward, make_law
from .runs import COARSE_LEVELS, run

PRIOR = make_gaussian()
REWARD = QuadraticReward({"": (-1.5, 2.0, 2.5)}, 0.8)
SCALE = 0.7
LEVELS = (2.0, 1.2, 0.7, 0.3, 0.0)
NUM_IMAGES, NUM_PARTICLES = 96, 128

# How much the value of level j counts in the logarithm of the potentials' product at level k.
EXPONENTS = {
    "value": lambda k, j: float(j == k),
    "sum": lambda k, j: float(k - j + 1) if j > 0 else 0.0,
}


@dataclass(frozen=True)
class LinearGaussianChain:
    """The particles of an ancestral transition with the denoiser of a normal prior, and their point values.

    The denoised sample is `offset_k + gain_k x`, so that states are linear in the last ones, and rewards of denoised
    samples are quadratic in the state.
    """

    levels: tuple[float, ...]
    scale: float

    def denoiser(self, kappa):
        """`offset [3]` and `gain [3, 3]` from values at the origin and at the unit vectors."""
        if kappa == 0:
            return torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
        points = torch.cat([torch.zeros(1, 3), torch.eye(3)]).double()
        offset, *columns = PRIOR.posterior(points, kappa).mean
        return offset, torch.stack(columns, 1) - offset[:, None]

    def predict(self, law, kappa, next_kappa):
        """The law of the next states: `y' = D + (kappa' / kappa)^2 (y - D) + fresh noise`."""
        (alpha, _), (next_alpha, _) = coefficients(kappa), coefficients(next_kappa)
        offset, gain = self.denoiser(kappa)
        kept = (next_kappa / kappa) ** 2
        fresh_variance = next_kappa**2 * (1 - kept)
        matrix = next_alpha * ((1 - kept) * gain + kept / alpha * torch.eye(3, dtype=torch.float64))
        means = law.means @ matrix.T + next_alpha * (1 - kept) * offset
        noise = next_alpha**2 * fresh_variance * torch.eye(3, dtype=torch.float64)
        return GaussianMixture(law.log_weights, means, matrix @ law.covariances @ matrix.T + noise)

    def update(self, law, kappa, exponent):
        """The law times the exponential of `exponent` point values, and the logarithm of its mass."""
        offset, gain = self.denoiser(kappa)
        linear, quadratic, exponent = REWARD.linear[""], REWARD.quadratic, exponent * self.scale
        constant = linear @ offset - quadratic / 2 * offset @ offset
        law, mass = law.tilt(exponent * gain.T @ (linear - quadratic * offset), exponent * quadratic * gain.T @ gain)
        return law, mass + exponent * constant

    def filtered(self, k, exponents):
        """Filtering law and log evidence at level `k`, where the value of level `j` counts `exponents(j)` times."""
        law, evidence = PRIOR.observation(self.levels[0]), 0.0
        for j, kappa in enumerate(self.levels[: k + 1]):
            law = law if j == 0 else self.predict(law, self.levels[j - 1], kappa)
            law, mass = self.update(law, kappa, exponents(j))
            evidence = evidence + mass
        return law, evidence


def clouds_of(smc, monkeypatch, scale=SCALE, levels=LEVELS, x=None):
    """The cloud after every step, as the weighted particles that go on, and the result."""
    clouds, step = [], SMC.step

    def watched(*arguments):
        clouds.append(step(*arguments))
        return clouds[-1]

    monkeypatch.setattr(SMC, "step", watched)
    result = run(smc, make_law(PRIOR, REWARD, num_images=NUM_IMAGES, reward_scale=scale), levels, x=x)
    return clouds, result


def check_level(cloud, law, evidence):
    """Unbiased evidence, and the mean of the filter; returns the tolerance of the latter, `[3]`.

    Four standard errors, and 1 / P for the mean.
    """
    ratio = torch.exp(cloud.figures["log_evidence"] - evidence)
    x = cloud.x.double().unflatten(0, (NUM_IMAGES, -1))
    means = torch.einsum("bp,bpd->bd", torch.softmax(cloud.log_weights, 1), x)
    tolerance = 4 * standard_error(means) + 1 / NUM_PARTICLES
    assert (ratio.mean() - 1).abs() < 4 * standard_error(ratio) < 0.3
    assert ((means.mean(0) - law.mean).abs() < tolerance).all()
    return tolerance


@pytest.mark.parametrize("resampling_threshold", [0.5, 1.0])
@pytest.mark.parametrize("tempering", [None, ScheduledTempering(0.3)], ids=["cold", "scheduled"])
@pytest.mark.parametrize("potential", EXPONENTS)
def test_every_level_is_the_kalman_filter_of_a_linear_gaussian_chain(
    potential, tempering, resampling_threshold, monkeypatch
):
    smc = SMC(
        NUM_PARTICLES,
        DenoiserPoint(),
        AncestralTransition(),
        resampling_threshold=resampling_threshold,
        potential=potential,
        tempering=tempering,
        num_valuations=None,
    )
    x = PRIOR.observation(LEVELS[0]).sample(NUM_IMAGES * NUM_PARTICLES, seeded(1)).float()
    # Sums of values spread the weights more.
    scale = 0.3 if potential == "sum" else SCALE
    clouds, result = clouds_of(smc, monkeypatch, scale, x=x)
    chain, last, is_moved = LinearGaussianChain(LEVELS, scale), len(LEVELS) - 1, []
    for k, cloud in enumerate(clouds, 1):
        temperature = 1.0 if tempering is None or k == last else min(1.0, 1.3**k - 1)
        form = EXPONENTS["value" if k == last else potential]
        law, evidence = chain.filtered(k, lambda j, k=k, form=form, scale=temperature: scale * form(k, j))
        tolerance = check_level(cloud, law, evidence)
        unfiltered, _ = chain.filtered(k, lambda j: 0.0)
        is_moved.append(((law.mean - unfiltered.mean).abs() > 2 * tolerance).any())
    assert sum(is_moved) >= 2
    torch.testing.assert_close(result.log_evidence, clouds[-1].figures["log_evidence"])
    assert any(step.resampled.any() for step in result.trace.steps[:-1])


class ExactValue(PosteriorSampler):
    """A single look-ahead whose reward is the exact value: `r(z) = |b|^2 / 2 q - q |z - b / q|^2 / 2`."""

    num_samples = 1

    def sample(self, network, x, noise_to_signal, predicted, noise):
        linear, quadratic = REWARD.linear[""], REWARD.quadratic
        _, values = REWARD.tilt(PRIOR.posterior(x, noise_to_signal), scale=SCALE)
        largest = linear @ linear / (2 * quadratic)
        distance = torch.sqrt(2 * (largest - values / SCALE) / quadratic)
        z = linear / quadratic + distance[:, None] * torch.tensor([1.0, 0.0, 0.0])
        return PosteriorSamples(z.to(x.dtype)[:, None], torch.zeros(len(x), 1))


@pytest.mark.parametrize("tempering", [None, AdaptiveTempering(0.98)], ids=["cold", "adaptive"])
def test_exact_values_give_the_tilted_law_at_every_level(tempering, monkeypatch):
    """Where the inverse temperature is 1, the target is the tilted law's own noisy law, of the same evidence."""
    smc = SMC(
        NUM_PARTICLES,
        ExactValue(),
        ExactTransition(PRIOR),
        resampling_threshold=0.9,
        tempering=tempering,
        num_valuations=None,
    )
    clouds, _ = clouds_of(smc, monkeypatch, levels=COARSE_LEVELS)
    tilted, evidence = REWARD.tilt(PRIOR, scale=SCALE)
    num_checked = 0
    for cloud, (_, kappa) in zip(clouds, pairwise(COARSE_LEVELS), strict=True):
        if (cloud.inverse_temperature == 1).all():
            check_level(cloud, tilted.observation(kappa), evidence)
            num_checked += 1
    assert num_checked == len(clouds) if tempering is None else 1 <= num_checked < len(clouds)
