"""Detectors of objects, and the rules on what they find, for rewards and for the suites that score by them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base import DetectionReward
    from .detectors import Detector, load_detector
    from .requirements import Count, Position, Presence, Requirement

_MODULES = {
    "Count": "requirements",
    "DetectionReward": "base",
    "Detector": "detectors",
    "Position": "requirements",
    "Presence": "requirements",
    "Requirement": "requirements",
    "load_detector": "detectors",
}
"""Where each name is. The suites need some files alone."""

__all__ = ["Count", "DetectionReward", "Detector", "Position", "Presence", "Requirement", "load_detector"]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
