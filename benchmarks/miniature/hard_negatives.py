"""Captions that are one word, or one exchange of words, away from the truth about a scene."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from diamond_diffusers.miniature.grammar import COLOURS, NUMBERS, RELATIONS, SHAPES, Caption, ObjectGroup, parse_caption
from diamond_diffusers.miniature.judge import PlacedObject, objects_satisfy

KINDS = (
    "colour",
    "shape",
    "count",
    "relation",
    "swapped colours",
    "swapped places",
    "missing object",
    "extra object",
)


def hard_negatives(caption: Caption, objects: Sequence[PlacedObject]) -> dict[str, list[Caption]]:
    """False captions of the grammar that lie close to a true one, by kind of change.

    Args:
        caption: a caption that the objects satisfy.
        objects: everything the scene holds.

    Returns:
        For each of `KINDS` the captions, none of which the objects satisfy; kinds without any are left out.
    """
    candidates = {
        "colour": _recoloured(_with_colours(caption, objects)),
        "shape": _reshaped(caption),
        "count": _recounted(caption),
        "relation": _related_otherwise(caption),
        "swapped colours": _with_swapped_colours(_with_colours(caption, objects)),
        "swapped places": _with_swapped_places(caption),
        "missing object": _without_one_group(caption),
        "extra object": _with_another_group(caption),
    }
    by_kind = {
        kind: [negative for negative in _in_grammar(variants) if not objects_satisfy(objects, negative)]
        for kind, variants in candidates.items()
    }
    return {kind: negatives for kind, negatives in by_kind.items() if negatives}


def true_captions(objects: Sequence[PlacedObject], caption: Caption) -> list[Caption]:
    """Every caption of the grammar that the objects of `caption` satisfy: colours named or left open, both orders
    of two groups, and each relation that holds."""
    named = _with_colours(caption, objects)
    open_groups = tuple(replace(group, colour=None) for group in caption.groups)
    variants = [
        replace(caption, groups=groups[::order], relation=relation)
        for groups in (named.groups, open_groups)
        for order in ((1, -1) if len(groups) == 2 else (1,))
        for relation in ((None, *RELATIONS) if len(groups) == 2 else (None,))
    ]
    return [variant for variant in _in_grammar(variants) if objects_satisfy(objects, variant)]


def _in_grammar(variants: Iterable[Caption]) -> Iterator[Caption]:
    for variant in variants:
        try:
            yield parse_caption(variant.text)
        except ValueError:
            continue


def _with_colours(caption: Caption, objects: Sequence[PlacedObject]) -> Caption:
    colours = {thing.shape: thing.colour for thing in objects}
    return replace(caption, groups=tuple(replace(group, colour=colours[group.shape]) for group in caption.groups))


def _with_group(caption: Caption, index: int, group: ObjectGroup) -> Caption:
    groups = list(caption.groups)
    groups[index] = group
    return replace(caption, groups=tuple(groups))


def _recoloured(caption: Caption) -> Iterator[Caption]:
    for index, group in enumerate(caption.groups):
        for colour in COLOURS:
            yield _with_group(caption, index, replace(group, colour=colour))


def _reshaped(caption: Caption) -> Iterator[Caption]:
    for index, group in enumerate(caption.groups):
        for shape in SHAPES:
            yield _with_group(caption, index, replace(group, shape=shape))


def _recounted(caption: Caption) -> Iterator[Caption]:
    for index, group in enumerate(caption.groups):
        for count in (group.count - 1, group.count + 1):
            if 1 <= count <= max(NUMBERS):
                yield _with_group(caption, index, replace(group, count=count))


def _related_otherwise(caption: Caption) -> Iterator[Caption]:
    if caption.relation is not None:
        for relation in RELATIONS:
            yield replace(caption, relation=relation)


def _with_swapped_colours(caption: Caption) -> Iterator[Caption]:
    if len(caption.groups) == 2:
        first, second = caption.groups
        groups = (replace(first, colour=second.colour), replace(second, colour=first.colour))
        yield replace(caption, groups=groups)


def _with_swapped_places(caption: Caption) -> Iterator[Caption]:
    if caption.relation is not None:
        yield replace(caption, groups=caption.groups[::-1])


def _without_one_group(caption: Caption) -> Iterator[Caption]:
    if len(caption.groups) == 2:
        for group in caption.groups:
            yield replace(caption, groups=(group,), relation=None)


def _with_another_group(caption: Caption) -> Iterator[Caption]:
    if len(caption.groups) == 1 and caption.num_objects == 1:
        colours = COLOURS if caption.groups[0].colour else (None,)
        for shape in SHAPES:
            for colour in colours:
                yield replace(caption, groups=(*caption.groups, ObjectGroup(shape, colour)))
