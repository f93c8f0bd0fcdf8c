"""Presets against runs of their authors' code, whose inputs, noises and outputs are in `tests/fixtures/presets`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
)
from safetensors.torch import load_file
from torch import Tensor

from diamond_diffusers import DiamondMapPipeline, FlowMapTransition, Reward
from diamond_diffusers.alignment.law import Law
from diamond_diffusers.alignment.presets.fmrg import fmrg
from diamond_diffusers.alignment.presets.reno import reno
from diamond_diffusers.alignment.presets.weighted_diamond_map import weighted_diamond_map
from diamond_diffusers.alignment.random_source import RandomSource
from diamond_diffusers.pipelines.arguments import resolve_arguments

from ..core.mixture_model import at_rows, law_of

FIXTURES = Path(__file__).parents[1] / "fixtures" / "presets"
FLUX = FIXTURES / "flux_weighted_diamond"
SANA = FIXTURES / "sana_sprint_weighted_diamond"
# Of float32 through networks, decoder and derivatives, in another order.
TOLERANCE = {"atol": 1e-4, "rtol": 1e-3}


class LinearReward(Reward):
    """The inner product of an image with weights."""

    name = "linear"

    def __init__(self, weight: Tensor, constant: Tensor) -> None:
        self.weight, self.constant = weight, constant
        self.given: list[float] = []

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        scores = (images * self.weight).sum((1, 2, 3)) + self.constant
        self.given += scores.tolist()
        return scores


class RecordedNoise(RandomSource):
    """A source of recorded draws of look-aheads; what else is drawn has no effect and is zero."""

    def __init__(self, look_aheads: Sequence[Tensor]) -> None:
        super().__init__(None, 1)
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


def flux_law(num_inference_steps: int = 8) -> tuple[Law, list[float], dict[str, Tensor]]:
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
    arguments = resolve_arguments(pipe.family, call, {})
    conditions = pipe.family.encode(arguments)
    reward = LinearReward(golden["reward_weight"], golden["reward_constant"])
    law = law_of(pipe.family, conditions, [""], reward, reward_scale=250.0)
    return law, pipe.family.levels(arguments, conditions), golden


@cache
def sana_sprint() -> tuple[DiamondMapPipeline, dict[str, Tensor]]:
    """The tiny SANA-Sprint, and what was recorded."""
    parts = (
        AutoencoderDC.from_pretrained(SANA / "vae"),
        SanaTransformer2DModel.from_pretrained(SANA / "transformer"),
        SCMScheduler.from_pretrained(SANA / "scheduler"),
    )
    return DiamondMapPipeline.from_pipe(SanaSprintPipeline(None, None, *parts)), load_file(SANA / "golden.safetensors")


def sana_sprint_law() -> tuple[Law, list[float], dict[str, Tensor]]:
    """The tilted law of the recorded run, and its levels."""
    pipe, golden = sana_sprint()
    call = {
        "prompt_embeds": golden["prompt_embeds"],
        "prompt_attention_mask": torch.ones(golden["prompt_embeds"].shape[:2], dtype=torch.long),
        "height": 32,
        "width": 32,
        "use_resolution_binning": False,
        "num_inference_steps": 20,
        "intermediate_timesteps": None,
        "guidance_scale": 1.0,
    }
    arguments = resolve_arguments(pipe.family, call, {})
    conditions = pipe.family.encode(arguments)
    reward = LinearReward(golden["reward_weight"], golden["reward_constant"])
    law = law_of(pipe.family, conditions, [""], reward, reward_scale=250.0)
    return law, pipe.family.levels(arguments, conditions), golden


def packed(latents: Tensor) -> Tensor:
    return FluxPipeline._pack_latents(latents, *latents.shape)


@pytest.mark.parametrize("time", [0.3, 0.6, 0.9])
@torch.no_grad()
def test_a_step_of_the_weighted_diamond_map_on_flux(time: float) -> None:
    law, _, golden = flux_law()
    # Their norm is 20 whatever the size of the latents.
    preset = weighted_diamond_map(law.model, guide={"strength": 20 / golden["latents"].numel() ** 0.5})
    assert isinstance(preset.transition, FlowMapTransition)
    posterior = replace(preset.posterior, num_samples=3)
    path, recorded = law.model.path, {name: golden[f"t{time}.{name}"] for name in ("eps", "particle_reward")}
    level, next_level = (float(path.noise_to_signal(t)) for t in (time, time - 0.1))

    def aim(network, x, level):
        return preset.transition.aim(network, x, level, next_level)

    x = path.to_bounded(golden["latents"], time)
    noise = RecordedNoise([recorded["eps"]])
    ahead = preset.guide.look_ahead(law, posterior, x, level, noise, with_samples=True, aim=aim)
    torch.testing.assert_close(ahead.rewards[0] / 250, recorded["particle_reward"].flatten(), **TOLERANCE)
    weights = torch.softmax(posterior.log_proportions(torch.zeros(1, 3), ahead.rewards, torch.tensor([250.0])), 1)[0]
    torch.testing.assert_close(weights, golden[f"t{time}.softmax.particle_weights"].flatten(), **TOLERANCE)
    # Theirs are gradients in the latents of rectified flow, ours in the bounded coordinate.
    scale = ((1 - time) ** 2 + time**2) ** 0.5
    names = ("reward_grad", "likelihood_grad", "score_diff")
    for name, term in zip(names, ahead.terms[0], strict=True):
        expected = golden[f"t{time}.softmax.{name}"][0]
        torch.testing.assert_close(term / scale, expected, atol=1e-4 * expected.abs().max().item(), rtol=0)
    total, coefficient = golden[f"t{time}.softmax.total_grad"], time / (1 - time)
    torch.testing.assert_close(total, 20 * golden[f"t{time}.softmax.combined_unit"])
    # The velocity changes by the coefficient times the gradient, and the denoised sample by t as much.
    expected = time * coefficient * total
    torch.testing.assert_close(
        preset.guide.shift(ahead, level), expected, atol=1e-4 * expected.abs().max().item(), rtol=0
    )


@torch.no_grad()
def test_a_run_of_the_weighted_diamond_map_on_flux() -> None:
    """Eight steps, all but the first guided: latents before each, the last ones, and the image."""
    law, levels, golden = flux_law()
    preset = weighted_diamond_map(law.model, guide={"strength": 20 / golden["latents"].numel() ** 0.5})
    preset = replace(preset, posterior=replace(preset.posterior, num_samples=4))
    path, visited = law.model.path, []

    x = packed(golden["run.init_latents_unpacked"])
    for progress in preset.iterate(law, x, levels, RecordedNoise(list(golden["run.eps"]))):
        visited.append(path.from_bounded(progress.particles, path.time(progress.noise_to_signal)))
    result = progress.result()
    for latents, expected in zip(visited[:-1], golden["run.latents_guided_input"], strict=True):
        torch.testing.assert_close(latents, expected, atol=2e-4, rtol=0)
    torch.testing.assert_close(visited[-1], golden["run.final_latents"], atol=2e-4, rtol=0)
    image = result.images[0, 0].permute(1, 2, 0)
    torch.testing.assert_close(image, golden["run.final_image"], atol=2e-4, rtol=0)
    # Of a look-ahead two evaluations and one backward pass through each, where their code makes four of the first.
    assert law.cost.network_evaluations == 8 + 7 * 4 * 2
    assert law.cost.backward_passes == 7 * 4 * 2


@pytest.mark.parametrize("step", range(1, 6))
@torch.no_grad()
def test_a_step_of_the_weighted_diamond_map_on_sana_sprint(step: int) -> None:
    """The look-aheads of their run, which are averaged evenly, and the change that their coefficient makes."""
    law, levels, golden = sana_sprint_law()
    latents = golden["latents"][step : step + 1]
    preset = weighted_diamond_map(law.model, guide={"strength": 20 / latents.numel() ** 0.5})
    noise = RecordedNoise([golden["eps"][step - 1]])
    ahead = preset.guide.look_ahead(law, preset.posterior, latents / 0.5, levels[step], noise, with_samples=True)
    # Before the look-aheads come the predictions of each step so far, and look-aheads of those before.
    first = 2 + 5 * (step - 1)
    torch.testing.assert_close(ahead.samples[0], golden["candidates"][first : first + 4], **TOLERANCE)
    torch.testing.assert_close(ahead.rewards[0] / 250, golden["rewards"][first : first + 4], atol=2e-3, rtol=1e-3)
    # Of scaled latents: b times the gradient is taken from dx / ds.
    shift = preset.guide.shift(ahead, levels[step]) * 0.5 / math.sin(golden["times"][step])
    expected = golden["scaled_gradients"][step - 1 : step]
    torch.testing.assert_close(shift, expected, atol=1e-3 * expected.abs().max().item(), rtol=0)


@torch.no_grad()
def test_a_run_of_the_weighted_diamond_map_on_sana_sprint_jumps_and_keeps_the_best_image_seen() -> None:
    law, levels, golden = sana_sprint_law()
    preset = weighted_diamond_map(law.model, guide={"strength": 20 / 256**0.5})
    visited = []
    random = RandomSource(torch.Generator().manual_seed(0), 1)
    for progress in preset.iterate(law, golden["starting_latents"], levels, random):
        visited.append((progress.particles, progress.level_index))
    result = progress.result()
    # The first step, five guided ones, and one evaluation from there to the end.
    assert [step for _, step in visited] == [0, 1, 2, 3, 4, 5, 19]
    # Both gradients of a look-ahead go through one evaluation.
    assert law.cost.network_evaluations == 1 + 5 * (1 + 4) + 1
    assert law.cost.backward_passes == 5 * 4 * 2
    before_jump, end = visited[-2][0], visited[-1][0]
    torch.testing.assert_close(end, at_rows(law, 1).network.predict(before_jump, levels[6]))
    # Every prediction and look-ahead, the last sample, and the best of the others once more.
    given = law.reward.given
    assert len(given) == 6 + 5 * 4 + 2
    assert result.rewards.item() == pytest.approx(max(given), rel=1e-5)
    torch.testing.assert_close(at_rows(law, 1).decode(result.latents[0]), result.images[0])


@torch.no_grad()
def test_a_run_of_fmrg_on_flux() -> None:
    """Three particles over four guided steps, the best of them over two more, and two steps of the flow map."""
    law, levels, _ = flux_law(16)
    golden = load_file(FIXTURES / "fmrg" / "golden.safetensors")
    preset = fmrg(law.model, num_guided_steps=6)
    path, visited = law.model.path, []

    start = packed(golden["warm_up"][:, 0])
    for progress in preset.iterate(law, start, levels, RandomSource(torch.Generator(), 1)):
        visited.append(path.from_bounded(progress.particles, path.time(progress.noise_to_signal)))
    result = progress.result()
    assert [len(x) for x in visited] == [3, 3, 3, 1, 1, 1, 1]
    expected = [*golden["warm_up"][:, 1:4].unbind(1), *golden["alone"].unsqueeze(1)]
    for latents, recorded in zip(visited[:6], expected, strict=True):
        torch.testing.assert_close(latents, packed(recorded), atol=2e-4, rtol=0)
    torch.testing.assert_close(visited[-1], packed(golden["final_latents"]), atol=2e-4, rtol=0)
    torch.testing.assert_close(result.images[0], golden["image"], atol=2e-4, rtol=0)
    # Of each guided step the map to the end and the one to the next level; the particles are compared by one more.
    assert law.cost.network_evaluations == 3 * (4 * 2 + 1) + 2 * 2 + 2
    assert law.cost.backward_passes == 3 * 4 + 2


@pytest.mark.parametrize(("name", "scale"), [("weak", 2e-5), ("strong", 1.0)])
def test_a_run_of_reno_on_one_step_of_flux(name: str, scale: float) -> None:
    """Eight iterations; a weak reward leaves the gradient to the regularisation, a strong one meets the clipping."""
    law, _, _ = flux_law()
    golden = load_file(FIXTURES / "reno" / "golden.safetensors")
    law = replace(law, reward_scale=scale)
    noises = []

    class Watched(type(law.model)):
        def flow_map(self, x, *arguments):
            noises.append(x.detach().clone())
            return super().flow_map(x, *arguments)

    family = Watched(law.model.pipeline)
    law = replace(law, model=family)
    preset = reno(family, num_iterations=8, transition=FlowMapTransition())
    start = golden[f"{name}.noises"][:1]
    result = preset.run(law, start, (math.inf, 0.0), RandomSource(torch.Generator(), 1))
    torch.testing.assert_close(torch.cat(noises), golden[f"{name}.noises"], atol=2e-5, rtol=0)
    best = golden[f"{name}.best_image"]
    assert (result.images[0, 0].permute(1, 2, 0) - best / 255).abs().max() < 1.01 / 255
    expected = golden[f"{name}.rewards"].max()
    torch.testing.assert_close(scale * result.rewards[0, 0], expected, atol=2e-3 * scale, rtol=1e-3)
