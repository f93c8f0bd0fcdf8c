"""The names of rewards that are made of others."""

from __future__ import annotations

from collections.abc import Sequence


def distinct(names: Sequence[str]) -> list[str]:
    """The names, of which equal ones get the suffixes `_2`, `_3` and so on."""
    found: list[str] = []
    for name in names:
        candidate, count = name, 1
        while candidate in found:
            count += 1
            candidate = f"{name}_{count}"
        found.append(candidate)
    return found


def sum_of(weights: Sequence[float], names: Sequence[str]) -> str:
    """The expression of a sum."""
    parts = []
    for weight, name in zip(weights, names, strict=True):
        magnitude = "" if abs(weight) == 1 else f"{abs(weight):.12g}*"
        parts.append(f"{'-' if weight < 0 else '+'} {magnitude}{name}")
    expression = " ".join(parts)
    return expression if not weights else expression.removeprefix("+ ") if weights[0] >= 0 else "-" + expression[2:]
