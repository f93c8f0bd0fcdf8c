"""Text-to-image models that obey rewards at inference time."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .alignment import (
        SMC,
        AdaptiveTempering,
        Alignment,
        BeamSearch,
        BestOfN,
        Guidance,
        NoAlignment,
        NoiseEvolution,
        NoiseOptimization,
        PathSearch,
        PosteriorResampling,
        PosteriorSMC,
        RandomSearch,
        ScheduledTempering,
        ZeroOrderSearch,
    )
    from .cost import Cost
    from .diamond import DiamondPosterior, DiamondTransition
    from .pipelines import DiamondMapPipeline, DiamondMapPipelineOutput
    from .posteriors import DenoiserPoint, FlowMapPoint, GlassPosterior, PosteriorSampler
    from .rewards import Reward, available_rewards, register_reward
    from .schedulers import DiamondMapScheduler, GlassDDPMScheduler, GlassFlowMatchScheduler
    from .transitions import (
        AncestralTransition,
        FlowMapTransition,
        GlassTransition,
        ODETransition,
        RenoiseTransition,
        Transition,
    )
    from .weighted_posterior import WeightedPosterior

__version__ = version("diamond-diffusers")

__all__ = [
    "SMC",
    "AdaptiveTempering",
    "Alignment",
    "AncestralTransition",
    "BeamSearch",
    "BestOfN",
    "Cost",
    "DenoiserPoint",
    "DiamondMapPipeline",
    "DiamondMapPipelineOutput",
    "DiamondMapScheduler",
    "DiamondPosterior",
    "DiamondTransition",
    "FlowMapPoint",
    "FlowMapTransition",
    "GlassDDPMScheduler",
    "GlassFlowMatchScheduler",
    "GlassPosterior",
    "GlassTransition",
    "Guidance",
    "NoAlignment",
    "NoiseEvolution",
    "NoiseOptimization",
    "ODETransition",
    "PathSearch",
    "PosteriorResampling",
    "PosteriorSMC",
    "PosteriorSampler",
    "RandomSearch",
    "RenoiseTransition",
    "Reward",
    "ScheduledTempering",
    "Transition",
    "WeightedPosterior",
    "ZeroOrderSearch",
    "available_rewards",
    "register_reward",
]

# A saved stock pipeline names its scheduler's class, and those are not to wait for the other rooms.
_ROOMS = (
    "schedulers",
    "alignment",
    "cost",
    "diamond",
    "pipelines",
    "posteriors",
    "rewards",
    "transitions",
    "weighted_posterior",
)


def __getattr__(name: str) -> Any:
    # torch and diffusers take seconds to import, for which the command line's help must not wait. Of a module that a
    # saved pipeline names, diffusers asks for the scheduler's base class too.
    if name in __all__ or name == "SchedulerMixin":
        modules = (import_module(f".{room}", __name__) for room in _ROOMS)
        return next(getattr(module, name) for module in modules if hasattr(module, name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
