"""What a call returns and takes, as diffusers' own do: outputs, wrapping, inference mode, prompts of rewards."""

from __future__ import annotations

import inspect
import pickle
import pydoc
from typing import Any

import pytest
import torch
from diffusers import FluxImg2ImgPipeline, FluxPipeline
from diffusers.utils import BaseOutput
from torch import Tensor
from torch.utils import _pytree

from benchmarks.zoo.flux import build_tiny_flux
from diamond_diffusers import SMC, BestOfN, DiamondMapPipeline, DiamondMapPipelineOutput, Guidance, Guide
from diamond_diffusers.rewards import CallableReward, Reward
from tests.families.family import PROMPTS, brightness, generators, tiny_preview_vae

CALL = {"height": 16, "width": 16, "num_inference_steps": 2, "max_sequence_length": 12, "output_type": "pt"}


@pytest.fixture(scope="module")
def pipe() -> DiamondMapPipeline:
    return DiamondMapPipeline.from_pipe(build_tiny_flux())


def unpack(**fields: Any) -> set[str]:
    return set(fields)


def test_an_output_is_one_of_diffusers(pipe: DiamondMapPipeline) -> None:
    plain = pipe(PROMPTS, **CALL)
    scored = pipe(PROMPTS, reward=brightness, alignment=SMC(num_particles=2), **CALL)
    assert isinstance(plain, BaseOutput)
    assert plain[0] is plain["images"] is plain.images is plain.to_tuple()[0] is plain[:1][0]
    assert list(plain.keys()) == ["images", "reward_terms", "log_weights", "trace", "cost", "alignment", "interrupted"]
    assert list(scored)[:3] == ["images", "rewards", "reward_terms"]
    assert scored[1] is scored.rewards is scored["rewards"]
    assert unpack(**scored) == set(scored) == {*plain, "rewards", "log_evidence", "reward_scale"}
    assert plain.rewards is None and "rewards" not in plain
    again = pickle.loads(pickle.dumps(scored))
    assert type(again) is DiamondMapPipelineOutput and torch.equal(again.rewards, scored.rewards)
    leaves, structure = _pytree.tree_flatten(scored)
    assert any(leaf is scored.rewards for leaf in leaves)
    assert _pytree.tree_unflatten(leaves, structure).rewards is scored.rewards


def test_the_class_shows_what_is_its_own(pipe: DiamondMapPipeline) -> None:
    assert "guidance_scale" not in inspect.signature(DiamondMapPipeline.__call__).parameters
    signature = inspect.signature(pipe.__call__)
    assert next(iter(signature.parameters)) == "prompt"
    assert signature.parameters["prompt"].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert signature.parameters["guidance_scale"].kind is inspect.Parameter.KEYWORD_ONLY
    assert signature.parameters["num_inference_steps"].default == 28
    signature.bind("a ring", reward=brightness, true_cfg_scale=2.0)
    assert pipe.__call__.__doc__ == DiamondMapPipeline.__call__.__doc__
    # So do completion and help of the object itself, and of its method.
    assert inspect.signature(pipe) == signature
    assert "true_cfg_scale" in pydoc.plain(pydoc.render_doc(pipe.__call__)).split("Draws images")[0]
    assert inspect.getsource(pipe.__call__) == inspect.getsource(DiamondMapPipeline.__call__)
    assert next(iter(inspect.signature(DiamondMapPipeline).parameters)) == "pipeline"
    images = pipe.__call__(PROMPTS, generator=generators(), **CALL).images
    assert torch.equal(images, pipe(PROMPTS, generator=generators(), **CALL).images)


def test_generators_may_be_a_tuple(pipe: DiamondMapPipeline) -> None:
    for options in ({}, {"reward": brightness, "alignment": SMC(num_particles=2)}):
        call = {**CALL, **options}
        images = [pipe(PROMPTS, generator=kind(generators()), **call).images for kind in (tuple, list)]
        assert torch.equal(*images)


def test_a_number_of_images_that_is_no_whole_number_is_refused(pipe: DiamondMapPipeline) -> None:
    with pytest.raises(ValueError, match=r"num_images_per_prompt is 1\.0; give a whole number"):
        pipe(PROMPTS, num_images_per_prompt=1.0, **CALL)


@pytest.mark.parametrize("sigmas", [[], [0.2, 0.9], [1.0, 0.5, 0.5]])
def test_levels_that_do_not_fall_are_refused(pipe: DiamondMapPipeline, sigmas: list[float]) -> None:
    with pytest.raises(ValueError, match="give at least one number, and each below the former"):
        pipe(PROMPTS, sigmas=sigmas, **CALL)


def test_latents_that_are_no_tensor_are_refused(pipe: DiamondMapPipeline) -> None:
    with pytest.raises(TypeError, match=r"latents is \[\[0\.0\]\]; give a tensor with a row for each image"):
        pipe(PROMPTS, latents=[[0.0]], **CALL)


