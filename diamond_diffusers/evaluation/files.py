"""Files that are either whole or absent, and plain JSON."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image, new, registered_extensions

from ..core.serial import registry_of, to_dict
from ..files.output import whole_file


def check_image_path(path: Path) -> None:
    """Raises a `ValueError` if the suffix names no format of images, or if the path is that of a folder."""
    if path.is_dir():
        raise ValueError(f"output is '{path}', which is a folder; name a file such as again.png")
    try:
        # Some formats have no colours, or need a program that is not there.
        new("RGB", (1, 1)).save(io.BytesIO(), _format_of(path))
    except (KeyError, OSError, ValueError) as error:
        raise ValueError(
            f"output is '{path}', whose suffix names no format of colour images; name a file such as again.png"
        ) from error


def _format_of(path: Path) -> str:
    """Pillow's name of the format that a suffix names."""
    return registered_extensions()[path.suffix.lower()]


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file, whole or not at all."""
    with whole_file(path) as partial:
        partial.write_bytes(content)


def write_image(path: Path, image: Image) -> None:
    """Saves an image in the format of the path's suffix, whole or not at all."""
    with whole_file(path) as partial:
        image.save(partial, _format_of(path))


def copy_file(source: Path, target: Path) -> None:
    """Copies a file, whole or not at all."""
    with whole_file(target) as partial:
        shutil.copyfile(source, partial)


def write_json(path: Path, content: Any) -> None:
    """Writes `plain(content)`."""
    write_bytes(path, (json.dumps(plain(content), indent=1, allow_nan=False) + "\n").encode())


def plain(value: Any) -> Any:
    """A value in a form that JSON can hold.

    Methods and their parts take their serial form, other dataclasses become objects with their `type`, and infinities
    become the texts `inf` and `-inf`.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if registry_of(type(value)) is not None:
            return to_dict(value)
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
