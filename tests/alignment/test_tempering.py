"""Tempering: the inverse temperature rises to one as its rule says, and the limits stay those of the full reward."""

import math

import pytest
import torch

from diamond_diffusers import (
    SMC,
    AdaptiveTempering,
    DenoiserPoint,
    GlassPosterior,
    GlassTransition,
    Guide,
    ScheduledTempering,
)
from diamond_diffusers.alignment.smc_parts.potentials import POTENTIALS
from diamond_diffusers.alignment.smc_parts.resampling import effective_sample_size

from ..core.exact_transition import ExactTransition
from ..core.mixture import make_mixture, seeded, standard_error
from ..core.mixture_model import LINEAR, make_law
from .runs import falling_levels, run

MIXTURE = make_mixture(3)
LOOK_AHEADS = GlassPosterior(2, 16)


def inverse_temperatures(result):
    """`[steps, B]`."""
    return torch.stack([step.inverse_temperature for step in result.trace.steps])


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_adaptive_tempering_finds_the_target_of_each_image(share):
    generator = seeded(1)
    log_potentials = 4 * torch.randn(6, 50, generator=generator, dtype=torch.float64)
    log_offsets = 0.1 * torch.randn(6, 50, generator=generator, dtype=torch.float64)
    previous = torch.full((6,), 0.01, dtype=torch.float64)
    found = AdaptiveTempering(share).inverse_temperature(3, previous, log_offsets, log_potentials)
    sizes = effective_sample_size(log_offsets + found[:, None] * log_potentials)
    torch.testing.assert_close(sizes, torch.full_like(sizes, share * 50))
    assert ((previous < found) & (found < 1)).all() and len(found.unique()) == 6
    # Just under the target, so that the same threshold triggers resampling.
    assert (sizes < share * 50).all()


def test_adaptive_tempering_ends_at_one_and_never_falls():
    log_potentials = torch.randn(2, 50, generator=seeded(1), dtype=torch.float64)
    rich = AdaptiveTempering(0.1).inverse_temperature(1, torch.zeros(2), torch.zeros(2, 50), log_potentials)
    assert (rich == 1).all()
    poor = 10 * torch.randn(2, 50, generator=seeded(2), dtype=torch.float64)
    previous = torch.tensor([0.3, 1.0], dtype=torch.float64)
    kept = AdaptiveTempering(0.9).inverse_temperature(1, previous, poor, torch.zeros_like(poor))
    torch.testing.assert_close(kept, previous)


def test_impossible_particles_do_not_stop_adaptive_tempering():
    log_potentials = torch.randn(3, 8, generator=seeded(1), dtype=torch.float64)
    log_potentials[0, :4], log_potentials[1] = -math.inf, -math.inf
    zeros = torch.zeros(3, 8, dtype=torch.float64)
    found = AdaptiveTempering(0.4).inverse_temperature(1, zeros[:, 0], zeros, log_potentials)
    assert ((found >= 0) & (found <= 1)).all()
    assert effective_sample_size(found[0] * log_potentials[0]) <= 4


def test_the_schedule_is_that_of_das():
    """Of every move, whether particles are valued after it or not."""
    for count, valued in [(None, (1, 2, 3, 4, 5, 6)), (2, (2, 4, 6))]:
        for gamma in (0.3, 0.01):
            smc = SMC(4, tempering=ScheduledTempering(gamma), num_valuations=count)
            result = run(smc, make_law(MIXTURE, LINEAR), falling_levels(6))
            found = {
                index: step.inverse_temperature.item()
                for index, step in enumerate(result.trace.steps, 1)
                if step.inverse_temperature is not None
            }
            expected = {k: min(1.0, (1 + gamma) ** k - 1) if k < 6 else 1.0 for k in valued}
            assert found == pytest.approx(expected)


def test_the_effective_sample_size_is_held_along_the_levels():
    smc = SMC(64, DenoiserPoint(), GlassTransition(2), tempering=AdaptiveTempering(0.5), num_valuations=None)
    law = make_law(MIXTURE, LINEAR, num_images=6, reward_scale=30.0)
    result = run(smc, law, falling_levels(12))
    temperatures = inverse_temperatures(result)
    assert (temperatures.diff(dim=0) >= 0).all() and (temperatures[-1] == 1).all()
    assert (temperatures[2] < 1).all() and len(temperatures[2].unique()) == 6
    previous = torch.zeros(6, dtype=torch.float64)
    for step in result.trace.steps[:-1]:
        has_risen = step.inverse_temperature > previous + 1e-9
        is_held = has_risen & (step.inverse_temperature < 1)
        held = step.effective_sample_size[is_held]
        torch.testing.assert_close(held, torch.full_like(held, 32.0))
        # Where even the last temperature is too low, the particles are resampled and it stays.
        assert (step.effective_sample_size[~has_risen & (previous < 1)] < 32).all()
        assert step.resampled[step.inverse_temperature < 1].all()
        previous = step.inverse_temperature
    # Without tempering the first weighing leaves next to nothing.
    plain = run(SMC(64, DenoiserPoint(), GlassTransition(2), num_valuations=None), law, falling_levels(12))
    assert min(step.effective_sample_size.min() for step in plain.trace.steps[:-1]) < 10


