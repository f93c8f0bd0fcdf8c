"""The user's entry point."""

from .output import DiamondMapPipelineOutput
from .pipeline import DiamondMapPipeline

__all__ = ["DiamondMapPipeline", "DiamondMapPipelineOutput"]
