"""The chain that a stock loop runs: step for step that of `GlassTransition`, and right in law."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from diamond_diffusers import GlassTransition
from diamond_diffusers.core.interval import Interval
from diamond_diffusers.core.network import Network

from ..core.mixture import coefficients, energy_distance, excess_variance, make_mixture, seeded, standard_error
from .loops import KINDS, level_at, make_scheduler, mixture_network, stock_loop, table_of

MIXTURE = make_mixture(3)
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "set_alpha_to_one": True}
REPETITIONS, SAMPLES = 8, 600


def bounded_denoiser(kind):
    """The mixture's posterior mean at observations of variance-preserving scale, as a model of that kind knows it."""
    lowest = 0.0 if kind == "flow" else table_of()[0]

    def denoise(x, kappa):
        kappa = torch.as_tensor(kappa, dtype=torch.float64)
        if kappa >= lowest:
            return MIXTURE.denoised(x, *coefficients(kappa)).to(x.dtype)
        # Below the trained levels the predicted noise is kept: D = y - kappa eps.
        y = x.double() * torch.sqrt(1 + kappa**2)
        denoised = MIXTURE.denoised(y / np.sqrt(1 + lowest**2), *coefficients(lowest))
        return (y - kappa * (y - denoised) / lowest).to(x.dtype)

    return denoise


@pytest.mark.parametrize("solver", ["euler", "multistep", "exponential"])
@pytest.mark.parametrize("correlation", ["ddpm", 0.0, 0.7, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_a_stock_loop_runs_the_chain_of_glass_transitions(kind, correlation, solver):
    options = {"num_inner_steps": 3, "correlation": correlation, "solver": solver}
    scheduler = make_scheduler(kind, **options)
    x = torch.randn(64, 3, generator=seeded(0))
    final = stock_loop(scheduler, mixture_network(MIXTURE, kind), x, 4, generator=seeded(1))

    outer = [level_at(kind, timestep) for timestep in scheduler.timesteps[::3]]
    assert len(outer) == 4
    # Stable Diffusion's last level is that of its first training step.
    levels = [*outer, 0.0 if kind == "flow" else table_of()[0]]
    transition, generator = GlassTransition(**options), seeded(1)
    denoise = bounded_denoiser(kind)
    network = Network(denoise, denoise)
    for kappa, kappa_next in pairwise(levels):
        noise = torch.randn(64, 3, generator=generator)
        x = transition.step(network, x, Interval(kappa, kappa_next), denoise(x, kappa), noise)
    # Float32 rounding of timesteps and states over twelve evaluations of a mixture with three modes.
    torch.testing.assert_close(final, x, atol=2e-4, rtol=0)


def law_errors(final, exact):
    return torch.stack([energy_distance(final, exact), excess_variance(final, MIXTURE)], 1)


@pytest.mark.parametrize("correlation", ["ddpm", 0.5])
@pytest.mark.parametrize(
    ("kind", "options"),
    [("flow", {}), ("v_prediction", ZERO_SNR), ("epsilon", {}), ("sample", {"set_alpha_to_one": True})],
)
def test_the_final_law_is_that_of_the_data(kind, options, correlation):
    scheduler = make_scheduler(kind, num_inner_steps=24, correlation=correlation, **options)
    network = mixture_network(MIXTURE, kind, table_of(**options))
    # Latents of Stable Diffusion start at its largest level: there the law of data is not forgotten yet.
    scheduler.set_timesteps(8)
    start = level_at(kind, scheduler.timesteps[0], table_of(**options))
    latents = MIXTURE.observation(start).sample(REPETITIONS * SAMPLES, seeded(0)).float()
    final = stock_loop(scheduler, network, latents, 8, generator=seeded(1)).unflatten(0, (REPETITIONS, -1))
    exact, again = (MIXTURE.sample(REPETITIONS * SAMPLES, seeded(s)).unflatten(0, (REPETITIONS, -1)) for s in (2, 3))
    distance, excess = law_errors(final.double(), exact).mean(0).abs()
    null = law_errors(again, exact)
    assert distance < 4 * standard_error(null[:, 0])
    assert excess < 4 * standard_error(null[:, 1])


def test_one_inner_step_does_not_have_that_law():
    """So that the test above can tell laws apart."""
    scheduler = make_scheduler("flow", num_inner_steps=1)
    latents = torch.randn(REPETITIONS * SAMPLES, 3, generator=seeded(0))
    final = stock_loop(scheduler, mixture_network(MIXTURE, "flow"), latents, 8, generator=seeded(1))
    exact = MIXTURE.sample(REPETITIONS * SAMPLES, seeded(2)).unflatten(0, (REPETITIONS, -1))
    distance, excess = law_errors(final.double().unflatten(0, (REPETITIONS, -1)), exact).mean(0).abs()
    assert distance > 1e-2 and excess > 0.1


def test_below_the_training_table_the_predicted_noise_is_kept():
    """One transition to 0 from inside the table: its second query lies below the first training step."""
    lowest = table_of()[0]
    start = 1.0001 * lowest
    scheduler = make_scheduler("epsilon", num_inner_steps=2)
    scheduler.set_timesteps(sigmas=[start, 0.0])
    y, generator = torch.randn(5, 3, generator=seeded(0)), seeded(1)
    inputs = []

    def predicted_noise(x):
        inputs.append(x)
        return 0.3 * x + 1

    sample = y / np.sqrt(1 + start**2)
    for timestep in scheduler.timesteps:
        sample = scheduler.step(predicted_noise(sample), timestep, sample, generator).prev_sample

    noise = torch.randn(5, 3, generator=seeded(1))
    first = y - start * (0.3 * y / np.sqrt(1 + start**2) + 1)
    # Half way the inner observation is y' = xbar / (1 - s) with noise as strong as that of the bounded coordinate.
    sigma = start / np.sqrt(1 + start**2)
    fused_precision = 1 / start**2 + 1 / sigma**2
    fused = (y / start**2 + (first + sigma * noise) / sigma**2) / fused_precision
    queried = fused / np.sqrt(1 + lowest**2)
    torch.testing.assert_close(inputs[1], queried, atol=1e-5, rtol=0)
    assert scheduler.timesteps[0] > 0
    assert scheduler.timesteps[1] == 0
    second = fused - (0.3 * queried + 1) / np.sqrt(fused_precision)
    expected = 2 * second - first
    torch.testing.assert_close(sample, expected, atol=1e-5, rtol=0)
