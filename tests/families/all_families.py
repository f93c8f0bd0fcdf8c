"""Where the tests find what each family says of itself."""

from __future__ import annotations

import importlib

from .family import TinyFamily

FAMILIES = {
    "flux": "FLUX",
    "lumina2": "LUMINA2",
    "pixart_sigma": "FAMILY",
    "qwen_image": "QWEN_IMAGE",
    "sana": "FAMILY",
    "sana_sprint": "FAMILY",
    "sdxl": "SDXL",
    "stable_diffusion": "STABLE_DIFFUSION",
    "stable_diffusion_3": "SD35",
    "z_image": "Z_IMAGE",
}
"""The `TinyFamily` in the test file of each."""


def family_of(name: str) -> TinyFamily:
    return getattr(importlib.import_module(f".test_{name}", __package__), FAMILIES[name])
