"""The transition that other tests take for exact: its law, and that it is a map of its noise."""

import math

import pytest
import torch

from diamond_diffusers import GlassTransition
from diamond_diffusers.core.interval import Interval

from .exact_transition import ExactTransition
from .mixture import energy_distance, make_mixture, seeded
from .mixture_model import MixtureModel
from .test_transitions import CORRELATIONS, STEPS, errors_of_the_joint_law, observations, standard_error, stepped

MIXTURE = make_mixture(3)


@pytest.mark.parametrize("correlation", CORRELATIONS)
def test_particles_have_the_exact_joint_law(correlation):
    """By the tolerances that inner flows are held to, without their percent for finite steps."""
    steps = [*STEPS, (0.5, 0.0), (math.inf, 0.0)]
    errors, null = errors_of_the_joint_law(ExactTransition(MIXTURE, correlation), "rectified_flow", correlation, steps)
    assert (errors.mean(0).abs() < 4 * standard_error(null)).all()


@pytest.mark.parametrize(("level", "next_level"), STEPS)
def test_the_digits_that_choose_the_component_say_nothing_of_its_place(level, next_level):
    """Particles of the two halves of the noises lie on opposite sides of the mean, and equally far from it."""
    x = observations(level)[:1].expand(20_000, 3)
    noise = torch.randn(20_000, 3, generator=seeded(1))
    moved = stepped(ExactTransition(MIXTURE), MixtureModel(MIXTURE), x, level, next_level, noise)
    law = MIXTURE.transition(x[:1], level, next_level, next_level / level)
    # Mirrored noise has other digits, and gives the same law.
    mirrored = stepped(ExactTransition(MIXTURE), MixtureModel(MIXTURE), x, level, next_level, -noise)
    for particles in (moved, mirrored):
        error = particles.double() - law.mean
        assert (error.mean(0).abs() < 4 * standard_error(error)).all()
        right = noise[:, 0] > 0
        half_mean = [error[side].mean(0) for side in (right, ~right)]
        spread = (half_mean[0] + half_mean[1]).abs()
        assert (spread < 4 * (standard_error(error[right]) ** 2 + standard_error(error[~right]) ** 2).sqrt()).all()


def test_it_is_the_limit_of_inner_flows():
    x = observations(2.0).repeat_interleave(1500, 0)
    noise = torch.randn(len(x), 3, generator=seeded(2))
    law = MixtureModel(MIXTURE)
    glass, exact = (
        stepped(transition, law, x, 2.0, 0.8, noise).unflatten(0, (-1, 1500))
        for transition in (GlassTransition(32), ExactTransition(MIXTURE))
    )
    again = stepped(ExactTransition(MIXTURE), law, x, 2.0, 0.8, noise.flip(0)).unflatten(0, (-1, 1500))
    null = energy_distance(again, exact)
    assert energy_distance(glass, exact).mean().abs() < 4 * standard_error(null) + 1e-3


def test_a_step_is_a_map_of_its_noise_that_asks_nothing_of_the_network():
    law = MixtureModel(MIXTURE)
    x, noise = observations(2.0), torch.randn(8, 3, generator=seeded(3))
    transition = ExactTransition(MIXTURE)
    moved = [transition.step(None, x, Interval(2.0, 0.8), None, noise) for _ in range(2)]
    assert torch.equal(*moved) and law.evaluations == 0
    rows = [transition.step(None, x[row : row + 1], Interval(2.0, 0.8), None, noise[row : row + 1]) for row in range(8)]
    torch.testing.assert_close(torch.cat(rows), moved[0])
    assert moved[0].dtype == torch.float32
    assert transition.is_stochastic and transition.tilt_gain(Interval(2.0, 0.8)) == GlassTransition(16).tilt_gain(
        Interval(2.0, 0.8)
    )
