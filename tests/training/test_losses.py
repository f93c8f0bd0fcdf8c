"""The losses on tiny models of every family."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.zoo.tiny_models import TINY_MODELS
from diamond_diffusers import DiamondMapPipeline
from diamond_diffusers.core.glass import inner_angle, inner_time
from diamond_diffusers.maps.diamond_map import DiamondMap
from diamond_diffusers.training.data.images import Preparation
from diamond_diffusers.training.data.miniature import MiniatureWorld
from diamond_diffusers.training.data.trajectories import Trajectories
from diamond_diffusers.training.levels import draw_levels
from diamond_diffusers.training.losses import LOSSES, central_difference, lagrangian, steps
from diamond_diffusers.training.losses.central_difference import CentralDifference
from diamond_diffusers.training.losses.lagrangian import Lagrangian
from diamond_diffusers.training.losses.residuals import Batch, diagonal
from diamond_diffusers.training.losses.steps import StepLoss, draw_diagonal_times, draw_inner_times
from diamond_diffusers.training.module import DistilledModule
from diamond_diffusers.training.teacher import Teacher

from ..maps.tiny_maps import encode, perturb, tiny_family


def tiny_map(family: str) -> DiamondMap:
    torch.manual_seed(0)
    diamond_map = DiamondMap(tiny_family(family), rank=2)
    for parameter in diamond_map.trained_parameters():
        parameter.requires_grad_(True)
    return diamond_map


def draw_batch(diamond_map: DiamondMap) -> Batch:
    torch.manual_seed(1)
    z = torch.randn(2, *TINY_MODELS[diamond_map.family.name].shape)
    level, s, r = (torch.tensor(values, dtype=torch.float64) for values in ([0.7, 3.0], [1.0, 0.8], [0.3, 0.5]))
    return Batch.draw(z, level, s, r, encode(diamond_map.family))


@pytest.mark.parametrize("family", TINY_MODELS)
def test_forward_mode_agrees_with_differences(family):
    """Loss and gradients, of a map whose `D` depends on `r`."""
    diamond_map = tiny_map(family)
    # Random networks are rough: differences are true for gentle ones.
    perturb(diamond_map, 0.03)
    batch = draw_batch(diamond_map)
    results = []
    for loss in (Lagrangian(), CentralDifference(step=0.01)):
        with sdpa_kernel(SDPBackend.MATH):
            rows = loss.squared_residuals(diamond_map, batch)
        gradients = torch.autograd.grad(rows.sum(), diamond_map.trained_parameters())
        results.append((rows.detach(), torch.cat([gradient.flatten() for gradient in gradients])))
    (rows, gradient), (expected, differences) = results
    torch.testing.assert_close(rows, expected, atol=0, rtol=0.02)
    assert torch.nn.functional.cosine_similarity(gradient, differences, dim=0) > 0.999

    # The derivative counts: without it the loss is another.
    with torch.no_grad():
        still = CentralDifference().squared_residuals(diamond_map, replace(batch, r=batch.s * 0.999))
    assert not torch.allclose(still, rows, rtol=0.02)


@torch.no_grad()
def test_differences_are_true_in_half_precision(monkeypatch):
    """`r dX/dr` of the embedded model's map in bfloat16 is within a tenth of forward mode in float32."""
    for module in (lagrangian, central_difference):
        monkeypatch.setattr(module, "lagrangian_residual", lambda diamond_map, batch, mapped, derivative: derivative)
    derivatives = {}
    for dtype, loss in ((torch.float32, Lagrangian()), (torch.bfloat16, CentralDifference())):
        pipe = DiamondMapPipeline.from_pretrained(dtype=dtype)
        teacher = Teacher(pipe.family, pipe.defaults)
        scenes = [MiniatureWorld()[index] for index in range(16)]
        images = torch.stack([Preparation(64)(scene, random.Random(0))[0] for scene in scenes])
        mean, _ = pipe.family.encode_images(images)
        torch.manual_seed(0)
        levels = draw_levels(len(scenes))
        s, r = draw_inner_times(levels)
        conditions = teacher.conditions(teacher.features([scene.captions for scene in scenes]))
        batch = Batch.draw(mean.float(), levels, s, r, conditions)
        with sdpa_kernel(SDPBackend.MATH):
            derivative = loss.squared_residuals(pipe.family.posterior_map, batch)
        derivatives[dtype] = r.float()[:, None, None] * derivative.float()
    true, found = derivatives.values()
    assert (found - true).norm() < 0.1 * true.norm()


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "cosine"), [(torch.bfloat16, 0.98), (torch.float16, 0.999)])
def test_gradients_in_half_precision_are_those_of_float32(dtype, cosine):
    """Of every loss on the embedded model, whose map is where its own distillation left it."""
    gradients: dict[str, torch.Tensor] = {}
    scenes = [MiniatureWorld()[index] for index in range(6)]
    images = torch.stack([Preparation(64)(scene, random.Random(0))[0] for scene in scenes])
    kept = None
    for precision in (torch.float32, dtype):
        pipe = DiamondMapPipeline.from_pretrained(dtype={"default": precision, "vae": torch.float32})
        family, diamond_map = pipe.family, pipe.family.posterior_map
        DistilledModule(diamond_map)
        teacher = Teacher(family, pipe.defaults)
        z = family.encode_images(images)[0].float()
        conditions = teacher.conditions(teacher.features([scene.captions for scene in scenes]))
        torch.manual_seed(0)
        kept = kept or Trajectories.draw(family, z, conditions)
        for name in LOSSES.names():
            loss = LOSSES.get(name)()
            torch.manual_seed(1)
            value, _ = loss(diamond_map, kept if loss.needs_trajectories else z, conditions, 0)
            parts = torch.autograd.grad(value, diamond_map.trained_parameters(), materialize_grads=True)
            found = torch.cat([part.flatten().double() for part in parts])
            expected = gradients.setdefault(name, found)
            assert torch.nn.functional.cosine_similarity(found, expected, dim=0) > cosine, name
            assert abs(found.norm() / expected.norm() - 1) < 0.05, name


