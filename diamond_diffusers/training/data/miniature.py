"""Captioned images of the embedded model's own world."""

from __future__ import annotations

import random

from torchvision.transforms import functional

from ...miniature.render import render, sample_world
from .rows import Captioned


class MiniatureWorld:
    """Scenes of the miniature's world, rendered when they are asked for.

    Args:
        num_scenes: number of different scenes.
        seed: seed of the world.
    """

    def __init__(self, num_scenes: int = 65536, seed: int = 0) -> None:
        self.num_scenes, self.seed = num_scenes, seed
        self.fingerprint = f"miniature {seed}"

    def __len__(self) -> int:
        return self.num_scenes

    def __getitem__(self, index: int) -> Captioned:
        captions, scenes = sample_world(random.Random(f"{self.seed} {index}"), 1)
        return Captioned(functional.to_pil_image(render(scenes)[0]), captions[0].text, f"scene {index}")
