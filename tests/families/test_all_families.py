"""What families differ in by a name or a number, as one table for all of them."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from diffusers.schedulers import scheduling_flow_match_euler_discrete
from diffusers.utils.torch_utils import randn_tensor
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor

from diamond_diffusers import DiamondMapPipeline
from diamond_diffusers.families import FAMILIES as REGISTERED
from diamond_diffusers.pipelines.arguments import resolve_arguments

from .all_families import FAMILIES, family_of
from .common import lora_weights
from .family import PROMPTS, TinyFamily, generators

ATTENTION_OPTIONS = ("attention_kwargs", "cross_attention_kwargs", "joint_attention_kwargs")


@pytest.fixture(scope="module")
def pipes() -> dict[str, DiamondMapPipeline]:
    """Of each family, shared: none may change them."""
    return {name: DiamondMapPipeline.from_pipe(family_of(name).build()) for name in FAMILIES}


def images(pipe: Any, family: TinyFamily, count: int = 2, **call: Any) -> Tensor:
    call = {"generator": generators(count), "num_inference_steps": 2, "output_type": "pt", **call}
    # Z-Image's pipeline writes into the lists that it is given.
    lists = {key: list(value) for key, value in call.items() if isinstance(value, list)}
    return pipe(list(PROMPTS), **{**family.call, **call, **lists}).images


def test_every_supported_pipeline_is_tested(pipes: dict[str, DiamondMapPipeline]) -> None:
    assert set(FAMILIES) == {REGISTERED.get(pipeline_class).name for pipeline_class in REGISTERED}
    assert [pipe.family.name for pipe in pipes.values()] == list(pipes)


@pytest.mark.parametrize("name", FAMILIES)
def test_sizes_that_the_stock_pipeline_refuses_are_refused_first(
    pipes: dict[str, DiamondMapPipeline], name: str
) -> None:
    pipe, call = pipes[name], family_of(name).call
    multiple = pipe.family.size_multiple({"use_resolution_binning": False})
    # These two round sizes down, with a warning.
    assert (multiple == 1) == (name in ("flux", "qwen_image"))
    if multiple == 1:
        return
    unbinned = {key: False for key in ("use_resolution_binning",) if key in call}
    with pytest.raises(ValueError, match=f"height is {2 * multiple + 1}; give a multiple of {multiple} to .* or "):
        pipe.prepare("a ring", **{**call, **unbinned, "height": 2 * multiple + 1})
    with pytest.raises(ValueError, match=f"width is 1; give a multiple of {multiple} to .*, such as {multiple}$"):
        pipe.prepare("a ring", **{**call, **unbinned, "width": 1})
    assert pipe.prepare("a ring", **{**call, **unbinned, "height": 3 * multiple}).arguments.height == 3 * multiple
    with pytest.raises(ValueError, match="divisible"):
        pipe.pipeline("a ring", **{**call, **unbinned, "height": 2 * multiple + multiple // 2})


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_encoded_images_are_decoded_as_the_autoencoder_does(pipes: dict[str, DiamondMapPipeline], name: str) -> None:
    pipe, call = pipes[name].family, family_of(name).call
    vae, size = pipe.pipeline.vae, (call["height"], call["width"])
    given = torch.rand(2, 3, *size, generator=generators(1)[0]) * 2 - 1
    mean, deviation = pipe.encode_images(given)
    assert mean.shape == deviation.shape == (2, *family_of(name).latents_shape)
    assert (deviation >= 0).all()
    encoded = vae.encode(given.unsqueeze(2) if name == "qwen_image" else given)
    plain = encoded.latent if hasattr(encoded, "latent") else encoded.latent_dist.mean
    expected = (vae.decode(plain, return_dict=False)[0] / 2 + 0.5).clamp(0, 1)
    expected = expected.squeeze(2) if name == "qwen_image" else expected
    conditions = pipe.encode(resolve_arguments(pipe, {**call, "prompt": list(PROMPTS)}, {}))
    torch.testing.assert_close(pipe.decode(mean, conditions), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_few_step_lora_makes_the_map_and_the_base_is_the_denoiser(
    pipes: dict[str, DiamondMapPipeline], name: str
) -> None:
    family, base = family_of(name), pipes[name].family
    pipe = DiamondMapPipeline.from_pipe(family.build())
    if family.has_lora:
        pipe.load_lora_weights(lora_weights(family_family(family), family.lora_targets), adapter_name="fast")
    else:
        torch.manual_seed(2)
        config = LoraConfig(r=2, target_modules=list(family.lora_targets), init_lora_weights=False)
        inject_adapter_in_model(config, pipe.family.network_module, "fast")
    pipe.few_step = "fast"
    assert pipe.family.has_flow_map
    assert pipe.family.has_denoiser
    assert not pipe.family.predicts_mean
    x = torch.randn(2, *family.latents_shape, generator=generators(1)[0])
    given = {**family.call, "prompt": list(PROMPTS)}
    with torch.no_grad():
        conditions = pipe.family.encode(resolve_arguments(pipe.family, given, {}))
        mapped = pipe.family.flow_map(x, 2.0, 0.0, conditions)
        expected = base.predict(x, 2.0, conditions)
        torch.testing.assert_close(pipe.family.denoise(x, 2.0, conditions), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(pipe.family.predict(x, 2.0, conditions), mapped, atol=1e-5, rtol=0)
    assert (mapped - expected).abs().max() > 1e-3


def family_family(family: TinyFamily) -> Any:
    return DiamondMapPipeline.from_pipe(family.build()).family


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "pixart_sigma"])
def test_a_lora_has_the_scale_of_the_call(name: str) -> None:
    family = family_of(name)
    pipe = DiamondMapPipeline.from_pipe(family.build())
    pipe.load_lora_weights(lora_weights(family_family(family), family.lora_targets), adapter_name="style")
    (option,) = set(ATTENTION_OPTIONS) & set(inspect.signature(pipe.pipeline.__call__).parameters)
    scaled = images(pipe, family, **{option: {"scale": 0.2}})
    stock = images(pipe.pipeline, family, **{option: {"scale": 0.2}})
    torch.testing.assert_close(scaled, stock, atol=family.tolerance, rtol=0)
    assert (scaled - images(pipe, family)).abs().max() > 1e-3


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "pixart_sigma"])
def test_callbacks_find_in_the_pipeline_what_the_stock_call_keeps_there(
    pipes: dict[str, DiamondMapPipeline], name: str
) -> None:
    family, pipe = family_of(name), pipes[name]
    call = {**(family.variants[family.guided] if family.guided else {}), "num_inference_steps": 2}
    seen = []

    def look(pipeline: Any, *step: Any) -> dict:
        found = {}
        for key, value in inspect.getmembers_static(type(pipe.pipeline)):
            if isinstance(value, property) and value.fget.__module__ == type(pipe.pipeline).__module__:
                try:
                    found[key] = getattr(pipeline, key)
                except AttributeError:
                    # Some stock properties have nothing to read, nor is there a stock call that sets it.
                    found[key] = AttributeError
        seen.append(found)
        return {}

    for one in (pipe.pipeline, pipe):
        # What an earlier call has set must not stand in for it.
        for key in ("_guidance_scale", "_attention_kwargs", "_joint_attention_kwargs", "_clip_skip"):
            vars(pipe.pipeline).pop(key, None)
        images(one, family, **call, callback_on_step_end=look)
    stock, ours = seen[0], seen[2]
    # Moves on with the loop there; here one evaluation may ask about several times.
    stock.pop("current_timestep", None), ours.pop("current_timestep", None)
    # Here it is the method that interrupts; `_interrupt` is the flag, as there.
    assert stock.pop("interrupt", False) is False
    ours.pop("interrupt", None)
    for values in (stock, ours):
        values.update({key: value or {} for key, value in values.items() if key in ATTENTION_OPTIONS})
    assert ours == stock
    assert "guidance_scale" in ours


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "sana_sprint"])
def test_one_negative_prompt_serves_all(pipes: dict[str, DiamondMapPipeline], name: str) -> None:
    family = family_of(name)
    call = {**family.variants[family.guided], "num_images_per_prompt": 2}
    one, two = (
        images(pipes[name], family, 4, **{**call, "negative_prompt": text}) for text in ("a ring", ["a ring"] * 2)
    )
    torch.testing.assert_close(one, two, atol=1e-5, rtol=0)
    assert (one - images(pipes[name], family, 4, num_images_per_prompt=2)).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["flux", "lumina2", "qwen_image", "sana", "stable_diffusion_3", "z_image"])
def test_stochastic_sampling_renoises_as_in_the_stock_pipeline(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most stock pipelines of flow models hand their scheduler no generator."""
    family = family_of(name)
    pipe = DiamondMapPipeline.from_pipe(family.build())
    plain = images(pipe, family, num_inference_steps=3)
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, stochastic_sampling=True)
    given = generators()

    def draw(shape: torch.Size, generator: list[torch.Generator] | None = None, **options: Any) -> Tensor:
        return randn_tensor(shape, generator=generator or given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(scheduling_flow_match_euler_discrete, "randn_tensor", draw)
        stock = images(pipe.pipeline, family, num_inference_steps=3, generator=given)
    renoised = images(pipe, family, num_inference_steps=3)
    torch.testing.assert_close(renoised, stock, atol=family.tolerance, rtol=0)
    assert (renoised - plain).abs().max() > 1e-2
