"""Odd and wrong values by kind: what people pass by mistake, by another library's types, or to see what happens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any
from zlib import crc32

import numpy as np
import torch

from diamond_diffusers import SMC, GlassPosterior, GlassTransition, Guide

LONG = "x" * 5000


@dataclass(frozen=True, eq=False)
class Odd:
    """A value, with words by which a report names it."""

    label: str
    value: Any


class Named(str):
    """A text of another class."""


class NoTruth:
    """Which can be neither compared nor asked whether it is true, as arrays are."""

    def __eq__(self, other: object) -> bool:
        raise ValueError("neither true nor false")

    __hash__ = object.__hash__

    def __bool__(self) -> bool:
        raise ValueError("neither true nor false")

    def __repr__(self) -> str:
        return "NoTruth()"


def nested_list(depth: int) -> list[Any]:
    """A list in a list in a list, and so on."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def nested_mapping(depth: int) -> dict[str, Any]:
    """A mapping in a mapping, and so on."""
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"options": value}
    return value


def in_itself() -> list[Any]:
    """A list that holds itself."""
    value: list[Any] = []
    value.append(value)
    return value


def _odd(values: Mapping[str, Any]) -> tuple[Odd, ...]:
    return tuple(Odd(label, value) for label, value in values.items())


NUMBERS = _odd(
    {
        "0": 0,
        "-1": -1,
        "2": 2,
        "-10**30": -(10**30),
        "10**30": 10**30,
        "2**63": 2**63,
        "10**400": 10**400,
        "1.5": 1.5,
        "2.0": 2.0,
        "-0.5": -0.5,
        "nan": math.nan,
        "inf": math.inf,
        "-inf": -math.inf,
        "1e-320": 1e-320,
        "1e308": 1e308,
        "1j": 1j,
        "Decimal('2')": Decimal("2"),
        "Fraction(1, 2)": Fraction(1, 2),
    }
)
TRUTHS = _odd({"True": True, "False": False, "np.True_": np.True_, "NoTruth()": NoTruth()})
ARRAYS = _odd(
    {
        "np.int64(3)": np.int64(3),
        "np.float32(0.5)": np.float32(0.5),
        "np.float64(nan)": np.float64("nan"),
        "np.array(3)": np.array(3),
        "np.array([1, 2])": np.array([1, 2]),
        "np.array([])": np.array([]),
        "tensor(3)": torch.tensor(3),
        "tensor(0.5)": torch.tensor(0.5),
        "tensor(nan)": torch.tensor(math.nan),
        "tensor(True)": torch.tensor(True),
        "tensor([1])": torch.tensor([1]),
        "tensor([1, 2])": torch.tensor([1, 2]),
        "tensor([])": torch.tensor([]),
        "meta tensor": torch.tensor(1.0, device="meta"),
    }
)
TEXTS = _odd(
    {
        "''": "",
        "' '": " ",
        "'4'": "4",
        "'nan'": "nan",
        "'inf'": "inf",
        "'none'": "none",
        "'true'": "true",
        "a name of nothing": "no_such_name",
        "a name and an end of line": "smc\n",
        "a zero character": "a\0b",
        "other scripts": "ä 描く 🌊 \u202eabc",
        "half of a surrogate pair": "a\udc80b",
        "5000 letters": LONG,
        "a path out": "../../etc/passwd",
        "markup": "[bold]{0}%s</b>",
        "a text of another class": Named("smc"),
        "bytes": b"smc",
    }
)
OBJECTS = _odd(
    {
        "None": None,
        "object()": object(),
        "the class int": int,
        "the class SMC": SMC,
        "a function": len,
        "[]": [],
        "[1]": [1],
        "(1, 2)": (1, 2),
        "['smc']": ["smc"],
        "{}": {},
        "{'name': 'smc'}": {"name": "smc"},
        "{'name': 1}": {"name": 1},
        "{1: 2}": {1: 2},
        "set()": set(),
        "range(3)": range(3),
        "an iterator": iter(()),
        "a list 500 deep": nested_list(500),
        "a mapping 100 deep": nested_mapping(100),
        "a list in itself": in_itself(),
        "a posterior sampler": GlassPosterior(),
        "a transition": GlassTransition(),
        "a guide": Guide(),
        "a module": torch.nn.Identity(),
        "a generator": torch.Generator(),
    }
)
ALL = (*NUMBERS, *TRUTHS, *ARRAYS, *TEXTS, *OBJECTS)
PLAIN = tuple(odd for odd in (*NUMBERS, *TRUTHS, *TEXTS, *OBJECTS) if isinstance(odd.value, int | float | str | None))
"""What JSON and YAML can hold, but for lists and mappings."""


def share(values: Sequence[Odd], part: int, salt: str) -> list[Odd]:
    """Every so many of the values, others for another salt: the same at every run."""
    return [odd for odd in values if crc32(f"{salt}/{odd.label}".encode()) % part == 0]
