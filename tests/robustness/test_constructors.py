"""Every field of every method, part, preset and record takes what it can hold, or says what it wants."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import sys
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
import torch

from diamond_diffusers import DiamondMapPipeline, Guide
from diamond_diffusers.alignment.methods import METHODS
from diamond_diffusers.alignment.presets import PRESETS
from diamond_diffusers.alignment.smc_parts.tempering import TEMPERINGS
from diamond_diffusers.core.registry import Registry
from diamond_diffusers.core.serial import from_dict, registry_of, to_dict, with_options
from diamond_diffusers.posteriors import POSTERIORS
from diamond_diffusers.training.losses import LOSSES
from diamond_diffusers.transitions import TRANSITIONS

from .generators import ALL, PLAIN, Odd, share
from .judging import Tally

REGISTRIES: tuple[Registry[Any], ...] = (METHODS, POSTERIORS, TRANSITIONS, TEMPERINGS, LOSSES)
INTERNAL = ("stock", "trajectory")
"""Transitions that families make for themselves."""
CLASSES = [registry.get(name) for registry in REGISTRIES for name in registry.names() if name not in INTERNAL] + [Guide]
FIELDS = [(cls, field.name) for cls in CLASSES for field in dataclasses.fields(cls) if field.init]
MAY_BE_INFINITE = (
    "max_tilt",
    "max_shift",
    "max_gradient_norm",
    "num_guided_steps",
    "snr_factor",
    "max_noise_to_signal",
    "choice_strength",
)
"""Besides the fields that are infinite by default: those for which infinity says that there is no limit, or takes
the best."""
PRESET_FIELDS = [(name, field.name) for name in PRESETS.names() for field in dataclasses.fields(PRESETS.get(name)())]


def plain(number: Real) -> int | float:
    """A number of Python."""
    return number if isinstance(number, int) else float(number)


def fits(value: object, hint: Any, may_be_infinite: bool) -> bool:
    """Whether a value is of the type that a field says, and a number that means something."""
    kind = get_origin(hint) or hint
    if kind in (Union, UnionType):
        return any(fits(value, each, may_be_infinite) for each in get_args(hint))
    if kind is NoneType:
        return value is None
    if kind is Literal:
        return value in get_args(hint)
    if kind in (int, float):
        number = Integral if kind is int else Real
        if not isinstance(value, number) or isinstance(value, bool):
            return False
        return kind is int or (value == value and (abs(plain(value)) <= sys.float_info.max or may_be_infinite))
    return isinstance(value, kind)


def is_as_given(stored: Any, given: Any) -> bool:
    """Whether a field holds what it was given, which may have become an ordinary number."""
    if isinstance(stored, Real) and not isinstance(given, str):
        return bool(stored == given) or (abs(plain(stored)) < 2**1000 and float(stored) == float(given))
    return isinstance(given, str | Mapping) or stored is given or bool(stored == given)


def fault_of_field(made: Any, name: str, given: object) -> str | None:
    """What is wrong with a field of an object that took a value."""
    cls, stored = type(made), getattr(made, name)
    default = next(field.default for field in dataclasses.fields(cls) if field.name == name)
    may_be_infinite = name in MAY_BE_INFINITE or default in (math.inf, -math.inf)
    if not fits(stored, get_type_hints(cls)[name], may_be_infinite):
        return f"silent: holds {stored!r:.80}"
    if not is_as_given(stored, given):
        return f"silent: holds {stored!r:.80} for it"
    registry = registry_of(cls)
    if registry is not None:
        form = json.loads(json.dumps(to_dict(made)))
        again = from_dict(registry, form)
        if again != made and not is_as_given(getattr(again, name), stored):
            return f"silent: {form} is another one"
    return None


def judge_field(
    tally: Tally, make: Callable[[Any], Any], made_by: str, name: str, odd: Odd, names: tuple[str, ...] = ()
) -> None:
    tally.judge(
        lambda: make(odd.value),
        (name, *names) if not isinstance(odd.value, dict) else (name, "Guide", *names),
        odd.value,
        f"{made_by.format(odd.label)}",
        lambda made: fault_of_field(made, name, odd.value),
    )


@pytest.mark.parametrize(("cls", "name"), FIELDS, ids=lambda part: getattr(part, "__name__", part))
def test_field(cls: type, name: str, tally: Tally) -> None:
    for odd in ALL:
        judge_field(tally, lambda value: cls(**{name: value}), f"{cls.__name__}({name}={{}})", name, odd)
    tally.check()


@pytest.mark.parametrize(("cls", "name"), FIELDS, ids=lambda part: getattr(part, "__name__", part))
def test_option_of_a_serial_form(cls: type, name: str, tally: Tally) -> None:
    for odd in ALL:
        made_by = "with_options(" + cls.__name__ + "(), {{'" + name + "': {}}})"
        judge_field(tally, lambda value: with_options(cls(), {name: value}), made_by, name, odd)
    tally.check()


@pytest.mark.parametrize(("preset", "name"), PRESET_FIELDS)
def test_option_of_a_preset(preset: str, name: str, tally: Tally) -> None:
    for odd in share(ALL, 12, f"{preset}.{name}"):
        made_by = f"PRESETS.get({preset!r})(None, {name}={{}})"
        judge_field(tally, lambda value: PRESETS.get(preset)(None, **{name: value}), made_by, name, odd)
    tally.check()


def _silent(registry: Registry[Any], form: object) -> str | None:
    """What is wrong with a form that was understood; None where it names a part."""
    return None if isinstance(form, dict) and form.get("name") in registry else "silent"


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.plural)
def test_name_of_a_part(registry: Registry[Any], tally: Tally) -> None:
    for odd in ALL:
        if isinstance(odd.value, str) and odd.value in registry:
            continue
        act = f"from_dict({registry.plural.upper()}, {odd.label})"
        tally.judge(
            lambda value=odd.value: from_dict(registry, value),
            registry.kind,
            odd.value,
            act,
            lambda made, value=odd.value: _silent(registry, value),
        )
    for odd in PLAIN:
        if isinstance(odd.value, str) and odd.value in registry:
            continue
        form = {"name": odd.value, odd.label: odd.value}
        act = f"from_dict({registry.plural.upper()}, {{'name': {odd.label}}})"
        tally.judge(lambda form=form: from_dict(registry, form), registry.kind, odd.value, act, lambda _: "silent")
    tally.check()


@pytest.mark.parametrize("argument", ["pipeline", "defaults", "few_step", "score_model", "preview_vae"])
def test_argument_of_the_pipeline(argument: str, tiny_pipe: DiamondMapPipeline, tally: Tally) -> None:
    assert argument in inspect.signature(DiamondMapPipeline.__init__).parameters

    def fault(pipe: DiamondMapPipeline, value: object) -> str | None:
        kept = pipe.few_step if argument == "few_step" else getattr(pipe, argument)
        if argument == "few_step" and (value is None or isinstance(value, bool)):
            return None if pipe.few_step is value else f"silent: {kept!r}"
        if argument == "defaults":
            return None if not value and not pipe.defaults else f"silent: {kept!r:.80}"
        takes = (argument == "preview_vae" and isinstance(value, torch.nn.Module)) or value is None
        return None if takes else f"silent: {kept!r:.80}"

    for odd in ALL:
        given = {"pipeline": tiny_pipe.pipeline, argument: odd.value}
        made_by = f"DiamondMapPipeline(pipeline, {argument}={odd.label})"
        tally.judge(
            lambda given=given: DiamondMapPipeline(**given),
            argument,
            odd.value,
            made_by,
            lambda pipe, value=odd.value: fault(pipe, value),
        )
    tally.check()
