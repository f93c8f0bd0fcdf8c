"""Text-to-image models that obey rewards at inference time."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .alignment.auto_scale import AutoRewardScale
    from .alignment.base import Method
    from .alignment.guide import Guide
    from .alignment.methods import register_method
    from .alignment.methods.beam_search import BeamSearch
    from .alignment.methods.best_of_n import BestOfN
    from .alignment.methods.diffusion_tree_sampling import DiffusionTreeSampling
    from .alignment.methods.diffusion_tree_search import DiffusionTreeSearch
    from .alignment.methods.guidance import Guidance
    from .alignment.methods.noise_evolution import NoiseEvolution
    from .alignment.methods.noise_optimization import NoiseOptimization
    from .alignment.methods.none import NoAlignment
    from .alignment.methods.path_search import PathSearch
    from .alignment.methods.posterior_resampling import PosteriorResampling
    from .alignment.methods.posterior_resampling_smc import PosteriorResamplingSMC
    from .alignment.methods.posterior_smc import PosteriorSMC
    from .alignment.methods.random_search import RandomSearch
    from .alignment.methods.rollover_search import RolloverSearch
    from .alignment.methods.smc import SMC
    from .alignment.methods.value_decoding import ValueDecoding
    from .alignment.methods.zero_order_search import ZeroOrderSearch
    from .alignment.presets import register_preset
    from .alignment.smc_parts.tempering import AdaptiveTempering, ScheduledTempering
    from .core.cost import Cost
    from .families.registry import register_family
    from .pipelines.calibration import Calibration, calibrate
    from .pipelines.output import DiamondMapPipelineOutput
    from .pipelines.pipeline import DiamondMapPipeline
    from .pipelines.shared_budget import SharedBudget
    from .pipelines.watch import Watch
    from .posteriors import register_posterior
    from .posteriors.base import PosteriorSampler
    from .posteriors.denoiser import DenoiserPoint
    from .posteriors.diamond import DiamondPosterior
    from .posteriors.flow_map import FlowMapPoint
    from .posteriors.glass import GlassPosterior
    from .posteriors.weighted import WeightedPosterior
    from .rewards.base import Reward
    from .rewards.registry import available_rewards, register_reward
    from .schedulers.ddpm import GlassDDPMScheduler
    from .schedulers.diamond_map import DiamondMapScheduler
    from .schedulers.flow_match import GlassFlowMatchScheduler
    from .training.losses import register_loss
    from .transitions import register_transition
    from .transitions.ancestral import AncestralTransition
    from .transitions.base import Transition
    from .transitions.diamond import DiamondTransition
    from .transitions.flow_map import FlowMapTransition
    from .transitions.glass import GlassTransition
    from .transitions.ode import ODETransition
    from .transitions.renoise import RenoiseTransition
    from .transitions.vp_sde import VPSDETransition

__version__: str

_MODULES = {
    "SMC": "alignment.methods.smc",
    "AdaptiveTempering": "alignment.smc_parts.tempering",
    "AncestralTransition": "transitions.ancestral",
    "AutoRewardScale": "alignment.auto_scale",
    "BeamSearch": "alignment.methods.beam_search",
    "BestOfN": "alignment.methods.best_of_n",
    "Calibration": "pipelines.calibration",
    "Cost": "core.cost",
    "DenoiserPoint": "posteriors.denoiser",
    "DiamondMapPipeline": "pipelines.pipeline",
    "DiamondMapPipelineOutput": "pipelines.output",
    "DiamondMapScheduler": "schedulers.diamond_map",
    "DiamondPosterior": "posteriors.diamond",
    "DiamondTransition": "transitions.diamond",
    "DiffusionTreeSampling": "alignment.methods.diffusion_tree_sampling",
    "DiffusionTreeSearch": "alignment.methods.diffusion_tree_search",
    "FlowMapPoint": "posteriors.flow_map",
    "FlowMapTransition": "transitions.flow_map",
    "GlassDDPMScheduler": "schedulers.ddpm",
    "GlassFlowMatchScheduler": "schedulers.flow_match",
    "GlassPosterior": "posteriors.glass",
    "GlassTransition": "transitions.glass",
    "Guidance": "alignment.methods.guidance",
    "Guide": "alignment.guide",
    "Method": "alignment.base",
    "NoAlignment": "alignment.methods.none",
    "NoiseEvolution": "alignment.methods.noise_evolution",
    "NoiseOptimization": "alignment.methods.noise_optimization",
    "ODETransition": "transitions.ode",
    "PathSearch": "alignment.methods.path_search",
    "PosteriorResampling": "alignment.methods.posterior_resampling",
    "PosteriorResamplingSMC": "alignment.methods.posterior_resampling_smc",
    "PosteriorSMC": "alignment.methods.posterior_smc",
    "PosteriorSampler": "posteriors.base",
    "RandomSearch": "alignment.methods.random_search",
    "RenoiseTransition": "transitions.renoise",
    "Reward": "rewards.base",
    "RolloverSearch": "alignment.methods.rollover_search",
    "ScheduledTempering": "alignment.smc_parts.tempering",
    "SharedBudget": "pipelines.shared_budget",
    "Transition": "transitions.base",
    "VPSDETransition": "transitions.vp_sde",
    "ValueDecoding": "alignment.methods.value_decoding",
    "Watch": "pipelines.watch",
    "WeightedPosterior": "posteriors.weighted",
    "ZeroOrderSearch": "alignment.methods.zero_order_search",
    "available_rewards": "rewards.registry",
    "calibrate": "pipelines.calibration",
    "register_family": "families.registry",
    "register_loss": "training.losses",
    "register_method": "alignment.methods",
    "register_posterior": "posteriors",
    "register_preset": "alignment.presets",
    "register_reward": "rewards.registry",
    "register_transition": "transitions",
}
"""Where each public name is. Nothing is imported before it is asked for: torch and diffusers take seconds."""

__all__ = [
    "SMC",
    "AdaptiveTempering",
    "AncestralTransition",
    "AutoRewardScale",
    "BeamSearch",
    "BestOfN",
    "Calibration",
    "Cost",
    "DenoiserPoint",
    "DiamondMapPipeline",
    "DiamondMapPipelineOutput",
    "DiamondMapScheduler",
    "DiamondPosterior",
    "DiamondTransition",
    "DiffusionTreeSampling",
    "DiffusionTreeSearch",
    "FlowMapPoint",
    "FlowMapTransition",
    "GlassDDPMScheduler",
    "GlassFlowMatchScheduler",
    "GlassPosterior",
    "GlassTransition",
    "Guidance",
    "Guide",
    "Method",
    "NoAlignment",
    "NoiseEvolution",
    "NoiseOptimization",
    "ODETransition",
    "PathSearch",
    "PosteriorResampling",
    "PosteriorResamplingSMC",
    "PosteriorSMC",
    "PosteriorSampler",
    "RandomSearch",
    "RenoiseTransition",
    "Reward",
    "RolloverSearch",
    "ScheduledTempering",
    "SharedBudget",
    "Transition",
    "VPSDETransition",
    "ValueDecoding",
    "Watch",
    "WeightedPosterior",
    "ZeroOrderSearch",
    "available_rewards",
    "calibrate",
    "register_family",
    "register_loss",
    "register_method",
    "register_posterior",
    "register_preset",
    "register_reward",
    "register_transition",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f".{_MODULES[name]}", __name__), name)
    if name == "__version__":
        # Reading a package's metadata takes longer than everything else here.
        return import_module("importlib.metadata").version("diamond-diffusers")
    if name == "SchedulerMixin":
        # Of a module that a saved pipeline names, diffusers asks for the base class of schedulers too.
        return import_module("diffusers").SchedulerMixin
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
