"""Turns what the user passed into the arguments of the wrapped pipeline's `__call__`."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from diffusers import DiffusionPipeline
from torch import Tensor, nn

from ..alignment.result import FINAL_SELECTIONS
from ..core.checks import check_counts
from ..families.base import Family
from ..families.compat import offloads_layers
from ..families.stock_call import num_prompts
from ..rewards import Reward

NEGATIVE_PROMPTS = ("negative_prompt", "negative_prompt_2", "negative_prompt_3")


def resolve_arguments(family: Family, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Every keyword of the stock `__call__`: as given, else the model's default, else the stock default.

    An argument that is None counts as not given, except where None is a value of its own in the stock call.

    Raises:
        TypeError: a keyword that the stock pipeline does not have, or that its family refuses.
    """
    name = type(family.pipeline).__name__
    parameters = inspect.signature(type(family.pipeline).__call__).parameters
    stock = {
        key: parameter.default
        for key, parameter in parameters.items()
        if key != "self" and parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }
    passed = {key: value for key, value in given.items() if value is not None or key in family.arguments_with_none}
    unknown = sorted(set(passed) - set(stock))
    if unknown:
        raise TypeError(
            f"{unknown[0]!r} is no argument of DiamondMapPipeline or of the {name} inside; "
            f"the latter takes {', '.join(stock)}"
        )
    for key in passed:
        if key in family.refused_arguments:
            raise TypeError(f"{key!r} cannot be used with {name} here: {family.refused_arguments[key]}")
    declared = {key: value for key, value in defaults.items() if key in stock}
    if passed.get("negative_prompt_embeds") is not None:
        # Some stock pipelines take the empty text as a default and refuse it beside embeddings.
        declared["negative_prompt"] = None
    return {**stock, **declared, **passed}


def ordinary(value: Any) -> Any:
    """An argument without inference tensors, with which nothing could be differentiated."""
    if isinstance(value, Tensor):
        return value.clone() if value.is_inference() else value
    if isinstance(value, list | tuple):
        parts = [ordinary(part) for part in value]
        # Left as it is where nothing changes, for named tuples' sake.
        return value if all(map(operator.is_, parts, value)) else type(value)(parts)
    if isinstance(value, dict):
        return {key: ordinary(part) for key, part in value.items()}
    return value


def check_differentiable(modules: Sequence[nn.Module]) -> None:
    """Raises a `ValueError` where weights are inference tensors, which cannot take part in a derivative."""
    for module in modules:
        if any(weight.is_inference() for weight in module.parameters()):
            raise ValueError(
                f"the weights of the {type(module).__name__} were made under torch.inference_mode(), so that nothing "
                "can be differentiated through it; load the pipeline outside, or take alignment 'smc' or 'best_of_n'"
            )


def num_images(arguments: Mapping[str, Any]) -> int:
    """Number of images that a call returns: prompts times `num_images_per_prompt`.

    Raises:
        ValueError: `num_images_per_prompt` or `num_inference_steps` is no positive whole number.
    """
    check_counts(**{key: arguments[key] for key in ("num_images_per_prompt", "num_inference_steps")})
    return num_prompts(arguments) * arguments["num_images_per_prompt"]


def check_falling(arguments: Mapping[str, Any]) -> None:
    """Raises a `ValueError` for custom `timesteps` or `sigmas` that are empty or do not fall: noise only decreases."""
    for name in ("timesteps", "sigmas"):
        given = arguments.get(name)
        if given is not None and (len(given) == 0 or any(before <= after for before, after in pairwise(given))):
            raise ValueError(f"{name} is {given}; it must hold at least one number, and each must be below the former")


def reward_texts(arguments: Mapping[str, Any], reward_prompt: str | list[str] | None) -> list[str]:
    """The prompt that the reward reads for each image; empty texts where none is known.

    Raises:
        ValueError: as many `reward_prompt` as there are prompts are needed.
    """
    texts = reward_prompt if reward_prompt is not None else arguments["prompt"]
    count = num_prompts(arguments)
    texts = [texts] if isinstance(texts, str) else list(texts or [""] * count)
    if len(texts) != count:
        raise ValueError(f"reward_prompt holds {len(texts)} texts for {count} prompts; give one for each prompt")
    return [text for text in texts for _ in range(arguments["num_images_per_prompt"])]


