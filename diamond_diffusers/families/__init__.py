"""Model families: one file each, which says how a stock pipeline's network, latents and prompts are used."""

from .registry import FAMILIES, register_family

__all__ = ["FAMILIES", "register_family"]
