"""Finds and checks ImageReward's checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..hub import download

LOCAL_NAMES = ("ImageReward.safetensors", "model.safetensors", "ImageReward.pt")


def find_checkpoint(name: str, checkpoint: str | PathLike[str], hub_options: dict[str, Any]) -> Path:
    """The file of a checkpoint given as a file, a folder or a repository on the Hub, from which it is downloaded.

    Raises:
        OSError: there is no such file.
    """
    path = Path(checkpoint)
    if path.is_file():
        return path
    if path.is_dir():
        found = [path / local for local in LOCAL_NAMES if (path / local).is_file()]
        if found:
            return found[0]
        raise OSError(
            f"Reward '{name}' got checkpoint='{checkpoint}', a folder without {' or '.join(LOCAL_NAMES)}; "
            "put the checkpoint there, or give its file."
        )
    return download(name, str(checkpoint), "ImageReward.pt", hub_options)


def check_layout(weights: Mapping[str, Tensor], expected: Mapping[str, torch.Size]) -> None:
    """Checks that a checkpoint has exactly the expected tensors.

    Raises:
        ValueError: a tensor is missing, unexpected or of another shape; the first such one is named.
    """
    missing = [name for name in expected if name not in weights]
    unexpected = [name for name in weights if name not in expected]
    misshapen = [name for name in expected if name in weights and weights[name].shape != expected[name]]
    for names, fault in ((missing, "lacks"), (unexpected, "has the unexpected")):
        if names:
            others = f" and {len(names) - 1} others" if len(names) > 1 else ""
            raise ValueError(f"the checkpoint {fault} tensor '{names[0]}'{others}")
    if misshapen:
        name = misshapen[0]
        raise ValueError(f"tensor '{name}' has shape {list(weights[name].shape)}, not {list(expected[name])}")
