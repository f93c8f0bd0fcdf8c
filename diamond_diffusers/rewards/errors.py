"""Failures of rewards that say what is of no use against them, and other libraries' errors inside our own sentences."""

from __future__ import annotations


class RefusedError(OSError):
    """A reward fails on a batch and would again, maybe because of one of the images: the batch is not tried again."""


class UnavailableError(RefusedError):
    """A reward scores nothing at present, and has tried what there is to try: neither are its images one by one."""


class LimitError(UnavailableError):
    """A reward has used up what it may spend: it ends a run even where rewards that fail are skipped."""


def first_line(error: Exception) -> str:
    """The first line of an error's message, or the error's type where it has none."""
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
