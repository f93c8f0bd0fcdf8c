"""Potentials: each the product that it is named for, and all with the tilted law and its evidence as their limit."""

import math

import pytest
import torch

from diamond_diffusers import SMC, AdaptiveTempering, DenoiserPoint, GlassPosterior, GlassTransition, ScheduledTempering
from diamond_diffusers.alignment.smc_parts.potentials import POTENTIALS

from ..core.exact_transition import ExactTransition
from ..core.mixture import energy_distance, make_mixture, seeded, standard_error
from ..core.mixture_model import LINEAR, QUADRATIC, make_law
from .runs import run

MIXTURE = make_mixture(3)
EXACT = ExactTransition(MIXTURE)
LEVELS = (math.inf, 1.5, 0.5, 0.0)
# Sums of values weigh more than the reward does before the last factor takes the excess back.
SCALES = {"value": 1.2, "max": 0.6, "sum": 0.4}

# `log G_k` of the values so far, as FK steering writes its potentials.
FACTORS = {
    "value": lambda values: values[-1] - (values[-2] if len(values) > 1 else 0.0),
    "max": lambda values: torch.stack(values).amax(0),
    "sum": sum,
}


@pytest.mark.parametrize("name", POTENTIALS.names())
def test_a_potential_is_the_product_of_its_factors(name):
    values = torch.randn(2, 5, 4, generator=seeded(1), dtype=torch.float64)
    product = torch.zeros(2, 5, dtype=torch.float64)
    for k in range(4):
        product = product + FACTORS[name](list(values[..., : k + 1].unbind(-1)))
        torch.testing.assert_close(POTENTIALS.get(name)(values[..., : k + 1]), product)


@pytest.mark.parametrize("name", POTENTIALS.names())
def test_impossible_values_stay_numbers(name):
    possible = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    for position in range(3):
        values = possible.clone()
        values[position] = -math.inf
        product = POTENTIALS.get(name)(values)
        assert not product.isnan() and product < math.inf
    assert POTENTIALS.get(name)(torch.full((3,), -math.inf)) == -math.inf


@pytest.mark.parametrize("tempering", [None, AdaptiveTempering(0.9), ScheduledTempering(0.3)], ids=str)
@pytest.mark.parametrize("name", POTENTIALS.names())
def test_the_last_factor_brings_the_product_to_the_reward(name, tempering):
    """However wrong the values: where nothing is resampled, `w = exp(r(z))`, and the evidence is the mean weight."""
    law = make_law(MIXTURE, QUADRATIC, num_images=3, reward_scale=2.0)
    smc = SMC(8, GlassPosterior(2, 2), GlassTransition(2), resampling="none", potential=name, tempering=tempering)
    result = run(smc, law)
    tilts = 2.0 * result.rewards.double()
    torch.testing.assert_close(result.log_weights, torch.log_softmax(tilts, 1), atol=1e-5, rtol=0)
    torch.testing.assert_close(result.log_evidence, torch.logsumexp(tilts, 1) - math.log(8), atol=1e-5, rtol=0)
    assert not any(step.resampled is not None and step.resampled.any() for step in result.trace.steps)
    sizes = [step.effective_sample_size for step in result.trace.steps]
    torch.testing.assert_close(sizes[-1], 1 / result.log_weights.exp().square().sum(1))


@pytest.mark.parametrize("posterior", [DenoiserPoint(), GlassPosterior(2, 1)], ids=["point", "sample"])
@pytest.mark.parametrize("name", POTENTIALS.names())
def test_every_potential_has_the_tilted_law_and_its_evidence_as_limit(name, posterior):
    num_images, num_particles, scale = 384, 64, SCALES[name]
    law = make_law(MIXTURE, LINEAR, num_images=num_images, reward_scale=scale)
    smc = SMC(num_particles, posterior, EXACT, resampling_threshold=1.0, potential=name)
    result = run(smc, law, LEVELS)
    tilted, evidence = LINEAR.tilt(MIXTURE, scale=scale)
    ratio = torch.exp(result.log_evidence - evidence)
    assert (ratio.mean() - 1).abs() < 4 * standard_error(ratio) < 0.2
    means = torch.einsum("bp,bpd->bd", result.log_weights.exp(), result.latents.double())
    assert ((means.mean(0) - tilted.mean).abs() < 4 * standard_error(means) + 1 / num_particles).all()
    # One particle of each cloud, so that they are independent.
    chosen = result.log_weights.exp().multinomial(1, generator=seeded(2))[:, 0]
    z = result.latents[torch.arange(num_images), chosen]
    exact = tilted.sample(1000, seeded(3)).float()
    again = tilted.sample(100 * num_images, seeded(4)).reshape(100, -1, 3).float()
    plain = energy_distance(MIXTURE.sample(1000, seeded(5)).float(), exact)
    tolerance = 4 * energy_distance(again, exact).std() + plain / 20
    assert energy_distance(z, exact) < tolerance < plain / 2


def test_an_unknown_potential_is_refused():
    with pytest.raises(ValueError, match="potential is 'mean'; choose one of max, sum, value"):
        SMC(potential="mean")