def checked_selection(selection: str, reward: Reward | None, texts: Sequence[str]) -> str:
    """`final_selection`, once it is known to be possible.

    Raises:
        ValueError: it is unknown, or there is nothing to compare particles by.
    """
    if selection not in FINAL_SELECTIONS:
        raise ValueError(f"final_selection is {selection!r}; choose one of {', '.join(FINAL_SELECTIONS)}")
    if selection == "best" and reward is None:
        raise ValueError("final_selection is 'best', but no reward compares particles; give reward=...")
    if reward is not None and reward.reads_prompts and not any(texts):
        raise ValueError(
            "the reward reads the prompt, but there is no text in it; give one, or reward_prompt=..., or wrap a "
            "function that reads none in CallableReward(function, reads_prompts=False)"
        )
    return selection


def wants_latents(reward: Reward | None) -> bool:
    """Whether the reward cannot do without the latents, which are not known before prompts are encoded."""
    return reward is not None and reward.wanted_context.get("latents", False)


def check_baked_guidance(family: Family, arguments: Mapping[str, Any]) -> None:
    """Raises a `ValueError` where the guidance asked for is not the one that the Diamond Map was distilled with.

    That has the empty negative prompt; whether `negative_prompt_embeds` are its embedding cannot be told.
    """
    remedy = "or align with look-aheads of the base (GlassPosterior)"
    for name, baked in family.posterior_map.guidance.items():
        if arguments.get(name) != baked:
            raise ValueError(
                f"{name} is {arguments.get(name)}, but the Diamond Map was distilled with {baked}, which is baked in; "
                f"leave it at {baked}, {remedy}"
            )
    for name in NEGATIVE_PROMPTS:
        if _has_text(arguments.get(name)):
            raise ValueError(
                f"{name} is {arguments[name]!r}, but the Diamond Map was distilled with the empty one, which is baked "
                f"in; leave it out, {remedy}"
            )


def check_not_checkpointed(family: Family) -> None:
    """Raises a `ValueError` where a network with a Diamond Map checkpoints its own blocks."""
    if getattr(family.network_module, "is_gradient_checkpointing", False):
        raise ValueError(
            f"the {family.network_name} has gradient checkpointing enabled, whose second evaluation would be without "
            f"the Diamond Map; call pipe.{family.network_name}.disable_gradient_checkpointing(), and give the call "
            "gradient_checkpointing=True"
        )


def _has_text(prompt: str | Sequence[str] | None) -> bool:
    return bool(prompt) if prompt is None or isinstance(prompt, str) else any(prompt)


def checked_few_step(family: Family, few_step: bool | str | Sequence[str] | None) -> bool | tuple[str, ...] | None:
    """`few_step` as a family keeps it.

    Raises:
        ValueError: it names an adapter that is not loaded.
    """
    if few_step is None or isinstance(few_step, bool):
        return few_step
    names = (few_step,) if isinstance(few_step, str) else tuple(few_step)
    loaded = set(getattr(family.network_module, "peft_config", {}))
    for name in names:
        if name not in loaded:
            raise ValueError(
                f"few_step names the adapter {name!r}, but loaded are {sorted(loaded) or 'none'}; "
                "load it first with load_lora_weights(..., adapter_name=...)"
            )
    return names


def refuse_cache(family: Family) -> None:
    """Raises a `ValueError` where diffusers' feature cache is on: it hands the features of one particle to another."""
    name = family.network_name
    registries = (getattr(module, "_diffusers_hook", None) for module in family.network_module.modules())
    hooks = (hook for registry in registries if registry is not None for hook in registry.hooks.values())
    # Only hooks that carry features from one evaluation to the next have a state.
    if getattr(family.network_module, "is_cache_enabled", False) or any(hook._is_stateful for hook in hooks):
        raise ValueError(
            f"the {name} has a feature cache enabled, which mixes particles; call pipe.{name}.disable_cache() first, "
            "or remove the hook that you applied to it"
        )


def is_offloaded(pipeline: DiffusionPipeline) -> bool:
    """Whether weights are moved on and off the device during a call: whole models, layers, or groups of layers."""
    if getattr(pipeline, "_all_hooks", None):
        return True
    components = pipeline.components.values()
    return any(offloads_layers(component) for component in components if isinstance(component, nn.Module))
