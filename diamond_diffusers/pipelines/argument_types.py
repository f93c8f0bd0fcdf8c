"""The types and the ranges of the arguments of a stock call, which stock pipelines leave to whatever fails first."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from types import NoneType
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor

from ..core.checks import check_counts, check_finite
from ..core.conversions import Values, WrongTypeError, members
from ..core.wording import shown

_VALUES = Values()
DEEPEST = 8
"""How deep lists are looked into: arguments are lists of lists at most, as the image embeddings of several adapters."""
_TEXTS = re.compile(r"(negative_)?prompt(_\d)?")
_LEVELS = ("timesteps", "sigmas")
_COUNTS = (
    "num_images_per_prompt", "num_inference_steps", "original_inference_steps", "height", "width",
    "max_sequence_length",
)  # fmt: skip
_CHECKED_ELSEWHERE = (
    "prompt",
    "latents",
    "generator",
    "callback_on_step_end",
    "callback_on_step_end_tensor_inputs",
    *_LEVELS,
)
# The norm of guided predictions is limited to so many times that of the others.
_WRONGLY_ANNOTATED = {"cfg_normalization": bool | float}
_PLAIN = (bool, int, float, str, dict, NoneType)


def fitted_arguments(kind: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a stock call as its annotations ask for them; of numpy's numbers it takes the plain ones.

    Args:
        kind: the class of the stock pipeline.
        given: arguments by name; those that are the stock default are taken as they are.

    Raises:
        TypeError: an argument is of another type.
        ValueError: an argument is out of range.
    """
    defaults = {name: parameter.default for name, parameter in call_parameters(kind).items()}
    hints, images, fitted = _checkable_hints(kind), _image_hints(kind), dict(given)
    for name, value in given.items():
        if value is None or value is defaults.get(name):
            continue
        if name == "latents" and not isinstance(value, Tensor):
            raise TypeError(f"latents is {shown(value)}; give a tensor with a row for each image")
        if name in hints:
            fitted[name] = _VALUES.fitted(value, hints[name], name)
        elif name in images and not _is_nested(value, images[name]):
            raise WrongTypeError(f"{name} is {shown(value)}; give images, or tensors of them")
        if isinstance(fitted[name], float):
            check_finite(**{name: fitted[name]})
        if isinstance(fitted[name], list) and not fitted[name] and name.endswith("_embeds"):
            raise ValueError(f"{name} is an empty list; give embeddings, or leave it out")
        if isinstance(fitted[name], dict):
            _check_keys(name, fitted[name])
        for tensor in fitted[name] if isinstance(fitted[name], list) else [fitted[name]]:
            if isinstance(tensor, Tensor):
                _check_tensor(name, tensor)
    check_counts(**{name: fitted[name] for name in _COUNTS if name in fitted})
    for name in _LEVELS:
        if fitted.get(name) is not None:
            _check_levels(name, fitted[name])
    return fitted


def check_clip_skip(pipeline: DiffusionPipeline, clip_skip: int | None) -> None:
    """Raises a `ValueError` where the text encoder has fewer layers than are to be skipped."""
    config = getattr(getattr(pipeline, "text_encoder", None), "config", None)
    layers = getattr(config, "num_hidden_layers", 1)
    if clip_skip is not None and not 0 <= clip_skip < layers:
        raise ValueError(f"clip_skip is {shown(clip_skip)}; give a number of layers from 0 to {layers - 1}")


def check_texts(arguments: Mapping[str, Any]) -> None:
    """Raises a `ValueError` for a prompt that no tokenizer can read: with half of a surrogate pair."""
    for name, given in arguments.items():
        for text in given if isinstance(given, list) else [given]:
            if isinstance(text, str) and text.encode(errors="replace").decode() != text:
                raise ValueError(f"{name} is {shown(text)}, which is no Unicode text; give one without surrogates")


def check_ranges(pipeline: DiffusionPipeline, is_flow: bool, arguments: Mapping[str, Any]) -> None:
    """Raises a `ValueError` for levels above pure noise, and for a share of noise that is none.

    Args:
        pipeline: the stock pipeline.
        is_flow: whether its sigmas are times of rectified flow, which end at 1.
        arguments: of the call, resolved.
    """
    last = getattr(getattr(pipeline.scheduler, "config", None), "num_train_timesteps", math.inf)
    for name, highest in (("timesteps", last), ("sigmas", 1.0 if is_flow else math.inf)):
        given = arguments.get(name)
        if given is not None and given[0] > highest:
            raise ValueError(f"{name} begins at {given[0]}; with this model noise is pure at {highest}, so begin there")
    if not 0 <= (arguments.get("eta") or 0) <= 1:
        raise ValueError(f"eta is {arguments['eta']}; give a number between 0 (deterministic) and 1 (DDPM)")


