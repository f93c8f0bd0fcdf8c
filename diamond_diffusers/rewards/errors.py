"""Other libraries' errors inside our own sentences."""

from __future__ import annotations


def first_line(error: Exception) -> str:
    """The first line of an error's message, or the error's type where it has none."""
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
