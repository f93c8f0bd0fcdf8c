"""Prompts that come with questions about their images: the files of GenEval 2, DPG-Bench, DSG and TIFA."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from ...files.foreign import ForeignFileError, read_json
from ...files.json_forms import fitted, shown

Parts = tuple[str, str, dict[str, Any]]
"""The text, the category and the metadata of a prompt."""

DSG_COLUMNS = ("item_id", "text", "proposition_id", "dependency", "tuple", "question_natural_language")


class GenEval2Entry(TypedDict):
    """A line of GenEval 2's `geneval2_data.jsonl`."""

    prompt: str
    atom_count: int
    vqa_list: list[list[str]]
    skills: list[str]


def geneval2_prompt(entry: Any, place: str, remedy: str) -> Parts:
    """A line of GenEval 2, whose category is the number of its atoms.

    Raises:
        ForeignFileError: it has another form, or not one skill for each question.
    """
    found: dict[str, Any] = fitted(entry, GenEval2Entry, place, remedy)
    pairs, skills = found["vqa_list"], found["skills"]
    if not pairs or len(pairs) != len(skills) or any(len(pair) != 2 for pair in pairs):
        raise ForeignFileError(
            f"vqa_list in {place} holds {len(pairs)} questions for {len(skills)} skills; give pairs of a question and "
            "its answer, and a skill for each"
        )
    return found["prompt"].strip(), f"atomicity {found['atom_count']}", found


def dsg_prompts(rows: Iterator[tuple[str, dict[str, str]]]) -> Iterator[Parts]:
    """The items of a table of DSG or of DPG-Bench, which has a row for each question.

    The metadata of an item are its `item_id` and its `questions`, each with `id`, `question`, `tuple` and `parents`,
    the questions that have to be answered with yes before it counts. As in DSG's own program, an item in which a
    dependency is malformed has none at all.

    Raises:
        ForeignFileError: an id is no whole number, or comes twice within an item.
    """
    items: dict[str, dict[str, Any]] = {}
    for place, row in rows:
        item = items.setdefault(row["item_id"], {"text": row["text"].strip(), "questions": {}, "is_sound": True})
        number = row["proposition_id"].strip()
        if not number.isdecimal():
            raise ForeignFileError(f"proposition_id in {place} is {shown(number)}; number the questions of an item")
        if int(number) in item["questions"]:
            raise ForeignFileError(
                f"proposition_id in {place} is {number}, which the item has already; number them anew"
            )
        parents = row["dependency"].split(",")
        is_sound = all(parent.strip().isdecimal() for parent in parents)
        item["is_sound"] &= is_sound
        item["questions"][int(number)] = {
            "id": int(number),
            "question": row["question_natural_language"].strip(),
            "tuple": row["tuple"].strip(),
            # 0 stands for none.
            "parents": [int(parent) for parent in parents if int(parent) != 0] if is_sound else [],
        }
    for name, item in items.items():
        questions = list(item["questions"].values())
        if not item["is_sound"]:
            questions = [{**question, "parents": []} for question in questions]
        yield item["text"], _source_of(name), {"item_id": name, "questions": questions}


class _TIFAEntry(TypedDict):
    id: str
    caption: str
    question: str
    choices: list[str]
    answer: str
    element_type: str
    element: NotRequired[str]


def tifa_prompts(path: Path) -> Iterator[Parts]:
    """The captions of TIFA's `tifa_v1.0_question_answers.json`, a list with an object for each question.

    The metadata of a caption are its `item_id` and its `questions`, each with `question`, `choices`, `answer` and
    `element_type`.

    Raises:
        ForeignFileError: it has another form, or an answer is none of its choices.
    """
    remedy = "give TIFA's list of objects with id, caption, question, choices, answer and element_type"
    entries: list[Mapping[str, Any]] = fitted(read_json(path, remedy), list[_TIFAEntry], f"'{path}'", remedy)
    items: dict[str, list[Mapping[str, Any]]] = {}
    for number, entry in enumerate(entries):
        if entry["answer"] not in entry["choices"]:
            raise ForeignFileError(
                f"[{number}].answer of '{path}' is {shown(entry['answer'])}, which is none of its choices; {remedy}"
            )
        items.setdefault(entry["id"], []).append(entry)
    kept = ("question", "choices", "answer", "element_type")
    for name, found in items.items():
        questions = [{key: entry[key] for key in kept} for entry in found]
        yield found[0]["caption"].strip(), _source_of(name), {"item_id": name, "questions": questions}


def _source_of(name: str) -> str:
    """What the name of an item begins with: the collection of prompts from which it is."""
    found = re.match(r"[^\W\d_]+(?:[_-][^\W\d_]+)*", name)
    return found.group() if found else ""
