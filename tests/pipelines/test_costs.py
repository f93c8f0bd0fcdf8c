"""Nothing is computed twice, as seen by hooks on the parts of a real pipeline with a real reward."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.counting import counted
from benchmarks.zoo.flux import build_tiny_flux
from diamond_diffusers import (
    SMC,
    DiamondMapPipeline,
    GlassPosterior,
    Guidance,
    Guide,
    NoAlignment,
    NoiseOptimization,
    ODETransition,
    RandomSearch,
)
from diamond_diffusers.pipelines.output import DiamondMapPipelineOutput
from diamond_diffusers.rewards import MiniatureReward

from ..families.family import brightness
from ..products import diagonal

PROMPTS = ["a red circle", "two blue stars"]
CALL = {"height": 16, "width": 16, "num_inference_steps": 3, "max_sequence_length": 12, "output_type": "pt"}
PARTICLES = 3
ROWS = len(PROMPTS) * PARTICLES

# Per particle and step: rows forward and backward through the network, and decodes.
METHODS = {
    "guidance": (Guidance(num_particles=PARTICLES), 1, 0, 1),
    "pathwise guidance": (Guidance(guide=Guide("pathwise"), num_particles=PARTICLES), 1, 1, 1),
    "pathwise guidance along the ODE": (
        Guidance(guide=Guide("pathwise"), num_particles=PARTICLES, transition=ODETransition()),
        1,
        1,
        1,
    ),
    "guidance by two samples of two steps": (
        Guidance(guide=Guide("pathwise"), posterior=GlassPosterior(2, 2), num_particles=PARTICLES),
        3,
        3,
        2,
    ),
    "smc": (SMC(num_particles=PARTICLES), 1, 0, 1),
    "guided smc": (SMC(num_particles=PARTICLES, guide=Guide("pathwise")), 1, 1, 1),
}


@pytest.fixture(scope="module")
def pipe() -> DiamondMapPipeline:
    return DiamondMapPipeline.from_pipe(build_tiny_flux())


@pytest.fixture(scope="module")
def reward() -> MiniatureReward:
    return MiniatureReward()


def rows_of(module: nn.Module, rows: list[int]) -> object:
    """Records the rows of every call of a module; removed by `remove()` of what is returned."""
    return module.register_forward_hook(
        lambda module, args, kwargs, output: rows.append(len(next(iter((*args, *kwargs.values()))))), with_kwargs=True
    )


@pytest.mark.parametrize("name", METHODS)
def test_each_particle_of_a_step_is_evaluated_once(
    pipe: DiamondMapPipeline, reward: MiniatureReward, name: str
) -> None:
    alignment, forwards, backwards, decodes = METHODS[name]
    seen: list[int] = []
    hook = rows_of(reward.model.vision_model, seen)
    with counted(pipe) as counts:
        out = pipe(PROMPTS, reward=reward, alignment=alignment, **CALL)
    hook.remove()
    steps = len(out.trace.steps)
    assert counts.network == out.cost.network_evaluations == ROWS * steps * forwards
    assert counts.backward == out.cost.backward_passes == ROWS * steps * backwards
    # Every level but the last has its look-aheads, for unguided SMC but the first too, and the last its images.
    levels = steps - 1 if name == "smc" else steps
    assert counts.decoded == out.cost.decodes == ROWS * (levels * decodes + 1)
    # One image more is scored before the run, to see that the reward works.
    assert sum(seen) == out.cost.reward_calls == out.cost.decodes + 1


CHUNKED = {
    "plain": NoAlignment(),
    "smc": SMC(num_particles=PARTICLES, posterior=GlassPosterior(2, 2)),
    "pathwise": Guidance(GlassPosterior(2, 2), Guide("pathwise"), num_particles=PARTICLES),
    "search": RandomSearch(num_candidates=4, round_size=3),
    "noise optimization": NoiseOptimization(num_iterations=2, num_particles=PARTICLES),
}


@pytest.mark.parametrize(("name", "batch_size"), diagonal([*CHUNKED], [1, 4, 1024]))
def test_an_image_is_evaluated_by_the_calls_that_it_makes_alone(
    pipe: DiamondMapPipeline, name: str, batch_size: int
) -> None:
    """So nothing is filled up, and it is the same bit for bit."""
    # Encoded together, since text encoders too round by their rows.
    with torch.no_grad():
        embeds, pooled, _ = pipe.pipeline.encode_prompt(PROMPTS, None, max_sequence_length=12)

    def drawn(images: list[int]) -> tuple[DiamondMapPipelineOutput, list[int]]:
        parts: dict[str, list[int]] = {"network": [], "decoder": []}
        hooks = [rows_of(pipe.transformer, parts["network"]), rows_of(pipe.vae.decoder, parts["decoder"])]
        out = pipe(
            reward=brightness,
            reward_prompt=[PROMPTS[image] for image in images],
            alignment=CHUNKED[name],
            generator=[torch.Generator().manual_seed(image) for image in images],
            particle_batch_size=batch_size,
            prompt_embeds=embeds[images],
            pooled_prompt_embeds=pooled[images],
            **CALL,
        )
        for hook in hooks:
            hook.remove()
        assert sum(parts["network"]) == out.cost.network_evaluations
        assert sum(parts["decoder"]) == out.cost.decodes
        return out, sorted(parts["network"]) + sorted(parts["decoder"])

    (together, calls), first, second = drawn([0, 1]), drawn([0]), drawn([1])
    assert first[1] == second[1] and sorted(calls) == sorted(first[1] + second[1])
    assert max(calls) <= batch_size
    for image, (alone, _) in enumerate((first, second)):
        assert torch.equal(together.images[image], alone.images[0])
        assert torch.equal(together.rewards[image], alone.rewards[0])


def test_prompts_are_encoded_once_in_a_run(pipe: DiamondMapPipeline, reward: MiniatureReward) -> None:
    read_by_reward: list[int] = []
    read_by_model: list[int] = []
    prompts = ["a green ring", "a grey heart"]
    hooks = [rows_of(reward.model.text_model, read_by_reward), rows_of(pipe.text_encoder, read_by_model)]
    pipe(prompts, reward=reward, alignment=SMC(num_particles=4), particle_batch_size=2, **CALL)
    for hook in hooks:
        hook.remove()
    assert sum(read_by_reward) == sum(read_by_model) == 2
