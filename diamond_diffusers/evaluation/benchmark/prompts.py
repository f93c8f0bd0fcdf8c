"""The prompts of a comparison: those of the miniature world, or a benchmark's own file."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from ...files.foreign import ForeignFileError, parse_json, read_lines
from ...files.foreign_tables import read_csv, read_json_lines
from ...files.json_forms import fitted, shown
from ...miniature.grammar import held_out_captions
from .question_files import DSG_COLUMNS, dsg_prompts, geneval2_prompt, tifa_prompts

MAX_PROMPTS = 1_000_000
"""From prompt to prompt seeds go up by one, and from image to image of a prompt by this or more."""


@dataclass(frozen=True)
class Prompt:
    """One text to draw.

    Attributes:
        index: number of the prompt in its file; seeds and the names of images depend on it.
        category: the part of the benchmark to which the prompt belongs.
        metadata: the further fields of the prompt in its file.
        is_hard: whether it is one of the harder captions of the miniature world (`Caption.is_hard`).
    """

    index: int
    text: str
    category: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    is_hard: bool = False


@dataclass(frozen=True)
class Suite:
    """The prompts of a comparison, in an order whose first `n` are a fair sample for every `n`.

    Attributes:
        is_judged: whether the judge of the miniature world decides on the images.
    """

    prompts: tuple[Prompt, ...]
    is_judged: bool = False

    def first(self, count: int | None, hard_share: float | None = None) -> Sequence[Prompt]:
        """The first `count` prompts; all for None.

        Args:
            hard_share: share of hard prompts among them, in [0, 1]: the first hard ones and the first of the others,
                in their common order; None for the share that the prompts have.

        Raises:
            ValueError: there are not that many.
        """
        if count is not None and not 1 <= count <= len(self.prompts):
            raise ValueError(f"num_prompts is {count}; give a number from 1 to {len(self.prompts)}")
        if hard_share is None:
            return self.prompts[:count]
        if count is None:
            raise ValueError(f"hard_share is {hard_share:g}, but num_prompts is not given; give both")
        if not any(each.is_hard for each in self.prompts):
            raise ValueError(
                f"hard_share is {hard_share:g}, but of these prompts none is known to be hard, as captions of the "
                "miniature world are; leave it out"
            )
        wanted = {True: round(count * hard_share)}
        wanted[False] = count - wanted[True]
        chosen = {is_hard: [each for each in self.prompts if each.is_hard == is_hard] for is_hard in wanted}
        for is_hard, number in wanted.items():
            if number > len(chosen[is_hard]):
                raise ValueError(
                    f"hard_share is {hard_share:g}, which takes {number} {'hard' if is_hard else 'other'} prompts of "
                    f"{count}, but there are {len(chosen[is_hard])}; give another share, or fewer prompts"
                )
        taken = {each.index for is_hard, number in wanted.items() for each in chosen[is_hard][:number]}
        return tuple(each for each in self.prompts if each.index in taken)


def miniature_suite() -> Suite:
    """The 300 held-out captions of the miniature world."""
    captions = list(held_out_captions())
    random.Random(0).shuffle(captions)
    prompts = [
        Prompt(index, caption.text, caption.category, is_hard=caption.is_hard) for index, caption in enumerate(captions)
    ]
    return Suite(tuple(prompts), is_judged=True)


def read_prompts(path: Path) -> Suite:
    """The prompts of a file, in a fixed random order; arguments and errors as of `prompts_in`."""
    prompts = prompts_in(path)
    random.Random(0).shuffle(prompts)
    return Suite(tuple(prompts))


def prompts_in(path: Path) -> list[Prompt]:
    """The prompts of a file, in its order.

    The file is, by its suffix and its header: GenEval's `evaluation_metadata.jsonl` or GenEval 2's
    `geneval2_data.jsonl`; a `.csv` of DrawBench (columns `Prompts`, `Category`), of UniGenBench (`index`, `prompt`,
    `sub_dims`, the latter two perhaps with `_en` or `_zh`), or of DPG-Bench and DSG (a row for each question); the
    `.json` of TIFA; or a `.txt` with a prompt a line, as of T2I-CompBench, whose file names are its categories.

    Raises:
        ForeignFileError: the file cannot be read, has another form, or holds no prompts.
    """
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise ForeignFileError(f"prompts is '{path}'; give a file that ends with {', '.join(READERS)}")
    prompts = [prompt for prompt in read(path) if prompt.text]
    if not prompts:
        raise ForeignFileError(f"prompts is '{path}', which holds no prompt; give one with at least one")
    for prompt in prompts:
        if not 0 <= prompt.index < MAX_PROMPTS:
            raise ForeignFileError(
                f"prompts is '{path}', with the index {shown(prompt.index)}; number them from 0 to {MAX_PROMPTS - 1}"
            )
    if len({prompt.index for prompt in prompts}) < len(prompts):
        raise ForeignFileError(f"prompts is '{path}', where an index comes twice; number the prompts")
    return prompts


class _GenEvalEntry(TypedDict):
    prompt: str
    tag: str


def _geneval(path: Path) -> Iterator[Prompt]:
    remedy = "give GenEval's objects with 'prompt' and 'tag', or GenEval 2's with 'prompt' and 'vqa_list', one a line"
    for number, place, entry in read_json_lines(path, remedy):
        if isinstance(entry, dict) and "vqa_list" in entry:
            yield Prompt(number - 1, *geneval2_prompt(entry, place, remedy))
            continue
        metadata = fitted(entry, _GenEvalEntry, place, remedy)
        yield Prompt(number - 1, metadata["prompt"].strip(), metadata["tag"], metadata)


def _table(path: Path) -> Iterator[Prompt]:
    columns, rows = read_csv(path)
    if {"Prompts", "Category"} <= set(columns):
        for index, (_, row) in enumerate(rows):
            yield Prompt(index, row["Prompts"].strip(), row["Category"].strip())
        return
    if set(DSG_COLUMNS) <= set(columns):
        yield from (Prompt(index, *parts) for index, parts in enumerate(dsg_prompts(rows)))
        return
    for suffix in ("", "_en", "_zh"):
        if {"index", f"prompt{suffix}", f"sub_dims{suffix}"} <= set(columns):
            yield from (_unigenbench(row, f"prompt{suffix}", f"sub_dims{suffix}", place) for place, row in rows)
            return
    found = " ".join(", ".join(columns).split())[:200] or "none"
    raise ForeignFileError(
        f"prompts is '{path}' with the columns {found}; give those of DrawBench (Prompts, "
        f"Category), of UniGenBench (index, prompt_en, sub_dims_en), or of DPG-Bench and DSG ({', '.join(DSG_COLUMNS)})"
    )


_Dimensions = TypedDict("_Dimensions", {"Primary Categories": str})


def _unigenbench(row: Mapping[str, str], text: str, dimensions: str, place: str) -> Prompt:
    remedy = f"give UniGenBench's integer index and JSON object with 'Primary Categories' in {dimensions}"
    try:
        index = int(row["index"])
    except ValueError as error:
        raise ForeignFileError(f"index in {place} is {shown(row['index'])}; {remedy}") from error
    name = f"{dimensions} in {place}"
    metadata = fitted(parse_json(row[dimensions], name, remedy), _Dimensions, name, remedy)
    return Prompt(index, row[text].strip(), metadata["Primary Categories"], metadata)


def _lines(path: Path) -> Iterator[Prompt]:
    for number, line in read_lines(path):
        yield Prompt(number - 1, line.strip(), path.stem)


def _tifa(path: Path) -> Iterator[Prompt]:
    return (Prompt(index, *parts) for index, parts in enumerate(tifa_prompts(path)))


READERS: dict[str, Callable[[Path], Iterator[Prompt]]] = {
    ".jsonl": _geneval,
    ".csv": _table,
    ".txt": _lines,
    ".json": _tifa,
}
