"""What stops a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


class TrainingError(RuntimeError):
    """A run cannot start or go on; the message says why and what to do."""


@contextmanager
def writing_to(option: str, folder: Path) -> Iterator[None]:
    """Turns what a file system refuses, such as a folder that is a file, or a full disk, into a `TrainingError`.

    Args:
        option: that names the folder.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        if isinstance(error, RuntimeError):
            # So torch.save says that it has written less than it should have.
            if "inline_container" not in reason:
                raise
            reason = "a file was not written whole"
        raise TrainingError(
            f"{option} {folder} cannot be written to ({reason}); make room there or name another folder, and resume "
            "from the latest checkpoint where there is one"
        ) from error
