"""Values as type annotations ask for them: those of Python, and texts of files and of the command line."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from numbers import Real
from operator import index
from types import NoneType, SimpleNamespace, UnionType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from torch import Tensor

from .wording import shown

NONE = ("none", "null")
"""The texts that stand for None."""
# In this order the types of a union are tried: a text that is a number is taken as the number.
_ORDER = (NoneType, bool, int, float)


class WrongTypeError(TypeError, ValueError):
    """A value is not of the type that an argument asks for.

    It is a `ValueError` too, since a text is refused as a wrong value wherever it is read.
    """


class _MisfitError(Exception):
    """A value is not of a type."""


class Values:
    """Takes the values of Python code as annotations ask for them, and refuses others.

    Numbers of numpy and tensors without dimensions are taken as the numbers that they hold; True is no number, and
    neither is nan.

    Example:
        >>> Values().fitted([1, 2], tuple[int, ...], "layers")
        (1, 2)
    """

    words: ClassVar[dict[Any, str]] = {
        bool: "True or False",
        int: "a whole number",
        float: "a number",
        str: "a text",
        NoneType: "None",
        dict: "a dictionary",
        Callable: "a function",
        Tensor: "a tensor",
    }
    """What a value of a type is called."""

    def fitted(self, value: Any, hint: Any, name: str) -> Any:
        """A value as an annotation asks for it.

        Args:
            value: to be taken.
            hint: the annotation, resolved.
            name: by which the caller knows the value, for the error.

        Raises:
            WrongTypeError: it is of another type.
        """
        try:
            return self._converted(value, hint)
        except _MisfitError:
            raise WrongTypeError(f"{name} is {shown(value)}; give {self.described(hint)}") from None

    def described(self, hint: Any) -> str:
        """What a value of a type is called."""
        words: list[str] = []
        for kind in members(hint):
            origin, parts = get_origin(kind), get_args(kind)
            if origin is Literal:
                words += [str(part) for part in parts]
            elif origin in (tuple, list):
                words.append(self._several(self.described(parts[0])))
            else:
                name = getattr(kind, "__name__", str(kind))
                words.append(self.words.get(origin or kind, f"an object of {name}"))
        return " or ".join(dict.fromkeys(words))

    def is_none(self, value: Any) -> bool:
        """Whether a value stands for None."""
        return value is None

    def ways_to_give_a_part(self, example: type, names: Sequence[str]) -> str:
        """How a part of the kinds of these names is given, for errors."""
        return f"an object, such as {example.__name__}(), or one of the names {', '.join(names)}"

    def ways_to_give_a_record(self, kind: type, option: str | None) -> str:
        """How a record of options is given, for errors.

        Args:
            option: one of them, as the command line spells it; None where it has none.
        """
        return f"an object, such as {kind.__name__}()"

    def _several(self, words: str) -> str:
        """What several values are called, of which one is called so."""
        return f"a list, each of which is {words}"

    def _converted(self, value: Any, hint: Any) -> Any:
        kind, parts = get_origin(hint) or hint, get_args(hint)
        if kind in (Union, UnionType):
            return self._first_that_fits(value, parts)
        if kind is Literal:
            return self._first_that_fits(value, [type(part) for part in parts], lambda found: found in parts)
        if kind in (tuple, list) and parts:
            return self._sequence(value, kind, parts)
        if kind is NoneType:
            return self._none(value)
        convert = {bool: self._bool, int: self._int, float: self._float}.get(kind)
        if convert is not None:
            return convert(value)
        if not _is_of(value, kind):
            raise _MisfitError
        return value

    def _first_that_fits(
        self, value: Any, kinds: Sequence[Any], fits: Callable[[Any], bool] = lambda value: True
    ) -> Any:
        """A value as the first of several types that it has, or that its text can be taken for."""
        for kind in sorted(kinds, key=lambda kind: _ORDER.index(kind) if kind in _ORDER else len(_ORDER)):
            try:
                found = self._converted(value, kind)
            except _MisfitError:
                continue
            if fits(found):
                return found
        raise _MisfitError

    def _sequence(self, value: Any, kind: type, parts: Sequence[Any]) -> Any:
        items = self._items(value)
        if kind is list or (len(parts) == 2 and parts[1] is Ellipsis):
            parts = (parts[0],) * len(items)
        if len(parts) != len(items):
            raise _MisfitError
        return kind(self._converted(item, part) for item, part in zip(items, parts, strict=True))

    def _items(self, value: Any) -> Sequence[Any]:
        if not isinstance(value, Sequence) or isinstance(value, str | bytes):
            raise _MisfitError
        return value

    def _none(self, value: Any) -> None:
        if not self.is_none(value):
            raise _MisfitError

    def _bool(self, value: Any) -> bool:
        value = _scalar(value)
        if not isinstance(value, bool):
            raise _MisfitError
        return value

    def _int(self, value: Any) -> int:
        value = _scalar(value)
        if isinstance(value, bool):
            raise _MisfitError
        try:
            return index(value)
        except TypeError:
            raise _MisfitError from None

    def _float(self, value: Any) -> float:
        value = _scalar(value)
        if not isinstance(value, Real) or isinstance(value, bool):
            raise _MisfitError
        try:
            number = float(value)
        except OverflowError:
            raise _MisfitError from None
        if math.isnan(number):
            raise _MisfitError
        # Whole numbers stay what they are, for those who show or count by them, if torch can hold them.
        return value if isinstance(value, int) and abs(value) < 2**63 else number


class Texts(Values):
    """Takes texts for the values that they stand for, and values of Python as `Values` does.

    "none" (or "null") stands for None, "inf" for infinity, "true" and "false" for themselves, and commas stand between
    several values.

    Example:
        >>> Texts().fitted("1, 2", tuple[int, ...], "layers")
        (1, 2)
    """

    words: ClassVar[dict[Any, str]] = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a text",
        NoneType: "none",
    }

    def is_none(self, value: Any) -> bool:
        return value is None or (isinstance(value, str) and value.lower() in NONE)

    def ways_to_give_a_part(self, example: type, names: Sequence[str]) -> str:
        return f"one of {', '.join(names)}"

    def ways_to_give_a_record(self, kind: type, option: str | None) -> str:
        return "options" if option is None else f"options, such as {option}"

    def _several(self, words: str) -> str:
        return f"{words} each, separated by commas"

    def _items(self, value: Any) -> Sequence[Any]:
        items = value.split(",") if isinstance(value, str) else super()._items(value)
        return [item.strip() if isinstance(item, str) else item for item in items]

    def _bool(self, value: Any) -> bool:
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        return super()._bool(value)

    def _int(self, value: Any) -> int:
        return super()._int(_parsed(value, int))

    def _float(self, value: Any) -> float:
        return float(super()._float(_parsed(value, float)))


def members(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


@cache
def field_hints(cls: type) -> Mapping[str, Any]:
    """The resolved annotations of a class and its bases; Any for one that does not resolve, as of a local class."""
    try:
        return get_type_hints(cls)
    except Exception:
        # Some are imported for type checkers alone; the others count nevertheless.
        return {name: hint for base in reversed(cls.__mro__) for name, hint in _hints_one_by_one(base)}


def _hints_one_by_one(cls: type) -> list[tuple[str, Any]]:
    module = vars(sys.modules.get(cls.__module__, SimpleNamespace()))
    found: list[tuple[str, Any]] = []
    for name, hint in vars(cls).get("__annotations__", {}).items():
        try:
            found.append((name, get_type_hints(SimpleNamespace(__annotations__={name: hint}), module, vars(cls))[name]))
        except Exception:
            found.append((name, Any))
    return found


def _is_of(value: Any, kind: Any) -> bool:
    """Whether a value is of a class; true of whatever `isinstance` cannot tell, such as Any."""
    if kind is Any:
        return True
    if kind is Sequence and isinstance(value, str | bytes):
        return False
    try:
        return isinstance(value, kind)
    except TypeError:
        return True


def _scalar(value: Any) -> Any:
    """The number in a scalar of numpy or in an array or tensor without dimensions; all else as it is."""
    if getattr(value, "ndim", None) != 0:
        return value
    try:
        return value.item()
    except (AttributeError, RuntimeError):
        raise _MisfitError from None


def _parsed(value: Any, kind: type[int] | type[float]) -> Any:
    """The number that a text is of; all else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return kind(value)
    except ValueError:
        raise _MisfitError from None
