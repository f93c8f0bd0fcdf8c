"""Values of JSON become what a form asks for, or the first misfit is named."""

import math
from dataclasses import dataclass
from typing import Any, Literal, NotRequired, TypedDict

import pytest

from diamond_diffusers.files.foreign import ForeignFileError
from diamond_diffusers.files.json_forms import fitted, whole_numbers


@dataclass(frozen=True)
class Point:
    x: float
    names: list[str]


class Named(TypedDict):
    name: str
    point: Point | None
    size: NotRequired[int]


def test_what_fits_becomes_what_was_asked_for():
    assert fitted({"x": 1, "names": ["a"]}, Point, "f", "r") == Point(1.0, ["a"])
    named = fitted({"name": "inf", "point": {"x": "-inf", "names": []}, "more": [1]}, Named, "f", "r")
    assert named == {"name": "inf", "point": Point(-math.inf, []), "more": [1]}
    assert fitted({**named, "size": 2}, Named, "f", "r")["size"] == 2
    with pytest.raises(ForeignFileError, match="size of f is 'x' in place of a whole number; r"):
        fitted({**named, "size": "x"}, Named, "f", "r")
    assert math.isnan(fitted(["nan"], list[float], "f", "r")[0])
    assert fitted({"a": None, "b": 2}, dict[str, int | None], "f", "r") == {"a": None, "b": 2}
    assert fitted({"a": [None, {}]}, Any, "f", "r") == {"a": [None, {}]}
    assert fitted("ddpm", float | str, "f", "r") == "ddpm"
    assert fitted((0.1, 1), tuple[float, ...], "f", "r") == (0.1, 1.0)
    assert fitted("a", Literal["a", "b"], "f", "r") == "a"
    point = Point(1.0, [])
    assert fitted(point, Point | None, "f", "r") is point


@pytest.mark.parametrize(
    ("value", "form", "message"),
    [
        ([1], dict[str, Any], "f is a list in place of an object; r"),
        (True, int, "f is True in place of a whole number; r"),
        (False, float, "f is False in place of a number; r"),
        (1, bool, "f is 1 in place of true or false; r"),
        (2.0, int, "f is 2.0 in place of a whole number; r"),
        ("2", int | None, "f is '2' in place of a whole number or null; r"),
        ([10**400], list[float], "[0] of f is a huge number, above all that a number here can be; r"),
        (10**40, str, "f is a huge number in place of a text; r"),
        ("x" * 99, int, f"f is '{'x' * 56}... in place of a whole number; r"),
        ({"a": {"b": [0, "c"]}}, dict[str, dict[str, list[int]]], "a.b[1] of f is 'c' in place of a whole number; r"),
        ({"a\nb": "c"}, dict[str, int], "a\\nb of f is 'c' in place of a whole number; r"),
        ({"a" * 99: "c"}, dict[str, int], f"{'a' * 60} of f is 'c' in place of a whole number; r"),
        ({"a": 1, "x\ny": 2}, Point, "f has no 'x'; r"),
        ({"x": 1}, Point, "f has no 'names'; r"),
        ({"x": 1, "names": [], "y": 2}, Point, "f has 'y', which is unknown; r"),
        ({"name": "a", "point": {"x": 1, "names": [3]}}, Named, "point.names[0] of f is 3 in place of a text; r"),
        ({}, Point | None, "f has no 'x'; r"),
        ({"name": "a", "point": {"x": 1, "names": [], "z": 1}}, Named, "point of f has 'z', which is unknown; r"),
        ("c", Literal["a", "b"], "f is 'c' in place of 'a' or 'b'; r"),
        (3, Named, "f is 3 in place of an object; r"),
        (3, Point, "f is 3 in place of an object; r"),
    ],
)
def test_what_does_not_fit_is_named(value, form, message):
    with pytest.raises(ForeignFileError) as refusal:
        fitted(value, form, "f", "r")
    assert str(refusal.value) == message


def test_whole_numbers_are_found_with_their_keys():
    value = {"a": [1, {"b": 2}], "c": 3.5, "d": "4", "e": None}
    assert list(whole_numbers(value)) == [("a[0]", 1), ("a[1].b", 2)]
    assert list(whole_numbers(value["a"], "a")) == [("a[0]", 1), ("a[1].b", 2)]