@pytest.mark.parametrize("tempering", [AdaptiveTempering(0.97), ScheduledTempering(0.2)], ids=str)
@pytest.mark.parametrize("guide", [None, Guide("tilted_mean")], ids=["plain", "guided"])
def test_tempered_weights_have_the_limits_of_the_full_reward(tempering, guide):
    num_images, num_particles, scale = 96, 128, 1.5
    posterior = DenoiserPoint() if guide is None else LOOK_AHEADS
    smc = SMC(
        num_particles,
        posterior,
        ExactTransition(MIXTURE),
        resampling_threshold=0.9,
        guide=guide,
        tempering=tempering,
    )
    result = run(smc, make_law(MIXTURE, LINEAR, num_images=num_images, reward_scale=scale), falling_levels(4))
    tilted, evidence = LINEAR.tilt(MIXTURE, scale=scale)
    ratio = torch.exp(result.log_evidence - evidence)
    # Adaptive temperatures make the evidence consistent only, with an error of order 1 / P.
    assert (ratio.mean() - 1).abs() < 4 * standard_error(ratio) + 1 / num_particles < 0.2
    means = torch.einsum("bp,bpd->bd", result.log_weights.exp(), result.latents.double())
    assert ((means.mean(0) - tilted.mean).abs() < 4 * standard_error(means) + 1 / num_particles).all()
    assert (inverse_temperatures(result)[0] < 1).any()


@pytest.mark.parametrize(
    ("tempering", "first"),
    [(AdaptiveTempering(), 0.0), (ScheduledTempering(0.25), 0.25)],
    ids=["adaptive", "scheduled"],
)
def test_guidance_is_tempered_too(tempering, first):
    """By the temperature of the level that a move leads to, where that is known before the move."""
    moved = []
    for strength, tempers in ((1.0, None), (1.0, tempering), (0.0, None)):
        guide = Guide("tilted_mean", strength=strength, max_shift=None)
        smc = SMC(8, LOOK_AHEADS, guide=guide, max_tilt=math.inf, tempering=tempers)
        seen = []
        law = make_law(MIXTURE, LINEAR, reward_scale=3.0)
        run(smc, law, falling_levels(4), on_step=lambda index, x, seen=seen: seen.append(x.clone()))
        moved.append(seen[0])
    whole, tempered, none = moved
    torch.testing.assert_close(tempered - none, first * (whole - none), atol=1e-5, rtol=0)
    assert (whole - none).norm() > 0.1


def test_the_temperature_of_an_image_is_its_own():
    smc = SMC(16, tempering=AdaptiveTempering(0.8), potential="sum", resampling_threshold=0.9)
    together = run(smc, make_law(MIXTURE, LINEAR, num_images=3, reward_scale=4.0), seed=[1, 2, 3])
    for image, seed in enumerate([1, 2, 3]):
        alone = run(smc, make_law(MIXTURE, LINEAR, reward_scale=4.0), seed=[seed])
        torch.testing.assert_close(inverse_temperatures(together)[:, image], inverse_temperatures(alone)[:, 0])
        torch.testing.assert_close(together.latents[image], alone.latents[0])


@pytest.mark.parametrize("potential", POTENTIALS.names())
def test_weights_telescope_through_replacements(potential):
    """Values of particles that a callback moved stand for the old ones in every product."""
    smc = SMC(8, potential=potential, tempering=ScheduledTempering(0.3), resampling="none")
    law = make_law(MIXTURE, LINEAR, num_images=2)
    levels = falling_levels(5)
    result = run(smc, law, levels, on_step=lambda index, x: x + 0.1 if index % 2 == 0 else None)
    expected = torch.log_softmax(result.rewards.double(), 1)
    torch.testing.assert_close(result.log_weights, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("tempering", "options", "message"),
    [
        (AdaptiveTempering, {"effective_sample_size": 0.0}, r"effective_sample_size is 0\.0"),
        (AdaptiveTempering, {"effective_sample_size": 8}, "effective_sample_size is 8; give a share"),
        (ScheduledTempering, {"gamma": 0.0}, r"gamma is 0\.0"),
        (ScheduledTempering, {"gamma": math.nan}, "gamma is nan"),
    ],
)
def test_unusable_temperings_are_refused(tempering, options, message):
    with pytest.raises(ValueError, match=message):
        tempering(**options)
