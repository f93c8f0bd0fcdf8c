"""Files of weights that others saved: found, read without running anything in them, and checked for completeness."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from .errors import first_line
from .hub import download


def find_weights(
    name: str, checkpoint: str | PathLike[str], file_names: Sequence[str], hub_options: Mapping[str, Any]
) -> Path:
    """The file of a checkpoint given as a file, a folder or a repository on the Hub, from which it is downloaded.

    Args:
        name: name of the reward, for messages.
        checkpoint: the file, the folder or the repository.
        file_names: what the file may be called in a folder, in order of preference; in a repository it has the last.
        hub_options: some of `hub.HUB_OPTIONS`.

    Raises:
        OSError: there is no such file.
    """
    path = Path(checkpoint)
    if path.is_file():
        return path
    if path.is_dir():
        found = [path / local for local in file_names if (path / local).is_file()]
        if found:
            return found[0]
        raise OSError(
            f"Reward '{name}' got checkpoint='{checkpoint}', a folder without {' or '.join(file_names)}; "
            "put the checkpoint there, or give its file."
        )
    return download(name, str(checkpoint), file_names[-1], hub_options)


def read_weights(path: Path, entry: str | None = None) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file, or of a `.pt` file that holds nothing but tensors.

    Args:
        path: the file.
        entry: what a `.pt` file may call its tensors, where it also holds the state of their training.

    Raises:
        ValueError: the file cannot be read so.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"'{path}' cannot be read as a file of tensors ({first_line(error)})") from error
    if isinstance(weights, dict) and entry in weights:
        weights = weights[entry]
    if not isinstance(weights, dict) or not all(isinstance(weight, Tensor) for weight in weights.values()):
        raise ValueError(f"'{path}' holds something other than named tensors")
    return weights


def counted_weights(names: Collection[str]) -> str:
    """The first of some weights' names, and how many others there are, for messages."""
    return f"{min(names)} and {len(names) - 1} other weights"


def check_layout(
    weights: Mapping[str, Tensor], expected: Mapping[str, torch.Size], optional: Collection[str] = ()
) -> None:
    """Checks that a checkpoint has exactly the expected tensors.

    Args:
        weights: those of the checkpoint.
        expected: name and shape of every tensor.
        optional: names of expected tensors that may be missing.

    Raises:
        ValueError: a tensor is missing, unexpected or of another shape; the first such one is named.
    """
    missing = [name for name in expected if name not in weights and name not in optional]
    unexpected = [name for name in weights if name not in expected]
    misshapen = [name for name in expected if name in weights and weights[name].shape != expected[name]]
    for names, fault in ((missing, "lacks"), (unexpected, "has the unexpected")):
        if names:
            others = f" and {len(names) - 1} others" if len(names) > 1 else ""
            raise ValueError(f"the checkpoint {fault} tensor '{names[0]}'{others}")
    if misshapen:
        name = misshapen[0]
        raise ValueError(f"tensor '{name}' has shape {list(weights[name].shape)}, not {list(expected[name])}")
