"""What is evaluated again on the way back is so block by block: the same gradients, and one block's graph at a time."""

from __future__ import annotations

import threading

import diffusers
import pytest
import torch
from diffusers import AutoencoderTiny
from peft import LoraConfig
from torch import nn

from benchmarks.counting import GraphMemory
from benchmarks.fused_attention import fused_attention
from benchmarks.zoo.published import PUBLISHED_MODELS
from diamond_diffusers import DiamondMapPipeline
from diamond_diffusers.alignment.execution import Checkpointing, Execution
from diamond_diffusers.families.differentiation import blocks_of

from .all_families import FAMILIES, family_of
from .gradients import assert_same, prepared, value_and_gradient

QUICK = ("flux", "sdxl", "sana", "qwen_image")
"""A transformer and a UNet, and every kind of autoencoder."""


def by_time(names, quick):
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


def changed_of(part):
    """What is changed in a module while it is evaluated block by block."""
    names = ("forward", "gradient_checkpointing", "_gradient_checkpointing_func", "_forward_pre_hooks")
    return {name: value for name, value in vars(part).items() if name in names}


@pytest.mark.parametrize("name", by_time(FAMILIES, QUICK))
def test_gradients_are_the_same_to_the_bit_and_graphs_are_smaller(name):
    family = family_of(name)
    pipe = DiamondMapPipeline.from_pipe(family.build())
    call, modules = prepared(pipe, family), (pipe.family.network_module, pipe.vae)
    before = [changed_of(part) for module in modules for part in module.modules()]
    weights = [weight for module in modules for weight in module.parameters()]
    graphs, results = [], []
    for checkpointing in (Checkpointing(), Checkpointing(network=True), Checkpointing(decoder=True)):
        with GraphMemory(weights).watched() as memory:
            results.append(value_and_gradient(call, checkpointing))
        assert memory.live == 0
        graphs.append(memory.peak)
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])
    assert max(graphs[1:]) < graphs[0]
    assert [changed_of(part) for module in modules for part in module.modules()] == before


@pytest.mark.parametrize("name", by_time(FAMILIES, ("flux", "sana")))
def test_previewing_decoders_too(name):
    family = family_of(name)
    pipeline = family.build()
    pipe = DiamondMapPipeline.from_pipe(pipeline, preview_vae=family.preview_vae(pipeline))
    call = prepared(pipe, family)
    assert_same(value_and_gradient(call, Checkpointing(decoder=True)), value_and_gradient(call, Checkpointing()))


def test_the_blocks_of_a_decoder():
    pipeline = family_of("flux").build()
    names = {type(block).__name__ for block in blocks_of(pipeline.vae.decoder)}
    assert names == {"UNetMidBlock2D", "UpDecoderBlock2D", "ResnetBlock2D", "Attention", "Upsample2D"}


@pytest.mark.parametrize("adapters", ["scaled", "few steps"])
def test_blocks_are_evaluated_again_with_the_adapters_of_then(adapters):
    family = family_of("flux")
    pipe = DiamondMapPipeline.from_pipe(family.build())
    for name in ("one", "two"):
        pipe.transformer.add_adapter(LoraConfig(target_modules=["to_q", "to_v"]), adapter_name=name)
    generator = torch.Generator().manual_seed(0)
    for weight_name, weight in pipe.transformer.named_parameters():
        if "lora_B" in weight_name:
            nn.init.normal_(weight, generator=generator)
    pipe.transformer.set_adapters(["one", "two"], [1.0, 0.5])
    # The one is scaled, and the other is off, while the network is evaluated alone.
    options = {"joint_attention_kwargs": {"scale": 0.3}} if adapters == "scaled" else {}
    pipe.few_step = "two" if adapters == "few steps" else None
    kind = "predict" if adapters == "scaled" else "denoise"
    held = value_and_gradient(prepared(pipe, family, **options), Checkpointing(), kind)
    assert_same(value_and_gradient(prepared(pipe, family, **options), Checkpointing.of_all(True), kind), held)
    # Torch's own function, by which a network checkpoints that is told to, knows nothing of adapters.
    pipe.transformer.enable_gradient_checkpointing()
    assert_same(value_and_gradient(prepared(pipe, family, **options), Checkpointing(), kind), held)


def test_threads_do_not_see_each_others_blocks():
    family = family_of("flux")
    pipe = DiamondMapPipeline.from_pipe(family.build())
    expected = value_and_gradient(prepared(pipe, family), Checkpointing())
    found = []

    def run(checkpointing):
        for _ in range(4):
            found.append(value_and_gradient(prepared(pipe, family), checkpointing))

    threads = [threading.Thread(target=run, args=(Checkpointing.of_all(wanted),)) for wanted in (True, False, True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 12
    for result in found:
        assert_same(result, expected)
    assert not any("forward" in vars(part) for part in pipe.vae.modules())
    assert not pipe.transformer.is_gradient_checkpointing


def published_decoders():
    """The autoencoders of all families at published size, by a family that has each."""
    return {
        "flux": PUBLISHED_MODELS["flux"].modules["vae"].build,
        "sdxl": PUBLISHED_MODELS["sdxl"].modules["vae"].build,
        "sana": PUBLISHED_MODELS["sana_sprint"].modules["vae"].build,
        "qwen_image": lambda size: diffusers.AutoencoderKLQwenImage(),
        "stable_diffusion_3": lambda size: AutoencoderTiny(latent_channels=16),
    }


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@pytest.mark.parametrize("dtype", by_time(DTYPES, ("bfloat16",)))
@pytest.mark.parametrize("name", by_time(published_decoders(), ("qwen_image",)))
def test_graphs_of_decoders_at_1024_pixels(name, dtype):
    """At most 3 GB a particle in half precision, and 6 GB in float32."""
    family = family_of(name)
    pipeline = family.build()
    with torch.device("meta"):
        vae = published_decoders()[name]("full").to(DTYPES[dtype]).eval().requires_grad_(False)
    pipeline.register_modules(vae=vae)
    pipeline.vae_scale_factor = scale = 32 if name == "sana" else 8
    call = prepared(DiamondMapPipeline.from_pipe(pipeline), family, height=1024, width=1024)
    channels = getattr(vae.config, "latent_channels", None) or vae.config.z_dim
    conditions = call.conditions
    latents = call.family.packed(torch.empty(1, channels, 1024 // scale, 1024 // scale, device="meta")).requires_grad_()
    execution = Execution(gradient_checkpointing=Checkpointing(decoder=True))

    def decode(index, rows):
        with call.family.evaluating_decoder(True):
            return call.family.decode(rows, conditions)

    memory = GraphMemory(vae.parameters())
    with fused_attention(), memory.watched():
        images = execution.checkpointed("decoder", decode, torch.zeros(1), latents)
        torch.autograd.grad(images, latents, torch.empty_like(images))
    assert 5e8 < memory.peak <= (6e9 if dtype == "float32" else 3e9)
