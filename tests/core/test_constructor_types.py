"""Constructors of methods and their parts take values of the types that they are annotated with, and refuse others.

Each field of each registered class is given many wrong values. A value is understood, so that the field holds what its
annotation says and the serial form comes back, or it is refused in one sentence that names the field.
"""

import dataclasses
import datetime
import decimal
import fractions
import math
import pathlib
import re

import numpy as np
import pytest
import torch

from diamond_diffusers import (
    GlassPosterior,
    Guide,
    NoAlignment,
    ODETransition,
)
from diamond_diffusers.alignment.methods import METHODS
from diamond_diffusers.alignment.smc_parts.tempering import TEMPERINGS
from diamond_diffusers.core.conversions import Values, field_hints
from diamond_diffusers.core.serial import from_dict, registry_of, to_dict
from diamond_diffusers.posteriors import POSTERIORS
from diamond_diffusers.transitions import TRANSITIONS

CLASSES = [
    *(
        registry.get(name)
        for registry in (METHODS, POSTERIORS, TRANSITIONS, TEMPERINGS)
        for name in registry.names()
        if name not in ("stock", "trajectory")
    ),
    Guide,
]
FIELDS = [(cls, field.name) for cls in CLASSES for field in dataclasses.fields(cls) if field.init]
VALUES = {
    "none": None,
    "true": True,
    "zero": 0,
    "negative": -8,
    "huge": 10**400,
    "fraction": 1.5,
    "nan": math.nan,
    "infinity": math.inf,
    "minus infinity": -math.inf,
    "complex": 1j,
    "decimal": decimal.Decimal("1.5"),
    "rational": fractions.Fraction(1, 2),
    "empty text": "",
    "number as text": "4",
    "none as text": "none",
    "a name": "glass",
    "another name": "adaptive",
    "unknown name": "no_such_name",
    "dotted name": "glass.x",
    "bytes": b"4",
    "empty list": [],
    "list": [1, "a"],
    "tuple": (1,),
    "set": {1},
    "empty mapping": {},
    "unknown option": {"no_such_option": 1},
    "form": {"name": "glass", "num_inner_steps": 2},
    "wrong form": {"name": 3},
    "class": GlassPosterior,
    "class of a number": int,
    "another kind of part": ODETransition(),
    "method": NoAlignment(),
    "function": print,
    "object": object(),
    "path": pathlib.Path("glass"),
    "date": datetime.date(2026, 1, 1),
    "numpy whole number": np.int64(2),
    "numpy number": np.float32(0.5),
    "numpy nan": np.float64("nan"),
    "numpy bool": np.bool_(True),
    "numpy array": np.zeros(3),
    "numpy array of one": np.array([1]),
    "numpy text": np.array("4"),
    "tensor": torch.zeros(2, 3),
    "whole number in a tensor": torch.tensor(2),
    "number in a tensor": torch.tensor(0.5),
    "bool in a tensor": torch.tensor(True),
    "complex in a tensor": torch.tensor(1j),
    "meta tensor": torch.zeros((), device="meta"),
}


@pytest.mark.parametrize(("cls", "name"), FIELDS, ids=lambda value: getattr(value, "__name__", value))
def test_a_value_is_understood_or_refused_by_the_field_s_name(cls, name):
    for description, value in VALUES.items():
        try:
            part = cls(**{name: value})
        except (TypeError, ValueError) as error:
            text = str(error)
            assert re.search(rf"\b{name}\b|no_such_option", text, re.IGNORECASE), f"{description}: {text}"
            assert "\n" not in text and len(text) < 500, f"{description}: {text}"
        else:
            held = getattr(part, name)
            hint = field_hints(cls)[name]
            if dataclasses.is_dataclass(held):
                assert not isinstance(held, type), description
            else:
                assert type(held) in (int, float, bool, str, type(None)), description
                assert Values().fitted(held, hint, name) is held, description
                assert held is None or not isinstance(held, float) or not math.isnan(held), description
            registry = registry_of(cls)
            assert registry is None or from_dict(registry, to_dict(part)) == part, description
            assert hash(part) is not None


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_an_unknown_field_is_refused(cls):
    with pytest.raises(TypeError, match="no_such_field"):
        cls(no_such_field=1)
