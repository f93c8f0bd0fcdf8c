"""The context that a reward may ask for beside images and prompts, by naming it as a parameter of its `score`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..core.tensors import on_device

GIVEN_NAMES = ("latents", "noise_to_signal")
"""`latents`: the clean latents `[B, ...]` that the images were decoded from, with their graph.

`noise_to_signal`: `[B]`, the level of the noisy sample that the images are a look-ahead of; 0 where they are final.
"""

CONTEXT_NAMES = (*GIVEN_NAMES, "pil_images")
"""`pil_images`: the images as a list of PIL images; made where a reward asks for them."""


def wanted_context(function: Callable[..., Any]) -> dict[str, bool]:
    """The context that a scoring function names in its signature, and whether each entry is required."""
    signature = _signature(function)
    parameters = {} if signature is None else signature.parameters
    return {name: parameters[name].default is inspect.Parameter.empty for name in CONTEXT_NAMES if name in parameters}


def check_signature(name: str, function: Callable[..., Any]) -> None:
    """Checks that the scoring function of the reward `name` takes images, prompts and the context that it names.

    Raises:
        TypeError: the function does not take them, does not return when it is called, or is not callable.
    """
    if not callable(function):
        raise TypeError(f"Reward '{name}' is {function!r}; give a callable (images, prompts) -> scores.")
    _check_returns(name, function)
    signature = _signature(function)
    if signature is None:
        return
    try:
        signature.bind(None, None, **wanted_context(function))
    except TypeError as error:
        raise TypeError(
            f"Reward '{name}' cannot be called with images and prompts ({error}); name no further "
            f"parameters but {', '.join(CONTEXT_NAMES)}, or give them defaults."
        ) from error


def _check_returns(name: str, function: Callable[..., Any]) -> None:
    """Raises a `TypeError` for an asynchronous function or a generator."""
    forms = (function, getattr(function, "forward", None), getattr(function, "__call__", None))  # noqa: B004
    if any(inspect.iscoroutinefunction(form) for form in forms):
        raise TypeError(
            f"Reward '{name}' is an asynchronous function, which nobody awaits; give a plain one that waits for it, "
            f"such as `lambda images, prompts: asyncio.run({name}(images, prompts))`."
        )
    if any(inspect.isgeneratorfunction(form) or inspect.isasyncgenfunction(form) for form in forms):
        raise TypeError(
            f"Reward '{name}' is a generator, which yields one thing after another; collect its scores in a list, and "
            "return that."
        )


def check_context(name: str, images: Tensor, context: Mapping[str, Any]) -> dict[str, Tensor]:
    """The context given to the reward `name`, as tensors with one row per image.

    Raises:
        TypeError: a name is unknown.
        ValueError: the number of rows of a tensor is not that of the images.
    """
    checked = {}
    for key, value in context.items():
        if key not in GIVEN_NAMES:
            raise TypeError(f"Reward '{name}' got {key}=...; the context is made of {' and '.join(GIVEN_NAMES)}.")
        tensor = torch.as_tensor(value)
        rows = tensor.expand(len(images)) if tensor.ndim == 0 else tensor
        if len(rows) != len(images):
            raise ValueError(
                f"Reward '{name}' got {key} of shape {list(tensor.shape)} for {len(images)} images; "
                "give one row per image."
            )
        checked[key] = rows
    return checked


def select_context(
    name: str, wanted: Mapping[str, bool], images: Tensor, context: Mapping[str, Tensor]
) -> dict[str, Any]:
    """The part of the context that the reward `name` wants, beside the images, with the PIL images if it wants those.

    Raises:
        ValueError: a required entry was not given.
    """
    available: dict[str, Any] = dict(context)
    if "pil_images" in wanted:
        # It takes torchvision, which few rewards need.
        from .preprocessing import images_to_pil

        available["pil_images"] = images_to_pil(images)
    for key, is_required in wanted.items():
        if is_required and key not in available:
            raise ValueError(
                f"Reward '{name}' needs `{key}`, but this call has none; pass {key}=..., or give the parameter "
                "a default."
            )
    return moved_context({key: available[key] for key in wanted if key in available}, images.device)


def moved_context(context: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """A context whose tensors are on a device."""
    return {key: on_device(value, device) if isinstance(value, Tensor) else value for key, value in context.items()}


def _signature(function: Callable[..., Any]) -> inspect.Signature | None:
    """The signature of a function; None if it is not written in Python."""
    try:
        return inspect.signature(function.forward if isinstance(function, nn.Module) else function)
    except (TypeError, ValueError):
        return None
