"""The text that a prompt asks for, and how much of it was read in an image."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from itertools import permutations

MAX_PERMUTED = 4
"""Parts whose orders are all tried: 24 of them."""

# Marks that open and close, and those that do neither within words, as apostrophes.
_DOUBLE = re.compile(
    r'(?<!\d)"([^"]*)"|“([^“”"]+)[”"]|„([^„“”]+)[“”]|«([^«»]+)»|»([^«»]+)«|「([^「」]+)」|『([^『』]+)』|《([^《》]+)》'
)
_SINGLE = re.compile(r"(?<!\w)[‘'‚](\S(?:(?:(?!(?<!\w)'\w)[^‘‚])*?\S)?)[’'‘](?!\w)|‹([^‹›]+)›")
_AND = re.compile(r"(?<=\w )['‘’](n)['’](?= \w)")
_APOSTROPHES = str.maketrans({"’": "'", "‘": "'", "ʼ": "'", "´": "'", "`": "'", "“": '"', "”": '"', "„": '"'})


def quoted_parts(prompt: str) -> list[str]:
    """The texts in quotation marks, in their order: straight, curly, German, French and East Asian ones.

    Single marks count where there are no double ones, and never within a word: in `a baker's sign that says 'OPEN'` the
    quoted text is `OPEN`. A mark after a figure is that of inches or minutes, and opens nothing.
    """
    # An apostrophe that is a letter, in the place of those of `rock 'n' roll`.
    for marks, text in ((_DOUBLE, prompt), (_SINGLE, _AND.sub("ʼ\\1ʼ", prompt))):
        found = [next(filter(None, match.groups()), "").strip() for match in marks.finditer(text)]
        parts = [part.replace("ʼnʼ", "'n'") for part in found if part]
        if parts:
            return parts
    return []


def normalised(text: str) -> str:
    """A text as it is compared: lower case, without white space, in compatible characters (`！` becomes `!`)."""
    return "".join(unicodedata.normalize("NFKC", text.translate(_APOSTROPHES)).lower().split())


def edit_distance(first: str, second: str) -> int:
    """How many characters have to be inserted, removed or replaced to make one text of the other (Levenshtein)."""
    row = list(range(len(second) + 1))
    for i, character in enumerate(first, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(second, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (character != other))
    return row[-1]


def text_score(parts: Sequence[str], read: str) -> float:
    """How much of the wanted parts was read, from 0 to 1: the OCR reward of Flow-GRPO, for one part or several.

    With `t` the parts one after another and `r` what was read, both `normalised`, it is::

        1 - min(distance(r, t), len(t)) / len(t),    or 1 where r contains every part

    so that further text costs nothing beside the right one, and can cost no more than all of it otherwise. Images need
    not show several parts in the order of the prompt: of all orders the best counts, of up to four parts.

    Args:
        parts: texts, at least one of which is more than white space.
        read: in reading order.
    """
    wanted, read = [normalised(part) for part in parts], normalised(read)
    if all(part in read for part in wanted):
        return 1.0
    orders = permutations(wanted) if len(wanted) <= MAX_PERMUTED else [tuple(wanted)]
    targets = {"".join(order) for order in orders}
    return max(1 - min(edit_distance(read, target), len(target)) / len(target) for target in targets)
