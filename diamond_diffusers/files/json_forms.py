"""Values of JSON as the types that the code expects, or the first key that has another."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

from .foreign import ForeignFileError

_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "an object",
    NoneType: "null",
}
_NOT_FINITE = ("inf", "-inf", "nan")
"""How `evaluation.files.plain` writes numbers that JSON has not."""


def fitted(value: Any, form: Any, name: str, remedy: str) -> Any:
    """A value of JSON as a form asks for it: objects become its dataclasses, the texts inf and nan its floats.

    Args:
        form: Any, a class, or `list`, `dict`, `|`, `Literal`, a `TypedDict` or a dataclass of such. Of a `TypedDict` an
            object may have further keys, and may lack those that are `NotRequired`; of a dataclass it may not.
        name: of the file, or of the place in it that the value is from.
        remedy: what the user should do where it does not fit.

    Raises:
        ForeignFileError: the value does not fit; the message names the first key that does not.
    """
    try:
        return _fitted(value, form, "")
    except _MisfitError as misfit:
        place = f"{misfit.place.removeprefix('.')} of {name}" if misfit.place else name
        raise ForeignFileError(f"{place} {misfit.problem}; {remedy}") from None


class _MisfitError(Exception):
    """What does not fit.

    Attributes:
        place, problem: halves of a sentence.
        is_of_keys: whether the value has the right type, but not the right keys.
    """

    def __init__(self, place: str, problem: str, is_of_keys: bool = False) -> None:
        super().__init__(place, problem)
        self.place, self.problem, self.is_of_keys = place, problem, is_of_keys


def _fitted(value: Any, form: Any, place: str) -> Any:
    kind, parts = get_origin(form) or form, get_args(form)
    if kind in (Union, UnionType):
        return _one_of(value, parts, place)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return kind(**_object(value, kind, place))
    if is_typeddict(kind) and isinstance(value, dict):
        return {**value, **_object(value, kind, place)}
    if kind is float and (value in _NOT_FINITE or _is(value, int)):
        try:
            return float(value)
        except OverflowError:
            raise _MisfitError(place, f"is {shown(value)}, above all that a number here can be") from None
    if kind is Literal:
        if value not in parts:
            raise _MisfitError(place, f"is {shown(value)} in place of {' or '.join(map(repr, parts))}")
    elif not _is(value, kind):
        raise _MisfitError(place, f"is {shown(value)} in place of {_words(kind)}")
    if isinstance(value, Mapping) and parts:
        return {key: _fitted(inner, parts[1], f"{place}.{key[:60]}") for key, inner in value.items()}
    if isinstance(value, list | tuple) and parts:
        return type(value)(_fitted(inner, parts[0], f"{place}[{index}]") for index, inner in enumerate(value))
    return value


def _one_of(value: Any, forms: Sequence[Any], place: str) -> Any:
    problems = []
    for form in forms:
        try:
            return _fitted(value, form, place)
        except _MisfitError as misfit:
            problems.append(misfit)
    # The problem that lies deepest is that of the form which was meant.
    deepest = max(problems, key=lambda misfit: (len(misfit.place), misfit.is_of_keys))
    if deepest.place != place or deepest.is_of_keys:
        raise deepest
    raise _MisfitError(place, f"is {shown(value)} in place of {' or '.join(map(_words, forms))}")


def _object(value: dict[str, Any], form: type, place: str) -> dict[str, Any]:
    hints = get_type_hints(form)
    for key, hint in get_type_hints(form, include_extras=True).items():
        if key not in value and get_origin(hint) is not NotRequired:
            raise _MisfitError(place, f"has no {key!r}", is_of_keys=True)
    if dataclasses.is_dataclass(form):
        for key in value:
            if key not in hints:
                raise _MisfitError(place, f"has {shown(key)}, which is unknown", is_of_keys=True)
    return {key: _fitted(value[key], hint, f"{place}.{key}") for key, hint in hints.items() if key in value}


def _is(value: Any, kind: Any) -> bool:
    """Whether it is of the kind; true and false are no numbers."""
    if kind is Any:
        return True
    if isinstance(value, bool) and kind in (int, float):
        return False
    return not is_typeddict(kind) and isinstance(value, kind)


def _words(form: Any) -> str:
    kind = get_origin(form) or form
    kind = dict if is_typeddict(kind) or dataclasses.is_dataclass(kind) else kind
    return _WORDS.get(kind, getattr(kind, "__name__", str(kind)))


def whole_numbers(value: Any, place: str = "") -> Iterator[tuple[str, int]]:
    """All whole numbers within a value of JSON, each with the keys that lead to it, such as "batch.seeds[0]".

    Args:
        place: of the value itself.
    """
    if isinstance(value, int):
        yield place.removeprefix("."), value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from whole_numbers(inner, f"{place}.{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from whole_numbers(inner, f"{place}[{index}]")


def shown(value: Any) -> str:
    """A value of JSON in a sentence, where it is short."""
    if isinstance(value, dict | list):
        return _WORDS[type(value)]
    # More than any int is written out for.
    text = "a huge number" if _is(value, int) and abs(value) > 10**30 else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
