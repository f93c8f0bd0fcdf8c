"""What a check of a model is told to others in: facts of the machine and of the model, and every row."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from ..devices import device_name
from .checks import FAILED, Found
from .runs import Runs

PACKAGES = ("diamond-diffusers", "diffusers", "torch", "transformers", "accelerate", "peft", "bitsandbytes", "torchao")
"""Those of which a report tells the versions, where they are installed."""


def report(runs: Runs, found: Mapping[str, Found], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that a maintainer would ask, for `write_json`.

    Args:
        runs: what was checked.
        found: by the name of the check; fewer than all where the user has ended it.
        settings: how the model was named and loaded.
    """
    return {
        "settings": {
            **settings,
            "pipeline": type(runs.pipe.pipeline).__name__,
            "family": runs.pipe.family.name,
            "dtype": runs.pipe.dtype,
            "seed": runs.seed,
            "call": _call(runs),
        },
        "machine": machine(runs.device),
        "checks": {name: vars(each) for name, each in found.items()},
        "failed": [name for name, each in found.items() if each.verdict == FAILED],
    }


def machine(device: torch.device) -> dict[str, Any]:
    """Device, system and versions."""
    facts: dict[str, Any] = {
        "device_type": device.type,
        "device": device_name(device),
        "num_threads": torch.get_num_threads(),
        "system": platform.platform(),
        "versions": {"python": platform.python_version(), **_versions()},
    }
    if device.type == "cuda":
        facts |= {
            "device_bytes": torch.cuda.get_device_properties(device).total_memory,
            "cuda": torch.version.cuda,
            "hip": torch.version.hip,
            "cudnn": torch.backends.cudnn.version(),
        }
    return facts


def _call(runs: Runs) -> dict[str, Any]:
    try:
        return {name: value for name, value in runs.resolved.items() if value is not None}
    except Exception:
        # As every row says.
        return dict(runs.call)


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
