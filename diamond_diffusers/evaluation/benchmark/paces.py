"""What the network evaluations of each method take in seconds, so that methods can be compared at equal time.

Beside the network a method pays for decodes, rewards, their gradients and its own arithmetic. Each method is therefore
timed as it runs, at a size at which it runs, and its seconds are taken to grow with its network evaluations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import torch

from ...files.foreign import ForeignFileError, read_json
from ...files.json_forms import fitted
from ..clock import cpu_time
from ..devices import device_name
from ..files import write_json
from .compare import Setup, draw
from .plan import SizedMethod
from .prompts import Prompt
from .records import Batch

FILE = "seconds.json"
EVALUATIONS = (100, 400, 1600)
"""Sizes at which a method is timed: the first within which it fits."""
REPETITIONS = 2
"""The least of so many times is taken, of which one may have been lengthened by other work."""


class Timed(TypedDict):
    """What the file of paces holds.

    Attributes:
        device: on which the methods were timed.
        num_threads: of torch.
        seconds: of a network evaluation, by the label of the method that was timed.
    """

    device: str
    num_threads: int
    seconds: dict[str, float]


def measured_paces(
    setup: Setup,
    sizes: Mapping[str, SizedMethod],
    prompts: Sequence[Prompt],
    folder: Path,
    on_method: Callable[[str], None] | None = None,
) -> dict[str, float]:
    """Seconds of a network evaluation of each method, by its name: of an image's share of a batch.

    They are measured once and kept in `folder`, so that a run that goes on plans as it did. On a CPU they are the
    processors' seconds, and else those of the sampling loop by the clock.

    Args:
        sizes: each method at the size at which it is timed.
        prompts: the first `setup.batch_size` of them are drawn.
        on_method: gets the label of each method that is timed.

    Raises:
        ValueError: the folder holds times of another device.
    """
    device = setup.pipe.family.device
    timed: Timed = {"device": device_name(device), "num_threads": torch.get_num_threads(), "seconds": {}}
    file = folder / FILE
    kept = _kept(file, timed)
    absent = [method for method in sizes.values() if method.label not in kept]
    keys = setup.keys(prompts)[: setup.batch_size]
    texts = {prompt.index: prompt.text for prompt in prompts}
    batch = Batch([texts[key.index] for key in keys], [setup.seed_of(key) for key in keys], setup.particle_batch_size)
    # In turns, so that a while in which the machine is slow does not fall on all times of one method.
    for _ in range(REPETITIONS):
        for method in absent:
            if on_method is not None:
                on_method(method.label)
            seconds = _seconds(setup, method, batch)
            timed["seconds"][method.label] = min(seconds, timed["seconds"].get(method.label, seconds))
    if absent:
        # A shard that was started at the same time may have kept its times meanwhile; all plan with the first ones.
        timed["seconds"] |= _kept(file, timed)
        write_json(file, timed)
    else:
        timed["seconds"] = kept
    return {name: timed["seconds"][method.label] for name, method in sizes.items()}


def _kept(file: Path, timed: Timed) -> dict[str, float]:
    """The seconds that a file holds, of the device of `timed`; none where there is no file."""
    if not file.exists():
        return {}
    remedy = f"choose another --output, or delete '{file}' to time the methods again"
    found: Timed = fitted(read_json(file, remedy), Timed, f"'{file}'", remedy)
    for name, now in (("device", timed["device"]), ("num_threads", timed["num_threads"])):
        if found[name] != now:  # type: ignore[literal-required]
            raise ForeignFileError(f"{name} is {now!r}, but '{file}' holds times of {found[name]!r}; {remedy}")  # type: ignore[literal-required]
    return found["seconds"]


def _seconds(setup: Setup, method: SizedMethod, batch: Batch) -> float:
    """Seconds of a network evaluation of a method, as it draws a batch."""
    with cpu_time(setup.pipe.family.device) as spent:
        out = draw(setup.pipe, setup.reward, setup.reward_scale, method, batch, setup.arguments)
    seconds = out.cost.seconds if spent.seconds is None else spent.seconds
    return seconds / out.cost.equivalent_evaluations
