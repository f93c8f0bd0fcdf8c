"""GLASS look-aheads against the exact posterior of a mixture, in energy distance and in network evaluations."""

import math
from functools import cache
from itertools import pairwise

import pytest
import torch

from diamond_diffusers import AncestralTransition, DenoiserPoint, FlowMapPoint, GlassPosterior
from diamond_diffusers.core.glass import INNER_SOLVERS, sample_posterior
from diamond_diffusers.core.interval import Interval
from diamond_diffusers.core.model import Conditions
from diamond_diffusers.core.network import Network
from diamond_diffusers.core.serial import with_options

from ..products import one_of_each_kind
from .mixture import energy_distance, excess_variance, make_mixture, seeded, standard_error
from .mixture_model import FAMILIES, FAMILIES_AT_PURE_NOISE, MixtureModel

MIXTURE = make_mixture(4)
LEVELS = (0.3, 0.8, 2.0, 6.0)
OBSERVATIONS, SAMPLES = 8, 1000


def denoiser_of(family):
    return lambda x, level: family.denoise(x, level, Conditions({}))


def observations(level):
    return MIXTURE.observation(level).sample(OBSERVATIONS, seeded(round(100 * level))).float()


def posterior(level):
    return MIXTURE.posterior(observations(level), level)


@cache
def exact_samples(level, repetition=0):
    return posterior(level).sample(SAMPLES, seeded(round(100 * level) + repetition + 1)).float()


@cache
def noise_floor():
    """Four standard errors of `mean_errors` of the exact law: of the distance, and of the excess variance."""
    distances = [energy_distance(exact_samples(level, 1), exact_samples(level)) for level in LEVELS]
    excess = [excess_variance(exact_samples(level, 1), posterior(level)) for level in LEVELS]
    return tuple(4 * standard_error(torch.cat(errors)).item() for errors in (distances, excess))


def mean_errors(sample):
    """Energy distance to the exact posteriors and excess variance of what `sample(x, level, noise)` draws.

    Means over 4 levels x 8 observations.
    """
    distances, excess = [], []
    for level in LEVELS:
        noise = torch.randn(OBSERVATIONS * SAMPLES, 4, generator=seeded(round(100 * level) + 3))
        drawn = sample(observations(level), level, noise).unflatten(0, (OBSERVATIONS, SAMPLES))
        distances.append(energy_distance(drawn, exact_samples(level)))
        excess.append(excess_variance(drawn, posterior(level)))
    return torch.cat(distances).mean().item(), torch.cat(excess).mean().abs().item()


@cache
def glass_errors(family, num_inner_steps, solver):
    denoise = denoiser_of(MixtureModel(MIXTURE, family))
    return mean_errors(
        lambda x, level, noise: sample_posterior(
            denoise, x, level, noise, num_inner_steps=num_inner_steps, solver=solver
        )
    )


@cache
def ancestral_distance(num_steps):
    """Of the Gaussian ancestral chain, with steps uniform in the time of rectified flow."""
    denoise = denoiser_of(MixtureModel(MIXTURE))

    def sample(x, level, noise):
        generator = seeded(round(100 * level) + 4)
        x = x.repeat_interleave(SAMPLES, 0)
        times = torch.linspace(level / (1 + level), 0, num_steps + 1, dtype=torch.float64)
        levels = (times / (1 - times)).tolist()
        for kappa, next_kappa in pairwise(levels):
            noise = torch.randn(x.shape, generator=generator)
            x = AncestralTransition().step(
                Network(denoise, denoise), x, Interval(kappa, next_kappa), denoise(x, kappa), noise
            )
        return x

    return mean_errors(sample)[0]


@pytest.mark.parametrize("family", one_of_each_kind(FAMILIES, ["rectified_flow", "epsilon"]))
def test_the_exact_posterior_is_reached_as_inner_steps_grow(family):
    (few, _), (more, _), (many, excess) = [glass_errors(family, steps, "multistep") for steps in (2, 6, 40)]
    floor, excess_floor = noise_floor()
    assert few > 2 * more > 2 * floor
    assert many < floor
    assert excess < excess_floor + 0.01


@pytest.mark.parametrize(("solver", "bias"), [("euler", 0.05), ("multistep", 0.005), ("exponential", 0.01)])
def test_every_solver_reaches_the_exact_posterior(solver, bias):
    """Up to a relative bias of the variance that Euler's first order leaves."""
    distance, excess = glass_errors("rectified_flow", 64, solver)
    floor, excess_floor = noise_floor()
    assert distance < floor + (0.0003 if solver == "euler" else 0)
    assert excess < excess_floor + bias


@pytest.mark.parametrize("solver", ["multistep", "exponential"])
def test_a_second_order_solver_needs_half_the_evaluations_of_euler(solver):
    assert glass_errors("rectified_flow", 8, solver)[0] < glass_errors("rectified_flow", 16, "euler")[0]
    assert glass_errors("rectified_flow", 16, solver)[0] < ancestral_distance(64) + noise_floor()[0]


