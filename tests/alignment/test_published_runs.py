"""Presets against runs of their authors' code, whose inputs, noises and outputs are in `tests/fixtures/presets`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from safetensors.torch import load_file
from torch import Tensor

from diamond_diffusers import DiamondMapPipeline
from diamond_diffusers.alignment.model import TiltedModel
from diamond_diffusers.alignment.presets import weighted_diamond
from diamond_diffusers.pipelines.arguments import resolve_arguments
from diamond_diffusers.rewards.base import Reward
from diamond_diffusers.transitions import FlowMapTransition

FIXTURES = Path(__file__).parents[1] / "fixtures" / "presets"
FLUX = FIXTURES / "flux_weighted_diamond"
# Of float32 through networks, decoder and derivatives, in another order.
TOLERANCE = {"atol": 1e-4, "rtol": 1e-3}


class LinearReward(Reward):
    """The inner product of an image with weights."""

    name = "linear"

    def __init__(self, weight: Tensor, constant: Tensor) -> None:
        self.weight, self.constant = weight, constant

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return (images * self.weight).sum((1, 2, 3)) + self.constant


class RecordedNoise:
    """A source of recorded draws of look-aheads; what else is drawn has no effect and is zero."""

    num_images = 1

    def __init__(self, look_aheads: Sequence[Tensor]) -> None:
        self.look_aheads: Iterator[Tensor] = iter(look_aheads)
        self.count = len(look_aheads[0])

    def normal(self, rows_per_image: int, shape: Sequence[int]) -> Tensor:
        if rows_per_image == self.count:
            return next(self.look_aheads).reshape(rows_per_image, *shape)
        return torch.zeros(rows_per_image, *shape)


@cache
def flux() -> tuple[DiamondMapPipeline, dict[str, Tensor]]:
    """The tiny FLUX with its flow-map LoRA, and what was recorded."""
    pipeline = FluxPipeline(
        FlowMatchEulerDiscreteScheduler.from_pretrained(FLUX / "scheduler"),
        AutoencoderKL.from_pretrained(FLUX / "vae"),
        None,
        None,
        None,
        None,
        FluxTransformer2DModel.from_pretrained(FLUX / "transformer"),
    )
    pipe = DiamondMapPipeline.from_pipe(pipeline)
    pipe.load_lora_weights(FLUX, weight_name="pytorch_lora_weights.safetensors")
    return pipe, load_file(FLUX / "golden.safetensors")


def flux_model(num_inference_steps: int = 8) -> tuple[TiltedModel, list[float], dict[str, Tensor]]:
    """The tilted law of the recorded runs, and the levels of a whole run."""
    pipe, golden = flux()
    call = {
        "prompt_embeds": golden["prompt_embeds"],
        "pooled_prompt_embeds": golden["pooled_prompt_embeds"],
        "height": 64,
        "width": 64,
        "num_inference_steps": num_inference_steps,
        "guidance_scale": 1.0,
        "max_sequence_length": 32,
    }
    arguments = resolve_arguments(pipe.backbone, call, {})
    conditions = pipe.backbone.encode(arguments)
    reward = LinearReward(golden["reward_weight"], golden["reward_constant"])
    model = TiltedModel(pipe.backbone, conditions, [""], reward, reward_scale=250.0)
    return model, pipe.backbone.levels(arguments, conditions), golden


def packed(latents: Tensor) -> Tensor:
    return FluxPipeline._pack_latents(latents, *latents.shape)


@pytest.mark.parametrize("time", [0.3, 0.6, 0.9])
@torch.no_grad()
def test_a_step_of_the_weighted_diamond_map_on_flux(time: float) -> None:
    model, _, golden = flux_model()
    # Their norm is 20 whatever the size of the latents.
    preset = weighted_diamond(model.backbone, guidance_strength=20 / golden["latents"].numel() ** 0.5)
    assert isinstance(preset.transition, FlowMapTransition)
    posterior = replace(preset.posterior, num_samples=3)
    path, recorded = model.backbone.path, {name: golden[f"t{time}.{name}"] for name in ("eps", "particle_reward")}
    level, next_level = (float(path.noise_to_signal(t)) for t in (time, time - 0.1))

    def aim(network, x, level):
        return preset.transition.aim(network, x, level, next_level)

    x = path.to_bounded(golden["latents"], time)
    noise = RecordedNoise([recorded["eps"]])
    ahead = preset.look_ahead(model, posterior, x, level, noise, with_samples=True, aim=aim)
    torch.testing.assert_close(ahead.rewards[0] / 250, recorded["particle_reward"].flatten(), **TOLERANCE)
    weights = torch.softmax(posterior.log_proportions(torch.zeros(1, 3), ahead.rewards, 250.0), 1)[0]
    torch.testing.assert_close(weights, golden[f"t{time}.softmax.particle_weights"].flatten(), **TOLERANCE)
    # Theirs are gradients in the latents of rectified flow, ours in the bounded coordinate.
    scale = ((1 - time) ** 2 + time**2) ** 0.5
    names = ("reward_grad", "likelihood_grad", "score_diff")
    for name, term in zip(names, ahead.terms[0], strict=True):
        expected = golden[f"t{time}.softmax.{name}"][0]
        torch.testing.assert_close(term / scale, expected, atol=1e-3 * expected.abs().max().item(), rtol=0)
    total, coefficient = golden[f"t{time}.softmax.total_grad"], time / (1 - time)
    torch.testing.assert_close(total, 20 * golden[f"t{time}.softmax.combined_unit"])
    # The velocity changes by the coefficient times the gradient, and the denoised sample by t as much.
    torch.testing.assert_close(preset.shift(ahead, level), time * coefficient * total, atol=3e-3, rtol=0)


@torch.no_grad()
def test_a_run_of_the_weighted_diamond_map_on_flux() -> None:
    """Eight steps, all but the first guided: latents before each, the last ones, and the image."""
    model, levels, golden = flux_model()
    preset = weighted_diamond(model.backbone, guidance_strength=20 / golden["latents"].numel() ** 0.5)
    preset = replace(preset, posterior=replace(preset.posterior, num_samples=4))
    path, visited = model.backbone.path, []

    def on_step(index: int, x: Tensor, step: int) -> None:
        visited.append(path.from_bounded(x, path.time(levels[step + 1])))

    x = packed(golden["run.init_latents_unpacked"])
    result = preset.run(model, x, levels, RecordedNoise(list(golden["run.eps"])), on_step)
    for latents, expected in zip(visited[:-1], golden["run.latents_guided_input"], strict=True):
        torch.testing.assert_close(latents, expected, atol=2e-3, rtol=0)
    torch.testing.assert_close(visited[-1], golden["run.final_latents"], atol=2e-3, rtol=0)
    image = result.images[0, 0].permute(1, 2, 0)
    torch.testing.assert_close(image, golden["run.final_image"], atol=2e-3, rtol=0)
    # Of a look-ahead two evaluations and one backward pass through each, where their code makes four of the first.
    assert model.cost.network_evaluations == 8 + 7 * 4 * 2
    assert model.cost.backward_passes == 7 * 4 * 2
