"""The spread of look-aheads and of early-stopped inner states at every noise level, in few steps and in many."""

import math
from functools import cache, partial

import pytest
import torch

from diamond_diffusers.core.glass import EarlyStop, inner_angle, inner_states, inner_time, inner_times, sample_posterior
from diamond_diffusers.core.interval import Interval

from ..products import diagonal
from .mixture import (
    GaussianMixture,
    coefficients,
    energy_distance,
    make_mixture,
    make_spread_mixture,
    seeded,
    standard_error,
)

LEVELS = (0.03, 0.1, 0.3, 1.0, 3.0, math.inf)
MIXTURES = {
    **{f"three clusters, d={dimension}": partial(make_mixture, dimension) for dimension in (1, 3)},
    **{f"four clusters, d={dimension}": partial(make_spread_mixture, dimension) for dimension in (1, 3, 8)},
}
OBSERVATIONS, SAMPLES = 12, 400


def denoiser_of(mixture):
    """At one level, and at one level a row, in float64."""

    def denoise(x, level):
        return mixture.posterior(x, torch.as_tensor(level)).mean

    return denoise


@cache
def drawn(name, level, num_inner_steps, solver, next_level=None, correlation=0.0):
    """Inner states `[OBSERVATIONS, SAMPLES, d]` at their stop, and their exact law there."""
    mixture = MIXTURES[name]()
    x = mixture.observation(level).sample(OBSERVATIONS, seeded(3))
    stop = 0.0 if next_level is None else EarlyStop(Interval(level, next_level), correlation).stop
    noise = torch.randn(OBSERVATIONS * SAMPLES, x.shape[1], generator=seeded(6), dtype=torch.float64)
    options = {"num_inner_steps": num_inner_steps, "solver": solver, "stop": stop}
    *_, states = inner_states(denoiser_of(mixture), x, level, noise, **options)
    states = states.unflatten(0, (OBSERVATIONS, SAMPLES))
    law = mixture.posterior(x, level)
    stop = torch.tensor(stop, dtype=torch.float64)
    return states, law.affine(1 - stop, torch.zeros(x.shape[1], dtype=torch.float64), stop**2)


def total_variance(law):
    return law.covariance.diagonal(dim1=-2, dim2=-1).sum(-1)


def variance_kept(*case):
    """Total variance over samples as a share of the exact one, over all observations."""
    states, law = drawn(*case)
    return (states.var(1).sum() / total_variance(law).sum()).item()


def distance(*case):
    """Energy distance to the exact law in units of its deviation, over all observations."""
    states, law = drawn(*case)
    exact = law.sample(SAMPLES, seeded(4))
    return (energy_distance(states, exact) / total_variance(law).sqrt()).mean().item()


BOUNDS = {
    "exponential": {2: (0.75, 1.65), 3: (0.8, 1.2), 4: (0.8, 1.15), 8: (0.9, 1.1)},
    "multistep": {4: (0.62, 0.9), 8: (0.87, 1.02)},
    "euler": {4: (0.48, 0.72), 8: (0.7, 0.86)},
}
"""Of the variance kept, by solver and number of steps."""


@pytest.mark.parametrize(("name", "solver"), diagonal([*MIXTURES], [*BOUNDS]))
def test_look_aheads_keep_their_spread_at_every_level(name, solver):
    for num_inner_steps, (least, most) in BOUNDS[solver].items():
        for level in LEVELS:
            kept = variance_kept(name, level, num_inner_steps, solver)
            assert least < kept < most, f"{num_inner_steps} steps at kappa = {level} keep {kept:.3f}"


STOPS = [
    (0.1, 0.05, 0.5),
    (0.3, 0.15, 0.5),
    (1.0, 0.5, 0.9),
    (1.0, 0.5, 0.0),
    (math.inf, 2.0, 0.0),
    (math.inf, 0.5, 0.4),
]
"""`(kappa, next kappa, rho)` of transitions."""
STOP_BOUNDS = {
    "exponential": {2: (0.93, 1.18), 4: (0.95, 1.07)},
    "multistep": {2: (0.7, 1.0), 4: (0.88, 1.02)},
    "euler": {2: (0.45, 0.95), 4: (0.7, 0.98)},
}
"""Of the variance of the inner state at the stop of a transition."""


