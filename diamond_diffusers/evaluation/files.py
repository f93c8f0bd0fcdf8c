"""Files that are either whole or absent, and plain JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import SAVE, Image, registered_extensions


def prepare_folder(folder: Path) -> Path:
    """Creates an output folder.

    Raises:
        ValueError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"output is '{folder}', where nothing can be written ({error.strerror}); name another folder"
        ) from error
    return folder


def check_image_path(path: Path) -> None:
    """Raises a `ValueError` where the suffix names no format that images are saved in."""
    if registered_extensions().get(path.suffix.lower()) not in SAVE:
        raise ValueError(f"output is '{path}', whose suffix is that of no image; name a file such as again.png")


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file under another name first, so that a reader never finds half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def write_image(path: Path, image: Image) -> None:
    """Saves an image in the format of the path's suffix, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial.{path.name}")
    image.save(partial)
    os.replace(partial, path)


def write_json(path: Path, content: Any) -> None:
    """Writes `plain(content)`."""
    write_bytes(path, (json.dumps(plain(content), indent=1, allow_nan=False) + "\n").encode())


def plain(value: Any) -> Any:
    """What JSON can hold of a value: dataclasses become objects with their `type`, infinities the texts `inf`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"type": type(value).__name__, **fields}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, torch.Tensor):
        return plain(value.tolist())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, str | int | float):
        return value
    return str(value)
