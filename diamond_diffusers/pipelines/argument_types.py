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
from torch import Tensor

from ..core.checks import check_counts, check_finite
from ..core.conversions import Values, WrongTypeError, members, shown

_VALUES = Values()
_TEXTS = re.compile(r"(negative_)?prompt(_\d)?")
_LEVELS = ("timesteps", "sigmas")
_COUNTS = ("num_images_per_prompt", "num_inference_steps", "height", "width", "max_sequence_length")
_CHECKED_ELSEWHERE = ("prompt", "latents", "generator", "callback_on_step_end", "callback_on_step_end_tensor_inputs", *_LEVELS)
_PLAIN = (bool, int, float, str, dict, NoneType)


def fitted_arguments(kind: type[DiffusionPipeline], given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a stock call as its annotations ask for them; of numpy's numbers it takes the plain ones.

    Args:
        kind: the class of the stock pipeline.
        given: arguments by name; those that are the stock default are taken as they are.

    Raises:
        TypeError: an argument is of another type.
        ValueError: an argument is out of range.
    """
    defaults = {name: parameter.default for name, parameter in call_parameters(kind).items()}
    hints, fitted = _checkable_hints(kind), dict(given)
    for name, value in given.items():
        if value is None or value is defaults.get(name):
            continue
        if name in hints:
            fitted[name] = _VALUES.fitted(value, hints[name], name)
        if isinstance(fitted[name], float):
            check_finite(**{name: fitted[name]})
    check_counts(**{name: fitted[name] for name in _COUNTS if name in fitted})
    for name in _LEVELS:
        if fitted.get(name) is not None:
            _check_levels(name, fitted[name])
    if fitted.get("latents") is not None:
        _check_latents(fitted["latents"])
    return fitted


@cache
def call_parameters(kind: type[DiffusionPipeline]) -> dict[str, inspect.Parameter]:
    """The keywords of the `__call__` of a stock pipeline."""
    return {
        name: parameter
        for name, parameter in inspect.signature(kind.__call__).parameters.items()
        if name != "self" and parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }


@cache
def _checkable_hints(kind: type[DiffusionPipeline]) -> dict[str, Any]:
    """The annotations that say what is taken: of plain values, of tensors, and of lists of either."""
    try:
        hints = get_type_hints(kind.__call__)
    except (NameError, TypeError, AttributeError):
        # Of a pipeline of a user's whose annotations do not resolve.
        hints = {}
    found = {name: _checkable(hint) for name, hint in hints.items()}
    texts = {name: str | list[str] | tuple[str, ...] for name in call_parameters(kind) if _TEXTS.fullmatch(name)}
    return {
        name: hint
        for name, hint in {**found, **texts}.items()
        if hint is not None and name not in _CHECKED_ELSEWHERE
    }


def _checkable(hint: Any) -> Any:
    """The annotation without the dtype and the device of tensors; None where values of other kinds are taken too."""
    kinds: list[Any] = []
    for member in members(hint):
        origin, parts = get_origin(member), get_args(member)
        if isinstance(member, type) and issubclass(member, Tensor):
            kinds.append(Tensor)
        elif member in _PLAIN or origin is dict:
            kinds.append(origin or member)
        elif origin in (list, tuple) and parts and None not in (inner := [_checkable(part) for part in parts]):
            kinds.append(origin[tuple(inner)])
        else:
            return None
    return Union[tuple(kinds)]


def _check_levels(name: str, given: Any) -> None:
    """Checks that noise only decreases, from some level at or above zero."""
    if not isinstance(given, Sequence) or isinstance(given, str | bytes):
        if getattr(given, "ndim", None) != 1:
            raise WrongTypeError(f"{name} is {shown(given)}; give a list of falling numbers")
        given = given.tolist()
    numbers = [_VALUES.fitted(number, float, f"{name}[{index}]") for index, number in enumerate(given)]
    if not numbers or any(before <= after for before, after in pairwise(numbers)):
        raise ValueError(
            f"{name} is {shown(given)}; it must hold at least one number, and each must be below the former"
        )
    if numbers[-1] < 0 or not math.isfinite(numbers[0]):
        raise ValueError(f"{name} is {shown(given)}; its numbers must be finite and at least 0")


def _check_latents(latents: Any) -> None:
    if not isinstance(latents, Tensor):
        raise TypeError(f"latents is a {type(latents).__name__}; give a tensor with a row for each image")
    if not latents.is_floating_point():
        raise WrongTypeError(f"latents is of {latents.dtype}; give floating-point noise, such as torch.float32")
    if latents.is_meta:
        raise ValueError("latents is on the meta device, where it holds no numbers; give noise on a real one")
    if not torch.isfinite(latents).all():
        raise ValueError("latents holds numbers that are not finite; give noise, such as torch.randn(...)")
