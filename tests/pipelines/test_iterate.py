"""A call that is stepped: it is the call itself, shows where it stands, and can be ended within a step."""

from collections.abc import Callable
from functools import cache
from typing import TypeAlias

import pytest
import torch
from PIL.Image import Image

from benchmarks.zoo.flux import build_tiny_flux
from diamond_diffusers import SMC, DiamondMapPipeline, NoiseEvolution, NoiseOptimization, RandomSearch, ZeroOrderSearch
from diamond_diffusers.alignment.methods import METHODS
from diamond_diffusers.alignment.presets import PRESETS
from diamond_diffusers.maps.diamond_map import DiamondMap
from diamond_diffusers.pipelines.output import DiamondMapPipelineOutput

from ..conftest import DEFAULTS
from ..maps.tiny_maps import perturb
from ..products import one_of_each_kind

PROMPTS = ["three red circles", "a blue star"]
OTHERS = {
    "random_search": RandomSearch(num_candidates=6, round_size=2),
    "zero_order_search": ZeroOrderSearch(num_candidates=4, round_size=2),
    "noise_optimization": NoiseOptimization(num_iterations=2),
    "noise_evolution": NoiseEvolution(num_iterations=2, num_perturbations=1),
}
"""Rounds of which the defaults have too many for a test."""
NAMES = (*METHODS.names(), "fmrg", "posterior_diamond_map")
KINDS = ("none", "smc", "guidance", "posterior_smc", "beam_search", "random_search", "noise_optimization")
"""One of each way to evaluate the model and to use a reward."""
REWARDED = KINDS[1:]
"""Those that use one."""
CASES = one_of_each_kind(NAMES, KINDS)
Whole: TypeAlias = Callable[[str], DiamondMapPipelineOutput]


def build_pipe() -> DiamondMapPipeline:
    """A tiny FLUX under classifier-free guidance, with a Diamond Map and a reward of its own."""
    defaults = {
        **DEFAULTS,
        "negative_prompt": "",
        "reward": "brightness",
        "alignment": "guidance",
        "reward_scale": 20.0,
    }
    pipe = DiamondMapPipeline(build_tiny_flux(), defaults)
    pipe.family.posterior_map = DiamondMap(pipe.family, rank=2)
    perturb(pipe.family.posterior_map)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe() -> DiamondMapPipeline:
    return build_pipe()


def call(name: str) -> dict:
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(PROMPTS))]
    return {
        "prompt": PROMPTS,
        "alignment": OTHERS.get(name, name),
        "num_inference_steps": 3,
        "generator": generators,
        "output_type": "pt",
    }


@pytest.fixture(scope="module")
def whole(pipe: DiamondMapPipeline) -> Whole:
    """The call of each name, made once."""
    return cache(lambda name: pipe(**call(name)))


def trained(pipe: DiamondMapPipeline) -> list[bool]:
    return [weight.requires_grad for weight in pipe.transformer.parameters()]


@pytest.mark.parametrize("name", CASES)
def test_stepped_to_its_end_it_is_the_call(pipe: DiamondMapPipeline, whole: Whole, name: str) -> None:
    expected = whole(name)
    with pipe.iterate(**call(name)) as run:
        stages = [(progress.index, progress.is_final, progress.num_stages) for progress in run]
    stepped = run.output()
    assert torch.equal(stepped.images, expected.images) and torch.equal(stepped.rewards, expected.rewards)
    assert [index for index, _, _ in stages] == list(range(stages[0][2]))
    assert stages[-1][1]
    costs = [{**out.cost.as_dict(), "seconds": 0} for out in (stepped, expected)]
    assert costs[0] == costs[1]


@pytest.mark.parametrize("name", CASES)
def test_it_shows_where_it_stands(pipe: DiamondMapPipeline, name: str) -> None:
    evaluations = [0]
    for progress in pipe.iterate(**call(name)):
        evaluations.append(progress.cost.network_evaluations)
        shape = progress.log_weights.shape
        assert shape[0] == len(PROMPTS) and len(progress.particles) == shape.numel()
        torch.testing.assert_close(progress.log_weights.exp().sum(1), torch.ones(2, dtype=torch.float64))
        assert ((progress.effective_sample_size >= 1) & (progress.effective_sample_size <= shape[1] + 1e-6)).all()
        if progress.values is not None:
            assert progress.values.shape == shape and progress.values.isfinite().all()
        assert progress.clean.shape == progress.particles.shape
        previews = progress.previews()
        assert len(previews) == shape.numel() and all(isinstance(preview, Image) for preview in previews)
        assert [preview.size for preview in progress.best()] == [(16, 16)] * 2
    assert evaluations == sorted(evaluations) and evaluations[-1] > 0
    scored = METHODS.get(name).needs_reward if name in METHODS else PRESETS.get(name)().needs_reward
    assert not scored or name == "best_of_n" or progress.values is not None


