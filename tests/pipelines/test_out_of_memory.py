"""Where memory runs out, a step is run again in smaller chunks: the same draws, the same images, an honest cost."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from diamond_diffusers import SMC, BestOfN, DiamondMapPipeline, Guidance, Guide
from diamond_diffusers.alignment.execution import Execution
from diamond_diffusers.alignment.out_of_memory import with_smaller_chunks
from diamond_diffusers.alignment.random_source import RandomSource
from diamond_diffusers.core.memory_errors import want_of_memory
from diamond_diffusers.pipelines.output import DiamondMapPipelineOutput
from diamond_diffusers.rewards import CallableReward, as_reward

from ..products import diagonal
from .test_iterate import CASES, build_pipe, call, trained

CHUNKS = 1e-4
"""By how much images in [0, 1] may differ with another size of chunks."""
ERRORS = {
    "GPU": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "CPU": lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 12"),
    "Python": MemoryError,
}


@pytest.fixture(scope="module")
def pipe() -> DiamondMapPipeline:
    return build_pipe()


@pytest.fixture(scope="module")
def enough(pipe: DiamondMapPipeline) -> Callable[[str], DiamondMapPipelineOutput]:
    """The call of each name where memory suffices, made once."""
    return cache(lambda name: pipe(**call(name)))


class Seen:
    """Calls of a module: the rows of those that memory held, and of those that it did not."""

    def __init__(self) -> None:
        self.held: list[int] = []
        self.failed: list[int] = []


@contextmanager
def memory_of(module: nn.Module, rows: int, backward: bool = False, error: str = "GPU") -> Iterator[Seen]:
    """Memory in which a module is evaluated, or differentiated, at no more rows than these."""
    seen = Seen()

    def check(count: int) -> None:
        if count > rows:
            seen.failed.append(count)
            raise ERRORS[error]()
        seen.held.append(count)

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        check(len(next(iter((*args, *kwargs.values())))))

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if output[0].requires_grad:
            output[0].register_hook(lambda gradient: check(len(gradient)))

    if backward:
        hook = module.register_forward_hook(after, with_kwargs=True)
    else:
        hook = module.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield seen
    finally:
        hook.remove()


def assert_close(found: DiamondMapPipelineOutput, expected: DiamondMapPipelineOutput) -> None:
    torch.testing.assert_close(found.images, expected.images, atol=CHUNKS, rtol=0)
    if expected.rewards is not None:
        torch.testing.assert_close(found.rewards, expected.rewards, atol=CHUNKS, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_call_with_the_smaller_size_at_its_own_cost(
    pipe: DiamondMapPipeline, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    (options, plain), before = ({**call(name), "num_inference_steps": 2} for _ in range(2)), trained(pipe)
    with memory_of(pipe.transformer, 2) as seen:
        out = pipe(**options, particle_batch_size=1000)
    # Methods that evaluate one row of an image at a time need no less, though classifier-free guidance makes it two.
    size = caplog.records[0].args[-1] if seen.failed else 1
    assert len(caplog.records) == len(seen.failed[:1]) <= 1
    expected = pipe(**plain, particle_batch_size=size)
    assert torch.equal(out.images, expected.images)
    assert torch.equal(out.log_weights, expected.log_weights)
    for mine, theirs in zip(options["generator"], plain["generator"], strict=True):
        assert torch.equal(mine.get_state(), theirs.get_state())
    # Sizes fall, and stay where they are.
    assert sorted(set(seen.failed), reverse=True) == seen.failed and max(seen.held) <= 2
    assert out.cost.network_evaluations == sum(seen.held) + sum(seen.failed)
    assert out.cost.network_evaluations >= expected.cost.network_evaluations + sum(seen.failed)
    assert trained(pipe) == before


@pytest.mark.parametrize("name", ["none", "guidance", "smc", "random_search"])
@pytest.mark.parametrize("part", ["network", "decoder"])
def test_all_images_at_once_become_fewer(
    pipe: DiamondMapPipeline,
    enough: Callable[[str], DiamondMapPipelineOutput],
    caplog: pytest.LogCaptureFixture,
    name: str,
    part: str,
) -> None:
    module, rows = (pipe.transformer, 2) if part == "network" else (pipe.vae.decoder, 1)
    with memory_of(module, rows) as seen:
        out = pipe(**call(name))
    assert_close(out, enough(name))
    assert seen.failed and max(seen.held) == rows
    assert len(caplog.records) == 1
    assert "give particle_batch_size=1, or fewer prompts" in caplog.text


class Judge(nn.Module):
    """The reward of the model, of which the memory can be watched."""

    def forward(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return as_reward("brightness")(images, prompts)


@pytest.mark.parametrize(("name", "error"), diagonal(["smc", "noise_evolution", "random_search"], [*ERRORS]))
def test_a_reward_may_be_what_takes_it(
    pipe: DiamondMapPipeline, enough: Callable[[str], DiamondMapPipelineOutput], name: str, error: str
) -> None:
    judge = Judge()
    with memory_of(judge, 3, error=error) as seen:
        out = pipe(**call(name), reward=CallableReward(judge, "judge", differentiable=True))
    assert seen.failed and max(seen.held) <= 3
    assert_close(out, enough(name))


def test_an_image_is_bit_for_bit_that_of_the_smaller_size(
    pipe: DiamondMapPipeline, caplog: pytest.LogCaptureFixture
) -> None:
    options = {**call("smc"), "alignment": SMC(num_particles=8)}
    with memory_of(pipe.transformer, 6) as seen:
        out = pipe(**options, particle_batch_size=8)
    # Eight rows, four, and two that memory holds; classifier-free guidance makes two of each.
    assert seen.failed == [16, 8]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "Memory did not hold 8 rows at once" in caplog.text and "at most 2 at a time" in caplog.text
    fresh = {**call("smc"), "alignment": SMC(num_particles=8)}
    expected = pipe(**fresh, particle_batch_size=2)
    assert torch.equal(out.images, expected.images) and torch.equal(out.rewards, expected.rewards)
    assert out.cost.network_evaluations == expected.cost.network_evaluations + sum(seen.failed)
    assert out.cost.decodes == expected.cost.decodes


@pytest.mark.parametrize("name", ["pathwise", "noise_optimization"])
def test_graphs_may_be_what_takes_it(pipe: DiamondMapPipeline, caplog: pytest.LogCaptureFixture, name: str) -> None:
    """The backward pass fails, and the particles whose graphs are held at once become fewer."""
    options = {**call(name)} if name == "noise_optimization" else {**call("guidance")}
    if name == "pathwise":
        options["alignment"] = Guidance(guide=Guide("pathwise"), num_particles=4)
    expected = pipe(**{**options, "generator": call(name)["generator"]})
    with memory_of(pipe.transformer, 2, backward=True) as seen:
        out = pipe(**{**options, "generator": call(name)["generator"]})
    assert seen.failed and set(seen.held) == {2}
    assert_close(out, expected)
    assert len(caplog.records) == 1
    assert out.cost.backward_passes == expected.cost.backward_passes + sum(seen.failed)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_row_that_memory_does_not_hold_is_told(pipe: DiamondMapPipeline, checkpointing: bool) -> None:
    options = call("smc")
    with memory_of(pipe.transformer, 0) as seen:
        run = pipe.iterate(**options, gradient_checkpointing=checkpointing)
        with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate 2") as raised:
            next(run)
    assert seen.failed[-1] == 2 and len(set(seen.failed)) == len(seen.failed)
    (note,) = raised.value.__notes__
    assert "does not hold a single row" in note and "draw smaller images" in note
    assert ("gradient_checkpointing=True" in note) != checkpointing


def test_other_errors_are_raised_at_once(pipe: DiamondMapPipeline) -> None:
    calls = []

    def reward(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        calls.append(len(images))
        if len(calls) > 2:
            raise RuntimeError("shapes do not match")
        return images.mean((1, 2, 3))

    with pytest.raises(RuntimeError, match="shapes do not match"):
        pipe(**call("smc"), reward=reward)
    assert len(calls) == 3


def test_a_run_that_is_stepped_keeps_the_smaller_size(pipe: DiamondMapPipeline) -> None:
    options = {**call("smc"), "alignment": SMC(num_particles=4)}
    expected = pipe(**{**options, "generator": call("smc")["generator"]})
    with memory_of(pipe.transformer, 4) as seen, memory_of(pipe.vae.decoder, 1) as decoded:
        with pipe.iterate(**options) as run:
            for progress in run:
                assert len(progress.previews()) == 8
        out = run.output()
    # The batch of eight rows, then four, then two; and one for the decoder, all in the first step.
    assert seen.failed == [16, 8] and decoded.failed == [2]
    assert_close(out, expected)
    # Another call knows nothing of it.
    with memory_of(pipe.transformer, 4) as seen:
        pipe(**call("none"))
    assert seen.failed == []


def test_the_final_images_may_be_what_takes_it(pipe: DiamondMapPipeline, caplog: pytest.LogCaptureFixture) -> None:
    for options in ({**call("none")}, {**call("none"), "alignment": BestOfN(num_particles=2)}):
        caplog.clear()
        expected = pipe(**{**options, "generator": call("none")["generator"]})
        with memory_of(pipe.vae.decoder, 1) as seen:
            out = pipe(**{**options, "generator": call("none")["generator"]})
        assert seen.failed and len(caplog.records) == 1
        assert_close(out, expected)
        assert out.cost.network_evaluations == expected.cost.network_evaluations


def test_draws_of_every_kind_are_made_again() -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    for source in (RandomSource(generators, 2), RandomSource(torch.Generator(), 2), RandomSource(None, 2)):
        for has_drawn_aside in (False, True):
            if has_drawn_aside:
                source.normal(3, (2,))
            drawn = []
            restore = source.snapshot()
            for _ in range(2):
                drawn.append([source.normal(3, (2,)), source.aside.aside.normal(1, (2,)), torch.rand(2)])
                restore()
            for one, other in zip(*drawn, strict=True):
                assert torch.equal(one, other)


def test_processes_that_share_a_run_do_not_run_a_step_again() -> None:
    """One alone would wait for the others."""
    calls = []

    def fail() -> None:
        calls.append(1)
        raise ERRORS["GPU"]()

    execution = Execution(particle_batch_size=4, shards=SimpleNamespace(num_processes=2))
    execution.memory.largest = 4
    with pytest.raises(torch.OutOfMemoryError) as raised:
        with_smaller_chunks(execution, fail)
    assert len(calls) == 1 and not execution.memory.is_watched
    assert "Processes that share a call" in raised.value.__notes__[0]


def test_functions_within_one_are_called_again_as_a_whole() -> None:
    execution, calls = Execution(), []

    def inner() -> int:
        calls.append("inner")
        execution.memory.largest = max(execution.memory.largest, 4)
        if execution.max_rows is None:
            raise ERRORS["CPU"]()
        return execution.max_rows

    def outer() -> int:
        calls.append("outer")
        return with_smaller_chunks(execution, inner)

    assert with_smaller_chunks(execution, outer) == 2
    assert calls == ["outer", "inner", "outer", "inner"]


@pytest.mark.parametrize(
    "message",
    [
        "MPS backend out of memory (MPS allocated: 1 GiB). Tried to allocate 2 GiB.",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
)
def test_devices_say_it_in_words_of_their_own(message: str) -> None:
    assert want_of_memory(RuntimeError(message)) == ": ".join(message.rstrip(".").split(". ")[:2])
