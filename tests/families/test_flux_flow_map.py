"""FLUX with a two-time flow-map LoRA, in the layout in which one is published."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, FluxPipeline
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.zoo.flux import build_tiny_flux
from diamond_diffusers import SMC, DiamondMapPipeline, FlowMapTransition, NoAlignment
from diamond_diffusers.core.model import Conditions
from diamond_diffusers.families.two_time import TwoTimeEmbedder
from diamond_diffusers.pipelines.arguments import resolve_arguments
from tests.rounding import assert_same_from_a_copy

CALL = {"height": 16, "width": 16, "num_inference_steps": 3, "max_sequence_length": 12, "output_type": "pt"}
TARGETS = ["to_q", "timestep_embedder.linear_1", "guidance_embedder.linear_2", "text_embedder.linear_1"]


def two_time_lora(pipeline: FluxPipeline, seed: int = 1) -> dict[str, Tensor]:
    """Random LoRA weights of a network whose embedder has been wrapped."""
    transformer = type(pipeline.transformer).from_config(pipeline.transformer.config)
    transformer.time_text_embed = TwoTimeEmbedder(transformer.time_text_embed)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=TARGETS, lora_alpha=2), transformer)
    torch.manual_seed(seed)
    weights = get_peft_model_state_dict(transformer)
    return {f"transformer.{name}": torch.randn_like(weight) / 4 for name, weight in weights.items()}


def stock_velocity(transformer: torch.nn.Module, x: Tensor, times: Tensor, conditions: dict[str, Tensor]) -> Tensor:
    return transformer(hidden_states=x, timestep=times, return_dict=False, **conditions)[0]


@pytest.fixture
def pipe() -> DiamondMapPipeline:
    wrapped = DiamondMapPipeline.from_pipe(build_tiny_flux(guidance_embeds=True))
    wrapped.load_lora_weights(two_time_lora(wrapped.pipeline), adapter_name="flow_map")
    return wrapped


def encoded(pipe: DiamondMapPipeline) -> tuple[Conditions, dict[str, Tensor]]:
    """Conditions of the family, and the same as keywords of the network."""
    conditions = pipe.family.encode(resolve_arguments(pipe.family, {"prompt": ["a ring", "a star"], **CALL}, {}))
    known = {"guidance": torch.full((2,), 3.5), **conditions.features}
    text_ids = torch.zeros(conditions.features["encoder_hidden_states"].shape[1], 3)
    return conditions, known | {"img_ids": conditions.shared["img_ids"], "txt_ids": text_ids}


@torch.no_grad()
def test_the_map_is_the_mean_velocity_of_both_times_and_the_identity_on_the_diagonal(pipe: DiamondMapPipeline) -> None:
    family, path = pipe.family, pipe.family.path
    assert family.has_flow_map and family.has_denoiser and family.predicts_mean
    conditions, keywords = encoded(pipe)
    x = torch.randn(2, 4, 16)
    for time, target in ((1.0, 0.0), (0.8, 0.3), (0.5, 0.5)):
        level, target_level = path.noise_to_signal(time), path.noise_to_signal(target)
        mapped = family.flow_map(path.to_bounded(x, time), level, target_level, conditions)
        velocity = stock_velocity(pipe.transformer, x, torch.tensor([[time, target]] * 2), keywords)
        torch.testing.assert_close(path.from_bounded(mapped, target), x + (target - time) * velocity, atol=1e-5, rtol=0)
    torch.testing.assert_close(path.from_bounded(mapped, 0.5), x, atol=1e-6, rtol=0)
    velocity = stock_velocity(pipe.transformer, x, torch.tensor([[0.8, 0.8]] * 2), keywords)
    level = path.noise_to_signal(0.8)
    denoised = family.denoise(path.to_bounded(x, 0.8), level, conditions)
    torch.testing.assert_close(denoised, x - 0.8 * velocity, atol=1e-5, rtol=0)


def test_the_two_embeddings_are_averaged(pipe: DiamondMapPipeline) -> None:
    embedder = pipe.transformer.time_text_embed
    conditions = torch.tensor([3000.0]), torch.randn(1, 32)
    pair = embedder(torch.tensor([[700.0, 200.0]]), *conditions)
    first = embedder.original_embedder(torch.tensor([700.0]), *conditions)
    second = embedder.second_embedder(torch.tensor([200.0]), *conditions)
    torch.testing.assert_close(pair, (first + second) / 2)
    assert (first - second).abs().max() > 0.01


def test_plain_sampling_composes_the_map_over_the_stock_levels(pipe: DiamondMapPipeline) -> None:
    latents = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(0))
    out = pipe(["a ring", "a star"], latents=latents, **{**CALL, "output_type": "latent"})
    assert out.cost.network_evaluations == 2 * 3
    _, keywords = encoded(pipe)
    call = pipe.prepare(["a ring", "a star"], **CALL)
    assert len(call.levels()) == 4
    expected, times = latents, call.family.pipeline.scheduler.sigmas
    with torch.no_grad():
        for time, target in pairwise(times):
            velocity = stock_velocity(pipe.transformer, expected, torch.stack([time, target]).repeat(2, 1), keywords)
            expected = expected + (target - time) * velocity
    torch.testing.assert_close(out.images, expected, atol=1e-4, rtol=0)


def test_classifier_free_guidance_takes_both_times(pipe: DiamondMapPipeline) -> None:
    out = pipe(
        "a ring", true_cfg_scale=2.0, negative_prompt="a star", alignment=NoAlignment(FlowMapTransition()), **CALL
    )
    assert out.cost.network_evaluations == 2 * 3
    assert out.images.isfinite().all()


def test_particles_part_by_the_denoiser_of_the_diagonal(pipe: DiamondMapPipeline) -> None:
    out = pipe("a ring", reward=lambda images, prompts: images.mean((1, 2, 3)), alignment=SMC(num_particles=3), **CALL)
    assert out.rewards.isfinite().all()


def test_unloading_leaves_the_base_as_it_was(pipe: DiamondMapPipeline) -> None:
    base = build_tiny_flux(guidance_embeds=True)
    latents = torch.randn(1, 4, 16)
    expected = base("a ring", latents=latents, **CALL).images
    assert (pipe("a ring", latents=latents, **CALL).images - expected).abs().max() > 1e-3
    pipe.unload_lora_weights()
    assert not pipe.family.has_flow_map
    assert not any(isinstance(module, (TwoTimeEmbedder, BaseTunerLayer)) for module in pipe.transformer.modules())
    assert_same_from_a_copy(pipe.pipeline("a ring", latents=latents, **CALL).images, expected)


def test_the_base_alone_is_saved(pipe: DiamondMapPipeline, tmp_path: Path) -> None:
    latents = torch.randn(1, 4, 16)
    before = pipe("a ring", latents=latents, **CALL).images
    pipe.save_pretrained(tmp_path)
    assert torch.equal(pipe("a ring", latents=latents, **CALL).images, before)
    stock = DiffusionPipeline.from_pretrained(tmp_path)
    base = build_tiny_flux(guidance_embeds=True)
    for (name, weight), saved in zip(
        base.transformer.state_dict().items(), stock.transformer.state_dict().values(), strict=True
    ):
        assert torch.equal(weight, saved), name


def test_a_lora_file_loads_and_one_for_another_model_is_refused(tmp_path: Path) -> None:
    pipe = DiamondMapPipeline.from_pipe(build_tiny_flux(guidance_embeds=True))
    weights = two_time_lora(pipe.pipeline)
    foreign = {name.replace("transformer_blocks.0", "transformer_blocks.7"): weight for name, weight in weights.items()}
    with pytest.raises(ValueError, match=r"transformer_blocks\.7.*another model"):
        pipe.load_lora_weights(foreign)
    save_file(weights, tmp_path / "pytorch_lora_weights.safetensors")
    pipe.load_lora_weights(tmp_path)
    assert pipe.family.has_flow_map
    pipe.disable_lora()
    assert not pipe.family.has_flow_map
