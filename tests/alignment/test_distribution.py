"""Processes that share the particles of a prompt return what one process does, each at its share of the cost."""

import math

import pytest
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState

from benchmarks.zoo.flux import build_tiny_flux
from diamond_diffusers import (
    SMC,
    AncestralTransition,
    AutoRewardScale,
    BeamSearch,
    BestOfN,
    DiamondMapPipeline,
    GlassPosterior,
    GlassTransition,
    Guidance,
    Guide,
    NoAlignment,
    NoiseOptimization,
    WeightedPosterior,
)
from diamond_diffusers.alignment.processes import ParticleShards
from diamond_diffusers.core.model import Conditions

from ..core.mixture import make_mixture, seeded
from ..core.mixture_model import LINEAR, MixtureModel, QuadraticReward, law_of, make_law
from ..training.processes import in_processes
from .runs import run
from .test_batches import fields

MIXTURE = make_mixture(3)
OFFSETS = torch.tensor([[0.0, 0.0, 0.0], [2.0, 0.0, -1.0]])
LOOK_AHEADS = GlassPosterior(2, 2)
LEVELS = (math.inf, 1.5, 0.4, 0.0)
STEPS = len(LEVELS) - 1
METHODS = {
    "best of n": BestOfN(AncestralTransition(), 5),
    "smc": SMC(3, LOOK_AHEADS, GlassTransition(2), resampling_threshold=0.9),
    "guided smc": SMC(3, LOOK_AHEADS, GlassTransition(), guide=Guide("pathwise")),
    "pathwise": Guidance(LOOK_AHEADS, Guide("pathwise"), transition=GlassTransition(2)),
    "weighted": Guidance(WeightedPosterior(2, num_map_steps=2), Guide("pathwise")),
    "isotropic": Guidance(LOOK_AHEADS, Guide("isotropic"), num_particles=2),
    "tilted mean": Guidance(LOOK_AHEADS, Guide("tilted_mean")),
    "search": BeamSearch(2, 2),
    "noise optimization": NoiseOptimization(num_iterations=3, num_particles=2),
}


@pytest.fixture(autouse=True)
def fresh_accelerate(monkeypatch):
    """accelerate keeps its state for the whole process, and sets a number of threads, on which rounding depends."""
    AcceleratorState._reset_state(True)
    num_threads = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)
    AcceleratorState._reset_state(True)


def here() -> ParticleShards:
    return ParticleShards.of(PartialState(cpu=True))


def run_images(method, **options):
    """Two images of different prompts, conditions and generators."""
    conditions = Conditions({"offset": OFFSETS})
    reward = QuadraticReward({"right": (3.0, 0.0, 0.0), "down": (0.0, -3.0, 1.0)}, 0.1)
    law = law_of(MixtureModel(MIXTURE), conditions, ["right", "down"], reward, **options)
    return run(method, law, LEVELS, seed=[1, 2]), law


