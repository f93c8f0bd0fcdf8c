"""No call differentiates cuDNN's attention, whose backward pass may give NaN in half precision."""

from __future__ import annotations

import pytest
import torch
from torch.backends import cuda

from benchmarks.zoo.flux import build_tiny_flux
from diamond_diffusers import DiamondMapPipeline, GlassPosterior, Guidance, Guide, NoiseOptimization
from diamond_diffusers.rewards import CallableReward
from tests.attention_kernels import watched
from tests.families.family import brightness, generators

pytestmark = pytest.mark.usefixtures("cudnn_attention")


METHODS = {
    "pathwise": Guidance(guide=Guide("pathwise")),
    "isotropic": Guidance(guide=Guide("isotropic")),
    "hybrid": Guidance(guide=Guide("hybrid"), posterior=GlassPosterior(num_inner_steps=2, num_samples=2)),
    "norm": Guidance(guide=Guide("pathwise", scaling="norm")),
    "noise_optimization": NoiseOptimization(num_iterations=2),
}


@pytest.mark.parametrize("checkpointing", ["none", "call", "network"])
@pytest.mark.parametrize("name", METHODS)
def test_network_decoder_and_reward_are_differentiated_without_it(name, checkpointing):
    pipe = DiamondMapPipeline.from_pipe(build_tiny_flux())
    if checkpointing == "network":
        pipe.transformer.enable_gradient_checkpointing()
        # Stock networks checkpoint their blocks in either mode.
        pipe.transformer.train()
    seen_by_reward = []

    def reward(images, prompts):
        if torch.is_grad_enabled():
            seen_by_reward.append(cuda.cudnn_sdp_enabled())
        return brightness(images, prompts)

    modules = {"block": pipe.transformer.transformer_blocks[0], "decoder": pipe.vae.decoder}
    with watched(modules) as seen:
        pipe(
            "a red circle",
            reward=reward,
            alignment=METHODS[name],
            gradient_checkpointing=checkpointing == "call",
            num_inference_steps=2,
            height=16,
            width=16,
            output_type="latent",
            generator=generators(1),
        )
    assert seen["decoder"] and not any(seen["decoder"])
    assert seen_by_reward and not any(seen_by_reward)
    assert bool(seen["block"]) == (name != "isotropic") and not any(seen["block"])
    assert cuda.cudnn_sdp_enabled()


def test_plain_sampling_leaves_the_choice_to_torch():
    pipe = DiamondMapPipeline.from_pipe(build_tiny_flux())
    seen = []
    handle = pipe.transformer.register_forward_pre_hook(lambda *_: seen.append(cuda.cudnn_sdp_enabled()))
    pipe("a red circle", num_inference_steps=2, height=16, width=16, output_type="latent")
    handle.remove()
    assert seen and all(seen)


def test_a_reward_by_itself():
    seen = []

    def score(images, prompts):
        seen.append((torch.is_grad_enabled(), cuda.cudnn_sdp_enabled()))
        return brightness(images, prompts)

    reward = CallableReward(score, differentiable=True)
    images = torch.rand(1, 3, 8, 8, requires_grad=True)
    reward(images, ["a"]).sum().backward()
    reward(images.detach(), ["a"])
    assert seen == [(True, False), (False, True)]
