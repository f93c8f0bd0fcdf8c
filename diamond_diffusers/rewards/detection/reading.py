"""Reads what a prompt of things, numbers, colours and a relation requires, and refuses every other one."""

from __future__ import annotations

import re
from functools import lru_cache

from .colours import COLOURS
from .requirements import Count, Position, Presence, Requirement

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

_PREFIX = re.compile(r"(?:an? )?(?:photo|photograph|picture|image|painting|drawing) of (?=\S)")
_RELATION = re.compile(r" (?:(?:to|on) the )?(left of|right of) | (above|below) ")
_EXACTLY = re.compile(r"exactly (?!an? )")
"""What a number says anyway."""
_CONJUNCTION = re.compile(r", and |, | and ")
_WORDS = re.compile(r"[a-z]+(?:-[a-z]+)*(?: [a-z]+(?:-[a-z]+)*){0,2}")
_OTHER_WORDS = (
    "about across all along among any are around as at atop away back be before behind beneath beside between both but"
    " by close each every facing few for from front full group has have he her his holding in inside into is it its"
    " left lots lying many more most near next no none not of off on onto opposite or other out outside over pair per"
    " playing riding right same several she side sitting some standing that the their them there these they this those"
    " through to top toward under underneath up very was wearing were where which while who with within without"
)
_OTHER_NUMBERS = (
    "eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty"
    " seventy eighty ninety hundred thousand million dozen couple several half"
)
_UNREAD, _UNREAD_BEFORE_OTHERS = frozenset(_OTHER_WORDS.split()), frozenset(_OTHER_NUMBERS.split())
_PLURALS = {
    "aircraft": "aircraft",
    "axes": "axe",
    "brownies": "brownie",
    "buses": "bus",
    "calves": "calf",
    "canoes": "canoe",
    "children": "child",
    "cookies": "cookie",
    "deer": "deer",
    "elves": "elf",
    "feet": "foot",
    "fish": "fish",
    "gases": "gas",
    "geese": "goose",
    "goldfish": "goldfish",
    "hooves": "hoof",
    "irises": "iris",
    "knives": "knife",
    "leaves": "leaf",
    "lenses": "lens",
    "loaves": "loaf",
    "men": "man",
    "mice": "mouse",
    "movies": "movie",
    "oxen": "ox",
    "people": "person",
    "quizzes": "quiz",
    "scarves": "scarf",
    "scissors": "scissors",
    "sheep": "sheep",
    "shelves": "shelf",
    "shoes": "shoe",
    "shrimp": "shrimp",
    "skis": "skis",
    "teeth": "tooth",
    "thieves": "thief",
    "toes": "toe",
    "wolves": "wolf",
    "women": "woman",
    "zombies": "zombie",
}
"""Those that do not follow the rules of `_singular`."""


@lru_cache(maxsize=1024)
def read_requirements(prompt: str) -> tuple[Requirement, ...]:
    """What a prompt requires.

    A prompt is read that names things, or one thing in a relation to another: "a photo of a dog", "three red apples, a
    cat and two birds", "a cat to the left of a blue car". "A dog" requires at least one, and a number exactly so many.

    Raises:
        ValueError: the prompt says anything else, which the message names.
    """
    text = " ".join(prompt.lower().split()).rstrip(". ")
    prefix = _PREFIX.match(text)
    text = text[prefix.end() :] if prefix else text
    relations = list(_RELATION.finditer(text))
    if not relations:
        return tuple(_thing(part, prompt) for part in _CONJUNCTION.split(text))
    if len(relations) > 1:
        raise _refusal(prompt, "more than one relation")
    (found,) = relations
    one, other = (_thing(part, prompt) for part in (text[: found.start()], text[found.end() :]))
    if not isinstance(one, Presence) or not isinstance(other, Presence):
        raise _refusal(prompt, "a relation of several things")
    relation = found[1] or found[2]
    try:
        return one, other, Position(one.name, relation, other.name, one.colour, other.colour)
    except ValueError as error:
        raise _refusal(prompt, "a relation of things that cannot be told apart") from error


def _thing(text: str, prompt: str) -> Presence | Count:
    first, _, rest = _EXACTLY.sub("", text).partition(" ")
    number = _number(first)
    if first not in ("a", "an") and number is None:
        raise _refusal(prompt, f"{text!r}, which begins with neither 'a' nor a number")
    colour, _, name = rest.partition(" ")
    if colour not in COLOURS or not name:
        colour, name = "", rest
    words = name.split(" ")
    unread = [word for word in words if word in _UNREAD or _number(word) is not None]
    unread += [word for word in words[:-1] if word in _UNREAD_BEFORE_OTHERS]
    # An orange is a fruit, too.
    unread += [word for word in words if word in COLOURS and words != ["orange"]]
    is_doing = len(words) > 1 and words[-1].endswith("ing")
    if not _WORDS.fullmatch(name) or unread or is_doing:
        what = repr(unread[0] if unread else words[-1] if is_doing else name)
        raise _refusal(prompt, f"{text!r}, where {what} is no part of a name of one to three words")
    if number is None:
        return Presence(name, colour or None)
    if number != 1:
        name = " ".join([*words[:-1], _singular(words[-1], prompt)])
    try:
        return Count(name, number, colour or None)
    except ValueError as error:
        raise _refusal(prompt, f"the number {number}, which is too large") from error


def _number(word: str) -> int | None:
    if word in NUMBERS:
        return NUMBERS.index(word)
    return int(word) if re.fullmatch(r"\d{1,4}", word) else None


def _singular(word: str, prompt: str) -> str:
    if word in _PLURALS:
        return _PLURALS[word]
    if word.endswith("ies") and len(word) > 4:
        return f"{word[:-3]}y"
    if word.endswith(("sses", "xes", "ches", "shes", "oes")):
        return word[:-2]
    if word.endswith("uses") and not word.endswith(("ouses", "fuses", "muses", "cuses")):
        return word[:-2]
    if word.endswith("s") and not word.endswith(("ss", "us", "sis", "nis", "ris")):
        return word[:-1]
    raise _refusal(prompt, f"{word!r}, whose plural is not understood")


def _refusal(prompt: str, what: str) -> ValueError:
    return ValueError(
        f"the prompt {prompt!r} has {what}, so that what it requires cannot be read from it; name things with "
        "articles, numbers, colours and one relation alone, or give CompositionReward({prompt: requirements})."
    )
