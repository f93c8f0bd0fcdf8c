"""Transitions as schedulers: of GLASS for unmodified diffusers pipelines, of a Diamond Map for loops of one's own."""

from diffusers import SchedulerMixin

from .ddpm import GlassDDPMScheduler
from .diamond_map import DiamondMapScheduler, MapInputs
from .flow_match import GlassFlowMatchScheduler

__all__ = ["DiamondMapScheduler", "GlassDDPMScheduler", "GlassFlowMatchScheduler", "MapInputs", "SchedulerMixin"]
