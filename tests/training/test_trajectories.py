"""The energy score is least for the law itself, and trajectories are learnt where they are used."""

from __future__ import annotations

import math

import pytest
import torch

from diamond_diffusers.core.glass import inner_times
from diamond_diffusers.training.data import trajectories
from diamond_diffusers.training.data.trajectories import INNER_STEPS, Trajectories
from diamond_diffusers.training.losses.trajectories import FROM_NOISE_SHARE, ONE_STEP_SHARE, draw_places, energy_score

from ..core.mixture import seeded
from .mixture_map import UNCONDITIONAL, MixtureModel


@pytest.mark.parametrize("spread", [0.3, 1.0, 1.7])
def test_the_energy_score_of_gaussians(spread):
    """`E|a X - Y| - E|a X - a X'| / 2` in one dimension, `sqrt(2 (1 + a^2) / pi) - a / sqrt(pi)`, least at 1."""
    noise = torch.randn(200_000, 2, 1, 1, generator=seeded(0))
    # Of the same noise, as a map's sample and the teacher's are: only those of different noises are compared.
    score = energy_score(spread * noise, noise).mean().item()
    expected = math.sqrt(2 * (1 + spread**2) / math.pi) - spread / math.sqrt(math.pi)
    # The deviation of one score is below 1.
    assert abs(score - expected) < 4 / math.sqrt(200_000)


def test_the_energy_score_of_untrained_maps_has_a_gradient():
    """Both samples are the same there."""
    drawn = torch.zeros(3, 2, 4, 2, 2, requires_grad=True)
    energy_score(drawn, torch.randn(3, 2, 4, 2, 2)).sum().backward()
    assert torch.isfinite(drawn.grad).all() and drawn.grad.any()


@pytest.mark.parametrize("level", [0.03, 0.1, 0.3, 1.0, 3.0, math.inf])
def test_trajectories_keep_the_spread_of_the_posterior(level, monkeypatch):
    """At every place: there the state has `(1 - s)^2` of the posterior's variance, and `s^2` of the noise."""
    torch.manual_seed(0)
    monkeypatch.setattr(trajectories, "draw_levels", lambda count, *_: torch.full((count,), level, dtype=torch.float64))
    family = MixtureModel()
    z = family.mixture.sample(4000, seeded(1)).float()
    data = Trajectories.draw(family, z, UNCONDITIONAL)
    posterior = family.mixture.posterior(data.x, level).covariance.diagonal(dim1=-2, dim2=-1).mean()
    times = inner_times(INNER_STEPS, data.noise_to_signal)[:, 0]
    # Two trajectories of one observation differ by twice the variance.
    spread = (data.states[:, 0] - data.states[:, 1]).double().square().mean((0, 2)) / 2
    torch.testing.assert_close(spread, (1 - times) ** 2 * posterior + times**2, rtol=0.08, atol=0)


def test_places_are_drawn_where_they_are_used():
    torch.manual_seed(0)
    start, end = draw_places(20_000, 8)
    assert (start >= 0).all() and (start < end).all() and (end <= 8).all()
    one_step = ((start == 0) & (end == 8)).double().mean()
    # Others hit it by chance: from noise in an eighth, from anywhere in an eighth of an eighth.
    rest = 1 - ONE_STEP_SHARE - FROM_NOISE_SHARE
    assert abs(one_step - (ONE_STEP_SHARE + FROM_NOISE_SHARE / 8 + rest / 64)) < 0.015
    assert abs((start == 0).double().mean() - (ONE_STEP_SHARE + FROM_NOISE_SHARE + rest / 8)) < 0.015


@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_energy_score_of_several_samples(count):
    """All pairs are compared, so that its mean is that of pairs, and it varies less."""
    noise = torch.randn(60_000, count, 1, 1, generator=seeded(0))
    scores = energy_score(0.5 * noise, noise).double()
    expected = math.sqrt(2 * (1 + 0.25) / math.pi) - 0.5 / math.sqrt(math.pi)
    assert abs(scores.mean() - expected) < 4 * scores.std() / math.sqrt(len(scores))
    assert scores.std() < {2: 0.7, 3: 0.55, 5: 0.45}[count]
