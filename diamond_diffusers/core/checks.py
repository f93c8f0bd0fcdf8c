"""Counts that callers give."""

from __future__ import annotations

from numbers import Integral


def check_counts(**counts: int | None) -> None:
    """Raises a `ValueError` for one that is given and is no whole number of at least 1."""
    for name, count in counts.items():
        if count is not None and (not isinstance(count, Integral) or count < 1):
            raise ValueError(f"{name} is {count!r}; it must be a whole number of at least 1")
