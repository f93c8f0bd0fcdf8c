"""The error that stops a run."""

from __future__ import annotations

from ..files.foreign import one_line


class TrainingError(RuntimeError):
    """A run cannot start or continue; the message says why and what to do, in one line."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))