@pytest.mark.parametrize(("name", "solver"), diagonal([*MIXTURES], [*STOP_BOUNDS]))
def test_early_stopped_flows_keep_their_spread(name, solver):
    for num_inner_steps, (least, most) in STOP_BOUNDS[solver].items():
        for stop in STOPS:
            level, next_level, correlation = stop
            kept = variance_kept(name, level, num_inner_steps, solver, next_level, correlation)
            assert least < kept < most, f"{num_inner_steps} steps from and to {stop} keep {kept:.3f}"


@pytest.mark.parametrize(("name", "level"), diagonal([*MIXTURES], LEVELS))
def test_few_and_many_steps_end_at_the_exact_law(name, level):
    """Two of the default solver are near it, four nearer; of 64 nothing is left but the noise of the samples."""
    _, law = drawn(name, level, 2, "exponential")
    first, second = law.sample(2 * SAMPLES, seeded(5)).chunk(2, 1)
    floor = 4 * standard_error(energy_distance(first, second) / total_variance(law).sqrt())
    two, four, many = (distance(name, level, steps, "exponential") for steps in (2, 4, 64))
    assert two < 0.1 and four < 0.02 and many < floor


@pytest.mark.parametrize("num_inner_steps", [2, 3, 5, 16])
@pytest.mark.parametrize("level", LEVELS)
def test_the_default_solver_is_exact_for_standard_normal_data_in_two_steps(level, num_inner_steps):
    """Then `xbar_s / s = E[z | x] (1 / s - 1) + eps / sin a`; with further steps that holds within 7 % of the noise."""
    dimension = 3
    law = GaussianMixture(torch.zeros(1), torch.zeros(1, dimension).double(), torch.eye(dimension).double()[None])
    x, noise = torch.randn(2, 5, dimension, generator=seeded(1), dtype=torch.float64)
    mean = law.posterior(x, level).mean
    _, sigma = coefficients(level)
    for stop in (0.0, 0.05, 0.4):
        *_, end = inner_states(denoiser_of(law), x, level, noise, num_inner_steps=num_inner_steps, stop=stop)
        gain = sigma if stop == 0 else stop / torch.sin(inner_angle(stop, level))
        error = (end - (1 - stop) * mean) / gain - noise
        assert error.abs().max() < (1e-9 if num_inner_steps == 2 else 0.07 * noise.abs().max())


def test_the_grid_is_even_in_the_angle():
    levels = torch.tensor(LEVELS, dtype=torch.float64)
    for stop in (0.0, 0.3):
        times = inner_times(4, levels, stop)
        assert times.shape == (5, len(LEVELS)) and times.dtype == torch.float64
        assert (times[0] == 1).all() and (times[-1] == stop).all()
        steps = inner_angle(times, levels).diff(dim=0)
        torch.testing.assert_close(steps, steps.mean(0).expand_as(steps))
        torch.testing.assert_close(inner_time(inner_angle(times, levels), levels), times)
        for column, level in enumerate(LEVELS):
            torch.testing.assert_close(inner_times(4, level, stop), times[:, column])
    # Half way the inner state is as noisy as the posterior of standard normal data is wide.
    for level in LEVELS:
        half = inner_times(2, level)[1]
        torch.testing.assert_close(half / (1 - half), coefficients(level)[1])


@pytest.mark.parametrize("solver", BOUNDS)
@pytest.mark.parametrize("num_inner_steps", [2, 5])
def test_a_row_is_the_same_whatever_the_levels_of_the_others(solver, num_inner_steps):
    """To the bit: each row has a grid of its own."""
    denoise = denoiser_of(make_mixture(3))
    levels = torch.tensor([*LEVELS, 0.7, 0.03, 12.0], dtype=torch.float64)
    x, noise = torch.randn(len(levels), 3, generator=seeded(1)), torch.randn(2 * len(levels), 3, generator=seeded(2))
    options = {"num_inner_steps": num_inner_steps, "solver": solver}
    together = sample_posterior(denoise, x, levels, noise, **options)
    for index in range(len(levels)):
        rows = slice(2 * index, 2 * index + 2)
        alone = sample_posterior(denoise, x[index : index + 1], levels[index : index + 1], noise[rows], **options)
        assert torch.equal(together[rows], alone)
        single = sample_posterior(denoise, x[index : index + 1], levels[index].item(), noise[rows], **options)
        torch.testing.assert_close(single, alone)
