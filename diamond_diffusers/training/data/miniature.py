"""Captioned images of the embedded model's own world."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import overload

from torchvision.transforms import functional

from ...miniature.grammar import Caption, held_out_captions
from ...miniature.render import Scene, render, sample_scene, sample_world
from ..errors import TrainingError
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
        return _captioned(captions[0], scenes[0], f"scene {index}")


class HeldOutScenes(Sequence[Captioned]):
    """A scene of each of some captions that no scene of a `MiniatureWorld` has.

    Args:
        count: number of different captions.
        seed: seed of their choice and of the scenes.

    Raises:
        TrainingError: there are not that many.
    """

    def __init__(self, count: int, seed: int = 0) -> None:
        # Those of single objects are that whole category, which training sees.
        captions = [caption for caption in held_out_captions() if caption.category != "single_object"]
        if count > len(captions):
            raise TrainingError(
                f"--num_validation_observations is {count}, but the miniature's world holds {len(captions)} captions "
                "out; lower it"
            )
        random.Random(seed).shuffle(captions)
        self.captions, self.seed = captions[:count], seed

    def __len__(self) -> int:
        return len(self.captions)

    @overload
    def __getitem__(self, index: int) -> Captioned: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Captioned]: ...
    def __getitem__(self, index: int | slice) -> Captioned | Sequence[Captioned]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        scene = sample_scene(self.captions[index], random.Random(f"{self.seed} held out {index}"))
        return _captioned(self.captions[index], scene, f"held-out scene {index}")


def _captioned(caption: Caption, scene: Scene, name: str) -> Captioned:
    return Captioned(functional.to_pil_image(render([scene])[0]), caption.text, name)
