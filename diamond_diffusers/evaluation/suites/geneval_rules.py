"""GenEval's rules on detected objects, free of any model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...rewards.detection.colours import COLOURS
from ...rewards.detection.geometry import RELATIONS, overlap, relations

_NAMES = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,"
    "bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,"
    "skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,"
    "cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,"
    "potted plant,bed,dining table,toilet,tv,laptop,computer mouse,tv remote,computer keyboard,cell phone,microwave,"
    "oven,toaster,sink,refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"
)
OBJECTS = tuple(_NAMES.split(","))
"""GenEval's names of COCO's 80 classes, in COCO's order."""


@dataclass(frozen=True)
class Thresholds:
    """The options of GenEval's `evaluate_images.py`, with its defaults.

    Attributes:
        confidence: above which a detection counts.
        counting_confidence: the same for prompts of the task `counting`.
        max_objects: the largest number of objects of a class, the most confident ones.
        max_overlap: intersection over union from which the less confident of two objects is dropped; 1 drops none.
        slack: see `rewards.detection.geometry.direction`.
    """

    confidence: float = 0.3
    counting_confidence: float = 0.9
    max_objects: int = 16
    max_overlap: float = 1.0
    slack: float = 0.1


@dataclass(frozen=True)
class DetectedObject:
    """One object.

    Attributes:
        box: `[4]`, left, top, right and bottom in pixels.
        score: confidence.
        mask: `[H, W]`, or None where the detector gives none.
    """

    box: Tensor
    score: float
    mask: Tensor | None = None


NameColours = Callable[[Sequence[DetectedObject], str], list[str]]
"""The colour of each object of a class, which is named."""


def most_confident(
    scores: Tensor, boxes: Tensor, masks: Tensor | None, confidence: float, thresholds: Thresholds
) -> list[DetectedObject]:
    """The objects of one class that count, the most confident first.

    Args:
        scores: `[N]`.
        boxes: `[N, 4]`.
        masks: `[N, H, W]`, or None.
        confidence: above which a detection counts.
        thresholds: the other ones.
    """
    order = scores.argsort(descending=True, stable=True)
    waiting = order[scores[order] > confidence][: thresholds.max_objects].tolist()
    kept = []
    while waiting:
        first = waiting.pop(0)
        kept.append(DetectedObject(boxes[first], float(scores[first]), None if masks is None else masks[first]))
        if waiting and thresholds.max_overlap != 1:
            overlaps = overlap(boxes[first], boxes[waiting])
            waiting = [
                one for one, share in zip(waiting, overlaps.tolist(), strict=True) if share < thresholds.max_overlap
            ]
    return kept


def faults(
    found: Mapping[str, Sequence[DetectedObject]], metadata: Mapping[str, Any], name_colours: NameColours, slack: float
) -> list[str]:
    """What is wrong with an image, in GenEval's words; nothing if it is right.

    Args:
        found: the objects of each class, the most confident first.
        metadata: of the prompt, as `check_metadata` accepts.
        name_colours: tells colours; asked only where the metadata name one.
        slack: see `Thresholds`.
    """
    reasons: list[str] = []
    groups: list[Sequence[DetectedObject] | None] = []
    for clause in metadata.get("include", []):
        name, count = clause["class"], clause["count"]
        objects = found.get(name, [])[:count]
        if len(objects) < count:
            wrong = [f"expected {name}>={count}, found {len(objects)}"]
        else:
            wrong = _wrong_colours(objects, clause, name_colours) or _wrong_place(objects, clause, groups, slack)
        reasons += wrong
        groups.append(None if wrong else objects)
    for clause in metadata.get("exclude", []):
        name, count = clause["class"], clause["count"]
        if len(found.get(name, [])) >= count:
            reasons.append(f"expected {name}<{count}, found {len(found[name])}")
    return reasons


def _wrong_colours(
    objects: Sequence[DetectedObject], clause: Mapping[str, Any], name_colours: NameColours
) -> list[str]:
    if "color" not in clause:
        return []
    wanted, name, count = clause["color"], clause["class"], clause["count"]
    colours = name_colours(objects, name)
    if colours.count(wanted) >= count:
        return []
    seen = ", ".join(f"{colours.count(colour)} {colour}" for colour in COLOURS if colour in colours)
    return [f"expected {wanted} {name}>={count}, found {colours.count(wanted)} {wanted}; and {seen}"]


def _wrong_place(
    objects: Sequence[DetectedObject],
    clause: Mapping[str, Any],
    groups: Sequence[Sequence[DetectedObject] | None],
    slack: float,
) -> list[str]:
    if "position" not in clause:
        return []
    wanted, target = clause["position"]
    targets, name = groups[target], clause["class"]
    if targets is None:
        return [f"no target for {name} to be {wanted}"]
    for each in objects:
        for other in targets:
            seen = relations(each.box, other.box, slack)
            if wanted not in seen:
                return [f"expected {name} {wanted} target, found {' and '.join(seen)} target"]
    return []


def check_metadata(metadata: Mapping[str, Any], text: str) -> None:
    """Checks that the metadata of a prompt are those of GenEval.

    Raises:
        ValueError: they are not.
    """
    problem = _problem(metadata)
    if problem:
        raise ValueError(
            f"the prompt {text!r} has {problem}; give the prompts of GenEval's evaluation_metadata.jsonl, with their "
            "'tag', 'include' and 'exclude'"
        )


def _problem(metadata: Mapping[str, Any]) -> str | None:
    if not isinstance(metadata.get("tag"), str):
        return "no 'tag' in its metadata"
    if not metadata.get("include") and not metadata.get("exclude"):
        return "neither 'include' nor 'exclude' in its metadata"
    for key in ("include", "exclude"):
        clauses = metadata.get(key, [])
        if not isinstance(clauses, list):
            return f"{key}={clauses!r}, which is no list"
        for place, clause in enumerate(clauses):
            if fault := _problem_of_clause(clause, place):
                return f"{key}[{place}]={clause!r}, {fault}"
    return None


def _problem_of_clause(clause: Any, place: int) -> str | None:
    if not isinstance(clause, dict) or clause.get("class") not in OBJECTS:
        return "whose 'class' is none of GenEval's 80 objects"
    if not isinstance(clause.get("count"), int) or clause["count"] < 1:
        return "whose 'count' is no positive number"
    if "color" in clause and clause["color"] not in COLOURS:
        return f"whose 'color' is none of {', '.join(COLOURS)}"
    if "position" not in clause:
        return None
    position = clause["position"]
    is_pair = isinstance(position, list | tuple) and len(position) == 2
    if not is_pair or position[0] not in RELATIONS or position[1] not in range(place):
        return f"whose 'position' is not one of {', '.join(RELATIONS)} with the number of an earlier object"
    return None
