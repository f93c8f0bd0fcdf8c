"""Posterior samplers, which draw look-aheads: one file each, named like its registered name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.registry import Registry

if TYPE_CHECKING:
    from .base import PosteriorSampler

POSTERIORS: Registry[type[PosteriorSampler]] = Registry(
    "posterior", "posteriors", __name__, base="diamond_diffusers.posteriors.base:PosteriorSampler"
)

register_posterior = POSTERIORS.register
"""The decorator that makes a class of your own known by a name, such as `@register_posterior("mine")`."""
