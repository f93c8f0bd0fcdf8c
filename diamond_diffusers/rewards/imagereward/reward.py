"""ImageReward: a human preference score for an image and its prompt."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..registry import register_reward
from .base import BERT, BLIPReward

if TYPE_CHECKING:
    from transformers import BlipTextConfig, BlipVisionConfig

    from .network import BLIPRewardNetwork


@register_reward("imagereward")
class ImageReward(BLIPReward):
    """Human preference for the image given the prompt, standardised to zero mean and unit deviation on its own data.

    It runs the published checkpoint on transformers' BLIP modules. Images of any size are preprocessed on tensors as
    the official code does on PIL images, and scores are differentiable to the pixels. The text tower sees the image
    from its first layer on, so that no features of prompts can be cached. With `dtype` bfloat16 or float16 the two
    towers are in that precision and the head stays in float32; scores then deviate by up to 0.05 (bfloat16) and 0.01
    (float16) on a small copy of the network.

    Args:
        checkpoint: a repository on the Hub that holds `ImageReward.pt`, or a local `.pt` or `.safetensors` file in
            the published layout, or a folder with `ImageReward.safetensors`, `model.safetensors` or `ImageReward.pt`.
        name: name under which the scores are reported.
        options: those of `BLIPReward`.

    Raises:
        OSError: the checkpoint or the tokenizer cannot be found or read.
        TypeError: an option is unknown.
        ValueError: the checkpoint is of another architecture; the first tensor at fault is named.

    Source: Xu et al. 2023, "ImageReward: Learning and Evaluating Human Preferences for Text-to-Image Generation".
    """

    licence = "Apache-2.0"
    source = "Xu et al. 2023, arXiv:2304.05977"
    size = "1.8 GB"
    default_reward_scale = 10.0
    hub_files = (("THUDM/ImageReward", "ImageReward.pt"), (BERT, "vocab.txt"))

    max_tokens = 35
    file_names = ("ImageReward.safetensors", "model.safetensors", "ImageReward.pt")

    def __init__(
        self, checkpoint: str | PathLike[str] = "THUDM/ImageReward", *, name: str = "imagereward", **options: Any
    ) -> None:
        super().__init__(checkpoint, name=name, **options)

    def build_network(
        self, weights: Mapping[str, Tensor], vision_config: BlipVisionConfig, text_config: BlipTextConfig
    ) -> BLIPRewardNetwork:
        """See `BLIPReward`."""
        # It loads transformers' BLIP.
        from .network import build_network

        return build_network(weights, vision_config, text_config)
