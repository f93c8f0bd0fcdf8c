"""Every image has the conditions of its own prompt, whatever lengths prompts have and however they are given."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from diamond_diffusers import DiamondMapPipeline

from .all_families import FAMILIES, family_of
from .family import TinyFamily, generators

PROMPTS = ["a ring", "two blue stars and three green hearts"]
NEGATIVE = ["three red circles and a star", "a heart"]
GUIDED = [name for name in FAMILIES if name != "sana_sprint"]
TEXTS = r"(negative_)?prompt(_\d)?"


@pytest.fixture(scope="module")
def pipes() -> dict[str, DiamondMapPipeline]:
    """Of each family, shared: none may change them."""
    return {name: DiamondMapPipeline.from_pipe(family_of(name).build()) for name in FAMILIES}


def guided_call(family: TinyFamily) -> dict[str, Any]:
    """Keywords of two steps under guidance, without texts."""
    call = {**family.call, **(family.variants[family.guided] if family.guided else {}), "num_inference_steps": 2}
    call = {key: value for key, value in call.items() if not re.fullmatch(TEXTS, key)}
    return call | {"output_type": "pt"}


def negatives(name: str, texts: list[str]) -> dict[str, list[str]]:
    return {"negative_prompt": list(texts)} if name in GUIDED else {}


def one_by_one(pipe: DiamondMapPipeline, family: TinyFamily, calls: list[dict[str, Any]], num_images: int) -> Tensor:
    """Images of the stock pipeline, `num_images` of each call, each drawn alone with its own generator."""
    images = []
    for call in (call for call in calls for _ in range(num_images)):
        # Z-Image's pipeline writes into the lists that it is given.
        call = {key: list(value) if isinstance(value, list) else value for key, value in call.items()}
        images.append(pipe.pipeline(**guided_call(family), **call, generator=generators(1, first=len(images))).images)
    return torch.cat(images)


def together(pipe: DiamondMapPipeline, family: TinyFamily, num_images: int, **call: Any) -> Tensor:
    call = {**guided_call(family), **call, "num_images_per_prompt": num_images}
    return pipe(generator=generators(2 * num_images), **call).images


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("name", FAMILIES)
def test_each_image_is_that_of_its_prompt_in_the_stock_pipeline(
    pipes: dict[str, DiamondMapPipeline], name: str, order: int
) -> None:
    pipe, family = pipes[name], family_of(name)
    prompts, negative = PROMPTS[::order], NEGATIVE[::order]
    calls = [{"prompt": [prompts[i]], **negatives(name, negative[i : i + 1])} for i in range(2)]
    expected = one_by_one(pipe, family, calls, 2)
    images = together(pipe, family, 2, prompt=prompts, **negatives(name, negative))
    torch.testing.assert_close(images, expected, atol=family.tolerance, rtol=0)
    assert (expected[0] - expected[2]).abs().max() > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_each_image_is_that_of_its_embeddings_in_the_stock_pipeline(
    pipes: dict[str, DiamondMapPipeline], name: str
) -> None:
    pipe, family = pipes[name], family_of(name)
    embeds = family.embeds(pipe.pipeline, PROMPTS)
    # PixArt and SANA are given None in place of their default negative prompt.
    calls = [{key: rows if rows is None else rows[i : i + 1] for key, rows in embeds.items()} for i in range(2)]
    images = together(pipe, family, 2, **embeds)
    torch.testing.assert_close(images, one_by_one(pipe, family, calls, 2), atol=family.tolerance, rtol=0)


@pytest.mark.parametrize("name", GUIDED)
def test_one_negative_embedding_serves_all(pipes: dict[str, DiamondMapPipeline], name: str) -> None:
    pipe, family = pipes[name], family_of(name)
    embeds = family.embeds(pipe.pipeline, PROMPTS)
    negative = {key: rows for key, rows in embeds.items() if key.startswith("negative") and rows is not None}
    if isinstance(embeds["prompt_embeds"], Tensor):
        both = {key: torch.cat([rows[:1]] * 2) for key, rows in negative.items()}
    else:
        both = {key: [rows[0]] * 2 for key, rows in negative.items()}
    expected = together(pipe, family, 1, **{**embeds, **both})
    one = {key: rows[:1] for key, rows in negative.items()}
    torch.testing.assert_close(together(pipe, family, 1, **{**embeds, **one}), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", GUIDED)
def test_negative_prompts_are_one_for_each_or_one_for_all(pipes: dict[str, DiamondMapPipeline], name: str) -> None:
    call = guided_call(family_of(name))
    with pytest.raises(
        ValueError, match="negative_prompt holds 2 rows for 4 prompts; give one for each prompt, or one"
    ):
        pipes[name](PROMPTS * 2, negative_prompt=["a ring", "a star"], **call)


@pytest.mark.parametrize("name", ["flux", "sdxl", "stable_diffusion_3"])
def test_a_second_prompt_may_be_one_for_all(pipes: dict[str, DiamondMapPipeline], name: str) -> None:
    pipe, family = pipes[name], family_of(name)
    one, each = (together(pipe, family, 2, prompt=PROMPTS, prompt_2=text) for text in ("a star", ["a star"] * 2))
    torch.testing.assert_close(one, each, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="prompt_2 holds 4 rows for 2 prompts; give one for each prompt, or one"):
        together(pipe, family, 2, prompt=PROMPTS, prompt_2=["a star"] * 4)