@pytest.mark.parametrize("family", TINY_MODELS)
def test_the_untrained_map_has_no_diagonal_loss_without_guidance(family):
    diamond_map = tiny_map(family)
    batch = draw_batch(diamond_map)
    batch = replace(batch, r=batch.s)
    assert diagonal(diamond_map, batch).min() > 1e-6
    unguided = replace(batch.conditions, negative_features=None, classifier_free_guidance_scale=1.0)
    assert (diagonal(diamond_map, replace(batch, conditions=unguided)) == 0).all()


@pytest.mark.parametrize("name", TINY_MODELS)
def test_a_base_in_half_precision_trains(name):
    """The base is in bfloat16 and its adapters are in float32; there is no autocast."""
    family = tiny_family(name)
    family.network_module.to(torch.bfloat16)
    diamond_map = DiamondMap(family, rank=2)
    DistilledModule(diamond_map)
    conditions = encode(family)
    halve = {
        name: feature.bfloat16() if feature.is_floating_point() else feature
        for name, feature in conditions.features.items()
    }
    negative = {name: conditions.negative_features[name].to(feature.dtype) for name, feature in halve.items()}
    conditions = replace(conditions, features=halve, negative_features=negative)
    z = torch.randn(2, *TINY_MODELS[name].shape)
    value, parts = Lagrangian(diagonal_fraction=0.5)(diamond_map, z, conditions, 0)
    assert parts.keys() == {"diagonal", "lagrangian"}
    value.backward()
    assert value.dtype == torch.float32
    assert all(
        parameter.dtype == parameter.grad.dtype == torch.float32 for parameter in diamond_map.trained_parameters()
    )
    assert all(parameter.grad.isfinite().all() for parameter in diamond_map.trained_parameters())


