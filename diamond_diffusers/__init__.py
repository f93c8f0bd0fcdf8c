"""Text-to-image models that obey rewards at inference time."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .alignment import SMC, Alignment, BestOfN, Guidance, NoAlignment
    from .cost import Cost
    from .pipelines import DiamondMapPipeline, DiamondMapPipelineOutput
    from .posteriors import DenoiserPoint, GlassPosterior, PosteriorSampler
    from .rewards import Reward, available_rewards, register_reward
    from .transitions import AncestralTransition, GlassTransition, ODETransition, Transition

__version__ = version("diamond-diffusers")

__all__ = [
    "SMC",
    "Alignment",
    "AncestralTransition",
    "BestOfN",
    "Cost",
    "DenoiserPoint",
    "DiamondMapPipeline",
    "DiamondMapPipelineOutput",
    "GlassPosterior",
    "GlassTransition",
    "Guidance",
    "NoAlignment",
    "ODETransition",
    "PosteriorSampler",
    "Reward",
    "Transition",
    "available_rewards",
    "register_reward",
]

_ROOMS = ("alignment", "cost", "pipelines", "posteriors", "rewards", "transitions")


def __getattr__(name: str) -> Any:
    # torch and diffusers take seconds to import, for which the command line's help must not wait.
    if name in __all__:
        modules = (import_module(f".{room}", __name__) for room in _ROOMS)
        return next(getattr(module, name) for module in modules if hasattr(module, name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