@pytest.mark.parametrize("name", CASES)
def test_a_closed_run_has_the_best_images_so_far(pipe: DiamondMapPipeline, whole: Whole, name: str) -> None:
    before, expected = trained(pipe), whole(name)
    with pipe.iterate(**call(name)) as run:
        progress = next(run)
    assert trained(pipe) == before
    with pytest.raises(StopIteration):
        next(run)
    out = run.output()
    assert out is run.output() and out.images.shape == expected.images.shape
    assert out.images.isfinite().all() and torch.equal(out.rewards, out.rewards.float())
    # Of one stage, and what it takes to look ahead from there once.
    assert out.cost.network_evaluations <= expected.cost.network_evaluations
    torch.testing.assert_close(out.rewards, progress.result().rewards.amax(1), atol=1e-5, rtol=1e-5)


def test_what_is_cut_short_is_no_noise() -> None:
    """A noisy state itself scores far below the clean look-ahead that is returned, to a judge of pictures."""
    pipe = DiamondMapPipeline.from_pretrained()
    with pipe.iterate(**{**call("smc"), "num_inference_steps": 8}) as run:
        for progress in run:
            if progress.index == 1:
                break
    noisy = progress.law.rows(progress.particles).evaluate(progress.particles).total.unflatten(0, (2, -1)).amax(1)
    assert (run.output().rewards > noisy + 5).all()


def test_a_run_that_is_not_stepped_takes_one_step(pipe: DiamondMapPipeline) -> None:
    out = pipe.iterate(**call("smc")).output()
    assert len(out.trace.steps) == 1 and out.rewards.isfinite().all()


def test_particles_can_be_replaced(pipe: DiamondMapPipeline) -> None:
    with pipe.iterate(**call("none")) as run:
        for progress in run:
            progress.replace_particles(torch.zeros_like(progress.particles))
            assert progress.clean.isfinite().all()
    (first, second) = run.output().images
    torch.testing.assert_close(first, second, atol=1e-4, rtol=0)


def test_refused_options_leave_the_pipe_as_it_was(pipe: DiamondMapPipeline) -> None:
    before = trained(pipe)
    for wrong in ({"final_selection": "finest"}, {"alignment": "smx"}, {"num_beams": 2}, {"particle_batch_size": 0}):
        with pytest.raises((TypeError, ValueError), match=str(next(iter(wrong.values())))):
            pipe.iterate(**{**call("smc"), **wrong})
    assert trained(pipe) == before


def test_an_error_within_a_step_closes_the_run(pipe: DiamondMapPipeline) -> None:
    before, calls = trained(pipe), []

    def fails_late(images, prompts):
        calls.append(len(images))
        if len(calls) > 2:
            raise RuntimeError("the judge is ill")
        return images.mean((1, 2, 3))

    run = pipe.iterate(**call("smc"), reward=fails_late)
    with pytest.raises(RuntimeError, match="the judge is ill"):
        list(run)
    assert trained(pipe) == before
    assert pipe(**call("none")).images.isfinite().all()


def test_two_runs_of_one_pipeline_take_turns(pipe: DiamondMapPipeline, whole: Whole) -> None:
    """The state of a run is its own."""
    wanted = [whole(name).images for name in ("smc", "guidance")]
    first, second = pipe.iterate(**call("smc")), pipe.iterate(**call("guidance"))
    for _ in zip(first, second, strict=True):
        pass
    assert torch.equal(first.output().images, wanted[0]) and torch.equal(second.output().images, wanted[1])


def test_smc_has_fewer_lineages_after_resampling(pipe: DiamondMapPipeline) -> None:
    method = SMC(num_particles=4, num_valuations=None, resampling_threshold=1.0)
    with pipe.iterate(**{**call("smc"), "alignment": method}) as run:
        sizes = [progress.effective_sample_size for progress in run]
    # Resampled particles are equally weighted.
    torch.testing.assert_close(sizes[0], torch.full((2,), 4.0, dtype=torch.float64))