def test_a_wrapped_pipeline_is_wrapped_again_as_it_is(pipe: DiamondMapPipeline) -> None:
    preview, scores = tiny_preview_vae(4, 4), build_tiny_flux()
    wrapped = DiamondMapPipeline(build_tiny_flux(), CALL, few_step=True, preview_vae=preview, score_model=scores)
    again = DiamondMapPipeline.from_pipe(wrapped)
    assert again is not wrapped and again.pipeline is wrapped.pipeline
    assert again.defaults == CALL and again.defaults is not wrapped.defaults
    assert again.few_step is True and again.preview_vae is preview and again.score_model.pipeline is scores
    assert DiamondMapPipeline.from_pipe(wrapped, few_step=None, defaults={}).defaults == {}
    with pytest.raises(TypeError, match="is a DiamondMapPipeline already; use it as it is"):
        DiamondMapPipeline(wrapped)
    stock = FluxImg2ImgPipeline.from_pipe(wrapped)
    assert type(stock) is FluxImg2ImgPipeline and stock.transformer is wrapped.transformer


def test_a_pipeline_is_pickled_as_what_it_is(pipe: DiamondMapPipeline) -> None:
    again = pickle.loads(pickle.dumps(pipe))
    assert type(again) is DiamondMapPipeline and isinstance(again, FluxPipeline)
    images = [one(PROMPTS, generator=generators(), **CALL).images for one in (pipe, again)]
    torch.testing.assert_close(*images, atol=1e-5, rtol=0)


def test_a_pipeline_that_has_loaded_its_reward_is_pickled_with_it() -> None:
    """The embedded model's own reward is found by a call; it stands on a CLIP that rewards share."""
    pipe = DiamondMapPipeline.from_pretrained()
    call = {"prompt": "a red circle", "num_inference_steps": 2, "output_type": "pt"}
    rewards = [one(**call, generator=generators()[:1]).rewards for one in (pipe, pickle.loads(pickle.dumps(pipe)))]
    again = pickle.loads(pickle.dumps(pipe))
    rewards.append(again(**call, generator=generators()[:1]).rewards)
    torch.testing.assert_close(rewards[0], rewards[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(rewards[0], rewards[2], atol=1e-5, rtol=0)


def test_a_class_that_shares_only_its_name_is_refused() -> None:
    community = type("FluxPipeline", (FluxPipeline,), {"__module__": "community.flux"})
    stranger = community(**build_tiny_flux().components)
    message = r"community\.flux\.FluxPipeline, which shares its name, but not its code"
    with pytest.raises(TypeError, match=message):
        DiamondMapPipeline.from_pipe(stranger)
    with pytest.raises(TypeError, match=message):
        DiamondMapPipeline(build_tiny_flux(), score_model=stranger)


def test_a_class_that_comes_with_its_weights_is_refused_before_they_are_read(tmp_path: Any) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": ["pipeline", "FluxPipeline"]}')
    with pytest.raises(TypeError, match="pipeline is a pipeline/FluxPipeline, for which there is no family"):
        DiamondMapPipeline.from_pretrained(tmp_path)


def test_weights_of_inference_mode_are_sampled_but_not_differentiated() -> None:
    with torch.inference_mode():
        pipe = DiamondMapPipeline.from_pipe(build_tiny_flux())
    call = {**CALL, "reward": brightness, "generator": generators()}
    assert pipe(PROMPTS, alignment=BestOfN(num_particles=2), **call).rewards.isfinite().all()
    with pytest.raises(ValueError, match=r"were made under torch\.inference_mode\(\).* load the pipeline outside"):
        pipe(PROMPTS, alignment=Guidance(guide=Guide("pathwise")), **call)


class Weighted(Reward):
    """A reward with weights of its own."""

    name = "weighted"
    differentiable = True

    def __init__(self) -> None:
        self.layer = torch.nn.Linear(3, 1)

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.layer(images.mean((2, 3)))[:, 0]


def test_rewards_of_inference_mode_score_but_are_not_differentiated(pipe: DiamondMapPipeline) -> None:
    with torch.inference_mode():
        weighted, target = Weighted(), torch.rand(3, 1, 1)
    rewards = {
        "weighted": weighted,
        "near": CallableReward(lambda images, _: (images * target).mean((1, 2, 3)), "near"),
    }
    for name, reward in rewards.items():
        with torch.inference_mode():
            assert pipe(PROMPTS, reward=reward, alignment="smc", **CALL).rewards.isfinite().all()
            with pytest.raises(ValueError, match=rf"'{name}' holds tensors that were made under torch\.inference_mode"):
                pipe(PROMPTS, reward=reward, alignment=Guidance(guide=Guide("pathwise")), **CALL)


def test_embeddings_do_for_rewards_that_read_no_prompt(pipe: DiamondMapPipeline) -> None:
    embeds = pipe.encode_prompt(prompt=PROMPTS, prompt_2=None, max_sequence_length=12)
    call = {**CALL, "prompt_embeds": embeds[0], "pooled_prompt_embeds": embeds[1]}
    image_only = CallableReward(brightness, reads_prompts=False)
    for reward in ("jpeg_size", image_only, 2 * image_only + image_only):
        assert pipe(reward=reward, alignment="smc", **call).rewards.isfinite().all()
    message = r"the reward reads the prompt, but its text is '', as that of embeddings is; .* reads_prompts=False"
    for reward in (brightness, image_only + CallableReward(brightness, name="reader")):
        with pytest.raises(ValueError, match=message):
            pipe(reward=reward, **call)
