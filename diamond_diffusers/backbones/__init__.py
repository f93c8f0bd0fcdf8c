"""Model families, one file each."""

from .base import Backbone, Conditions
from .registry import backbone_for, check_supported, register_backbone, supported_pipelines

__all__ = ["Backbone", "Conditions", "backbone_for", "check_supported", "register_backbone", "supported_pipelines"]
