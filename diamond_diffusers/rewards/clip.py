"""CLIP similarity of image and prompt."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, CLIPModel

from .base import Reward
from .preprocessing import ImagePreprocessing
from .prompt_cache import PromptCache
from .registry import register_reward

logger = logging.getLogger(__name__)


@register_reward("clip")
class CLIPReward(Reward):
    """`scale` times the cosine of a CLIP's image and text features; any transformers CLIP checkpoint will do.

    Images of any size are resized, cropped and normalised as the checkpoint's processor says, on tensors, and scores
    are differentiable to the pixels. Each distinct prompt is encoded once. In float16 and bfloat16 only the two
    towers are in that precision.

    Args:
        checkpoint: a name on the Hub or a local folder, with weights in safetensors.
        name: under which the scores are reported.
        scale: a number (1 is the cosine, 100 the CLIPScore convention), or `"logit_scale"` for the checkpoint's own,
            with which differences of scores are the log-likelihood ratios that CLIP was trained on.
        prompt_template: a text with `{}` in the prompt's place, such as `"a photo of {}"`.
        text_cache_size: how many prompts' features are remembered.
        device: of the model; images are moved to it.
        dtype: of the two towers.
        hub_options: forwarded to `from_pretrained`: `revision`, `token`, `cache_dir`, `local_files_only`, `subfolder`.

    Raises:
        OSError: the checkpoint cannot be found or read.
        ValueError: the checkpoint is no CLIP or lacks weights, or `scale` or `prompt_template` is malformed.

    Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision".
    """

    licence = "that of the checkpoint (OpenAI's: MIT)"
    source = "Radford et al. 2021, arXiv:2103.00020"

    def __init__(
        self,
        checkpoint: str | PathLike[str] = "openai/clip-vit-large-patch14",
        *,
        name: str = "clip",
        scale: float | Literal["logit_scale"] = 1.0,
        prompt_template: str | None = None,
        text_cache_size: int = 1024,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        **hub_options: Any,
    ) -> None:
        if isinstance(scale, str) and scale != "logit_scale":
            raise ValueError(f"Reward '{name}' got scale={scale!r}; give a number or 'logit_scale'.")
        if prompt_template is not None and "{}" not in prompt_template:
            raise ValueError(
                f"Reward '{name}' got prompt_template={prompt_template!r}; put {{}} in the prompt's place."
            )
        self.name = name
        self.prompt_template = prompt_template
        self._load(checkpoint, hub_options)
        self.scale = self.model.logit_scale.exp().item() if scale == "logit_scale" else float(scale)
        self._text_features = PromptCache(self._encode_texts, text_cache_size)
        self._has_warned_of_truncation = False
        self.to(device, dtype)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """`scale * cosine`, `[B]`, of images `[B, 3, H, W]` in [0, 1] and `B` prompts; in float32 at least."""
        return self.scale * (self.image_features(images) * self.text_features(prompts)).sum(-1)

    def image_features(self, images: Tensor) -> Tensor:
        """Unit features `[B, D]` of images `[B, 3, H, W]` in [0, 1], on the model's device, with their graph."""
        pixels = self.preprocessing(_at_least_float32(images.to(self.model.device)))
        pooled = self.model.vision_model(pixels.to(self.model.dtype)).pooler_output
        return nn.functional.normalize(_at_least_float32(self.model.visual_projection(pooled)), dim=-1)

    def text_features(self, prompts: Sequence[str]) -> Tensor:
        """Unit features `[B, D]` of `B` prompts, on the model's device, without a graph; cached."""
        return self._text_features(prompts)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Moves and casts the model, in place; returns the reward."""
        super().to(device, dtype)
        self._text_features.clear()
        return self

    def _load(self, checkpoint: str | PathLike[str], hub_options: dict[str, Any]) -> None:
        with _explaining(self.name, checkpoint):
            config = AutoConfig.from_pretrained(checkpoint, **hub_options)
        if config.model_type != "clip":
            raise ValueError(
                f"Reward '{self.name}' got checkpoint='{checkpoint}' of the architecture '{config.model_type}'; "
                "give a CLIP checkpoint."
            )
        with _explaining(self.name, checkpoint):
            self.model, report = CLIPModel.from_pretrained(
                checkpoint, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **hub_options
            )
            processor = AutoImageProcessor.from_pretrained(checkpoint, **hub_options)
            self.tokenizer = AutoTokenizer.from_pretrained(checkpoint, **hub_options)
        if report["missing_keys"]:
            raise ValueError(
                f"Reward '{self.name}' got checkpoint='{checkpoint}', which lacks {sorted(report['missing_keys'])[0]} "
                f"and {len(report['missing_keys']) - 1} other weights; give a complete CLIP checkpoint."
            )
        self.model.eval().requires_grad_(False)
        self.preprocessing = ImagePreprocessing.from_processor(processor)
        self.max_tokens = min(self.tokenizer.model_max_length, config.text_config.max_position_embeddings)

    def _encode_texts(self, prompts: list[str]) -> Tensor:
        template = self.prompt_template or "{}"
        texts = [template.replace("{}", prompt) for prompt in prompts]
        self._warn_of_truncation(texts)
        tokens = self.tokenizer(
            texts, padding="max_length", truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(self.model.device)
        pooled = self.model.text_model(tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output
        return nn.functional.normalize(_at_least_float32(self.model.text_projection(pooled)), dim=-1)

    def _warn_of_truncation(self, texts: list[str]) -> None:
        if self._has_warned_of_truncation:
            return
        for text, tokens in zip(texts, self.tokenizer(texts, verbose=False).input_ids, strict=True):
            if len(tokens) > self.max_tokens:
                cut = f"reads only {self.max_tokens} of the {len(tokens)} tokens of {text!r}"
                logger.warning("Reward '%s' %s; longer prompts are cut.", self.name, cut)
                self._has_warned_of_truncation = True
                return


@contextmanager
def _explaining(name: str, checkpoint: str | PathLike[str]) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise OSError(
            f"Reward '{name}' cannot load checkpoint='{checkpoint}' ({str(error).splitlines()[0]}); give a name on "
            "the Hub, or a folder with the model in safetensors, its image processor and its tokenizer."
        ) from error


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
