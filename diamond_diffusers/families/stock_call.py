"""Small steps that model families share."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ..core.wording import shown

_PROMPTS = re.compile(r"(negative_)?(pooled_)?prompt(_\d|_embeds|_embeds_mask|_attention_mask)?")
"""Arguments of stock calls with a row for each prompt."""


def call_stock(method: Callable[..., Any], given: Mapping[str, Any]) -> Any:
    """Calls a method of a stock pipeline with the given arguments that it takes, and leaves out the others."""
    return method(**{name: given[name] for name in inspect.signature(method).parameters if name in given})


def num_prompts(arguments: Mapping[str, Any]) -> int:
    """Number of prompts of a call, however they are given.

    Raises:
        TypeError: the prompt is neither a text nor a list.
        ValueError: there is no prompt.
    """
    prompt = arguments["prompt"]
    if not (prompt is None or isinstance(prompt, str | list)):
        raise TypeError(f"prompt is {shown(prompt)}; give a text or a list of texts")
    for text in prompt if isinstance(prompt, list) else ():
        if not isinstance(text, str):
            raise TypeError(f"prompt holds {shown(text)}; give a text or a list of texts")
    if prompt == []:
        raise ValueError("prompt is an empty list; give a text for each image")
    if prompt is None:
        embeds = arguments.get("prompt_embeds")
        if embeds is None:
            raise ValueError("prompt is None; give a prompt, or prompt_embeds")
        return len(embeds)
    return 1 if isinstance(prompt, str) else len(prompt)


def one_row_each(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments under which the stock `encode_prompt` makes one row of each prompt and of each negative prompt.

    Check and encode these arguments, and repeat the rows with `repeat_rows`. With several images a prompt, some stock
    pipelines order masks and embeddings differently (SANA, Lumina 2, Qwen-Image), or do not repeat given embeddings
    (FLUX, SD3), so that an image would have the conditions of another.

    Args:
        arguments: arguments of the stock `__call__`; a second or negative prompt may be one for all.

    Raises:
        ValueError: texts, embeddings or masks are neither one for each prompt nor one for all.
    """
    count, each = num_prompts(arguments), {**arguments, "num_images_per_prompt": 1}
    for name, given in arguments.items():
        if not (_PROMPTS.fullmatch(name) and isinstance(given, str | Sequence | Tensor)):
            continue
        rows = [given] if isinstance(given, str) else given
        if len(rows) not in (1, count):
            raise ValueError(
                f"{name} holds {len(rows)} rows for {count} prompts; give one for each prompt, or one for all"
            )
        if len(rows) < count:
            rows = rows.repeat_interleave(count, 0) if isinstance(rows, Tensor) else list(rows) * count
        # Stock pipelines write into lists of texts.
        each[name] = rows if isinstance(rows, Tensor) else list(rows)
    return each


def repeat_rows(features: Mapping[str, Tensor], num_images_per_prompt: int) -> dict[str, Tensor]:
    """Repeats features with one row for each prompt to one row for each image; images of one prompt are consecutive."""
    return {name: feature.repeat_interleave(num_images_per_prompt, 0) for name, feature in features.items()}


def without_none(features: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """The features that are not None; without guidance stock pipelines give None for those of negative prompts."""
    return {name: feature for name, feature in features.items() if feature is not None}


def image_prompt_rows(name: str, embeds: Tensor, count: int, is_guided: bool) -> tuple[Tensor, Tensor | None]:
    """Embeddings of image prompts with a row for each of `count` prompts, and their negative ones under guidance.

    Args:
        embeds: one row for each prompt or one for all; under guidance, as many negative ones before them.

    Raises:
        ValueError: they have another number of rows.
    """
    parts = 2 if is_guided else 1
    if len(embeds) not in (parts, parts * count):
        guided = ", under guidance after as many negative ones" if is_guided else ""
        raise ValueError(
            f"{name} has {len(embeds)} rows for {count} prompts; give one for each prompt, or one for all{guided}"
        )
    rows = embeds.unflatten(0, (parts, -1)).repeat_interleave(parts * count // len(embeds), 1)
    return (rows[1], rows[0]) if is_guided else (rows[0], None)


def masked_features(embeds: Tensor, attention_mask: Tensor, num_images_per_prompt: int) -> dict[str, Tensor]:
    """An encoding of prompts and its mask, with one row for each prompt, repeated to one row for each image."""
    features = {"encoder_hidden_states": embeds, "encoder_attention_mask": attention_mask}
    return repeat_rows(features, num_images_per_prompt)
