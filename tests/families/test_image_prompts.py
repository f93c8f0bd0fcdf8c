"""Image prompts (IP-Adapters) go to the images of their prompts."""

from __future__ import annotations

from typing import Any

import PIL.Image
import pytest
import torch
from torch import Tensor

from benchmarks.zoo.stable_diffusion import (
    IMAGE_EMBED_SIZE,
    add_ip_adapter,
    build_tiny_sdxl,
    build_tiny_stable_diffusion,
)
from diamond_diffusers import DiamondMapPipeline

from .all_families import family_of
from .family import PROMPTS, generators
from .test_stable_diffusion_3 import build_with_image_prompts

SHAPES = {
    "stable_diffusion": (1, IMAGE_EMBED_SIZE),
    "sdxl": (1, IMAGE_EMBED_SIZE),
    "stable_diffusion_3": (4, 24),
    "two_adapters": (1, IMAGE_EMBED_SIZE),
}
SCALES = [1.0, 3.0]
PICTURES = [PIL.Image.linear_gradient("L").convert("RGB"), PIL.Image.radial_gradient("L").convert("RGB")]


@pytest.fixture(scope="module")
def pipes() -> dict[str, DiamondMapPipeline]:
    """Shared: none may change them."""
    built = {
        "stable_diffusion": add_ip_adapter(build_tiny_stable_diffusion()),
        "sdxl": add_ip_adapter(build_tiny_sdxl()),
        "stable_diffusion_3": build_with_image_prompts(),
        "two_adapters": add_ip_adapter(build_tiny_stable_diffusion(), count=2),
    }
    return {name: DiamondMapPipeline.from_pipe(pipeline) for name, pipeline in built.items()}


def embeds(name: str, rows: int) -> Any:
    """As the stock call takes them: a tensor for each adapter, but for SD3."""
    generator = generators(1)[0]
    drawn = [torch.randn(rows, *SHAPES[name], generator=generator) for _ in range(2)]
    return drawn[0] if name == "stable_diffusion_3" else drawn[: 2 if name == "two_adapters" else 1]


def rows_of(given: Any, index: list[int]) -> Any:
    return given[index] if isinstance(given, Tensor) else [tensor[index] for tensor in given]


def images(pipe: Any, name: str, prompts: list[str], **call: Any) -> Tensor:
    family = family_of("stable_diffusion" if name == "two_adapters" else name)
    call = {**family.call, "num_inference_steps": 2, "output_type": "pt", **call}
    return pipe(prompts, **call).images


@pytest.mark.parametrize("guidance_scale", SCALES)
@pytest.mark.parametrize("name", SHAPES)
def test_each_prompt_has_its_own(pipes: dict[str, DiamondMapPipeline], name: str, guidance_scale: float) -> None:
    pipe, call = pipes[name], {"guidance_scale": guidance_scale}
    guided = guidance_scale > 1
    given = embeds(name, 4 if guided else 2)
    out = images(
        pipe, name, PROMPTS, ip_adapter_image_embeds=given, num_images_per_prompt=2, generator=generators(4), **call
    )
    for i in range(4):
        own = rows_of(given, [i // 2, 2 + i // 2] if guided else [i // 2])
        stock = images(
            pipe.pipeline,
            name,
            [PROMPTS[i // 2]],
            ip_adapter_image_embeds=own,
            generator=generators(1, first=i),
            **call,
        )
        torch.testing.assert_close(out[i : i + 1], stock, atol=1e-4, rtol=0)


@pytest.mark.parametrize("guidance_scale", SCALES)
@pytest.mark.parametrize("name", SHAPES)
def test_one_serves_all(pipes: dict[str, DiamondMapPipeline], name: str, guidance_scale: float) -> None:
    pipe = pipes[name]
    call = {"guidance_scale": guidance_scale, "ip_adapter_image_embeds": embeds(name, 2 if guidance_scale > 1 else 1)}
    call["num_images_per_prompt"] = 2
    stock = images(pipe.pipeline, name, PROMPTS, generator=generators(4), **call)
    torch.testing.assert_close(images(pipe, name, PROMPTS, generator=generators(4), **call), stock, atol=1e-4, rtol=0)


@pytest.mark.parametrize("guidance_scale", SCALES)
@pytest.mark.parametrize("name", SHAPES)
def test_pictures_serve_all(pipes: dict[str, DiamondMapPipeline], name: str, guidance_scale: float) -> None:
    """Of several adapters each has its own, and an adapter may have several."""
    pipe, call = pipes[name], {"guidance_scale": guidance_scale, "num_images_per_prompt": 2}
    drawn = {}
    for one, other in (PICTURES, PICTURES[::-1]):
        given = {"stable_diffusion_3": one, "two_adapters": [one, [other, one]]}.get(name, [[one, other]])
        stock, ours = (
            images(p, name, PROMPTS, ip_adapter_image=given, generator=generators(4), **call)
            for p in (pipe.pipeline, pipe)
        )
        torch.testing.assert_close(ours, stock, atol=1e-4, rtol=0)
        drawn[one is PICTURES[0]] = stock
    # The order of those of one adapter does not count.
    if name in ("stable_diffusion_3", "two_adapters"):
        assert (drawn[True] - drawn[False]).abs().max() > 1e-3


@pytest.mark.parametrize("name", SHAPES)
def test_wrong_counts_are_refused(pipes: dict[str, DiamondMapPipeline], name: str) -> None:
    pipe = pipes[name]
    for guidance_scale, count in ((1.0, 3), (1.0, 4), (3.0, 1), (3.0, 3), (3.0, 8)):
        given = embeds(name, count)
        call = {"guidance_scale": guidance_scale, "num_images_per_prompt": 2}
        with pytest.raises(ValueError, match=rf"has {count} rows for 2 prompts; give one for each prompt, or one for"):
            images(pipe, name, PROMPTS, ip_adapter_image_embeds=given, **call)
    if name != "stable_diffusion_3":
        with pytest.raises(ValueError, match=r"ip_adapter_image_embeds holds 3 tensors for \d IP-Adapter"):
            images(pipe, name, PROMPTS, ip_adapter_image_embeds=[embeds(name, 1)[0]] * 3)
