"""T2I-CompBench's rules on detected boxes for positions and numbers, free of any model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

Box = Sequence[float]
"""Left, top, right and bottom in pixels."""

RELATIONS = (
    "on side of",
    "next to",
    "near",
    "on the left of",
    "on the right of",
    "on the bottom of",
    "on the top of",
)
"""In the order in which a prompt is searched for them."""

_NAMES = (
    "airplane,apple,backpack,bag,balloon,banana,bear,bee,bicycle,bird,boat,book,bottle,bowl,boy,bread,butterfly,cake,"
    "camel,camera,candle,car,cat,chair,chicken,clock,computer,couch,cow,cup,deer,desk,dog,drum,duck,egg,fish,flag,frog,"
    "giraffe,girl,goldfish,guitar,hamburger,helicopter,helmet,horse,key,kite,knife,lamp,lemon,man,microphone,microwave,"
    "mouse,paddle,painting,peach,pear,pen,person,phone,pig,pillow,plate,printer,rabbit,refrigerator,sheep,ship,shrimp,"
    "sink,sofa,stool,strawberry,suitcase,swan,table,television,tent,tomato,toy,train,truck,turtle,vase,woman"
)
OBJECTS = frozenset(_NAMES.split(","))
"""The things that its prompts of numbers count."""
_PLURALS = {
    "butterflies": "butterfly",
    "couches": "couch",
    "knives": "knife",
    "men": "man",
    "mice": "mouse",
    "peaches": "peach",
    "people": "person",
    "strawberries": "strawberry",
    "tomatoes": "tomato",
    "women": "woman",
}
_NUMBERS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8}


@dataclass(frozen=True)
class Seen:
    """The most confident box of an object.

    Attributes:
        confidence: from 0 to 1.
        box: its place.
    """

    confidence: float
    box: Box


def position_score(relation: str, box: Box, other: Box, max_overlap: float = 0.1, distance: float = 150.0) -> float:
    """How well a box stands in a relation to another, from 0 to 1.

    Args:
        relation: one of `RELATIONS`.
        box: of the object that the relation is said of.
        other: of the object that it is seen from.
        max_overlap: intersection over union from which directions are marked down.
        distance: in pixels, within which objects are near; the published one is meant for images of 512 pixels.

    Source: as `determine_position` of T2I-CompBench.
    """
    right, down = (_centre(other, axis) - _centre(box, axis) for axis in (0, 1))
    if relation in ("next to", "on side of", "near"):
        is_near = abs(right) < distance or abs(down) < distance
        return 1.0 if is_near else distance / max(abs(right), abs(down))
    along, across = (right, down) if relation in ("on the left of", "on the right of") else (down, right)
    if relation in ("on the right of", "on the bottom of"):
        along = -along
    if along <= abs(across):
        return 0.0
    shared = _overlap(box, other)
    return 1.0 if shared < max_overlap else max_overlap / shared


def spatial_score(relation: str, one: Seen | None, other: Seen | None) -> float:
    """The score of an image from 0 to 1: half of it confidences, half the position, and nothing below 1/2.

    Args:
        relation: one of `RELATIONS`.
        one: the object that the relation is said of; None where it was not found.
        other: the object that it is seen from.
    """
    score = sum(0.25 * seen.confidence for seen in (one, other) if seen is not None)
    if one is not None and other is not None:
        score += position_score(relation, one.box, other.box) / 2
    return score if score >= 0.5 else 0.0


def distinct_boxes(boxes: Sequence[Box]) -> list[Box]:
    """The boxes of one object, without those that nearly are an earlier one, or nearly contain it or lie within it."""
    kept: list[Box] = []
    for box in boxes:
        if not any(_is_same(box, earlier) for earlier in kept):
            kept.append(box)
    return kept


def numeracy_score(found: Mapping[str, int], wanted: Sequence[tuple[str, int]]) -> float:
    """The score of an image from 0 to 1: of each thing half for being there, and half for its number.

    Args:
        found: numbers of the things that were found.
        wanted: things and their numbers; at least one.
    """
    parts = [0.5 * (found.get(name, 0) > 0) + 0.5 * (found.get(name, 0) == number > 0) for name, number in wanted]
    return sum(parts) / len(parts)


def read_spatial(text: str) -> tuple[str, str, str] | None:
    """The object, the relation and the other object of a prompt such as "a cat on the top of a sofa", or None."""
    for relation in RELATIONS:
        parts = re.fullmatch(rf"(?:an? |the )?([a-z-]+) {relation} (?:an? |the )?([a-z-]+)\.?", text.strip().lower())
        if parts:
            return parts[1], relation, parts[2]
    return None


def read_numbers(text: str) -> list[tuple[str, int]]:
    """The things and their numbers in a prompt such as "two cars and three dogs sat on the road"."""
    words = re.findall(r"[a-z]+", text.lower())
    pairs = [(_singular(word), _NUMBERS[number]) for number, word in pairwise(words) if number in _NUMBERS]
    return [(name, number) for name, number in pairs if name in OBJECTS]


def _singular(word: str) -> str:
    return word if word in OBJECTS else _PLURALS.get(word, word.removesuffix("s"))


def _centre(box: Box, axis: int) -> float:
    return (box[axis] + box[axis + 2]) / 2


def _overlap(box: Box, other: Box) -> float:
    sides = [max(0.0, min(box[axis + 2], other[axis + 2]) - max(box[axis], other[axis])) for axis in (0, 1)]
    shared = sides[0] * sides[1]
    united = sum((each[2] - each[0]) * (each[3] - each[1]) for each in (box, other)) - shared
    return shared / united if united > 0 else 0.0


def _is_same(box: Box, other: Box) -> bool:
    sides = [max(0.0, min(box[axis + 2], other[axis + 2]) - max(box[axis], other[axis]) + 1) for axis in (0, 1)]
    shared = sides[0] * sides[1]
    areas = [(each[2] - each[0] + 1) * (each[3] - each[1] + 1) for each in (box, other)]
    return any(shared / area > 0.9 for area in (sum(areas) - shared, *areas))
