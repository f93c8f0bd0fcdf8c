"""A planned call is the call of the chosen sizes, in whichever thread or process, and takes what was planned."""

import logging
import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import PartialState

from diamond_diffusers import SMC, DiamondMapPipeline, GlassPosterior, Guidance, Guide, NoiseOptimization
from diamond_diffusers.alignment.execution import Checkpointing
from diamond_diffusers.alignment.graph_demand import GraphDemand, graph_demand
from diamond_diffusers.alignment.memory_plan import CHECKPOINTINGS
from diamond_diffusers.alignment.processes import ParticleShards
from diamond_diffusers.core.memory_use import peak_bytes
from diamond_diffusers.pipelines import planning
from diamond_diffusers.pipelines.output import DiamondMapPipelineOutput

from ..core.mixture import make_mixture
from ..core.mixture_model import LINEAR, make_law
from ..training.processes import in_processes

PATHWISE = Guidance(guide=Guide("pathwise"), num_particles=3)
PLENTY, LITTLE = 10**9, 6 * 10**6
AUTO = {"particle_batch_size": "auto", "gradient_checkpointing": "auto"}


@pytest.fixture(scope="module")
def pipe() -> DiamondMapPipeline:
    pipe = DiamondMapPipeline.from_pretrained()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(autouse=True)
def no_plans() -> Iterator[None]:
    yield
    planning._plans.clear()


def with_free_memory(monkeypatch: pytest.MonkeyPatch, *sizes: int) -> None:
    """Has as much memory free as these say one after another; the last for ever."""
    left = list(sizes)
    monkeypatch.setattr(planning, "free_memory", lambda device: left.pop(0) if len(left) > 1 else left[0])


def draw(pipe: DiamondMapPipeline, **options: Any) -> DiamondMapPipelineOutput:
    call = {"alignment": PATHWISE, "num_inference_steps": 1, "output_type": "pt", **options}
    return pipe("a red star", generator=torch.Generator().manual_seed(0), **call)


@pytest.mark.parametrize(
    ("free", "size", "checkpointing"),
    [(PLENTY, None, Checkpointing()), (LITTLE, 2, CHECKPOINTINGS[-1])],
    ids=["plenty", "little"],
)
def test_a_planned_call_is_the_call_of_the_chosen_sizes(pipe, monkeypatch, caplog, free, size, checkpointing):
    caplog.set_level(logging.INFO, logger="diamond_diffusers.pipelines.planning")
    with_free_memory(monkeypatch, free)
    planned = draw(pipe, **AUTO)
    assert (planned.plan.particle_batch_size, planned.plan.gradient_checkpointing) == (size, checkpointing)
    assert planned.plan.fits and planned.plan.free_bytes == int(0.9 * free)
    assert [record.getMessage() for record in caplog.records] == [f"Memory: {planned.plan}."]
    given = draw(pipe, particle_batch_size=size, gradient_checkpointing=checkpointing.is_complete)
    assert given.plan is None
    assert torch.equal(planned.images, given.images) and torch.equal(planned.rewards, given.rewards)
    # What was evaluated for the plan is in the bill.
    assert planned.cost.network_evaluations > given.cost.network_evaluations
    assert planned.cost.reward_calls == given.cost.reward_calls + 1


@pytest.mark.parametrize(
    "alignment",
    [
        PATHWISE,
        SMC(num_particles=4),
        pytest.param(Guidance(GlassPosterior(2, 2), Guide("pathwise"), num_particles=2), marks=pytest.mark.slow),
        pytest.param(NoiseOptimization(num_iterations=2, num_particles=2), marks=pytest.mark.slow),
        pytest.param(Guidance(guide=Guide("isotropic"), num_particles=4), marks=pytest.mark.slow),
    ],
    ids=lambda method: type(method).__name__,
)
@pytest.mark.parametrize("free", [PLENTY, pytest.param(2 * LITTLE, marks=pytest.mark.slow)])
def test_a_run_takes_what_was_planned(pipe, monkeypatch, alignment, free):
    with_free_memory(monkeypatch, free)
    options = {**AUTO, "alignment": alignment}
    plan = draw(pipe, **options).plan
    outputs = []
    taken = peak_bytes(lambda: outputs.append(draw(pipe, **options)))
    assert outputs[0].plan == plan
    assert 0.85 * plan.num_bytes < taken < 1.05 * plan.num_bytes


def test_alike_calls_have_one_plan(pipe, monkeypatch):
    """Whatever other calls have left of the memory, and in whichever thread."""
    with_free_memory(monkeypatch, PLENTY, LITTLE)
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(lambda _: draw(pipe, **AUTO), range(2))
    assert first.plan == second.plan and first.plan.particle_batch_size is None
    assert torch.equal(first.images, second.images)
    # Calls of another kind are planned by what is free then.
    assert draw(pipe, **AUTO, height=32).plan.free_bytes == int(0.9 * LITTLE)


