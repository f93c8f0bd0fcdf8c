"""What stops a run."""

from __future__ import annotations


class TrainingError(RuntimeError):
    """A run cannot start or go on; the message says why and what to do."""
