"""What an image is required to show, and how well what was found fulfils it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .colours import COLOURS
from .geometry import RELATIONS, agreement, direction, expected_error, relations

MAX_OBJECTS = 32
"""How many boxes of a phrase are looked at, the most confident ones."""


@dataclass(frozen=True)
class Found:
    """The boxes in an image that may show an object, at most `MAX_OBJECTS`.

    Attributes:
        certainties: `[N]`, from 0 to 1, that a box shows it, in its colour; with their graph.
        shows: `[N]`, whether it counts for the hard rule.
        boxes: `[N, 4]`, left, top, right and bottom in pixels.
    """

    certainties: Tensor
    shows: Tensor
    boxes: Tensor


class Scene(Protocol):
    """An image that was looked at."""

    def find(self, name: str, colour: str | None) -> Found:
        """The boxes that may show an object, of a colour where one is asked for."""


class Requirement(ABC):
    """A property of an image. Subclasses are frozen dataclasses."""

    @property
    @abstractmethod
    def objects(self) -> tuple[str, ...]:
        """The names of the objects that have to be looked for."""

    @property
    @abstractmethod
    def names_colours(self) -> bool:
        """Whether a colour has to be told."""

    @abstractmethod
    def grade(self, scene: Scene) -> Tensor:
        """How well it is fulfilled, `[]`, from 0 to 1; with its graph."""

    @abstractmethod
    def holds(self, scene: Scene) -> bool:
        """Whether it is fulfilled."""


class OneObject(Requirement):
    """A requirement of one kind of object, perhaps of a colour."""

    name: str
    colour: str | None

    @property
    def objects(self) -> tuple[str, ...]:
        """See `Requirement`."""
        return (self.name,)

    @property
    def names_colours(self) -> bool:
        """See `Requirement`."""
        return self.colour is not None


@dataclass(frozen=True)
class Presence(OneObject):
    """At least one object, perhaps of a colour. Graded, it is the largest certainty of a box.

    Args:
        name: of the object, in the singular and without an article, such as "traffic light".
        colour: one of `COLOURS`, or None for any.

    Raises:
        ValueError: the name is empty, or the colour unknown.
    """

    name: str
    colour: str | None = None

    def __post_init__(self) -> None:
        _check(self.name, self.colour)

    def grade(self, scene: Scene) -> Tensor:
        """See `Requirement`."""
        certainties = scene.find(self.name, self.colour).certainties
        # The sum of none is 0, with its graph.
        return certainties.amax() if len(certainties) else certainties.sum()

    def holds(self, scene: Scene) -> bool:
        """See `Requirement`."""
        return bool(scene.find(self.name, self.colour).shows.any())


@dataclass(frozen=True)
class Count(OneObject):
    """Exactly so many objects, perhaps of a colour. Graded, it is `1 / (1 + E |K - number|)`.

    `K` is the number of objects if each box shows one by its certainty, independently of the others.

    Args:
        name: as of `Presence`.
        number: from 0 to `MAX_OBJECTS`.
        colour: as of `Presence`.

    Raises:
        ValueError: the name is empty, the colour unknown, or the number out of range.
    """

    name: str
    number: int
    colour: str | None = None

    def __post_init__(self) -> None:
        _check(self.name, self.colour)
        if not isinstance(self.number, int) or isinstance(self.number, bool) or not 0 <= self.number <= MAX_OBJECTS:
            raise ValueError(f"number is {self.number!r}; give a whole number from 0 to {MAX_OBJECTS}.")

    def grade(self, scene: Scene) -> Tensor:
        """See `Requirement`."""
        return 1 / (1 + expected_error(scene.find(self.name, self.colour).certainties, self.number))

    def holds(self, scene: Scene) -> bool:
        """See `Requirement`."""
        return int(scene.find(self.name, self.colour).shows.sum()) == self.number


@dataclass(frozen=True)
class Position(Requirement):
    """One object in a relation to another, by their boxes of the largest certainties.

    Graded, it is the product of both certainties and of `geometry.agreement`.

    Args:
        name: as of `Presence`.
        relation: "left of", "right of", "above" or "below".
        other: name of the object that it is seen from.
        colour: of the first, as of `Presence`.
        other_colour: of the other.

    Raises:
        ValueError: a name is empty, a colour or the relation unknown, or both objects are the same.
    """

    name: str
    relation: str
    other: str
    colour: str | None = None
    other_colour: str | None = None

    def __post_init__(self) -> None:
        _check(self.name, self.colour)
        _check(self.other, self.other_colour)
        if self.relation not in RELATIONS:
            raise ValueError(f"relation is {self.relation!r}; give one of {', '.join(RELATIONS)}.")
        if (self.name, self.colour) == (self.other, self.other_colour):
            raise ValueError(f"name and other are both {self.name!r}; give objects that can be told apart.")

    @property
    def objects(self) -> tuple[str, ...]:
        """See `Requirement`."""
        return (self.name, self.other)

    @property
    def names_colours(self) -> bool:
        """See `Requirement`."""
        return self.colour is not None or self.other_colour is not None

    def grade(self, scene: Scene) -> Tensor:
        """See `Requirement`."""
        seen = self._seen(scene)
        if not all(len(found.certainties) for found in seen):
            return torch.cat([found.certainties for found in seen])[:0].sum()
        (one, box), (other, other_box) = map(_most_certain, seen)
        return one * other * agreement(direction(box, other_box), self.relation)

    def holds(self, scene: Scene) -> bool:
        """See `Requirement`."""
        seen = self._seen(scene)
        if not all(found.shows.any() for found in seen):
            return False
        box, other = (found.boxes[torch.where(found.shows, found.certainties, -1).argmax()] for found in seen)
        return self.relation in relations(box, other)

    def _seen(self, scene: Scene) -> tuple[Found, Found]:
        return scene.find(self.name, self.colour), scene.find(self.other, self.other_colour)


def _most_certain(found: Found) -> tuple[Tensor, Tensor]:
    best = found.certainties.argmax()
    return found.certainties[best], found.boxes[best]


def _check(name: str, colour: str | None) -> None:
    if not isinstance(name, str) or not name.strip() or "." in name:
        raise ValueError(f"the object is {name!r}; give its name, such as 'traffic light'.")
    if colour is not None and colour not in COLOURS:
        raise ValueError(f"colour is {colour!r}; give one of {', '.join(COLOURS)}.")
