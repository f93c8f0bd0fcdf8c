"""Draws a recorded image once more, from its record alone."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torchvision.transforms.v2.functional import to_pil_image

from ..alignment import Alignment
from ..pipelines import DiamondMapPipeline
from ..rewards import Reward
from .compare import draw, machine_facts
from .files import plain
from .methods import Method
from .records import Record, fingerprint, modules_of, pixel_hash, read_record


@dataclass(frozen=True)
class Redrawn:
    """An image that was drawn again.

    Attributes:
        is_same: whether its pixels are those of the record, bit for bit.
        changes: what of the machine differs from the record's, by name: then and now.
    """

    image: Image
    is_same: bool
    changes: dict[str, tuple[Any, Any]]


@dataclass(frozen=True)
class Recorded:
    """An image's record, read back.

    Attributes:
        settings: of its run, as JSON holds them.
        method: that drew it.
    """

    record: Record
    settings: Mapping[str, Any]
    method: Method

    @property
    def dtype(self) -> str:
        """Name of the dtype of the weights."""
        return self.settings["dtype"].removeprefix("torch.")


def read_recorded(path: Path) -> Recorded:
    """The record of an image.

    Args:
        path: of the `.json` file beside the image.

    Raises:
        ValueError: the file is no such record, or its method is none of this version.
        OSError: it cannot be read.
    """
    settings, record = read_record(path)
    alignment = from_plain(settings["alignment"])
    if not isinstance(alignment, Alignment) or plain(alignment) != settings["alignment"]:
        raise ValueError(
            f"'{path}' was written by version {settings['version']}, whose {settings['alignment']['type']} has other "
            "options; redraw it with that version"
        )
    return Recorded(record, settings, Method(path.parent.name, alignment, settings["num_inference_steps"]))


def redraw(recorded: Recorded, pipe: DiamondMapPipeline, reward: Reward) -> Redrawn:
    """Draws the batch that an image was drawn in, and picks the image.

    Args:
        pipe, reward: those that the record names.

    Raises:
        ValueError: they have other weights than the record's.
    """
    record, settings = recorded.record, recorded.settings
    found = {
        "model_weights": fingerprint(modules_of(pipe.components)),
        "model_defaults": plain(pipe.defaults),
        "reward_weights": fingerprint(modules_of(vars(reward))),
    }
    for name, value in found.items():
        if value != settings[name]:
            raise ValueError(f"{name} is {value!r}, but the image was drawn with {settings[name]!r}; take that model")
    # Sums are split among threads, so that their last bits depend on the number.
    torch.set_num_threads(record.machine["num_threads"])
    scale, arguments = settings["reward_scale"], settings["arguments"]
    out = draw(pipe, reward, scale, recorded.method, record.batch, arguments)
    image = to_pil_image(out.images[record.row].float().cpu())
    now = plain(machine_facts(pipe))
    changes = {name: (then, now.get(name)) for name, then in record.machine.items() if then != now.get(name)}
    return Redrawn(image, pixel_hash(image) == record.pixels, changes)


def from_plain(value: Any) -> Any:
    """The value of which `files.plain` made JSON: objects with a `type` become this package's dataclasses.

    Raises:
        ValueError: there is no such dataclass, or it refuses its options.
    """
    if isinstance(value, list):
        return tuple(from_plain(item) for item in value)
    if isinstance(value, Mapping):
        fields = {name: from_plain(item) for name, item in value.items() if name != "type"}
        if "type" not in value:
            return fields
        cls = _dataclasses().get(value["type"])
        if cls is None or set(fields) - {field.name for field in dataclasses.fields(cls)}:
            raise ValueError(
                f"the record holds a {value['type']} that this version does not know; take the version it "
                "was written by"
            )
        return cls(**fields)
    return float(value) if value in ("inf", "-inf", "nan") else value


def _dataclasses() -> dict[str, type]:
    """The dataclasses of this package that are loaded, by name, but for those of rooms without options of a method."""
    package, *_ = __name__.split(".")
    others = tuple(f"{package}.{room}" for room in ("evaluation", "miniature", "training"))
    modules = [
        module for name, module in sys.modules.items() if name.startswith(package) and not name.startswith(others)
    ]
    members = [member for module in modules for member in vars(module).values() if isinstance(member, type)]
    own = [member for member in members if member.__module__.startswith(package)]
    return {member.__name__: member for member in own if dataclasses.is_dataclass(member)}
