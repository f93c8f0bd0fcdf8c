"""Text and JSON that others wrote: read right, or refused in one sentence with the file, the place and the remedy."""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any
from unicodedata import category

MAX_BYTES = 2**30
MAX_DEPTH = 64

_STEERING = ("Cc", "Cs", "Zl", "Zp")
"""Categories of characters: controls, halves of surrogate pairs, ends of lines and of paragraphs."""

_MARKS = {
    codecs.BOM_UTF8: "UTF-8",
    # Before those of UTF-16, with which they begin.
    codecs.BOM_UTF32_LE: "UTF-32-LE",
    codecs.BOM_UTF32_BE: "UTF-32-BE",
    codecs.BOM_UTF16_LE: "UTF-16-LE",
    codecs.BOM_UTF16_BE: "UTF-16-BE",
}


def one_line(message: str) -> str:
    """A sentence whose names of files and keys, which others wrote, cannot end its line or steer a terminal."""
    return "".join(
        character.encode("unicode_escape").decode() if category(character) in _STEERING else character
        for character in message
    )


class ForeignFileError(ValueError):
    """A file is not what it should be; the message names it, the place in it and the remedy, in one line."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def read_text(path: str | PathLike[str]) -> str:
    r"""A file of UTF-8, or of another Unicode encoding that its byte-order mark tells; every line ends with `\n`.

    Raises:
        ForeignFileError: the file cannot be read, is larger than `MAX_BYTES`, or is no such text.
    """
    try:
        with Path(path).open("rb") as opened:
            content = opened.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ForeignFileError(f"'{path}' cannot be read ({reason}); name a file of text") from error
    if len(content) > MAX_BYTES:
        raise ForeignFileError(f"'{path}' has more than {MAX_BYTES} bytes; split it, or name a file of text")
    mark = next((mark for mark in _MARKS if content.startswith(mark)), b"")
    encoding = _MARKS.get(mark, "UTF-8")
    try:
        text = _with_unix_line_ends(content[len(mark) :].decode(encoding))
    except UnicodeDecodeError as error:
        line = _line_after(_with_unix_line_ends(error.object[: error.start].decode(encoding)))
        raise ForeignFileError(f"line {line} of '{path}' is not in {encoding}; save the file as UTF-8") from error
    if "\0" in text:
        line = _line_after(text.partition("\0")[0])
        raise ForeignFileError(f"line {line} of '{path}' holds a zero byte; save the file as UTF-8 text")
    return text


def read_lines(path: str | PathLike[str]) -> Iterator[tuple[int, str]]:
    """The lines of a text that are not blank, each with its number from 1 on; errors as of `read_text`.

    Lines end where a text editor ends them, not at further separators of Unicode such as U+2028.
    """
    return ((number, line) for number, line in enumerate(read_text(path).split("\n"), 1) if line.strip())


def read_json(path: str | PathLike[str], remedy: str) -> Any:
    """The value that a file of JSON holds; `remedy` ends the sentence where it holds none.

    Raises:
        ForeignFileError: as `read_text` and `parse_json`.
    """
    return parse_json(read_text(path), f"'{path}'", remedy)


def parse_json(text: str, name: str, remedy: str) -> Any:
    """The value of a text in JSON.

    Args:
        name: of the text, such as "line 3 of 'prompts.jsonl'".
        remedy: what the user should do where it is refused.

    Raises:
        ForeignFileError: it is no JSON, repeats a key, is nested deeper than `MAX_DEPTH`, or holds a number that is
            not finite or a text that is no Unicode.
    """
    try:
        value = json.loads(text, object_pairs_hook=_without_repeated_keys)
    except RecursionError as error:
        raise ForeignFileError(f"{name} is nested deeper than {MAX_DEPTH} levels; {remedy}") from error
    except ValueError as error:
        raise ForeignFileError(f"{name} is no JSON ({str(error).partition(';')[0]}); {remedy}") from error
    # A loop, since nesting that the parser of the interpreter bears may be too deep for functions.
    unseen = [("", 0, value)]
    while unseen:
        place, depth, item = unseen.pop()
        problem = _problem(item)
        if depth > MAX_DEPTH:
            problem = f"is nested deeper than {MAX_DEPTH} levels"
        if problem is not None:
            raise ForeignFileError(f"{place.removeprefix('.') or 'the value'} of {name} {problem}; {remedy}")
        if isinstance(item, dict):
            unseen += [(place, depth, key) for key in item]
            unseen += [(f"{place}.{key[:60]}", depth + 1, inner) for key, inner in item.items()]
        elif isinstance(item, list):
            unseen += [(f"{place}[{index}]", depth + 1, inner) for index, inner in enumerate(item)]
    return value


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for position, key in enumerate(keys) if key in keys[:position])
        raise ValueError(f"the key {writable(repeated)!r} comes twice")
    return found


def _problem(item: Any) -> str | None:
    if isinstance(item, float) and not math.isfinite(item):
        return f"is {item}, which is no number"
    if isinstance(item, str) and writable(item) != item:
        return f"holds {writable(item)[:60]!r}, which is no Unicode text"
    return None


def writable(text: str) -> str:
    """A text without what cannot be written: halves of surrogate pairs, and the character of number zero."""
    return text.encode(errors="backslashreplace").decode().replace("\0", r"\x00")


def _with_unix_line_ends(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _line_after(text: str) -> int:
    return text.count("\n") + 1
