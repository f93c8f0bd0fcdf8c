"""Resampling schemes: unbiased, as even as they claim, and driven by their generators alone."""

import pytest
import torch

from diamond_diffusers.alignment.smc_parts.resampling import RESAMPLING_SCHEMES, effective_sample_size

from ..core.mixture import seeded, standard_error

WEIGHTS = [
    torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64),
    torch.tensor([0.02, 0.41, 0.0, 0.17, 0.33, 0.07], dtype=torch.float64),
    torch.tensor([0.125, 0.25, 0.125, 0.5], dtype=torch.float64),
]
# Gerber, Chopin & Whiteley (2019): the schemes whose counts are the expected ones, rounded up or down.
ROUNDING = ["systematic", "ssp"]


def counts_of(scheme, weights, repetitions=2000, seed=0):
    """`[repetitions, P]`."""
    generator = seeded(seed)
    draws = [RESAMPLING_SCHEMES.get(scheme)(weights, generator) for _ in range(repetitions)]
    return torch.nn.functional.one_hot(torch.stack(draws), len(weights)).sum(1).double()


@pytest.mark.parametrize("scheme", RESAMPLING_SCHEMES.names())
@pytest.mark.parametrize("weights", WEIGHTS, ids=["falling", "zero", "dyadic"])
def test_expected_counts_are_proportional_to_the_weights(scheme, weights):
    counts = counts_of(scheme, weights)
    assert (counts.sum(1) == len(weights)).all()
    # Four and a half standard errors, over some hundred comparisons.
    error = (counts.mean(0) - len(weights) * weights).abs()
    assert (error <= 4.5 * standard_error(counts) + 1e-9).all()
    assert (counts[:, weights == 0] == 0).all()


@pytest.mark.parametrize("scheme", ROUNDING)
@pytest.mark.parametrize("size", [2, 5, 40])
def test_counts_are_the_expected_ones_rounded_up_or_down(scheme, size):
    weights = torch.softmax(2 * torch.randn(size, generator=seeded(size), dtype=torch.float64), 0)
    deviations = counts_of(scheme, weights, 200) - size * weights
    assert deviations.abs().max() < 1 + 1e-9


def test_stratified_counts_differ_by_less_than_two_from_the_expected_ones():
    weights = torch.softmax(2 * torch.randn(40, generator=seeded(1), dtype=torch.float64), 0)
    assert (counts_of("stratified", weights, 200) - 40 * weights).abs().max() < 2


def test_residual_resampling_keeps_the_whole_parts():
    weights = torch.softmax(2 * torch.randn(40, generator=seeded(2), dtype=torch.float64), 0)
    assert (counts_of("residual", weights, 200) >= torch.floor(40 * weights)).all()
    assert (counts_of("residual", WEIGHTS[2], 50) == 4 * WEIGHTS[2]).sum() >= 100


@pytest.mark.parametrize("scheme", RESAMPLING_SCHEMES.names())
def test_equal_weights_leave_even_schemes_nothing_to_do(scheme):
    weights = torch.full((7,), 1 / 7, dtype=torch.float64)
    counts = counts_of(scheme, weights, 50)
    if scheme in ("multinomial", "residual"):
        return
    assert (counts == 1).all()


@pytest.mark.parametrize("scheme", ["stratified", "systematic", "residual", "ssp"])
def test_every_scheme_varies_less_than_independent_draws(scheme):
    weights = WEIGHTS[0]
    variance = counts_of(scheme, weights).var(0)
    assert (variance < len(weights) * weights * (1 - weights)).all()


@pytest.mark.parametrize("scheme", RESAMPLING_SCHEMES.names())
def test_draws_depend_on_the_generator_alone(scheme):
    weights = WEIGHTS[1]
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, second = counts_of(scheme, weights, 20, seed=3), counts_of(scheme, weights, 20, seed=3)
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first, counts_of(scheme, weights, 20, seed=4))


@pytest.mark.parametrize("scheme", RESAMPLING_SCHEMES.names())
def test_one_particle_and_one_certain_particle(scheme):
    assert RESAMPLING_SCHEMES.get(scheme)(torch.ones(1, dtype=torch.float64), seeded(0)).tolist() == [0]
    certain = torch.tensor([0.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    assert RESAMPLING_SCHEMES.get(scheme)(certain, seeded(0)).tolist() == [2, 2, 2, 2]


def test_the_effective_sample_size_is_the_squared_sum_over_the_sum_of_squares():
    weights = torch.rand(3, 8, generator=seeded(1), dtype=torch.float64)
    expected = weights.sum(1) ** 2 / weights.square().sum(1)
    # Whatever the scale of the weights.
    torch.testing.assert_close(effective_sample_size(weights.log() + 1000), expected)
    torch.testing.assert_close(effective_sample_size(torch.zeros(8)), torch.tensor(8.0))
    assert effective_sample_size(torch.tensor([0.0, -1e4])) == 1


def test_the_effective_sample_size_of_equal_weights_is_their_number_exactly():
    """So that equal weights are never resampled, at any threshold."""
    for count in range(1, 100):
        for height in (0.0, -0.1, 1e5, -1e300):
            log_weights = torch.full((2, count), height, dtype=torch.float64)
            assert (effective_sample_size(log_weights) == count).all()


def test_the_effective_sample_size_without_any_weight_is_zero():
    assert effective_sample_size(torch.full((4,), -torch.inf)) == 0
    assert effective_sample_size(torch.tensor([-torch.inf, 1.0, -torch.inf, 1.0])) == 2
    assert effective_sample_size(torch.tensor([0.0, torch.nan])).isnan()


@pytest.mark.parametrize("scheme", ["stratified", "systematic", "ssp"])
@pytest.mark.parametrize("count", [3, 8, 100])
def test_even_schemes_leave_equal_weights_where_they_are(scheme, count):
    weights = torch.full((count,), 1 / count, dtype=torch.float64)
    for seed in range(20):
        assert RESAMPLING_SCHEMES.get(scheme)(weights, seeded(seed)).tolist() == list(range(count))
