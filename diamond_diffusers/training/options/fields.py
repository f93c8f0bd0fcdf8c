"""Fields of the option records, with the help and the checks that a command line needs beside type and default."""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

Check = Callable[[float], str | None]
"""What is wrong with a number, as the end of a sentence that begins with its option; None where nothing is."""

LARGEST_INTEGER = 2**31 - 1
"""Bound of whole numbers that have no bound of their own."""


@dataclass(frozen=True)
class Option:
    """One option of the command line, as `options_of` reads it from a record.

    Attributes:
        name: name of the field.
        flag: spelling on the command line, `--flag`; that is `name` unless the field says otherwise.
        kind: type: `bool`, `int`, `float`, `str` or `Path`.
        default: value if the option is not given.
        help: text of the help page.
        check: check of a number.
        may_change: whether a resumed run may have another value; all other options decide what a run is.
        names_data: whether the option names the data; the command line's choice of data then replaces that of a file.
        choices: allowed values; a function that is called when the command line is read, since a user's file may add
            some.
        convert: function from text to the value, in place of `kind`.
    """

    name: str
    flag: str
    kind: type
    default: Any
    help: str
    check: Check | None
    may_change: bool
    names_data: bool
    choices: Callable[[], Sequence[str]] | None
    convert: Callable[[str], Any]


def option(
    default: Any,
    help: str,
    *,
    flag: str | None = None,
    check: Check | None = None,
    may_change: bool = False,
    names_data: bool = False,
    choices: Callable[[], Sequence[str]] | None = None,
    convert: Callable[[str], Any] | None = None,
) -> Any:
    """A field of an option record; the arguments are the attributes of `Option`.

    Example:
        >>> @dataclass(frozen=True)
        ... class MapOptions:
        ...     rank: int = option(64, "Rank of the LoRA.", check=at_least(1))
    """
    described = {
        "flag": flag,
        "help": help,
        "check": check,
        "may_change": may_change,
        "names_data": names_data,
        "choices": choices,
        "convert": convert,
    }
    return field(default=default, metadata=described)


def options_of(record: type) -> list[Option]:
    """The options of a record, in its order."""
    hints = get_type_hints(record)
    return [_read(described, hints[described.name]) for described in fields(record)]


def _read(described: Field[Any], hint: Any) -> Option:
    metadata = dict(described.metadata)
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(kind for kind in get_args(hint) if kind is not type(None))
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        metadata["choices"], hint = lambda: choices, str
    if described.default is MISSING:
        raise TypeError(f"the option {described.name} has no default")
    return Option(
        name=described.name,
        kind=hint,
        default=described.default,
        **{**metadata, "flag": metadata["flag"] or described.name, "convert": metadata["convert"] or hint},
    )


def wrong_number(value: float, check: Check | None) -> str | None:
    """The fault in the value of an option that is a number; all numbers have to be finite."""
    if isinstance(value, int) and abs(value) > 10**300:
        return f"is a number of {len(str(abs(value)))} digits; give at most {LARGEST_INTEGER}"
    if not math.isfinite(value):
        return f"is {value}; give a finite number"
    return None if check is None else check(value)


def at_least(least: float, most: float = math.inf) -> Check:
    """Checks that a number is not below `least` nor above `most`, which has a default for whole numbers."""

    def check(value: float) -> str | None:
        highest = LARGEST_INTEGER if isinstance(value, int) and most == math.inf else most
        if value < least:
            return f"is {value}; give at least {least}"
        return f"is {value:.6g}; give at most {highest}" if value > highest else None

    return check


def above_zero(reason: str) -> Check:
    """Checks that a number is above 0, for a reason that the sentence ends with."""

    def check(value: float) -> str | None:
        return None if value > 0 else f"is {value}; give a number above 0, {reason}"

    return check


def share(value: float) -> str | None:
    """Checks that a number lies between 0 and 1."""
    return None if 0 <= value <= 1 else f"is {value}; give a number between 0 and 1"


def below_one(value: float) -> str | None:
    """Checks that a number is at least 0 and below 1."""
    return None if 0 <= value < 1 else f"is {value}; give a number of at least 0 and below 1"
