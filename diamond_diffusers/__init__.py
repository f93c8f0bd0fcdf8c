"""Text-to-image models that obey rewards at inference time."""

from importlib.metadata import version

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
