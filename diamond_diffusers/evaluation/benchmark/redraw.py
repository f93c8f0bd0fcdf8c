"""Draws a recorded image once more, from its record alone."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, get_type_hints

import torch
from PIL.Image import Image
from torchvision.transforms.v2.functional import to_pil_image

from ...alignment.methods import METHODS
from ...core.serial import from_dict, to_dict
from ...files.foreign import ForeignFileError
from ...files.json_forms import fitted, shown, whole_numbers
from ...pipelines.pipeline import DiamondMapPipeline
from ...rewards import Reward, ScoreStatistics, as_reward, calibrated
from ..files import plain
from .compare import defaults_of, draw, machine_facts
from .plan import SizedMethod
from .records import (
    IS_RECORD,
    Record,
    fingerprint,
    fingerprint_of_map,
    fingerprint_of_model,
    modules_of,
    pixel_hash,
    read_record,
)

MAX_COUNT = 10_000
"""Of particles, steps, images of a batch, or pixels of a side."""
MAX_PIXELS = 2**26
MAX_THREADS = 1024


@dataclass(frozen=True)
class Redrawn:
    """An image that was drawn again.

    Attributes:
        is_same: whether its pixels are those of the record, bit for bit.
        changes: facts of the machine that differ from the record's, by name: then and now.
    """

    image: Image
    is_same: bool
    changes: dict[str, tuple[Any, Any]]


@dataclass(frozen=True)
class Recorded:
    """An image's record, read back.

    Attributes:
        settings: settings of the image's run, as JSON values.
        method: the method that drew the image.
    """

    record: Record
    settings: Mapping[str, Any]
    method: SizedMethod

    @property
    def dtype(self) -> str:
        """Name of the dtype of the weights."""
        return self.settings["dtype"].removeprefix("torch.")


class RunSettings(TypedDict):
    """The settings of a run from which an image is drawn again."""

    model: str
    loading: dict[str, Any]
    model_weights: str
    model_defaults: dict[str, Any]
    arguments: dict[str, Any]
    dtype: Literal["torch.float32", "torch.bfloat16", "torch.float16"]
    reward: str
    reward_weights: str
    reward_scale: float
    alignment: dict[str, Any]
    num_inference_steps: int
    version: str


class Machine(TypedDict):
    """The facts of a machine that are used to draw an image again."""

    num_threads: int


def read_recorded(path: Path) -> Recorded:
    """The record of an image.

    Args:
        path: path of the `.json` file beside the image.

    Raises:
        ForeignFileError: the file is no such record, its sizes or counts are out of bounds, or its method is none of
            this version.
    """
    stored, record = read_record(path)
    settings = fitted(stored, RunSettings, f"settings of '{path}'", IS_RECORD)
    fitted(record.machine, Machine, f"record.machine of '{path}'", IS_RECORD)
    if (problem := _out_of_bounds(settings, record)) is not None:
        raise ForeignFileError(f"{problem} in '{path}', which no benchmark records; take the record as it was written")
    form = settings["alignment"]
    try:
        alignment = from_dict(METHODS, form, "alignment")
    except (TypeError, ValueError) as error:
        raise ForeignFileError(
            f"settings.alignment of '{path}' names no method that is known here ({error}); take the version and the "
            "--import that it was drawn with"
        ) from error
    if to_dict(alignment) != form:
        raise ForeignFileError(
            f"'{path}' was written by version {settings['version']}, whose {form['name']} has other options; redraw it "
            "with that version"
        )
    return Recorded(record, settings, SizedMethod(path.parent.name, alignment, settings["num_inference_steps"]))


def reward_of(settings: Mapping[str, Any], path: Path) -> Reward:
    """The reward that a record names, with its terms in the units that they had.

    Raises:
        ValueError, ImportError: it cannot be made here.
    """
    reward = as_reward(settings["reward"])
    if "calibration" not in settings:
        return reward
    terms = fitted(settings["calibration"], dict[str, ScoreStatistics], f"settings.calibration of '{path}'", IS_RECORD)
    return calibrated(reward, terms)


def _out_of_bounds(settings: Mapping[str, Any], record: Record) -> str | None:
    """A value in a record that is out of the bounds of any benchmark, as the beginning of a sentence."""
    drawn = {name: settings[name] for name in ("alignment", "arguments", "num_inference_steps")}
    batch, threads = record.batch, record.machine["num_threads"]
    for place, number in whole_numbers(drawn):
        if number > MAX_COUNT:
            return f"{place} is above {MAX_COUNT}"
    sides = [settings["arguments"].get(name) or 1 for name in ("height", "width")]
    if all(isinstance(side, int) for side in sides) and math.prod(sides) > MAX_PIXELS:
        return f"arguments.height times width is above {MAX_PIXELS}"
    if not len(batch.prompts) == len(batch.seeds) <= MAX_COUNT:
        return f"batch has {len(batch.prompts)} prompts and {len(batch.seeds)} seeds"
    if not 0 <= record.row < len(batch.prompts):
        return f"row is {shown(record.row)} of a batch of {len(batch.prompts)} images"
    if not all(0 <= seed < 2**63 for seed in batch.seeds):
        return "batch.seeds has a number outside 0 to 2**63 - 1"
    if batch.particle_batch_size is not None and not 1 <= batch.particle_batch_size <= MAX_COUNT:
        return f"batch.particle_batch_size is {shown(batch.particle_batch_size)}"
    if not 1 <= threads <= MAX_THREADS:
        return f"machine.num_threads is {shown(threads)}"
    return None


def redraw(recorded: Recorded, pipe: DiamondMapPipeline, reward: Reward) -> Redrawn:
    """Draws the batch of an image again, and picks the image.

    Args:
        pipe, reward: the model and the reward that the record names.

    Raises:
        ValueError: their weights are not those of the record, or the model does not take the record's arguments.
    """
    record, settings = recorded.record, recorded.settings
    _check_arguments(settings["arguments"], pipe)
    found = {
        "model_weights": fingerprint_of_model(pipe.family),
        "model_defaults": plain(defaults_of(pipe)),
        "reward_weights": fingerprint(modules_of(vars(reward))),
    }
    if "diamond_map_weights" in settings:
        found["diamond_map_weights"] = fingerprint_of_map(pipe.family)
    for name, value in found.items():
        if value != settings[name]:
            raise ValueError(f"{name} is {value!r}, but the image was drawn with {settings[name]!r}; take that model")
    scale, arguments = settings["reward_scale"], settings["arguments"]
    with _threads(record.machine["num_threads"]):
        out = draw(pipe, reward, scale, recorded.method, record.batch, arguments)
        now = plain(machine_facts(pipe))
    image = to_pil_image(out.images[record.row].float().cpu())
    changes = {name: (then, now.get(name)) for name, then in record.machine.items() if then != now.get(name)}
    return Redrawn(image, pixel_hash(image) == record.pixels, changes)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Has torch use so many threads: sums are split among them, so that their last bits depend on the number."""
    former = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(former)


def _check_arguments(arguments: Mapping[str, Any], pipe: DiamondMapPipeline) -> None:
    """Raises a `ForeignFileError` for an argument that the stock pipeline does not have, or takes another type for."""
    remedy = "take the record as it was written"
    ours = set(inspect.signature(DiamondMapPipeline.__call__).parameters) - {"height", "width", "negative_prompt"}
    stock = get_type_hints(type(pipe.family.pipeline).__call__)
    for name, value in arguments.items():
        if name in ours or name not in stock:
            raise ForeignFileError(f"settings.arguments of the record has {name!r}, which is no option of it; {remedy}")
        if value is not None:
            fitted(value, stock[name], f"settings.arguments.{name} of the record", remedy)
