"""The captions of the miniature world: a grammar over six categories, after GenEval (arXiv 2310.11513)."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from functools import cache

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "diamond")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "black")
NUMBERS = {2: "two", 3: "three", 4: "four"}
RELATIONS = ("left of", "right of", "above", "below")
CATEGORIES = ("single_object", "two_objects", "counting", "colours", "position", "colour_attribution")

# How many captions of each category are kept out of training; single_object holds only eight captions in all.
HELD_OUT_COUNTS = {
    "single_object": 8,
    "colours": 32,
    "counting": 70,
    "two_objects": 40,
    "position": 70,
    "colour_attribution": 80,
}


@dataclass(frozen=True)
class ObjectGroup:
    """`count` objects of one shape; `colour` is None where the caption leaves it open."""

    shape: str
    colour: str | None = None
    count: int = 1

    @property
    def text(self) -> str:
        words = [self.colour] if self.colour else []
        if self.count == 1:
            words.append(self.shape)
            return " ".join(["an" if words[0][0] in "aeiou" else "a", *words])
        return " ".join([NUMBERS[self.count], *words, plural(self.shape)])


@dataclass(frozen=True)
class Caption:
    """What an image must show: its groups of objects, and for two groups how the first lies to the second."""

    category: str
    groups: tuple[ObjectGroup, ...]
    relation: str | None = None

    @property
    def text(self) -> str:
        return f" {self.relation or 'and'} ".join(group.text for group in self.groups)

    @property
    def num_objects(self) -> int:
        return sum(group.count for group in self.groups)

    @property
    def is_hard(self) -> bool:
        """Whether it binds two objects to their colours or to their places, in either order, or asks for four objects.

        The embedded model draws about a quarter of the former rightly, and fewer than half of the latter.
        """
        return self.category in ("colour_attribution", "position") or self.num_objects == 4


def relation_offset(dx: float, dy: float, relation: str) -> tuple[float, float]:
    """How far an offset (to the right, downwards) goes along a relation's direction, and how far across it."""
    return {"left of": (-dx, dy), "right of": (dx, dy), "above": (-dy, dx), "below": (dy, dx)}[relation]


def plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


def vocabulary() -> list[str]:
    """Every word that a caption can hold, in a fixed order."""
    words = ["a", "an", "and", *NUMBERS.values(), *" ".join(RELATIONS).split(), *COLOURS, *SHAPES]
    return list(dict.fromkeys(words + [plural(shape) for shape in SHAPES]))


@cache
def all_captions(category: str) -> tuple[Caption, ...]:
    """Every caption of a category, in a fixed order."""
    if category == "single_object":
        return tuple(Caption(category, (ObjectGroup(shape),)) for shape in SHAPES)
    if category == "colours":
        return tuple(
            Caption(category, (ObjectGroup(shape, colour),)) for shape, colour in itertools.product(SHAPES, COLOURS)
        )
    if category == "counting":
        choices = itertools.product(SHAPES, (None, *COLOURS), NUMBERS)
        return tuple(Caption(category, (ObjectGroup(shape, colour, count),)) for shape, colour, count in choices)
    shape_pairs = list(itertools.permutations(SHAPES, 2))
    if category == "two_objects":
        return tuple(Caption(category, (ObjectGroup(first), ObjectGroup(second))) for first, second in shape_pairs)
    colour_pairs = list(itertools.permutations(COLOURS, 2))
    coloured = [
        (ObjectGroup(s1, c1), ObjectGroup(s2, c2))
        for (s1, s2), (c1, c2) in itertools.product(shape_pairs, colour_pairs)
    ]
    if category == "colour_attribution":
        return tuple(Caption(category, groups) for groups in coloured)
    if category == "position":
        plain = [(ObjectGroup(first), ObjectGroup(second)) for first, second in shape_pairs]
        pairs = itertools.product(plain + coloured, RELATIONS)
        return tuple(Caption(category, groups, relation) for groups, relation in pairs)
    raise ValueError(f"category is {category!r}; choose one of {', '.join(CATEGORIES)}")


@cache
def held_out_captions() -> tuple[Caption, ...]:
    """The 300 captions of the benchmark, never seen by the embedded reward and, but for the eight of
    `single_object`, which are that whole category, never by the embedded model."""
    rng = random.Random(300)
    held_out = []
    for category in CATEGORIES:
        captions = all_captions(category)
        if category == "position":
            # Captions without colours are few among thousands; half of the held-out ones are of that kind.
            plain = [caption for caption in captions if caption.groups[0].colour is None]
            coloured = [caption for caption in captions if caption.groups[0].colour is not None]
            half = HELD_OUT_COUNTS[category] // 2
            held_out += rng.sample(plain, half) + rng.sample(coloured, HELD_OUT_COUNTS[category] - half)
        else:
            held_out += rng.sample(captions, HELD_OUT_COUNTS[category])
    return tuple(held_out)


@cache
def _training_pools(with_single_objects: bool) -> dict[str, list[Caption]]:
    excluded = {caption for caption in held_out_captions()}
    pools = {category: [c for c in all_captions(category) if c not in excluded] for category in CATEGORIES}
    pools["single_object"] = list(all_captions("single_object")) if with_single_objects else []
    plain = [caption for caption in pools["position"] if caption.groups[0].colour is None]
    pools["position_plain"] = plain
    return pools


def sample_training_caption(rng: random.Random, with_single_objects: bool = True) -> Caption:
    """A caption outside the held-out set: a category first (weighted by difficulty), then one of its captions."""
    pools = _training_pools(with_single_objects)
    weights = {"single_object": 1, "colours": 2, "counting": 4, "two_objects": 2, "position": 3, "position_plain": 2}
    weights["colour_attribution"] = 4
    if not with_single_objects:
        weights["single_object"] = 0
    category = rng.choices(list(weights), list(weights.values()))[0]
    return rng.choice(pools[category])


def parse_caption(text: str) -> Caption:
    """The caption that a text stands for.

    Raises:
        ValueError: the text is none of the grammar.
    """
    caption = _captions_by_text().get(" ".join(text.lower().split()))
    if caption is None:
        raise ValueError(
            f"text is {text!r}, which is no caption of the miniature world; write for example "
            "'three red circles' or 'a red star left of a blue ring'"
        )
    return caption


@cache
def _captions_by_text() -> dict[str, Caption]:
    return {caption.text: caption for category in CATEGORIES for caption in all_captions(category)}
