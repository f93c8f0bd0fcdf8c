"""What runs on the CPU runs on accelerators, of which some have no float64 and none takes tensors of another device."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from _pytest.mark import ParameterSet
from torch import Tensor

import diamond_diffusers
from benchmarks.zoo.tiny_models import TINY_MODELS
from diamond_diffusers import (
    SMC,
    BeamSearch,
    BestOfN,
    DiamondMapPipeline,
    DiamondPosterior,
    DiamondTransition,
    GlassFlowMatchScheduler,
    GlassPosterior,
    Guidance,
    Guide,
    NoiseEvolution,
    NoiseOptimization,
    PathSearch,
    PosteriorResampling,
    PosteriorSMC,
    RandomSearch,
    Watch,
    WeightedPosterior,
    calibrate,
)
from diamond_diffusers.alignment.base import Method
from diamond_diffusers.alignment.smc_parts.tempering import AdaptiveTempering
from diamond_diffusers.evaluation.memory import peak_memory
from diamond_diffusers.rewards import staged
from diamond_diffusers.rewards.preprocessing import resize_like_pil
from diamond_diffusers.training.data.trajectories import Trajectories
from diamond_diffusers.training.losses.base import DistillationLoss
from diamond_diffusers.training.losses.central_difference import CentralDifference
from diamond_diffusers.training.losses.eulerian import Eulerian
from diamond_diffusers.training.losses.progressive import Progressive
from diamond_diffusers.training.losses.trajectories import TrajectoryLoss
from diamond_diffusers.training.module import DistilledModule

from ..accelerator import DEVICE, Accelerator
from ..families.all_families import FAMILIES, family_of
from ..families.family import PROMPTS, brightness, generators
from ..maps.tiny_maps import encode, tiny_family

# One of each kind: look-aheads, gradients, weights, searches of paths and of noises.
METHODS: dict[str, Method] = {
    "none": BestOfN(num_particles=2),
    "smc": SMC(3, guide=Guide("pathwise"), num_valuations=None, tempering=AdaptiveTempering()),
    "weighted": Guidance(WeightedPosterior(2, num_map_steps=2), Guide("pathwise", scaling="norm", max_coefficient=9.0)),
    "hybrid": Guidance(GlassPosterior(2, num_samples=2), Guide("hybrid"), num_particles=2, num_warm_up_steps=1),
    "posterior_resampling": PosteriorResampling(posterior=GlassPosterior(2, num_samples=3), guide=Guide()),
    "beam_search": BeamSearch(2, branching=2),
    "path_search": PathSearch(1, branching=2, num_backward_steps=1),
    "random_search": RandomSearch(num_candidates=2, num_particles=2),
    "noise_optimization": NoiseOptimization(num_iterations=2),
    "noise_evolution": NoiseEvolution(num_iterations=2, num_perturbations=1),
}
WITH_A_MAP: dict[str, Method] = {
    "posterior_smc": PosteriorSMC(3, posterior=DiamondPosterior(2), num_valuations=None),
    "diamond": Guidance(DiamondPosterior(2), Guide("pathwise"), transition=DiamondTransition()),
}
LOSSES: dict[str, DistillationLoss] = {
    "central_difference": CentralDifference(diagonal_fraction=0.5),
    "eulerian": Eulerian(diagonal_fraction=0.5),
    "progressive": Progressive(diagonal_fraction=0.5),
    "trajectories": TrajectoryLoss(),
}


def certain(images: Tensor, prompts: list[str], noise_to_signal: Tensor) -> Tensor:
    """A reward that computes with the level beside the images."""
    return brightness(images, prompts) / (1 + noise_to_signal)


def assert_runs_alike(pipe: DiamondMapPipeline, method: Method, **call: object) -> None:
    """The images on the accelerator are those on the CPU, which a pipeline leaves for good."""
    given = {"alignment": method, "reward": certain, "output_type": "pt", "num_inference_steps": 2, **call}
    there = pipe(PROMPTS, generator=generators(), **given)
    with Accelerator():
        here = pipe.to(DEVICE)(PROMPTS, generator=generators(), **given)
        assert here.images.device == here.rewards.device == DEVICE
        torch.testing.assert_close(here.images.cpu(), there.images, atol=1e-4, rtol=0)
        torch.testing.assert_close(here.rewards.cpu(), there.rewards, atol=1e-4, rtol=0)
    torch.testing.assert_close(here.log_weights, there.log_weights, atol=1e-3, rtol=0)
    assert here.log_weights.dtype == torch.float64


def by_default(names: Iterable[str], *those: str) -> list[ParameterSet]:
    """Parameters of which the default run takes some."""
    return [pytest.param(name, marks=[] if name in those else pytest.mark.slow) for name in names]


@pytest.mark.parametrize(
    "name", by_default(METHODS, "none", "smc", "weighted", "posterior_resampling", "beam_search", "noise_evolution")
)
def test_methods_keep_float64_on_the_cpu(tiny_pipe: DiamondMapPipeline, name: str) -> None:
    assert_runs_alike(tiny_pipe, METHODS[name])


@pytest.mark.slow
def test_stages_a_watch_and_a_calibration_keep_float64_on_the_cpu(tiny_pipe: DiamondMapPipeline) -> None:
    short = {"num_inference_steps": 1, "output_type": "pt"}
    in_stages = {"alignment": BestOfN(num_particles=3), "reward": staged([brightness, (certain, 2), ("colour", 1)])}
    search = {"alignment": RandomSearch(num_candidates=3, round_size=1), "reward": certain}
    search["watch"] = Watch("colour", patience=1)

    def run(pipe: DiamondMapPipeline) -> list[Tensor]:
        drawn = [pipe(PROMPTS, generator=generators(), **given, **short) for given in (in_stages, search)]
        (term,) = calibrate(pipe, PROMPTS, brightness, 2, num_inference_steps=1).terms.values()
        return [*(out.images.cpu() for out in drawn), torch.tensor([term.mean])]

    there = run(tiny_pipe)
    with Accelerator():
        here = run(tiny_pipe.to(DEVICE))
    for one, other in zip(here, there, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", by_default(WITH_A_MAP, "posterior_smc"))
def test_diamond_maps_keep_float64_on_the_cpu(name: str) -> None:
    pipe = DiamondMapPipeline.from_pretrained()
    pipe.set_progress_bar_config(disable=True)
    assert_runs_alike(pipe, WITH_A_MAP[name])


@pytest.mark.parametrize("name", by_default(FAMILIES, "sana_sprint"))
def test_families_keep_float64_on_the_cpu(name: str) -> None:
    family = family_of(name)
    pipe = DiamondMapPipeline.from_pipe(family.build())
    variant = family.variants[family.guided] if family.guided else {}
    # Some pipelines write into the lists that they are given.
    lists = {key: list(value) for key, value in variant.items() if isinstance(value, list)}
    assert_runs_alike(pipe, Guidance(guide=Guide("pathwise")), **{**family.call, **variant, **lists})


def test_a_scheduler_keeps_float64_on_the_cpu(tiny_pipe: DiamondMapPipeline) -> None:
    stock = tiny_pipe.pipeline
    stock.scheduler = GlassFlowMatchScheduler.from_config(stock.scheduler.config)
    call = {"num_inference_steps": 2, "height": 16, "width": 16, "max_sequence_length": 12, "output_type": "pt"}
    # The stock pipeline hands it none.
    stock.scheduler.set_generator(generators())
    there = stock(PROMPTS, generator=generators(), **call).images
    stock.scheduler.set_generator(generators())
    with Accelerator():
        here = stock.to(DEVICE)(PROMPTS, generator=generators(), **call).images
        torch.testing.assert_close(here.cpu(), there, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", by_default(LOSSES, "trajectories"))
def test_losses_keep_float64_on_the_cpu(name: str) -> None:
    # Not at the head of the module: it takes peft.
    from diamond_diffusers.maps.diamond_map import DiamondMap

    family = tiny_family("flux")
    torch.manual_seed(0)
    diamond_map = DiamondMap(family, rank=2)
    module = DistilledModule(diamond_map)
    conditions, z = encode(family), torch.randn(2, *TINY_MODELS[family.name].shape)
    values = []
    for device in (torch.device("cpu"), DEVICE):
        with Accelerator():
            family.pipeline.to(device)
            module.to(device)
            torch.manual_seed(1)
            data = z.to(device)
            there = encode(family) if device == DEVICE else conditions
            if LOSSES[name].needs_trajectories:
                data = Trajectories.draw(family, data, there)
            value, _ = LOSSES[name](diamond_map, data, there, 0)
            value.backward()
            assert all(parameter.grad.device == device for parameter in diamond_map.trained_parameters())
            values.append(value.item())
            module.zero_grad()
    assert values[0] == pytest.approx(values[1], rel=1e-3)


def test_8_bit_images_are_resampled_to_the_bit_on_every_device() -> None:
    images = torch.rand(1, 3, 20, 14, generator=generators(1)[0])
    with Accelerator():
        here = images.to(DEVICE).requires_grad_()
        resized = resize_like_pil(here, (9, 11))
        assert resized.device == DEVICE
        assert torch.equal(resized.detach().cpu(), resize_like_pil(images, (9, 11)))
        resized.sum().backward()
        assert here.grad.device == DEVICE


def test_a_device_whose_peak_is_not_known_tells_none() -> None:
    with peak_memory(torch.device("mps")) as peak:
        pass
    assert peak.bytes is None


def test_the_accelerator_refuses_what_it_is_there_to_refuse() -> None:
    level = torch.tensor([0.5], dtype=torch.float64)
    with Accelerator():
        x = torch.ones(1, device=DEVICE)
        with pytest.raises(RuntimeError, match="on the accelerator and on the CPU"):
            x * level
        # By code of the package alone.
        (x * 2).double()
        with pytest.raises(TypeError, match="float64 tensor on the accelerator"):
            exec(compile("x.double()", str(Path(diamond_diffusers.__file__).parent / "a_file.py"), "exec"))
