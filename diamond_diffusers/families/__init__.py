"""Model families: one file each, which adapts a stock pipeline's network, latents and prompts to this package."""

from .registry import FAMILIES, register_family

__all__ = ["FAMILIES", "register_family"]
