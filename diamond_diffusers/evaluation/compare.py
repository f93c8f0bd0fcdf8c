"""Draws the same captions from the same seeds with every method, and keeps what came of it."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torchvision.transforms.v2.functional import to_pil_image

from ..cost import Cost
from ..miniature.grammar import Caption, held_out_captions
from ..miniature.judge import judge
from ..pipelines import DiamondMapPipeline
from ..rewards import Reward
from .files import write_image
from .methods import Method
from .records import Record, RecordFile, fingerprint, modules_of

OnBatch = Callable[[str, int], None]
"""Gets a method's name and how many of its images are done."""


@dataclass(frozen=True)
class Setup:
    """What all methods share.

    Attributes:
        pipe: the model.
        model: its name, for the record.
        reward: what alignment follows, and what is reported.
        reward_scale: multiplies it in the tilted law.
        seed: of the run; image `i` is drawn from the seed `1_000_000 * seed + i` by every method.
        batch_size: captions of one call.
        particle_batch_size: rows of one network call; None for all at once.
    """

    pipe: DiamondMapPipeline
    model: str
    reward: Reward
    reward_scale: float = 1.0
    seed: int = 0
    batch_size: int = 25
    particle_batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; it must be at least 1")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must not be negative")

    def seed_of(self, index: int) -> int:
        """The seed of the image of caption `index`."""
        return 1_000_000 * self.seed + index

    def settings(self) -> dict[str, Any]:
        """Whatever the results depend on, the method aside."""
        texts = "\n".join(caption.text for caption in benchmark_captions())
        return {
            "model": self.model,
            "model_weights": fingerprint(modules_of(self.pipe.components)),
            "model_defaults": self.pipe.defaults,
            "dtype": str(self.pipe.dtype),
            "reward": self.reward.name,
            "reward_weights": fingerprint(modules_of(vars(self.reward))),
            "reward_scale": self.reward_scale,
            "seed": self.seed,
            "captions": hashlib.sha256(texts.encode()).hexdigest()[:16],
            "version": version("diamond-diffusers"),
        }


def benchmark_captions(count: int | None = None) -> list[Caption]:
    """The held-out captions in a fixed random order, so that the first `count` are a fair sample of all.

    Raises:
        ValueError: there are not that many.
    """
    captions = list(held_out_captions())
    random.Random(0).shuffle(captions)
    if count is not None and not 1 <= count <= len(captions):
        raise ValueError(f"num_captions is {count}; give a number from 1 to {len(captions)}")
    return captions[:count]


def image_path(folder: Path, method: str, index: int) -> Path:
    """Where the image of a caption lies."""
    return folder / "images" / method / f"{index:04d}.png"


def compare(
    setup: Setup, methods: Sequence[Method], captions: Sequence[Caption], folder: Path, on_batch: OnBatch | None = None
) -> dict[str, list[Record]]:
    """Draws one image of every caption with every method; what `folder` holds already is not drawn again.

    Args:
        captions: the first of `benchmark_captions()`.

    Returns:
        For each method its records, in the order of the captions.

    Raises:
        ValueError: the folder holds results of other settings; nothing is drawn then.
    """
    shared = setup.settings()
    files = {}
    for method in methods:
        own = {"alignment": method.alignment, "num_inference_steps": method.num_inference_steps}
        files[method.name] = RecordFile(folder / "methods" / f"{method.name}.json", {**shared, **own})
    for method in methods:
        file = files[method.name]
        missing = file.missing(len(captions))
        if on_batch is not None:
            on_batch(method.name, len(captions) - len(missing))
        for start in range(0, len(missing), setup.batch_size):
            batch = missing[start : start + setup.batch_size]
            file.add(draw_batch(setup, method, captions, batch, folder))
            if on_batch is not None:
                on_batch(method.name, len(captions) - len(file.missing(len(captions))))
    return {name: file.first(len(captions)) for name, file in files.items()}


def draw_batch(
    setup: Setup, method: Method, captions: Sequence[Caption], indices: Sequence[int], folder: Path
) -> list[Record]:
    """Draws the captions `indices`, saves the images and returns their records."""
    chosen = [captions[index] for index in indices]
    out = setup.pipe(
        [caption.text for caption in chosen],
        reward=setup.reward,
        reward_scale=setup.reward_scale,
        alignment=method.alignment,
        num_inference_steps=method.num_inference_steps,
        generator=[torch.Generator().manual_seed(setup.seed_of(index)) for index in indices],
        particle_batch_size=setup.particle_batch_size,
        output_type="pt",
    )
    images = out.images.float().cpu()
    verdicts = judge(images, chosen).tolist()
    for index, image in zip(indices, images, strict=True):
        write_image(image_path(folder, method.name, index), to_pil_image(image))
    share = _share(out.cost, len(indices))
    return [
        Record(
            index=index,
            caption=caption.text,
            category=caption.category,
            seed=setup.seed_of(index),
            reward=out.rewards[row].item(),
            reward_terms={name: term[row].item() for name, term in out.reward_terms.items()},
            is_right=verdicts[row],
            cost=share,
        )
        for row, (index, caption) in enumerate(zip(indices, chosen, strict=True))
    ]


def _share(cost: Cost, count: int) -> Cost:
    """The cost of one of `count` images that cost the same."""
    return Cost(
        network_evaluations=cost.network_evaluations // count,
        backward_passes=cost.backward_passes // count,
        decodes=cost.decodes // count,
        reward_calls=cost.reward_calls // count,
        seconds=cost.seconds / count,
    )
