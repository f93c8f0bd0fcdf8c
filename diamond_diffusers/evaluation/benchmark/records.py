"""The files of a comparison: each image, and beside it a record of every setting on which it depends."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from accelerate.utils.modeling import get_state_dict_offloaded_model
from PIL.Image import Image
from torch import Tensor, nn

from ...alignment.methods import METHODS
from ...core.cost import Cost
from ...core.serial import from_dict
from ...families.base import Family
from ...files.foreign import ForeignFileError, read_json
from ...files.json_forms import fitted
from ...maps.diamond_map import ADAPTER
from ..files import plain, write_image, write_json

IS_RECORD = "name a .json file beside an image of `diamond-diffusers benchmark`"
"""What to do where a file is no record."""
AGAIN = "delete it with the .json file beside it, and run the benchmark again"
"""What to do where an image is damaged."""


class Key(NamedTuple):
    """Identifies an image: the index of its prompt, and its number among the prompt's images."""

    index: int  # type: ignore[assignment]
    image: int

    @property
    def stem(self) -> str:
        """The name of the image's files, without suffix."""
        return f"{self.index:04d}_{self.image}"


@dataclass(frozen=True)
class Batch:
    """The images that were drawn together: on most devices the last bits of an image depend on its batch.

    Attributes:
        prompts, seeds: prompt and seed of each image of the batch.
        particle_batch_size: the most rows of one network call, all of one image; None for all images at once.
    """

    prompts: list[str]
    seeds: list[int]
    particle_batch_size: int | None


@dataclass(frozen=True)
class Record:
    """One drawn image.

    Attributes:
        index: index of its prompt.
        image: number of the image among those of the prompt.
        seed: seed of its generator.
        reward: the reward that the method followed, unscaled.
        reward_terms: each term of this reward.
        held_out_rewards: scores by the rewards that no method sees; and under constraints, whether the image holds all
            of them (`constraints met`, 1 or 0).
        is_right: the judge's verdict, where there is a judge.
        cost: its share of the cost of its batch.
        peak_bytes: the most memory that its batch held; None where that is not known.
        cpu_seconds: its share of the seconds that the processors worked on its batch, in all threads of the process:
            other processes lengthen them through caches alone. None on a GPU.
        trace: the figures of each step of this image.
        pixels: hash of the 8-bit pixels.
        batch: the batch in which it was drawn, as the row `row`.
        machine: device, threads and versions of the libraries.
    """

    index: int
    image: int
    prompt: str
    category: str
    seed: int
    reward: float
    reward_terms: dict[str, float]
    held_out_rewards: dict[str, float]
    is_right: bool | None
    cost: Cost
    peak_bytes: int | None
    cpu_seconds: float | None
    trace: list[dict[str, float]]
    pixels: str
    batch: Batch
    row: int
    machine: dict[str, Any]

    @property
    def key(self) -> Key:
        return Key(self.index, self.image)


class Stored(TypedDict):
    """The contents of a record's file."""

    settings: dict[str, Any]
    record: Record


class RecordFolder:
    """The images and records of one method; a record is written after its image, so that a killed run resumes.

    Args:
        folder: folder of the images and records; existing records are read.
        settings: settings of the method's run.

    Raises:
        ValueError: the folder holds a record of other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self.settings = plain(settings)
        self._records: dict[Key, Record] = {}
        self.read()

    def read(self) -> None:
        """Reads the records that other processes have added."""
        known = {f"{key.stem}.json" for key in self._records}
        for path in sorted(self.folder.glob("*.json")):
            if path.name not in known:
                settings, record = read_record(path, "delete it to draw its image again")
                self._check(settings, path)
                if path.stem != record.key.stem:
                    raise ForeignFileError(
                        f"'{path}' holds the record of image {record.key.stem}; delete it to draw its own image again"
                    )
                self._records[record.key] = record

    def _check(self, stored: Mapping[str, Any], path: Path) -> None:
        for key in sorted({*self.settings, *stored}):
            old, new = stored.get(key), self.settings.get(key)
            if key == "alignment":
                old = _with_later_options(old)
            if old != new:
                raise ForeignFileError(
                    f"{key} is {new!r}, but '{path}' holds a result for {old!r}; "
                    f"choose another --output, or delete '{self.folder}' to draw its images again"
                )

    def missing(self, keys: Sequence[Key]) -> list[Key]:
        """The keys of the images that have no record yet."""
        return [key for key in keys if key not in self._records]

    def of(self, keys: Sequence[Key]) -> list[Record]:
        """The records of the images, in their order."""
        return [self._records[key] for key in keys]

    def add(self, record: Record, image: Image) -> None:
        """Keeps a further image and its record."""
        write_image(image_path(self.folder, record.key), image)
        write_json(self.folder / f"{record.key.stem}.json", {"settings": self.settings, "record": asdict(record)})
        self._records[record.key] = record


def _with_later_options(form: Any) -> Any:
    """A method's stored form with the options that it has got since, at their defaults: as the method was before."""
    try:
        return plain(from_dict(METHODS, form))
    except (TypeError, ValueError):
        return form


def image_path(folder: Path, key: Key) -> Path:
    """The path of an image of a method."""
    return folder / f"{key.stem}.png"


def read_record(path: Path, remedy: str = IS_RECORD) -> tuple[dict[str, Any], Record]:
    """The settings and the record of an image.

    Args:
        remedy: advice for the user if the file is refused.

    Raises:
        ForeignFileError: the file is no such record, or cannot be read.
    """
    stored = fitted(read_json(path, remedy), Stored, f"'{path}'", remedy)
    return stored["settings"], stored["record"]


def pixel_hash(image: Image) -> str:
    """A short hash of an image's 8-bit pixels."""
    return hashlib.sha256(image.tobytes()).hexdigest()[:16]


def fingerprint(modules: Sequence[nn.Module]) -> str:
    """A short hash of a few numbers of every weight, by which results of different weights are told apart."""
    return _hash(weight for module in modules for weight in _state_of(module).items())


def fingerprint_of_model(family: Family) -> str:
    """The fingerprint of a family's components without a Diamond Map in its network, which has one of its own."""
    modules = modules_of(family.pipeline.components)
    if family.posterior_map is None:
        return fingerprint(modules)
    states = (_state_of(module) for module in modules)
    # Beside an adapter the weights of a layer have another name.
    return _hash(
        (name.replace(".base_layer.", "."), weight)
        for state in states
        for name, weight in state.items()
        if f".{ADAPTER}." not in name
    )


def fingerprint_of_map(family: Family) -> str | None:
    """The fingerprint of the Diamond Map alone; None where there is none."""
    return None if family.posterior_map is None else _hash(family.posterior_map.weights().items())


def _hash(weights: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, weight in weights:
        digest.update(name.encode())
        digest.update(weight.detach().flatten()[:64].cpu().double().numpy().tobytes())
    return digest.hexdigest()[:16]


def _state_of(module: nn.Module) -> dict[str, Tensor]:
    """The weights of a module, also where they are offloaded layer by layer, or quantised by torchao."""
    state = module.state_dict()
    if any(tensor.is_meta for tensor in state.values()):
        offloaded = get_state_dict_offloaded_model(module)
        state = {name: offloaded[name] for name in state}
    # Classes of torchao's own, which have few operations besides.
    has_own = [name for name, tensor in state.items() if type(tensor).dequantize is not Tensor.dequantize]
    return {**state, **{name: state[name].dequantize() for name in has_own}}


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
