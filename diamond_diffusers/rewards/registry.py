"""Rewards by name, from this package or from others. Importing this module loads none of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from ..core.registry import Registry

if TYPE_CHECKING:
    from .base import Reward
    from .callable_reward import ScoreFunction

Registered: TypeAlias = "type[Reward] | Reward | ScoreFunction"
"""What a name can stand for: a class that is made without arguments, a reward, or a function."""

T = TypeVar("T", bound="Registered")

REWARDS: Registry[Registered] = Registry(
    "reward",
    "rewards",
    __package__,
    helpers=(
        "availability",
        "base",
        "calibration",
        "callable_reward",
        "checkpointing",
        "checks",
        "context",
        "degradations",
        "detection",
        "errors",
        "expressions",
        "formulas",
        "hub",
        "names",
        "optional_packages",
        "output",
        "parts",
        "placed",
        "preprocessing",
        "probing",
        "quoted_text",
        "references",
        "registry",
        "returned_scores",
        "shared_features",
        "stages",
        "stock_processing",
        "threshold",
        "transformed",
        "truncation",
        "vision_language",
        "weight_files",
    ),
    aliases={
        "aesthetic-v1": "aesthetic_v1",
        "aesthetic-v2": "aesthetic",
        "cycle-reward": "cyclereward",
        "hps-v2": "hpsv2",
        "hps-v2.1": "hpsv2_1",
        "hps-v3": "hpsv3",
        "hpsv2.1": "hpsv2_1",
        "image-reward": "imagereward",
        "jpeg-size": "jpeg_size",
        "pick-score": "pickscore",
        "unified-reward": "unifiedreward",
    },
)


def register_reward(name: str, aliases: Sequence[str] = ()) -> Callable[[T], T]:
    """Registers the decorated object as the reward `name`, and returns it unchanged.

    A class is instantiated without arguments when the name is used; a function `(images, prompts) -> scores` is the
    reward itself. Installed packages do not call this function: they declare such an object as an entry point of the
    group `diamond_diffusers.rewards`.

    Args:
        name: an identifier.
        aliases: other spellings of the whole name, which may contain dashes and dots, such as "hps-v2.1".

    Raises:
        ValueError: `name` is no identifier, an alias could not be told from a number or an operator, or one of them
            belongs to another reward.

    Example:
        >>> from diamond_diffusers.rewards import as_reward
        >>> @register_reward("contrast_ratio", aliases=["contrast-ratio"])
        ... def contrast_ratio(images, prompts):
        ...     return images.std((1, 2, 3))
        >>> as_reward("2*contrast-ratio").name
        '2*contrast_ratio'
    """
    return REWARDS.register(name, aliases)


def available_rewards() -> list[str]:
    """The sorted names of all rewards, of this package and of installed plug-ins; imports none of them."""
    return REWARDS.names()


def registered_reward(name: str) -> Registered:
    """The class or function registered as `name`: a class tells its licence and source without being instantiated.

    Args:
        name: the name, or one of its aliases.

    Raises:
        ValueError: no reward has this name.
        ImportError: the plug-in that offers it cannot be imported.
    """
    return REWARDS.get(name)


def required_arguments(registered: Registered) -> list[str]:
    """The required arguments of a registered class; with any, expressions cannot name the reward."""
    if not isinstance(registered, type):
        return []
    kinds = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    parameters = inspect.signature(registered).parameters.values()
    return [p.name for p in parameters if p.default is p.empty and p.kind not in kinds]
