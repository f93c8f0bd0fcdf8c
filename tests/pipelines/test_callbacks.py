"""Callbacks of users and of diffusers, with alignment off and on, and what of them is refused."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from diffusers.callbacks import (
    IPAdapterScaleCutoffCallback,
    MultiPipelineCallbacks,
    PipelineCallback,
    SD3CFGCutoffCallback,
    SDCFGCutoffCallback,
    SDXLCFGCutoffCallback,
    SDXLControlnetCFGCutoffCallback,
)
from torch import Tensor

from benchmarks.zoo.flux import build_tiny_flux
from benchmarks.zoo.sana import build_tiny_sana
from benchmarks.zoo.stable_diffusion import (
    IMAGE_EMBED_SIZE,
    add_ip_adapter,
    build_tiny_sdxl,
    build_tiny_stable_diffusion,
)
from benchmarks.zoo.stable_diffusion_3 import build_tiny_stable_diffusion_3
from diamond_diffusers import SMC, BestOfN, DiamondMapPipeline, Guidance, ODETransition, RandomSearch
from tests.families.family import brightness

CALL = {"height": 16, "width": 16, "num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "pt"}
# Its images show what guidance does; a random model of the noise has latents of size 16, which hide it.
build_velocity_stable_diffusion = partial(build_tiny_stable_diffusion, "v_prediction")
CUTOFFS = {
    "stable_diffusion": (build_velocity_stable_diffusion, SDCFGCutoffCallback),
    "sdxl": (build_tiny_sdxl, SDXLCFGCutoffCallback),
    "stable_diffusion_3": (build_tiny_stable_diffusion_3, SD3CFGCutoffCallback),
}


@pytest.fixture(scope="module")
def pipe() -> DiamondMapPipeline:
    return DiamondMapPipeline.from_pipe(build_velocity_stable_diffusion())


def images(pipe: Any, **call: Any) -> Tensor:
    return pipe("a red circle", generator=torch.Generator().manual_seed(0), **{**CALL, **call}).images


@pytest.mark.parametrize("name", CUTOFFS)
def test_the_cutoffs_of_diffusers_end_guidance(name: str) -> None:
    build, cutoff = CUTOFFS[name]
    pipe = DiamondMapPipeline.from_pipe(build())
    callback = cutoff(cutoff_step_ratio=None, cutoff_step_index=1)
    stock, ours = (images(one, callback_on_step_end=callback) for one in (pipe.pipeline, pipe))
    torch.testing.assert_close(ours, stock, atol=1e-4, rtol=0)
    assert (ours - images(pipe)).abs().max() > 1e-3
    call = {**CALL, "reward": brightness, "callback_on_step_end": callback}
    for alignment in (Guidance(transition=ODETransition()), BestOfN(num_particles=2)):
        cost = pipe("a red circle", alignment=alignment, **call).cost
        assert cost.network_evaluations == alignment.num_particles * (2 * 2 + 2)
    # Above a cost of two evaluations and below, SMC makes what it knew ahead of the cut again.
    cost = pipe("a red circle", alignment=SMC(num_particles=2), **call).cost
    assert cost.network_evaluations == 2 * (3 * 2 + 2)


@pytest.mark.parametrize("build", [build_velocity_stable_diffusion, build_tiny_sdxl, build_tiny_stable_diffusion_3])
def test_guidance_scales_that_change_from_step_to_step(build: Any) -> None:
    def ramp(pipeline: Any, index: int, timestep: Any, tensors: dict) -> dict:
        pipeline._guidance_scale = 2.0 + 3 * index
        return {}

    pipe = DiamondMapPipeline.from_pipe(build())
    stock, ours = (images(one, callback_on_step_end=ramp) for one in (pipe.pipeline, pipe))
    torch.testing.assert_close(ours, stock, atol=1e-4, rtol=0)
    assert (ours - images(pipe)).abs().max() > 1e-3


def test_guidance_that_a_callback_ends_may_begin_again() -> None:
    pipe = DiamondMapPipeline.from_pipe(build_tiny_sana())

    def pause(pipeline: Any, index: int, timestep: Any, tensors: dict) -> dict:
        pipeline._guidance_scale = 0.0 if index == 0 else 3.0
        return {}

    call = {**CALL, "height": 32, "width": 32, "use_resolution_binning": False, "max_sequence_length": 8}
    out = pipe("a red circle", callback_on_step_end=pause, **call)
    assert out.cost.network_evaluations == 2 + 1 + 2 + 2

    def begin(pipeline: Any, index: int, timestep: Any, tensors: dict) -> dict:
        pipeline._guidance_scale = 3.0
        return {}

    with pytest.raises(ValueError, match=r"set _guidance_scale to 3\.0 in a run that began without"):
        pipe("a red circle", callback_on_step_end=begin, **{**call, "guidance_scale": 1.0})


def test_other_options_that_the_stock_loop_reads_at_each_step(pipe: DiamondMapPipeline) -> None:
    def rescale(pipeline: Any, index: int, timestep: Any, tensors: dict) -> dict:
        pipeline._guidance_rescale = 0.7
        return {}

    stock, ours = (images(one, callback_on_step_end=rescale) for one in (pipe.pipeline, pipe))
    torch.testing.assert_close(ours, stock, atol=1e-4, rtol=0)
    assert (ours - images(pipe)).abs().max() > 1e-3


@pytest.mark.parametrize("build", [build_velocity_stable_diffusion, build_tiny_sdxl])
def test_the_cutoff_of_image_prompts(build: Any) -> None:
    pipe = DiamondMapPipeline.from_pipe(add_ip_adapter(build()))
    embeds = torch.randn(2, 1, IMAGE_EMBED_SIZE, generator=torch.Generator().manual_seed(1))
    callback = IPAdapterScaleCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1)

    def run(one: Any, **call: Any) -> Tensor:
        pipe.set_ip_adapter_scale(1.0)
        return images(one, ip_adapter_image_embeds=[embeds], **call)

    stock, ours = (run(one, callback_on_step_end=callback) for one in (pipe.pipeline, pipe))
    torch.testing.assert_close(ours, stock, atol=1e-4, rtol=0)
    assert (ours - run(pipe)).abs().max() > 1e-3
    guided = {"reward": brightness, "alignment": Guidance(transition=ODETransition())}
    assert (run(pipe, callback_on_step_end=callback, **guided) - run(pipe, **guided)).abs().max() > 1e-3


def test_several_callbacks_of_diffusers_act_together(pipe: DiamondMapPipeline) -> None:
    class Halve(PipelineCallback):
        tensor_inputs: ClassVar = ["latents"]

        def callback_fn(self, pipeline: Any, step_index: int, timestep: Any, callback_kwargs: dict) -> dict:
            callback_kwargs["latents"] = callback_kwargs["latents"] / 2
            return callback_kwargs

    both = MultiPipelineCallbacks([SDCFGCutoffCallback(cutoff_step_ratio=0.5), Halve()])
    stock, ours = (images(one, callback_on_step_end=both) for one in (pipe.pipeline, pipe))
    torch.testing.assert_close(ours, stock, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("alignment", "callback", "message"),
    [
        ("none", SDXLControlnetCFGCutoffCallback(cutoff_step_ratio=0.5), "holds 'add_text_embeds'"),
        ("random_search", SDCFGCutoffCallback(cutoff_step_ratio=0.5), "is a SDCFGCutoffCallback, which counts steps"),
    ],
)
def test_callbacks_that_mean_nothing_here_are_refused_before_sampling(
    pipe: DiamondMapPipeline, alignment: str, callback: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipe.family, "encode", lambda arguments: pytest.fail("the prompts were encoded"))
    with pytest.raises(ValueError, match=message):
        pipe("a ring", reward=brightness, alignment=alignment, callback_on_step_end=callback, **CALL)


def test_changes_that_mean_nothing_are_refused(pipe: DiamondMapPipeline) -> None:
    def strengthen(pipeline: Any, index: int, timestep: Any, tensors: dict) -> dict:
        pipeline._guidance_scale = 5.0
        return {}

    with pytest.raises(ValueError, match="changed guidance_scale, but RandomSearch calls back once a round"):
        pipe("a ring", reward=brightness, alignment=RandomSearch(), callback_on_step_end=strengthen, **CALL)
    cutoff = SDCFGCutoffCallback(cutoff_step_ratio=0.5)
    with pytest.raises(ValueError, match="returned prompt_embeds of 1 rows for 2 images"):
        pipe(["a ring", "a star"], callback_on_step_end=cutoff, **CALL)
    with pytest.raises(ValueError, match=r"returned latents of shape \[1, 4\]; leave it at \[1, 4, 8, 8\]"):
        pipe("a ring", callback_on_step_end=lambda *step: {"latents": torch.zeros(1, 4)}, **CALL)


def test_latents_changed_in_place_are_those_of_all_particles(pipe: DiamondMapPipeline) -> None:
    def clear(pipeline: Any, index: int, timestep: Any, tensors: dict[str, Tensor]) -> None:
        assert len(tensors["latents"]) == 3
        tensors["latents"].zero_()

    call = {**CALL, "output_type": "latent", "reward": brightness, "callback_on_step_end": clear}
    assert pipe("a ring", alignment=SMC(num_particles=3), **call).images.abs().max() == 0


def test_a_callback_gets_the_tensors_that_it_names_and_no_others(pipe: DiamondMapPipeline) -> None:
    seen = []
    for names in (["latents"], [], ["negative_prompt_embeds", "latents"]):
        callback = {"callback_on_step_end": lambda *step: seen.append(set(step[-1]))}
        images(pipe, callback_on_step_end_tensor_inputs=names, **callback)
        assert seen[-1] == set(names)
    images(pipe, callback_on_step_end=lambda *step: seen.append(set(step[-1])))
    assert seen[-1] == {"latents"}


@pytest.mark.parametrize("alignment", ["none", "smc", "random_search"])
def test_an_end_of_iteration_in_a_callback_is_an_error(pipe: DiamondMapPipeline, alignment: str) -> None:
    def stop(*step: Any) -> dict:
        raise StopIteration

    with pytest.raises(RuntimeError, match=r"callback_on_step_end raised StopIteration; .* pipe\._interrupt = True"):
        pipe("a ring", reward=brightness, alignment=alignment, callback_on_step_end=stop, **CALL)


def test_embeddings_of_flux_prompts_change_aligned_images() -> None:
    pipe = DiamondMapPipeline.from_pipe(build_tiny_flux())
    call = {**CALL, "max_sequence_length": 12, "reward": brightness, "alignment": SMC(num_particles=2)}

    def turn(pipeline: Any, index: int, timestep: Any, tensors: dict[str, Tensor]) -> dict:
        return {"prompt_embeds": tensors["prompt_embeds"].flip(-1)} if index == 0 else {}

    watched = {"callback_on_step_end": turn, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    assert (images(pipe, **call, **watched) - images(pipe, **call)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("callback", "names", "message"),
    [
        ("print", ["latents"], "callback_on_step_end is 'print'; give a function"),
        (lambda *_: {}, "latents", "callback_on_step_end_tensor_inputs is 'latents'; give a list"),
        (lambda pipe, step, timestep, tensors: tensors["latents"], ["latents"], "returned a Tensor; return a dict"),
    ],
)
def test_what_is_no_callback_is_refused(pipe: DiamondMapPipeline, callback: Any, names: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        images(pipe, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=names)