@pytest.mark.parametrize("family", FAMILIES_AT_PURE_NOISE)
def test_pure_noise_gives_samples_of_the_prior(family):
    x = torch.randn(10, 4, generator=seeded(5))
    noise = torch.randn(10 * 400, 4, generator=seeded(6))
    denoise = denoiser_of(MixtureModel(MIXTURE, family))
    drawn = sample_posterior(denoise, x, math.inf, noise, num_inner_steps=40).double().unflatten(0, (10, 400))
    first, second = MIXTURE.sample(2 * 10 * 400, seeded(7)).reshape(2, 10, 400, 4)
    null = energy_distance(first, second)
    assert energy_distance(drawn, second).mean() < 4 * standard_error(null)
    assert excess_variance(drawn, MIXTURE).mean().abs() < 4 * standard_error(excess_variance(first, MIXTURE))


@pytest.mark.parametrize("solver", INNER_SOLVERS)
@pytest.mark.parametrize("num_inner_steps", [1, 2, 3, 8])
def test_no_solver_divides_by_zero_at_pure_noise(solver, num_inner_steps):
    x, noise = torch.randn(2, 3, 4, generator=seeded(5)).unbind(0)
    denoise = denoiser_of(MixtureModel(MIXTURE, "v_prediction"))
    drawn = sample_posterior(denoise, x, math.inf, noise, num_inner_steps=num_inner_steps, solver=solver)
    assert drawn.isfinite().all()
    if num_inner_steps == 1:
        torch.testing.assert_close(drawn, MIXTURE.mean.float().expand(3, 4))


@pytest.mark.parametrize("num_samples", [1, 4])
@pytest.mark.parametrize("num_inner_steps", [2, 5])
def test_look_aheads_share_their_first_evaluation(num_samples, num_inner_steps):
    family = MixtureModel(MIXTURE)
    denoise = denoiser_of(family)
    x, noise = observations(0.8), torch.randn(OBSERVATIONS * num_samples, 4, generator=seeded(1))
    drawn = sample_posterior(denoise, x, 0.8, noise, num_inner_steps=num_inner_steps)
    assert family.evaluations == OBSERVATIONS * (1 + num_samples * (num_inner_steps - 1))
    family.evaluations = 0
    known = denoise(x, 0.8)
    posterior = GlassPosterior(num_inner_steps, num_samples).sample(Network(denoise, denoise), x, 0.8, known, noise)
    assert family.evaluations == OBSERVATIONS * (1 + num_samples * (num_inner_steps - 1))
    assert torch.equal(posterior.samples.flatten(0, 1), drawn)
    assert torch.equal(posterior.log_weights, torch.zeros(OBSERVATIONS, num_samples))


def test_a_single_inner_step_gives_the_denoiser_point():
    denoise = denoiser_of(MixtureModel(MIXTURE))
    x, noise = observations(0.8), torch.randn(OBSERVATIONS, 4, generator=seeded(1))
    expected = MIXTURE.posterior(x, 0.8).mean.float()
    torch.testing.assert_close(sample_posterior(denoise, x, 0.8, noise, num_inner_steps=1), expected)
    point = DenoiserPoint().sample(Network(denoise, denoise), x, 0.8, expected, noise)
    assert torch.equal(point.samples[:, 0], expected)


def test_several_samples_of_a_single_inner_step_are_refused():
    denoise = denoiser_of(MixtureModel(MIXTURE))
    with pytest.raises(ValueError, match="num_inner_steps is 1"):
        GlassPosterior(num_inner_steps=1, num_samples=2)
    with pytest.raises(ValueError, match="num_inner_steps is 1"):
        sample_posterior(denoise, torch.zeros(2, 4), 1.0, torch.zeros(4, 4), num_inner_steps=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_inner_steps": 0}, "num_inner_steps is 0"),
        ({"solver": "heun"}, "solver is 'heun'; choose one of euler, multistep, exponential"),
        ({"num_samples": 0}, "num_samples is 0"),
    ],
)
def test_unusable_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GlassPosterior(**options)


@pytest.mark.parametrize(("name", "point"), [("denoiser", DenoiserPoint()), ("flow_map", FlowMapPoint())])
def test_a_point_is_one_sample(name, point):
    assert point.num_samples == 1
    with pytest.raises(ValueError, match=f"posterior '{name}' has no option 'num_samples'"):
        with_options(point, {"num_samples": 2})


def test_observations_may_have_levels_of_their_own():
    denoise = denoiser_of(MixtureModel(MIXTURE))
    x, noise = torch.randn(3, 4, generator=seeded(5)), torch.randn(6, 4, generator=seeded(6))
    levels = torch.tensor([0.3, 2.0, math.inf], dtype=torch.float64)
    together = sample_posterior(denoise, x, levels, noise, num_inner_steps=4)
    for i, level in enumerate(levels.tolist()):
        alone = sample_posterior(denoise, x[i : i + 1], level, noise[2 * i : 2 * i + 2], num_inner_steps=4)
        torch.testing.assert_close(together[2 * i : 2 * i + 2], alone)


@pytest.mark.parametrize("level", [0.8, math.inf])
def test_half_precision_observations_keep_their_statistics_in_float32(level):
    denoise = denoiser_of(MixtureModel(MIXTURE))
    x, noise = torch.randn(2, 5, 4, generator=seeded(5)).bfloat16().unbind(0)
    drawn = sample_posterior(denoise, x, level, noise, num_inner_steps=6)
    assert drawn.dtype == torch.float32
    torch.testing.assert_close(drawn, sample_posterior(denoise, x.float(), level, noise.float(), num_inner_steps=6))
