"""Where an argument belongs that a call does not take: options of methods, their parts, rewards and loaders."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Collection, Iterator
from typing import Any

from ..alignment.guide import Guide
from ..alignment.methods import METHODS
from ..alignment.smc_parts.tempering import TEMPERINGS
from ..core.registry import Registry
from ..core.serial import option_names
from ..core.wording import did_you_mean
from ..posteriors import POSTERIORS
from ..rewards import REWARDS
from ..transitions import TRANSITIONS

LOADER_OPTIONS = ("defaults", "few_step", "score_model", "preview_vae")
"""Options of `DiamondMapPipeline` itself, which its loaders take too."""
_OF_STOCK_LOADERS = (
    "torch_dtype", "dtype", "revision", "variant", "token", "cache_dir", "device_map", "local_files_only",
    "quantization_config", "subfolder", "use_safetensors",
)  # fmt: skip
_FIRST = ("smc", "glass", "adaptive")
"""Names that examples take where they can."""


def unknown_argument(name: str, pipeline: str, stock: Collection[str], own: Collection[str] = ()) -> str:
    """What to say of an argument that neither a call nor the stock pipeline within takes.

    Args:
        name: of the argument.
        pipeline: class name of the stock pipeline.
        stock: the arguments that it takes.
        own: those of `DiamondMapPipeline`.
    """
    place = next(_places(name), None)
    if place is not None:
        return f"{name!r} is no argument of a call but {place}"
    hint = did_you_mean(name, [*own, *stock])
    return (
        f"{name!r} is no argument of DiamondMapPipeline or of the {pipeline} inside{hint}; "
        f"choose one of {', '.join(stock)}"
    )


def _places(name: str) -> Iterator[str]:
    """Where an option belongs, and how it is given there; the likeliest place first."""
    if owner := _owner(METHODS, name):
        yield f"an option of an alignment method; give alignment={owner}({name}=...)"
    if name in option_names(Guide):
        yield f"an option of a guide; give alignment=Guidance(guide=Guide({name}=...))"
    for argument, registry in (("posterior", POSTERIORS), ("transition", TRANSITIONS), ("tempering", TEMPERINGS)):
        if owner := _owner(registry, name):
            yield f"an option of a {registry.kind}; give alignment=SMC({argument}={owner}({name}=...))"
    if name in (*LOADER_OPTIONS, *_OF_STOCK_LOADERS):
        yield f"an option of loading; give DiamondMapPipeline.from_pretrained(..., {name}=...)"
    if owner := _reward_with(name):
        yield f"an option of a reward; give reward={owner}({name}=...)"


def _owner(registry: Registry[Any], option: str) -> str | None:
    """The name of a class in a registry that has an option."""
    names = sorted(registry.names(), key=lambda name: name not in _FIRST)
    entries = (registry.get(name) for name in names)
    return next((entry.__name__ for entry in entries if option in option_names(entry)), None)


def _reward_with(option: str) -> str | None:
    """The class of a reward that has an option; rewards whose libraries are not installed are left out."""
    for name in REWARDS.names():
        try:
            entry: Any = REWARDS.get(name)
        except ImportError:
            continue
        if not isinstance(entry, type):
            continue
        own = option_names(entry) if dataclasses.is_dataclass(entry) else inspect.signature(entry).parameters
        if option in own:
            return entry.__name__
    return None
