"""Cases of a property that holds for a product of factors."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import pytest


def diagonal(*factors: Sequence[Any], also: Iterable[tuple[Any, ...]] = ()) -> list[Any]:
    """The product, of which the default run takes enough to have every value of every factor; the rest is slow.

    Args:
        *factors: the values of each parameter.
        also: further cases that the default run takes.
    """
    default = [tuple(values[i % len(values)] for values in factors) for i in range(max(map(len, factors)))]
    default += also
    return [beyond(case, case in default) for case in itertools.product(*factors)]


def one_of_each_kind(names: Iterable[str], kinds: Sequence[str]) -> list[Any]:
    """The names, of which the default run takes those that stand for their kind; the rest is slow."""
    names = list(names)
    assert set(kinds) <= set(names), f"{sorted(set(kinds) - set(names))} are none of {names}"
    return [beyond((name,), name in kinds) for name in names]


def beyond(case: tuple[Any, ...], is_default: bool) -> Any:
    return pytest.param(*case, marks=() if is_default else pytest.mark.slow)