def test_nothing_is_planned_unasked_on_a_cpu_or_for_a_single_row(pipe, monkeypatch):
    with_free_memory(monkeypatch, PLENTY)
    assert draw(pipe).plan is None
    assert draw(pipe, alignment="none", **AUTO).plan is None
    assert draw(pipe, alignment="none", num_images_per_prompt=2, **AUTO).plan.particle_batch_size is None


def test_the_defaults_are_those_of_the_device():
    pipeline = SimpleNamespace(components={})

    def defaults(device: str, *given: Any) -> planning.MemoryOptions:
        call = SimpleNamespace(family=SimpleNamespace(pipeline=pipeline), device=torch.device(device))
        return planning.MemoryOptions.of_call(call, *(given or (None, None)))

    for accelerator in ("cuda", "xpu", "mps"):
        assert defaults(accelerator) == planning.MemoryOptions("auto", CHECKPOINTINGS)
        assert not defaults(accelerator, 4, False).is_open
    assert defaults("cpu") == planning.MemoryOptions(None, (Checkpointing(),))
    assert defaults("cpu", 3, "auto") == planning.MemoryOptions(3, CHECKPOINTINGS)
    pipeline._all_hooks = ["offloading"]
    assert defaults("cuda") == planning.MemoryOptions("auto", CHECKPOINTINGS[-1:])
    assert defaults("cpu") == planning.MemoryOptions(None, CHECKPOINTINGS[-1:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"particle_batch_size": "all"}, "particle_batch_size is 'all'; give a whole number or auto or None"),
        ({"gradient_checkpointing": "yes"}, "gradient_checkpointing is 'yes'; give True or False or auto or None"),
        ({"particle_batch_size": 0}, "particle_batch_size is 0; give a whole number of at least 1"),
    ],
)
def test_other_words_are_refused(pipe, options, message):
    with pytest.raises(ValueError, match=message):
        draw(pipe, **options)


def test_processes_agree_on_the_least_plan():
    options = planning.MemoryOptions("auto", CHECKPOINTINGS)

    def child() -> None:
        shards = ParticleShards.of(PartialState(cpu=True))
        planning.free_memory = lambda device: (10**9, 400)[shards.process_index]
        law = make_law(make_mixture(3), LINEAR, shards=shards)
        method = Guidance(guide=Guide("pathwise"), num_particles=8).resolve(law.model)
        planned, plan = planning.with_plan(options, PIPELINE, method, law, torch.zeros(8, 3), (math.inf, 1.0, 0.0))
        assert plan.free_bytes == 360 and plan.particle_batch_size == planned.execution.particle_batch_size < 8

    in_processes(2, child)


class _Pipeline:
    """Something that plans can be kept for."""


PIPELINE = _Pipeline()


def test_demand_counts_what_is_held_at_once(pipe):
    call = pipe.prepare("a red star", num_inference_steps=4)
    with call.active():
        law = make_law(make_mixture(3), LINEAR)
        levels = call.levels()

        def demand(method: Any) -> GraphDemand:
            return graph_demand(method.resolve(law.model), law, levels)

        assert demand(PATHWISE) == GraphDemand(rows=3, network=1, preview=1)
        assert demand(Guidance(guide=Guide("isotropic"))) == GraphDemand(preview=1)
        # The two inner steps of a look-ahead begin with one evaluation for both of them.
        glass = Guidance(GlassPosterior(2, 2), Guide("pathwise"), num_particles=3)
        assert demand(glass) == GraphDemand(rows=6, copies=2, network=3, preview=2)
        # The whole path is held, and final images are decoded in full.
        assert demand(NoiseOptimization(num_particles=2)) == GraphDemand(rows=2, network=4, decoder=1)
        assert demand(SMC(num_particles=5)).scored == 0


def test_a_reward_may_call_the_pipeline_while_a_call_is_planned(
    pipe: DiamondMapPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_free_memory(monkeypatch, PLENTY)
    inner: list[DiamondMapPipelineOutput] = []

    def reward(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        inner.append(draw(pipe, alignment=SMC(num_particles=2), particle_batch_size="auto"))
        return images.mean((1, 2, 3))

    outer: list[DiamondMapPipelineOutput] = []
    # A lock that it waited for would be held for ever.
    thread = threading.Thread(target=lambda: outer.append(draw(pipe, reward=reward, **AUTO)), daemon=True)
    thread.start()
    thread.join(60)
    assert outer[0].plan is not None and inner[0].plan is not None