def test_as_many_rows_learn_the_velocity_as_asked_for():
    """Whatever the size of a batch."""

    class Counting(Lagrangian):
        def __call__(self, count: int) -> int:
            return [self._rows_before(n + 1, count) - self._rows_before(n, count) for n in range(100)]

    for fraction in (0.0, 0.3, 0.75, 1.0):
        for count in (1, 2, 7):
            rows = Counting(diagonal_fraction=fraction)(count)
            assert abs(sum(rows) - 100 * count * fraction) < 1
            assert min(rows) >= 0 and max(rows) <= count and max(rows) - min(rows) <= 1


def test_angles_are_even_at_every_level():
    """From 0 at clean inner states to a right angle at noise; half a right angle where `s / (1 - s) = sigma`."""
    s = torch.linspace(0, 1, 11, dtype=torch.float64).repeat(3)
    levels = torch.tensor([0.1, 1.0, torch.inf], dtype=torch.float64).repeat_interleave(11)
    torch.testing.assert_close(inner_time(inner_angle(s, levels), levels), s)
    right = math.pi / 2
    ends = inner_angle(torch.tensor([0.0, 1.0, 0.5], dtype=torch.float64), levels[[0, 0, -1]])
    torch.testing.assert_close(ends, torch.tensor([0.0, right, right / 2], dtype=torch.float64))
    sigma = 0.1 / math.sqrt(1.01)
    middle = inner_time(torch.tensor([right / 2], dtype=torch.float64), levels[:1])
    torch.testing.assert_close(middle / (1 - middle), torch.tensor([sigma], dtype=torch.float64))


def test_times_are_drawn_where_they_are_used():
    torch.manual_seed(0)
    for level in (0.1, 2.0, torch.inf):
        levels = torch.full((4000,), level, dtype=torch.float64)
        s, r = draw_inner_times(levels)
        assert 0.45 < (s == 1).double().mean() < 0.55
        assert s.min() >= 0.01 and s.max() <= 1 and (r >= 0).all() and (r <= s).all()
        shares = inner_angle(r, levels) / inner_angle(s, levels)
        assert abs(shares.mean() - 0.5) < 0.03
        diagonal_times = draw_diagonal_times(levels)
        assert 0.2 < (diagonal_times == 1).double().mean() < 0.3
        angles = inner_angle(diagonal_times[diagonal_times < 1], levels[:1]) / (math.pi / 2)
        assert abs(angles.mean() - 0.5) < 0.06
    # Batches of one row learn at s = 1 too.
    assert any(draw_inner_times(levels[:1])[0].item() == 1 for _ in range(20))
    levels = draw_levels(4000)
    assert 0.07 < torch.isinf(levels).double().mean() < 0.13
    assert levels.min() > 0.02 and (levels > 10).double().mean() > 0.1


def test_rows_are_weighted_by_their_level_and_their_loss(monkeypatch):
    """By `1 + 1 / (kappa^2 + 1/16)`, then by `1 / (loss + 0.01)`."""
    level = (1 / 4 - 1 / 16) ** 0.5
    monkeypatch.setattr(steps, "draw_levels", lambda count, *_: torch.tensor([torch.inf, level], dtype=torch.float64))
    rows = torch.tensor([0.0, 0.198], requires_grad=True)

    class Given(StepLoss):
        def squared_residuals(self, diamond_map, batch):
            return rows

    loss = Given(diagonal_fraction=0.0, adaptive_weight_power=1.0)
    diamond_map = tiny_map("flux")
    z = torch.randn(2, *TINY_MODELS["flux"].shape)
    value, _ = loss(diamond_map, z, encode(diamond_map.family), 0)
    torch.testing.assert_close(value, torch.tensor(0.99 / 2))
    torch.testing.assert_close(torch.autograd.grad(value, rows)[0], torch.tensor([50.0, 2.5]))
