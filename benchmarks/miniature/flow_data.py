"""The flow model's training set: renders of the miniature world, encoded once."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from diamond_diffusers.files.output import whole_file
from diamond_diffusers.miniature.grammar import COLOURS, SHAPES
from diamond_diffusers.miniature.render import IMAGE_SIZE, Scene, render, sample_world

from .flow_model import tokenize

GRID = 4


def cell_contents(scene: Scene) -> list[list[int]]:
    """What each of the 4x4 cells of an image shows, row by row: `[shape, colour]`, both 0 where nothing is.

    A cell shows the object whose circumscribed circle holds the centre of the cell.
    """
    cell = IMAGE_SIZE / GRID
    contents = [[0, 0] for _ in range(GRID * GRID)]
    for thing in scene.objects:
        label = [1 + SHAPES.index(thing.shape), 1 + COLOURS.index(thing.colour)]
        for index in range(GRID * GRID):
            dx = (index % GRID + 0.5) * cell - thing.x
            dy = (index // GRID + 0.5) * cell - thing.y
            if dx * dx + dy * dy < thing.radius**2:
                contents[index] = label
    return contents


@dataclass(frozen=True)
class FlowDataset:
    """`N` training images as the autoencoder's posteriors, with their captions' token ids.

    Attributes:
        means, deviations: of the latents, normalised as the pipeline does, float16 `[N, 8, 8, 8]`.
        clip_ids, t5_ids: `[N, 16]` and `[N, 12]`.
        contents: shape and colour labels of the 4x4 cells, `[N, 16, 2]`.
    """

    means: Tensor
    deviations: Tensor
    clip_ids: Tensor
    t5_ids: Tensor
    contents: Tensor

    @classmethod
    @torch.no_grad()
    def build(cls, autoencoder: AutoencoderKL, num_images: int, seed: int, batch_size: int = 128) -> FlowDataset:
        """Renders and encodes `num_images` scenes."""
        rng = random.Random(seed)
        shift, scale = autoencoder.config.shift_factor, autoencoder.config.scaling_factor
        parts = []
        for _ in range(num_images // batch_size):
            captions, scenes = sample_world(rng, batch_size)
            posterior = autoencoder.encode(render(scenes) * 2 - 1).latent_dist
            latents = (posterior.mean - shift) * scale, posterior.std * scale
            contents = torch.tensor([cell_contents(scene) for scene in scenes])
            parts.append((*[x.half() for x in latents], *tokenize([c.text for c in captions]), contents))
        return cls(*[torch.cat(part) for part in zip(*parts, strict=True)])

    @classmethod
    def load_or_build(cls, file: Path, autoencoder: AutoencoderKL, num_images: int, seed: int) -> FlowDataset:
        """The set kept in `file`, which is written first where it does not exist."""
        if not file.exists():
            built = cls.build(autoencoder, num_images, seed)
            with whole_file(file) as partial:
                torch.save(vars(built), partial)
        return cls(**torch.load(file, weights_only=True))

    def sample(self, rng: random.Random, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`count` draws with replacement: latents `[B, 8, 8, 8]` from their posteriors, token ids, cell contents."""
        rows = torch.tensor([rng.randrange(len(self.means)) for _ in range(count)])
        means, deviations = self.means[rows].float(), self.deviations[rows].float()
        latents = means + deviations * torch.randn_like(means)
        return latents, self.clip_ids[rows], self.t5_ids[rows], self.contents[rows]
