"""What a comparison keeps on disk: for each method one file with its settings and one record a caption."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..cost import Cost
from .files import plain, write_json


@dataclass(frozen=True)
class Record:
    """One drawn image.

    Attributes:
        index: of its caption in the benchmark's order.
        seed: of its generator.
        is_right: the judge's verdict.
        cost: its share of the cost of its batch.
    """

    index: int
    caption: str
    category: str
    seed: int
    reward: float
    reward_terms: dict[str, float]
    is_right: bool
    cost: Cost


class RecordFile:
    """The records of one method, kept whole on disk after every batch, so that a killed run resumes.

    Args:
        path: of the file; read if it exists.
        settings: of the method's run.

    Raises:
        ValueError: the file holds records of other settings.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.settings = plain(settings)
        self._records: dict[int, Record] = {}
        if path.exists():
            self._read()

    def _read(self) -> None:
        stored = json.loads(self.path.read_text())
        for key in sorted({*self.settings, *stored["settings"]}):
            old, new = stored["settings"].get(key), self.settings.get(key)
            if old != new:
                raise ValueError(
                    f"{key} is {new!r}, but '{self.path}' holds results for {old!r}; "
                    "choose another --output, or delete that file to draw them again"
                )
        for entry in stored["records"]:
            self._records[entry["index"]] = Record(**{**entry, "cost": Cost(**entry["cost"])})

    def missing(self, count: int) -> list[int]:
        """Which of the first `count` captions have no record yet."""
        return [index for index in range(count) if index not in self._records]

    def first(self, count: int) -> list[Record]:
        """The records of the first `count` captions, in their order."""
        return [self._records[index] for index in range(count)]

    def add(self, records: Iterable[Record]) -> None:
        """Keeps further records."""
        self._records.update({record.index: record for record in records})
        ordered = [asdict(self._records[index]) for index in sorted(self._records)]
        write_json(self.path, {"settings": self.settings, "records": ordered})


def fingerprint(modules: Sequence[nn.Module]) -> str:
    """A short hash of a few numbers of every weight: results of other weights must not be mixed with these."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in module.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.flatten()[:64].to("cpu", torch.float64).numpy().tobytes())
    return digest.hexdigest()[:16]


def modules_of(members: Mapping[str, Any]) -> list[nn.Module]:
    """The torch modules among an object's members, and among those of the objects in its lists (a sum's rewards)."""
    found: list[nn.Module] = []
    for _, member in sorted(members.items()):
        if isinstance(member, nn.Module):
            found.append(member)
        elif isinstance(member, list):
            for item in member:
                found += modules_of(getattr(item, "__dict__", {}))
    return found
