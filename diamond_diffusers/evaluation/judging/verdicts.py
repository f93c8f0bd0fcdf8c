"""The verdicts on images: a record of JSON in a line for each, kept so that a killed run resumes.

Each process appends to a part of its own, a batch at a time and whole lines only. When all images are judged, the parts
become one file in the order of sets, judges and images, so that it does not tell how often the run was interrupted, or
how many processes it had.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from ...files.foreign import parse_json, read_text
from ...files.json_forms import fitted
from ...files.output import writing
from ..files import write_bytes

VERDICTS = "verdicts.jsonl"
_AGAIN = "delete the file to have its images judged again"


class VerdictKey(NamedTuple):
    """Which verdict: by whom, and on which image of which set."""

    image_set: str
    judge: str
    image: str


@dataclass(frozen=True)
class StoredVerdict:
    """A verdict, and what it depends on.

    Attributes:
        image_set, judge, image: see `VerdictKey`.
        inputs: hash of the image's file, its prompt with metadata, and the judge's settings and weights.
        prompt, category: of the image.
        score, reason, details: see `Verdict`; the details of a reward are its terms.
    """

    image_set: str
    judge: str
    image: str
    inputs: str
    prompt: str
    category: str
    score: float
    reason: str
    details: dict[str, float]

    @property
    def key(self) -> VerdictKey:
        return VerdictKey(self.image_set, self.judge, self.image)


class VerdictFolder:
    """The verdicts in the output folder of an evaluation.

    Args:
        folder: the folder; verdicts in it are read.
        part: name of the part that this process appends to, such as "0-of-2".

    Raises:
        ForeignFileError: a file of verdicts is damaged.
    """

    def __init__(self, folder: Path, part: str = "0-of-1") -> None:
        self.folder = folder
        self._part = folder / f"verdicts.{part}.part.jsonl"
        self._found: dict[VerdictKey, StoredVerdict] = {}
        self.read()

    def read(self) -> None:
        """Reads all verdicts, also those of other processes."""
        for file in self._files():
            self._found |= {verdict.key: verdict for verdict in _read(file)}

    def get(self, key: VerdictKey, inputs: str) -> StoredVerdict | None:
        """The verdict of a key; None where there is none, or where what it depends on has changed since."""
        found = self._found.get(key)
        return found if found is not None and found.inputs == inputs else None

    def add(self, verdicts: Sequence[StoredVerdict]) -> None:
        """Keeps the verdicts of a batch: all of them at once."""
        lines = "".join(_line(verdict) for verdict in verdicts).encode()
        with writing(self._part):
            self.folder.mkdir(parents=True, exist_ok=True)
            _drop_unfinished_line(self._part)
            with self._part.open("ab", buffering=0) as opened:
                opened.write(lines)
                os.fsync(opened.fileno())
        self._found |= {verdict.key: verdict for verdict in verdicts}

    def finish(self, verdicts: Sequence[StoredVerdict]) -> None:
        """Writes the verdicts of a complete run into one file, in their order, and removes the parts.

        Verdicts of other sets and judges in the folder are kept after them.
        """
        own = {verdict.key for verdict in verdicts}
        others = [verdict for key, verdict in sorted(self._found.items()) if key not in own]
        write_bytes(self.folder / VERDICTS, "".join(map(_line, [*verdicts, *others])).encode())
        for part in self._parts():
            part.unlink()

    def _files(self) -> list[Path]:
        whole = self.folder / VERDICTS
        # Parts are later than the whole.
        return [*([whole] if os.path.lexists(whole) else []), *self._parts()]

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("verdicts.*.part.jsonl")) if self.folder.is_dir() else []


def _line(verdict: StoredVerdict) -> str:
    return json.dumps(asdict(verdict), allow_nan=False) + "\n"


def _read(file: Path) -> Iterator[StoredVerdict]:
    """The verdicts of a file, but for a last line without an end, which a killed process leaves."""
    *whole, _ = read_text(file).split("\n")
    for number, line in enumerate(whole, 1):
        place = f"line {number} of '{file}'"
        yield fitted(parse_json(line, place, _AGAIN), StoredVerdict, place, _AGAIN)


def _drop_unfinished_line(file: Path) -> None:
    """Cuts off what a killed process has written of a line."""
    if not file.exists():
        return
    content = file.read_bytes()
    if content and not content.endswith(b"\n"):
        os.truncate(file, content.rfind(b"\n") + 1)
