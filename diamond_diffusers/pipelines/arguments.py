"""The keywords of a stock `__call__`, with the defaults filled in."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.conversions import Values
from ..families.base import Family
from ..families.flow_matching import FlowMatchingFamily
from ..families.stock_call import num_prompts
from .argument_types import DEEPEST, call_parameters, check_clip_skip, check_ranges, check_texts, fitted_arguments
from .misplaced import unknown_argument

NEGATIVE_PROMPTS = ("negative_prompt", "negative_prompt_2", "negative_prompt_3")


class StockArguments(Mapping[str, Any]):
    """Every keyword of one stock pipeline's `__call__` with its value, read-only.

    Families read it as a mapping, since each stock pipeline has keywords of its own. The keywords that all stock
    pipelines have are also attributes.

    Args:
        values: a value for every keyword of the stock `__call__`, except `self`.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = dict(values)

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._values})"

    @property
    def prompt(self) -> str | list[str] | None:
        """The prompt: one or several texts; None if the prompts are given as embeddings."""
        return self["prompt"]

    @property
    def height(self) -> int | None:
        """In pixels; None for the stock pipeline's own."""
        return self.get("height")

    @property
    def width(self) -> int | None:
        """In pixels; None for the stock pipeline's own."""
        return self.get("width")

    @property
    def num_inference_steps(self) -> int:
        return self["num_inference_steps"]

    @property
    def num_images_per_prompt(self) -> int:
        return self["num_images_per_prompt"]

    @property
    def generator(self) -> torch.Generator | Sequence[torch.Generator] | None:
        """One generator for all images, or one for each; None for torch's global one."""
        return self.get("generator")

    @property
    def latents(self) -> Tensor | None:
        """Starting noise in the stock pipeline's form, a row for each image or each particle; None to draw it."""
        return self.get("latents")

    @property
    def callback_tensors(self) -> Sequence[str]:
        """Names of the tensors that a callback is given (`callback_on_step_end_tensor_inputs`)."""
        return self.get("callback_on_step_end_tensor_inputs", ["latents"])

    def reward_texts(self, reward_prompt: str | list[str] | None) -> list[str]:
        """The text that the reward reads for each image; empty if the prompt is not known as text.

        Args:
            reward_prompt: texts that replace the prompts.

        Raises:
            TypeError: `reward_prompt` is neither a text nor a list of texts.
            ValueError: the number of `reward_prompt` is not that of the prompts.
        """
        if reward_prompt is not None:
            Values().fitted(reward_prompt, str | list[str], "reward_prompt")
            check_texts({"reward_prompt": reward_prompt})
        texts = reward_prompt if reward_prompt is not None else self.prompt
        count = num_prompts(self)
        texts = [texts] if isinstance(texts, str) else list([""] * count if texts is None else texts)
        if len(texts) != count:
            raise ValueError(f"reward_prompt holds {len(texts)} texts for {count} prompts; give one for each prompt")
        return [text for text in texts for _ in range(self.num_images_per_prompt)]


def resolve_arguments(family: Family, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> StockArguments:
    """Every keyword of the stock `__call__`: as given, else the model's default, else the stock default.

    An argument that is None counts as not given, except where None is a value of its own in the stock call.

    Raises:
        TypeError: a keyword that the stock pipeline does not have, or that its family refuses, or of a wrong type.
        ValueError: there is no prompt, or an argument is out of range.
    """
    kind: Any = type(family.pipeline)
    name = kind.__name__
    stock = {key: parameter.default for key, parameter in call_parameters(kind).items()}
    passed = {key: value for key, value in given.items() if value is not None or key in family.arguments_with_none}
    unknown = sorted(set(passed) - set(stock))
    if unknown:
        raise TypeError(unknown_argument(unknown[0], name, stock))
    for key in passed:
        if key in family.refused_arguments:
            raise TypeError(f"{key!r} cannot be used with {name} here: {family.refused_arguments[key]}")
    declared = {key: value for key, value in defaults.items() if key in stock}
    if passed.get("negative_prompt_embeds") is not None:
        # Some stock pipelines take the empty text as a default and refuse it beside embeddings.
        declared["negative_prompt"] = None
    fitted = fitted_arguments(kind, {**declared, **passed})
    stock |= family.fitting_defaults(fitted)
    arguments = StockArguments({key: _ordinary(value) for key, value in {**stock, **fitted}.items()})
    num_prompts(arguments)
    check_texts(arguments)
    check_clip_skip(family.pipeline, arguments.get("clip_skip"))
    family.check_size(arguments)
    check_ranges(family.pipeline, isinstance(family, FlowMatchingFamily), arguments)
    return arguments


def _ordinary(value: Any, depth: int = 0) -> Any:
    """An argument with inference tensors copied to ordinary ones, since torch cannot differentiate with them."""
    if depth > DEEPEST:
        return value
    if isinstance(value, Tensor):
        return value.clone() if value.is_inference() else value
    if isinstance(value, list | tuple):
        parts = [_ordinary(part, depth + 1) for part in value]
        # Left as it is where nothing changes, for named tuples' sake.
        return value if all(map(operator.is_, parts, value)) else type(value)(parts)
    if isinstance(value, dict):
        return {key: _ordinary(part, depth + 1) for key, part in value.items()}
    return value
