"""Folders and files that are written to; what prevents it is told in one sentence."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

from safetensors import SafetensorError

from .foreign import one_line

REMEDY = "make room on the disk, or name another folder"
_TORCH_CANNOT_WRITE = ("inline_container", "iostream", "PytorchStreamWriter")
"""In the errors of `torch.save`, which says no more of a full disk."""


class UnwritableError(OSError):
    """A file cannot be written; the message names it, the reason and the remedy."""


def prepare_folder(folder: Path, name: str = "output") -> Path:
    """Creates an output folder, which `name` tells the user.

    Raises:
        ValueError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"{name} is '{folder}', where nothing can be written ({reason}); name another folder"
        ) from error
    return folder


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to in place of a file, whose place it takes when it is complete; the file's folder is made.

    Raises:
        UnwritableError: as of `writing`; the file is then as it was.
    """
    partial = path.with_name(f".{path.name}.partial")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


@contextmanager
def writing(path: str | PathLike[str]) -> Iterator[None]:
    """Around what writes a file or a folder.

    Raises:
        UnwritableError: the disk is full, a folder is a file, or the like.
    """
    try:
        yield
    except UnwritableError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        of_torch = any(words in str(error) for words in _TORCH_CANNOT_WRITE)
        if (isinstance(error, RuntimeError) and not of_torch) or getattr(error, "errno", None) == errno.EPIPE:
            raise
        reason = getattr(error, "strerror", None) or str(error).split("\n")[0]
        reason = "the disk may be full" if of_torch else reason
        raise UnwritableError(f"'{one_line(str(path))}' cannot be written ({reason}); {REMEDY}") from error
