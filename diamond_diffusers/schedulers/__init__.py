"""GLASS transitions as schedulers for unmodified diffusers pipelines."""

from diffusers import SchedulerMixin

from .ddpm import GlassDDPMScheduler
from .flow_match import GlassFlowMatchScheduler

__all__ = ["GlassDDPMScheduler", "GlassFlowMatchScheduler", "SchedulerMixin"]
