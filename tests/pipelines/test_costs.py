"""Nothing is computed twice, as seen by hooks on the parts of a real pipeline with a real reward."""

from __future__ import annotations

import pytest
from torch import nn

from benchmarks.counting import counted
from benchmarks.zoo.flux import build_tiny_flux
from diamond_diffusers import SMC, DiamondMapPipeline, GlassPosterior, Guidance, Guide, ODETransition
from diamond_diffusers.rewards import MiniatureReward

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


def test_prompts_are_encoded_once_in_a_run(pipe: DiamondMapPipeline, reward: MiniatureReward) -> None:
    read_by_reward: list[int] = []
    read_by_model: list[int] = []
    prompts = ["a green ring", "a grey heart"]
    hooks = [rows_of(reward.model.text_model, read_by_reward), rows_of(pipe.text_encoder, read_by_model)]
    pipe(prompts, reward=reward, alignment=SMC(num_particles=4), particle_batch_size=2, **CALL)
    for hook in hooks:
        hook.remove()
    assert sum(read_by_reward) == sum(read_by_model) == 2