@cache
def call_parameters(kind: Any) -> dict[str, inspect.Parameter]:
    """The keywords of the `__call__` of a stock pipeline."""
    return {
        name: parameter
        for name, parameter in inspect.signature(kind.__call__).parameters.items()
        if name != "self" and parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }


@cache
def _checkable_hints(kind: Any) -> dict[str, Any]:
    """The annotations that say what is taken: of plain values, of tensors, and of lists of either."""
    found = {name: _checkable(hint) for name, hint in _hints(kind).items()}
    texts = {name: str | list[str] | tuple[str, ...] for name in call_parameters(kind) if _TEXTS.fullmatch(name)}
    hints = {**found, **texts, **_WRONGLY_ANNOTATED}
    return {name: hint for name, hint in hints.items() if hint is not None and name not in _CHECKED_ELSEWHERE}


def _checkable(hint: Any) -> Any:
    """The annotation without the dtype and the device of tensors; None where values of other kinds are taken too."""
    kinds: list[Any] = []
    for member in members(hint):
        origin, parts = get_origin(member), get_args(member)
        if _is_tensor(member):
            kinds.append(Tensor)
        elif member in _PLAIN or origin is dict:
            kinds.append(origin or member)
        elif origin in (list, tuple) and parts and None not in (inner := [_checkable(part) for part in parts]):
            kinds.append(origin[tuple(inner)])
        else:
            return None
    return Union[tuple(kinds)]  # noqa: UP007 - of as many as there are


@cache
def _image_hints(kind: Any) -> dict[str, tuple[type, ...]]:
    """For each argument that takes images, the classes of one."""
    return {
        name: tuple(leaf for leaf in _leaves(hint) if leaf is not NoneType)
        for name, hint in _hints(kind).items()
        if Image.Image in _leaves(hint)
    }


def _hints(kind: Any) -> dict[str, Any]:
    try:
        return get_type_hints(kind.__call__)
    except (NameError, TypeError, AttributeError):
        # Of a pipeline of a user's whose annotations do not resolve.
        return {}


def _leaves(hint: Any) -> list[Any]:
    """The types within a hint that are no lists or unions."""
    inner = get_args(hint) if hint not in members(hint) or get_origin(hint) is list else ()
    return [leaf for part in inner for leaf in _leaves(part)] if inner else [hint]


def _is_nested(value: Any, kinds: tuple[type, ...], depth: int = 0) -> bool:
    """Whether a value is of some classes, or a list of such values or of lists, but not without end."""
    if isinstance(value, list | tuple):
        return bool(value) and depth < DEEPEST and all(_is_nested(part, kinds, depth + 1) for part in value)
    return isinstance(value, kinds)


def _is_tensor(kind: Any) -> bool:
    """Whether a type is that of tensors: the types of tensors of one dtype do not derive from it."""
    return isinstance(kind, type) and (issubclass(kind, Tensor) or kind.__module__ == "torch")


def _check_levels(name: str, given: Any) -> None:
    """Checks that noise only decreases, from some level at or above zero."""
    given = given.tolist() if getattr(given, "ndim", None) == 1 else given
    if not isinstance(given, Sequence) or isinstance(given, str | bytes):
        raise WrongTypeError(f"{name} is {shown(given)}; give a list of falling numbers")
    numbers = [_VALUES.fitted(number, float, f"{name}[{index}]") for index, number in enumerate(given)]
    if not numbers or any(before <= after for before, after in pairwise(numbers)):
        raise ValueError(f"{name} is {shown(given)}; give at least one number, and each below the former")
    if numbers[-1] < 0 or not math.isfinite(numbers[0]):
        raise ValueError(f"{name} is {shown(given)}; give finite numbers of at least 0")


def _check_keys(name: str, options: Mapping[Any, Any]) -> None:
    """Checks that options, which networks take as keywords, are named by texts."""
    for key in options:
        if not isinstance(key, str):
            raise WrongTypeError(f"{name} holds the key {shown(key)}; give each option by its name, a text")


def _check_tensor(name: str, tensor: Tensor) -> None:
    # Masks, and the times of discrete schedulers.
    may_be_whole = "mask" in name or name in _LEVELS
    if tensor.is_complex() or not (may_be_whole or tensor.is_floating_point()):
        raise WrongTypeError(f"{name} is of {tensor.dtype}; give numbers of a floating-point type, such as float32")
    if tensor.is_meta:
        raise ValueError(f"{name} is on the meta device, where it holds no numbers; give a tensor on a real one")
    if tensor.ndim == 0 or not tensor.numel():
        extent = f"no numbers, of shape {list(tensor.shape)}" if tensor.ndim else "no dimensions"
        raise ValueError(f"{name} is a tensor of {extent}; give one with a row for each image or prompt")
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{name} holds nan or inf; give a tensor of finite numbers")