@pytest.mark.parametrize("num_processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_every_process_has_the_result_of_one_bit_for_bit(num_processes):
    alone = {name: run_images(method, particle_batch_size=2) for name, method in METHODS.items()}
    assert any(step.resampled.any() for step in alone["smc"][0].trace.steps[:-1])

    def child() -> None:
        shards = here()
        for name, method in METHODS.items():
            result, law = run_images(method, particle_batch_size=2, shards=shards)
            expected, expected_model = alone[name]
            for found, wanted in zip(fields(result), fields(expected), strict=True):
                assert torch.equal(found, wanted), name
            costs = [{**counted.cost.as_dict(), "seconds": 0} for counted in (law, expected_model)]
            assert costs[0] == costs[1], name

    in_processes(num_processes, child)


@pytest.mark.parametrize("num_processes", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_each_process_evaluates_its_share(num_processes):
    share = 8 // num_processes

    def child() -> None:
        shards = here()
        for batch_size in (1, None):
            reward = QuadraticReward({"": (1.0, 0.0, 0.0)})
            law = make_law(MIXTURE, reward, particle_batch_size=batch_size, shards=shards)
            run(Guidance(guide=Guide("pathwise"), num_particles=8), law, LEVELS)
            family = law.model
            assert law.cost.network_evaluations == law.cost.backward_passes == 8 * STEPS
            assert family.evaluations == family.backwards == share * STEPS
            assert family.decoded == reward.calls == share * (STEPS + 1)

    in_processes(num_processes, child)


def test_without_a_batch_size_results_differ_by_rounding_alone():
    alone = {name: run_images(method)[0] for name, method in METHODS.items()}

    def child() -> None:
        shards = here()
        for name, method in METHODS.items():
            result, _ = run_images(method, shards=shards)
            torch.testing.assert_close(result.latents, alone[name].latents, atol=1e-4, rtol=1e-4)

    in_processes(2, child)


def test_there_may_be_more_processes_than_particles():
    smc, guidance = SMC(3), Guidance(guide=Guide("pathwise"))
    alone = [run(method, make_law(MIXTURE, LINEAR, particle_batch_size=1), LEVELS) for method in (smc, guidance)]

    def child() -> None:
        for method, expected in zip((smc, guidance), alone, strict=True):
            found = run(method, make_law(MIXTURE, LINEAR, particle_batch_size=1, shards=here()), LEVELS)
            for one, other in zip(fields(found), fields(expected), strict=True):
                assert torch.equal(one, other)

    in_processes(4, child)


def brightness(images, prompts):
    return 10 * images.mean((1, 2, 3))


CALL = {
    "prompt": "a red circle",
    "height": 16,
    "width": 16,
    "num_inference_steps": 2,
    "max_sequence_length": 12,
    "reward": brightness,
    "particle_batch_size": 2,
    "output_type": "pt",
}


def test_a_pipeline_call_is_shared():
    pipe = DiamondMapPipeline.from_pipe(build_tiny_flux(guidance_embeds=False))
    pipe.set_progress_bar_config(disable=True)
    alignment = SMC(num_particles=4, guide=Guide("pathwise"))

    def draw(seed=0, **options):
        return pipe(**{**CALL, "alignment": alignment, "generator": seeded(seed), **options})

    alone, best = draw(), draw(final_selection="best")

    def child() -> None:
        state = PartialState(cpu=True)
        shared = draw(distributed_state=state)
        assert torch.equal(shared.images, alone.images)
        assert torch.equal(shared.rewards, alone.rewards)
        assert torch.equal(shared.log_evidence, alone.log_evidence)
        group = torch.distributed.group.WORLD
        assert torch.equal(draw(distributed_state=group, final_selection="best").images, best.images)
        assert torch.equal(draw(distributed_state=Accelerator(cpu=True)).images, alone.images)
        with pytest.raises(ValueError, match="generator is not the same in all 2 processes"):
            draw(seed=state.process_index, distributed_state=state)
        with pytest.raises(ValueError, match="prompt is not the same in all 2 processes"):
            draw(prompt=["a ring", "a star"][state.process_index], distributed_state=state)

    in_processes(2, child)


@pytest.mark.slow
def test_rewards_and_scales_of_each_prompt_are_shared():
    pipe = DiamondMapPipeline.from_pipe(build_tiny_flux(guidance_embeds=False))
    pipe.set_progress_bar_config(disable=True)
    call = {**CALL, "prompt": ["a ring", "a star"], "reward": ["colour", brightness], "alignment": SMC(num_particles=4)}

    def draw(reward_scale, **options):
        return pipe(**{**call, "reward_scale": reward_scale, "generator": [seeded(0), seeded(1)], **options})

    given, found = draw([50.0, -2.0]), draw(AutoRewardScale(4, 0.5))

    def child() -> None:
        state = PartialState(cpu=True)
        for scale, alone in (([50.0, -2.0], given), (AutoRewardScale(4, 0.5), found)):
            shared = draw(scale, distributed_state=state)
            assert torch.equal(shared.images, alone.images)
            assert torch.equal(shared.reward_scale, alone.reward_scale)
        with pytest.raises(ValueError, match="reward_scale is not the same in all 2 processes"):
            draw(1.0 + state.process_index, distributed_state=state)
        with pytest.raises(ValueError, match="reward is not the same in all 2 processes"):
            draw(1.0, reward=["colour", "symmetry"][state.process_index], distributed_state=state)

    in_processes(2, child)


def test_a_single_process_needs_no_shards():
    assert ParticleShards.of(None) is None
    assert ParticleShards.of(PartialState(cpu=True)) is None
    assert ParticleShards.of(Accelerator(cpu=True)) is None
    with pytest.raises(TypeError, match=r"distributed_state is 2; give accelerate's PartialState"):
        ParticleShards.of(2)
    assert run(NoAlignment(), make_law(MIXTURE)).rewards is None
