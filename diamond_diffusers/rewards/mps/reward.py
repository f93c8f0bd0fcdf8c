"""MPS: human preference for the image given the prompt, in the dimensions that a condition names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from ...core.tensors import at_least_float32
from ..base import Reward
from ..checkpointing import checkpoint_layers
from ..clip.prompt_cache import PromptCache
from ..errors import first_line
from ..hub import check_hub_options, options_of_others
from ..preprocessing import ImagePreprocessing
from ..registry import register_reward
from ..truncation import TruncationWarning
from ..weight_files import find_weights, read_weights

if TYPE_CHECKING:
    from transformers import CLIPConfig

REPOSITORY = "RE-N-Y/mpsv1"
TOKENIZER = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
FILE_NAMES = ("MPS_overall.safetensors", "MPS_overall.pt", "model.safetensors")
PROMPTS_REMEMBERED = 64
"""Each takes 0.3 MB."""

AESTHETICS = ("light", "color", "clarity", "tone", "style", "ambiance", "artistry")
DETAILS = ("shape", "face", "hair", "hands", "limbs", "structure", "instance", "texture")
ALIGNMENT = ("quantity", "attributes", "position", "number", "location", "word", "things")
OVERALL = ", ".join((*AESTHETICS, *DETAILS, *ALIGNMENT)) + "."
"""The condition of overall preference."""


@register_reward("mps")
class MPSReward(Reward):
    """Overall human preference for the image given the prompt, by a CLIP ViT-H/14 whose patches read the prompt.

    Differences of scores are log-odds of being preferred. Of the prompt, those tokens are read that the condition is
    about. Scores are computed in float32, where the official code runs in float16. With `dtype` bfloat16 or float16 the
    network is in that precision.

    Args:
        checkpoint: a repository on the Hub that holds `model.safetensors`, or a local `.pt` or `.safetensors` file in
            the published layout, or a folder with `MPS_overall.safetensors`, `MPS_overall.pt` or `model.safetensors`.
            The authors' own file is a pickled program, which is not read; its weights alone are, see
            docs/judges/published_judges.md.
        condition: words for what the preference is about. The published weights were trained for overall preference.
        threshold: a token is read if its similarity to the condition is more than this part of the prompt's largest
            one. The authors' benchmarks have 0.3, and their training has 0.01.
        name: name under which the scores are reported.
        tokenizer: name or folder of the CLIP's tokenizer.
        clip_config: configuration of the checkpoint's CLIP, if it is not the published one.
        sizes: `num_layers`, `num_heads` and `head_dim` of the layers on top, if they are not the published ones.
        gradient_checkpointing: whether the backward pass recomputes each layer instead of storing its activations.
        max_batch_size: the largest number of images in one call of the model; None for all at once.
        device: device of the model; images are moved to it.
        dtype: dtype of the model.
        hub_options: forwarded to the Hub, see `CLIPReward`; the tokenizer gets all but `revision` and `subfolder`.

    Raises:
        OSError: the checkpoint or the tokenizer cannot be found or read.
        TypeError: an option is unknown.
        ValueError: the checkpoint is of another architecture, of which the first tensor at fault is named; or
            `threshold` is out of range.

    Source: Zhang et al. 2024, "Learning Multi-dimensional Human Preference for Text-to-Image Generation".
    """

    licence = "MIT"
    source = "Zhang et al. 2024, arXiv:2405.14705"
    size = "4.4 GB"
    default_reward_scale = 1.0
    hub_files = ((REPOSITORY, "model.safetensors"), (TOKENIZER, "vocab.json"))

    def __init__(
        self,
        checkpoint: str | PathLike[str] = REPOSITORY,
        *,
        condition: str = OVERALL,
        threshold: float = 0.3,
        name: str = "mps",
        tokenizer: str | PathLike[str] = TOKENIZER,
        clip_config: CLIPConfig | None = None,
        sizes: Mapping[str, int] | None = None,
        gradient_checkpointing: bool = False,
        max_batch_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        **hub_options: Any,
    ) -> None:
        # It loads transformers' CLIP.
        from .network import CLIP_CONFIG, build_network

        check_hub_options(name, hub_options)
        if not 0 <= threshold <= 1:
            raise ValueError(f"Reward '{name}' got threshold={threshold}; give a number from 0 to 1.")
        self.name = name
        self.max_batch_size = max_batch_size
        self.condition, self.threshold = condition, threshold
        config = clip_config or CLIP_CONFIG
        path = find_weights(name, checkpoint, FILE_NAMES, hub_options)
        try:
            self.model = build_network(read_weights(path), config, **(sizes or {}))
        except ValueError as error:
            raise ValueError(
                f"Reward '{name}' got checkpoint='{checkpoint}', but {error}; give one in its published layout."
            ) from error
        edge = config.vision_config.image_size
        self.preprocessing = ImagePreprocessing(size=[edge], crop_size=[edge, edge], crop_rounding=int)
        self.max_tokens = config.text_config.max_position_embeddings
        self.tokenizer = _load_tokenizer(name, tokenizer, hub_options)
        self._text_features = PromptCache(PROMPTS_REMEMBERED)
        self._warn_of_truncation = TruncationWarning(name, self.max_tokens)
        if gradient_checkpointing:
            checkpoint_layers(self.model)
        self.to(device, dtype)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores `[B]` of images `[B, 3, H, W]` in [0, 1] and `B` prompts."""
        weight = self.model.clip.logit_scale
        pixels = self.preprocessing(at_least_float32(images.to(weight.device)))
        texts = self._text_features([self.condition, *prompts], self._encode)
        return self.model(pixels.to(weight.dtype), texts[1:], texts[:1], self.threshold)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Moves and casts the model, in place; returns the reward."""
        self._text_features.clear()
        return super().to(device, dtype)

    def _encode(self, texts: list[str]) -> Tensor:
        self._warn_of_truncation(
            texts, lambda texts: [len(ids) for ids in self.tokenizer(texts, verbose=False).input_ids]
        )
        tokens = self.tokenizer(
            texts, max_length=self.max_tokens, padding="max_length", truncation=True, return_tensors="pt"
        )
        return self.model.encode_texts(tokens.input_ids.to(self.model.clip.logit_scale.device))


def _load_tokenizer(name: str, tokenizer: str | PathLike[str], hub_options: Mapping[str, Any]) -> Any:
    from transformers import CLIPTokenizer

    try:
        return CLIPTokenizer.from_pretrained(tokenizer, **options_of_others(hub_options))
    except (OSError, ValueError) as error:
        raise OSError(
            f"Reward '{name}' cannot load tokenizer='{tokenizer}' ({first_line(error)}); give the name or the folder "
            "of a CLIP tokenizer."
        ) from error
