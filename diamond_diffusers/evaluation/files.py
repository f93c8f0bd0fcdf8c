"""Files that are either whole or absent, and plain JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL.Image import SAVE, Image, registered_extensions

from ..output_files import writing


def check_image_path(path: Path) -> None:
    """Raises a `ValueError` where the suffix names no format that images are saved in, or a folder is in the way."""
    if path.is_dir():
        raise ValueError(f"output is '{path}', which is a folder; name a file such as again.png")
    if registered_extensions().get(path.suffix.lower()) not in SAVE:
        raise ValueError(f"output is '{path}', whose suffix is that of no image; name a file such as again.png")


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file under another name first, so that a reader never finds half of it."""
    with _partial(path, f".{path.name}.partial") as partial:
        partial.write_bytes(content)


def write_image(path: Path, image: Image) -> None:
    """Saves an image in the format of the path's suffix, whole or not at all."""
    with _partial(path, f".partial.{path.name}") as partial:
        image.save(partial)


def copy_file(source: Path, target: Path) -> None:
    """Copies a file, whole or not at all."""
    with _partial(target, f".{target.name}.partial") as partial:
        shutil.copyfile(source, partial)


@contextmanager
def _partial(path: Path, name: str) -> Iterator[Path]:
    """Gives a file of another name in the folder, which takes the file's place when it is complete."""
    partial = path.with_name(name)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


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
