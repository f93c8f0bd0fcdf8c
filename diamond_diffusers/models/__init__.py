"""Networks around unmodified diffusers models."""

from .two_time import TwoTimeEmbedder

__all__ = ["TwoTimeEmbedder"]
