"""Counts and other numbers that callers give."""

from __future__ import annotations

import math
from collections.abc import Collection
from numbers import Integral

from .wording import shown


def check_counts(**counts: int | None) -> None:
    """Raises a `ValueError` for one that is given and is no whole number of at least 1."""
    for name, count in counts.items():
        if count is not None and (not isinstance(count, Integral) or isinstance(count, bool) or count < 1):
            raise ValueError(f"{name} is {shown(count)}; give a whole number of at least 1")
        if count is not None and count >= 2**63:
            raise ValueError(f"{name} is {shown(count)}; give one below 2**63, to which torch can count")


def check_finite(**numbers: float | None) -> None:
    """Raises a `ValueError` for one that is given and is not finite."""
    for name, number in numbers.items():
        if number is not None and not math.isfinite(number):
            raise ValueError(f"{name} is {number}; give a finite number")


def check_choice(name: str, given: str, choices: Collection[str]) -> None:
    """Raises a `ValueError` for a text that is none of several."""
    if given not in choices:
        raise ValueError(f"{name} is {shown(given)}; choose one of {', '.join(choices)}")
