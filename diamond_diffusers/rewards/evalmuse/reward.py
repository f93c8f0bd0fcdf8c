"""EvalMuse: how well the image shows what its prompt says, as people rate it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from ...core.tensors import at_least_float32
from ..base import Reward
from ..checkpointing import checkpoint_layers
from ..hub import check_hub_options
from ..imagereward.base import BERT, load_bert_tokenizer
from ..preprocessing import ImagePreprocessing
from ..registry import register_reward
from ..truncation import TruncationWarning
from ..weight_files import find_weights, read_weights

if TYPE_CHECKING:
    from transformers import Blip2QFormerConfig, Blip2VisionConfig

REPOSITORY, FILE_NAMES = "hanshuhao/FGA-BLIP2", ("model.safetensors", "fga_blip2.pth")
MAX_WORDS = 50


@register_reward("evalmuse")
class EvalMuseReward(Reward):
    """How well the image shows what its prompt says, 1 to 5, by the FGA-BLIP2 that was trained on people's ratings.

    It judges the alignment of image and prompt alone, not beauty. Prompts are read as its benchmark does: in lower
    case, without most punctuation, and up to 50 words. With `dtype` bfloat16 or float16 the image tower is in that
    precision, as in the official code on a GPU, and the rest stays in float32.

    Args:
        checkpoint: a repository on the Hub that holds `fga_blip2.pth`, or a local `.pth` or `.safetensors` file in the
            published layout, or a folder with `model.safetensors` or `fga_blip2.pth`.
        name: name under which the scores are reported.
        tokenizer: name or folder of the uncased BERT tokenizer.
        vision_config: configuration of the checkpoint's image tower, if it is not the published one.
        qformer_config: configuration of the checkpoint's Q-Former, if it is not the published one.
        gradient_checkpointing: whether the backward pass recomputes each layer instead of storing its activations.
        max_batch_size: the largest number of images in one call of the model; None for all at once.
        device: device of the model; images are moved to it.
        dtype: dtype of the image tower.
        hub_options: forwarded to the Hub, see `CLIPReward`; the tokenizer gets all but `revision` and `subfolder`.

    Raises:
        OSError: the checkpoint or the tokenizer cannot be found or read.
        TypeError: an option is unknown.
        ValueError: the checkpoint is of another architecture; the first tensor at fault is named.

    Source: Han et al. 2024, "EvalMuse-40K: A Reliable and Fine-Grained Benchmark with Comprehensive Human Annotations".
    """

    licence = "unspecified (code: Apache-2.0)"
    source = "Han et al. 2024, arXiv:2412.18150"
    size = "4.8 GB"
    default_reward_scale = 5.0
    hub_files = ((REPOSITORY, FILE_NAMES[-1]), (BERT, "vocab.txt"))

    def __init__(
        self,
        checkpoint: str | PathLike[str] = REPOSITORY,
        *,
        name: str = "evalmuse",
        tokenizer: str | PathLike[str] = BERT,
        vision_config: Blip2VisionConfig | None = None,
        qformer_config: Blip2QFormerConfig | None = None,
        gradient_checkpointing: bool = False,
        max_batch_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        **hub_options: Any,
    ) -> None:
        # It loads transformers' BLIP-2.
        from .network import QFORMER_CONFIG, VISION_CONFIG, build_network

        check_hub_options(name, hub_options)
        self.name = name
        self.max_batch_size = max_batch_size
        vision_config, qformer_config = vision_config or VISION_CONFIG, qformer_config or QFORMER_CONFIG
        path = find_weights(name, checkpoint, FILE_NAMES, hub_options)
        try:
            self.model = build_network(read_weights(path, entry="model"), vision_config, qformer_config)
        except ValueError as error:
            raise ValueError(
                f"Reward '{name}' got checkpoint='{checkpoint}', but {error}; give one in its published layout."
            ) from error
        edge = vision_config.image_size
        self.preprocessing = ImagePreprocessing(size=[edge, edge], crop_size=None)
        self.tokenizer = load_bert_tokenizer(name, tokenizer, hub_options)
        self.tokenizer.add_special_tokens({"bos_token": "[DEC]"})
        self.max_tokens = qformer_config.max_position_embeddings
        self._warn_of_truncation = TruncationWarning(name, MAX_WORDS, "words")
        if gradient_checkpointing:
            checkpoint_layers(self.model)
        self.to(device, dtype)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores `[B]`, 1 to 5, of images `[B, 3, H, W]` in [0, 1] and `B` prompts."""
        device = self.model.query_tokens.device
        pixels = self.preprocessing(at_least_float32(images.to(device)))
        tokens = self._tokenize(prompts)
        dtype = next(self.model.vision.parameters()).dtype
        return self.model(pixels.to(dtype), tokens.input_ids.to(device), tokens.attention_mask.to(device))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Moves and casts the model, in place; returns the reward. All but the image tower is in float32 at least."""
        self.model.to(device=device)
        if dtype is not None:
            self.model.to(torch.promote_types(dtype, torch.float32))
            self.model.vision.to(dtype)
        return self

    def _tokenize(self, prompts: Sequence[str]) -> Any:
        self._warn_of_truncation(prompts, lambda texts: [len(_words(text)) for text in texts])
        captions = [" ".join(_words(prompt)[:MAX_WORDS]) for prompt in prompts]
        return self.tokenizer(captions, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt")


def _words(prompt: str) -> list[str]:
    """The words of a prompt as the network was trained to read them."""
    text = re.sub(r'[.!"()*#:;~]', " ", prompt.lower())
    return re.sub(r"\s{2,}", " ", text).rstrip("\n").strip(" ").split(" ")
