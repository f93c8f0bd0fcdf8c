"""Random draws of a batch of images, each from its own generator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor


class RandomSource:
    """Draws for `num_images` images so that what image `i` receives depends on its generator alone.

    Args:
        generators: None for torch's global state, one generator for the whole batch, or one for each image.
        num_images: number of images B.
        device: where draws are put; they are made on each generator's own device.
        dtype: of the normals.

    Raises:
        ValueError: the number of generators is neither 1 nor `num_images`.
    """

    def __init__(
        self,
        generators: torch.Generator | Sequence[torch.Generator] | None,
        num_images: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if isinstance(generators, Sequence) and len(generators) not in (1, num_images):
            raise ValueError(
                f"generator holds {len(generators)} generators for {num_images} images; give one, or one for each image"
            )
        if isinstance(generators, Sequence) and len(generators) == 1:
            generators = generators[0]
        self.generators = generators
        self.num_images = num_images
        self.device = torch.device(device)
        self.dtype = dtype

    def normal(self, rows_per_image: int, shape: Sequence[int]) -> Tensor:
        """Standard normals `[num_images * rows_per_image, *shape]`, the rows of an image consecutive."""
        if isinstance(self.generators, Sequence):
            draws = [self._draw(rows_per_image, shape, generator) for generator in self.generators]
            return torch.cat(draws)
        return self._draw(self.num_images * rows_per_image, shape, self.generators)

    def of_image(self, index: int) -> torch.Generator | None:
        """The generator that image `index` draws from."""
        return self.generators[index] if isinstance(self.generators, Sequence) else self.generators

    def _draw(self, rows: int, shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
        return randn_tensor((rows, *shape), generator=generator, device=self.device, dtype=self.dtype)
