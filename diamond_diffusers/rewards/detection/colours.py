"""The colour of a detected object, by CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any, Self

import torch
from torch import Tensor, nn

from ...core.tensors import at_least_float32
from ..clip import CLIPReward

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
"""GenEval's."""

TEMPLATES = ("a photo of a {colour} {object}", "a photo of a {colour}-colored {object}", "a photo of a {colour} object")

_LONGEST = 16
"""How many times longer than wide a crop may be. Only its centre is seen, for which all of it would be enlarged."""


class ColourClassifier:
    """Tells the colour of an object in a crop: the one of `COLOURS` whose prompts are closest to it in CLIP.

    A colour is the mean of the unit features of three prompts, normalised again, as GenEval takes it.

    Args:
        checkpoint: a CLIP in any form that `CLIPReward` takes.
        options: `name`, `device`, `dtype` and the options for loading, as of `CLIPReward`.

    Raises:
        OSError, TypeError, ValueError: as `CLIPReward`.

    Source: Ghosh et al. 2023, "GenEval", arXiv:2310.11513, section 3.
    """

    def __init__(self, checkpoint: str | PathLike[str] = "openai/clip-vit-large-patch14", **options: Any) -> None:
        self.clip = CLIPReward(checkpoint, **options)

    def probabilities(self, crops: Sequence[Tensor], name: str) -> Tensor:
        """The probabilities `[N, 10]` of the colours, in their order, of `N` crops that show the object `name`.

        Args:
            crops: each `[3, h, w]` in [0, 1], of any size; gradients pass.
            name: of the object, in the singular.
        """
        pixels = torch.cat([self._preprocessed(crop) for crop in crops])
        features = self.clip.tower.image_features(pixels, nn.Identity())
        return (100 * features @ self._colour_features(name).T).softmax(-1)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Moves and casts the CLIP, in place; returns the classifier."""
        self.clip.to(device, dtype)
        return self

    def _preprocessed(self, crop: Tensor) -> Tensor:
        height, width = crop.shape[-2:]
        longest = _LONGEST * min(height, width)
        top, left = max(0, (height - longest) // 2), max(0, (width - longest) // 2)
        centre = crop[None, :, top : height - top, left : width - left]
        return self.clip.preprocessing(at_least_float32(centre.to(self.clip.tower.device)))

    def _colour_features(self, name: str) -> Tensor:
        texts = [template.format(colour=colour, object=name) for colour in COLOURS for template in TEMPLATES]
        means = self.clip.text_features(texts).unflatten(0, (len(COLOURS), len(TEMPLATES))).mean(1)
        return nn.functional.normalize(means, dim=-1)
