"""Every loss makes the one-evaluation map sample the exact posterior of a Gaussian mixture."""

from __future__ import annotations

import pytest
import torch

from diamond_diffusers.core.glass import sample_posterior
from diamond_diffusers.maps.conditioning import SITES
from diamond_diffusers.maps.diamond_map import DiamondMap
from diamond_diffusers.training.losses import LOSSES
from diamond_diffusers.training.losses.central_difference import CentralDifference
from diamond_diffusers.training.losses.trajectories import TrajectoryLoss

from ..core.mixture import seeded
from . import mixture_map
from .mixture_map import FAMILY, LEVELS, UNCONDITIONAL, MixtureModel, distances, distil, observe, one_step_samples


@pytest.fixture(autouse=True)
def mixture_family(monkeypatch):
    monkeypatch.setitem(SITES, FAMILY, mixture_map.SITES)


@torch.no_grad()
def test_the_base_is_the_exact_denoiser():
    family = MixtureModel()
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    levels = torch.tensor([0.01, 0.1, 0.5, 1.0, 2.0, 20.0, 1e3, torch.inf], dtype=torch.float64)
    exact = family.mixture.posterior(x, levels).mean.float()
    torch.testing.assert_close(family.predict(x, levels, UNCONDITIONAL), exact, atol=1e-5, rtol=1e-5)


def test_the_untrained_map_is_a_point():
    """So what is measured below has been learnt."""
    diamond_map = DiamondMap(MixtureModel(), rank=4)
    found = distances(diamond_map, num_observations=16)
    assert found["map"] > 10 * found["floor"]
    torch.testing.assert_close(found["map"], found["point"])


def test_a_short_run_is_close_already():
    """A tenth of the way that the slow tests go: within four times the noise floor, from 25 times it."""
    found = distances(distil(CentralDifference(0.5), 150, batch_size=128, learning_rate=5e-3))
    assert found["map"] < 4 * found["floor"]


STEPS = {"lagrangian": 800, "central_difference": 800, "eulerian": 2000, "progressive": 2000}


@pytest.mark.slow
@pytest.mark.parametrize("loss", STEPS)
def test_it_converges_to_the_posterior(loss):
    diamond_map = distil(LOSSES.get(loss)(diagonal_fraction=0.5), STEPS[loss], batch_size=256)
    found = distances(diamond_map)
    assert found["map"] < 2 * found["floor"]
    if loss in ("lagrangian", "central_difference"):
        assert all(abs(ratio - 1) < 0.1 for ratio in spreads(diamond_map))


@pytest.mark.slow
def test_trajectories_converge_to_the_posterior():
    diamond_map = distil(TrajectoryLoss(), 800, batch_size=256)
    found = distances(diamond_map)
    assert found["map"] < 2 * found["floor"]
    assert all(abs(ratio - 1) < 0.1 for ratio in spreads(diamond_map))


def spreads(diamond_map: DiamondMap, num_observations: int = 64, count: int = 200) -> list[float]:
    """Deviation of the one-step map over that of GLASS with 64 evaluations, at each of five levels."""
    family, ratios = diamond_map.family, []
    for seed, level in enumerate(LEVELS):
        x = observe(family.mixture, level, num_observations, seed)
        drawn = one_step_samples(diamond_map, x, level, count, seed)
        noise = torch.randn(num_observations * count, 2, generator=seeded(seed + 50))
        with torch.no_grad():
            integrated = sample_posterior(
                lambda x, level: family.predict(x, level, UNCONDITIONAL), x.float(), level, noise, num_inner_steps=64
            ).unflatten(0, (-1, count))
        ratios.append((drawn.var(1).mean() / integrated.var(1).mean()).sqrt().item())
    return ratios
