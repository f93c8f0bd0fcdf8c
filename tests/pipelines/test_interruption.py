"""Calls that are ended from outside: within a step, with their best clean look-aheads, and with nothing left behind."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from diamond_diffusers import SMC, DiamondMapPipeline
from diamond_diffusers.pipelines.run import _lock
from diamond_diffusers.rewards import as_reward

from .test_iterate import CASES, PROMPTS, build_pipe, call, trained


@pytest.fixture(scope="module")
def pipe() -> DiamondMapPipeline:
    return build_pipe()


class Evaluations:
    """Counts the evaluations of a network."""

    def __init__(self) -> None:
        self.count = 0
        self.at = -1

    @contextmanager
    def interrupting(self, pipe: DiamondMapPipeline, at: int) -> Iterator[None]:
        """Interrupts the calls of a pipeline in its evaluation number `at`."""

        def count(*_: object) -> None:
            self.count += 1
            if self.count == at:
                pipe.interrupt()

        handle = pipe.transformer.register_forward_hook(count)
        try:
            yield
        finally:
            handle.remove()


@pytest.mark.parametrize("name", CASES)
def test_it_is_heeded_before_the_next_evaluation(pipe: DiamondMapPipeline, name: str) -> None:
    assert_heeded(pipe, name, 1)


@pytest.mark.parametrize("name", ["smc", "guidance", "random_search", "noise_optimization"])
def test_it_is_heeded_within_a_step(pipe: DiamondMapPipeline, name: str) -> None:
    assert_heeded(pipe, name, 4)


def assert_heeded(pipe: DiamondMapPipeline, name: str, at: int) -> None:
    """In chunks of one row a step has many evaluations; the look-aheads that are returned may cost one of each row."""
    before, evaluations = trained(pipe), Evaluations()
    with evaluations.interrupting(pipe, at):
        out = pipe(**call(name), particle_batch_size=1)
    assert at <= evaluations.count <= at + len(PROMPTS) * max(out.alignment.num_particles, 2)
    assert out.images.shape == (2, 3, 16, 16) and out.images.isfinite().all()
    assert out.cost.network_evaluations >= evaluations.count > 0
    assert trained(pipe) == before
    if out.rewards is not None:
        scored = as_reward("brightness")(out.images, PROMPTS)
        torch.testing.assert_close(out.rewards, scored, atol=1e-4, rtol=1e-4)


def test_a_call_that_is_interrupted_in_a_step_is_no_noise() -> None:
    """Its pixels vary less from one to the next than those of the particles, which are noise still."""
    pipe = DiamondMapPipeline.from_pretrained()

    def roughness(images: torch.Tensor) -> float:
        return (images[..., 1:] - images[..., :-1]).abs().mean().item()

    alignment = SMC(num_particles=4)
    options = {**call("smc"), "alignment": alignment, "num_inference_steps": 8}
    with Evaluations().interrupting(pipe, 8):
        out = pipe(**options, particle_batch_size=4)
    with pipe.iterate(**options) as run:
        for _ in range(len(out.trace.steps)):
            progress = next(run)
    noisy = progress.law.rows(progress.particles).decode(progress.particles)
    assert 0 < len(out.trace.steps) < 8
    assert roughness(out.images) < 0.7 * roughness(noisy)


def test_it_is_heeded_in_another_thread_with_no_callback(pipe: DiamondMapPipeline) -> None:
    begun, results = threading.Event(), []
    handle = pipe.transformer.register_forward_hook(lambda *_: begun.set())
    options = {"num_inference_steps": 1000, "alignment": "smc", "generator": torch.Generator().manual_seed(0)}
    thread = threading.Thread(target=lambda: results.append(pipe("a red circle", **options)))
    try:
        thread.start()
        assert begun.wait(60)
        pipe.interrupt()
        thread.join(60)
    finally:
        handle.remove()
    assert not thread.is_alive()
    assert len(results[0].images) == 1 and len(results[0].trace.steps) < 1000


@pytest.mark.parametrize("stock", [False, True], ids=["wrapper", "stock"])
def test_the_flag_of_stock_pipelines_ends_calls_from_outside(pipe: DiamondMapPipeline, stock: bool) -> None:
    def reward(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        (pipe.pipeline if stock else pipe)._interrupt = True
        return images.mean((1, 2, 3))

    for _ in range(2):
        # The flag of an earlier call is lowered when another starts.
        out = pipe(**call("smc") | {"num_inference_steps": 20}, reward=reward)
        assert len(out.trace.steps) <= 1


def test_a_call_that_starts_later_is_not_interrupted(pipe: DiamondMapPipeline) -> None:
    pipe.interrupt()
    assert len(pipe(**call("smc")).trace.steps) == 3
    with Evaluations().interrupting(pipe, 1):
        pipe(**call("smc"))
    assert len(pipe(**call("smc")).trace.steps) == 3


def test_a_callback_ends_its_own_call_alone(pipe: DiamondMapPipeline) -> None:
    """Whether it sets the flag in the pipeline that it is given or in the one that it knows."""
    with pipe.iterate(**call("smc")) as other:
        next(other)
        for target in ("given", "known"):

            def stop(given: DiamondMapPipeline, *_: object, target: str = target) -> dict:
                (given if target == "given" else pipe)._interrupt = True
                return {}

            assert len(pipe(**call("smc"), callback_on_step_end=stop).trace.steps) == 1
        assert len(list(other)) == 2


def test_one_run_can_be_interrupted(pipe: DiamondMapPipeline) -> None:
    with pipe.iterate(**call("smc")) as run, pipe.iterate(**call("smc")) as other:
        next(run)
        next(other)
        progress = next(run)
        run.interrupt()
        assert len(progress.previews()) == len(progress.particles)
        assert list(run) == []
        assert len(list(other)) == 2
        assert len(run.output().images) == 2


def test_after_an_error_of_the_caller_a_run_has_its_best_images(pipe: DiamondMapPipeline) -> None:
    """Such as of control and C."""
    calls = []

    def reward(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        calls.append(len(images))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return images.mean((1, 2, 3))

    run = pipe.iterate(**call("smc"), reward=reward)
    with pytest.raises(KeyboardInterrupt):
        for _ in run:
            pass
    assert len(run.output().images) == 2


def test_a_run_that_is_closed_before_its_first_step_has_images(pipe: DiamondMapPipeline) -> None:
    run = pipe.iterate(**call("smc"))
    run.close()
    out = run.output()
    assert len(out.images) == 2 and out.interrupted
    assert not pipe(**call("smc")).interrupted


def test_a_run_cannot_be_closed_or_stepped_within_its_step(pipe: DiamondMapPipeline) -> None:
    """It says so, goes on, and can be interrupted there."""
    before, refusals = trained(pipe), []

    def reward(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        if within:
            for act in (run.close, run.output, run.__next__):
                with pytest.raises(RuntimeError, match=r"within a step of its own.*interrupt\(\)") as caught:
                    act()
                refusals.append(caught)
            run.interrupt()
        return images.mean((1, 2, 3))

    within = False
    run = pipe.iterate(**call("smc"), reward=reward)
    within = True
    assert len(list(run)) <= 1
    within = False
    assert len(refusals) >= 3
    assert len(run.output().images) == 2
    assert trained(pipe) == before


def test_a_signal_handler_may_interrupt_wherever_the_run_is(pipe: DiamondMapPipeline) -> None:
    """Even where this thread is noting down that a run is open."""

    def interrupt() -> None:
        with _lock:
            pipe.interrupt()

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
