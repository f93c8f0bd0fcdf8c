"""CLIP similarity of image and prompt."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any, Literal

from torch import Tensor

from ..registry import register_reward
from .base import CLIPBasedReward


@register_reward("clip")
class CLIPReward(CLIPBasedReward):
    """CLIP similarity: `scale` times the cosine of a CLIP's image and text features.

    Each distinct prompt is encoded once. open_clip first mends broken characters and entities in texts, as OpenAI's own
    code does; transformers takes texts as they are. With `dtype` float16 or bfloat16 only the two towers are in that
    precision; cosines then deviate by up to 1e-3 (float16) and 1e-2 (bfloat16).

    Args:
        checkpoint: a transformers CLIP or SigLIP, by name on the Hub or as a local folder, with weights in
            safetensors; or an open_clip model: `open_clip:<architecture>/<pretrained tag or file>`,
            `hf-hub:<repository>` or `local-dir:<folder>`.
        name: name under which the scores are reported.
        scale: a number (1 is the cosine, 100 the CLIPScore convention), or `"logit_scale"` for the checkpoint's own,
            with which differences of scores are the log-likelihood ratios that CLIP was trained on.
        prompt_template: a text with `{}` in the prompt's place, such as `"a photo of {}"`.
        options: options of every reward that uses a CLIP.
            `processor`: name or folder of the image processor and the tokenizer, if they are not in the checkpoint.
            `gradient_checkpointing`: whether the layers recompute their activations in the backward pass; this holds
            for all rewards that share the tower.
            `max_batch_size`: the largest number of images in one call of the towers.
            `device` and `dtype`: those of the two towers; images are moved there.
            Forwarded to `from_pretrained`: `revision`, `subfolder`, `token`, `cache_dir`, `local_files_only`,
            `force_download`.

    Raises:
        OSError: the checkpoint cannot be found or read.
        TypeError: an option is unknown.
        ValueError: the checkpoint is no CLIP or lacks weights, or `scale` or `prompt_template` is malformed.

    Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision".
    """

    licence = "that of the checkpoint (OpenAI's: MIT)"
    source = "Radford et al. 2021, arXiv:2103.00020"
    size = "1.7 GB"
    default_reward_scale = 100.0
    hub_files: tuple[tuple[str, str], ...] = (("openai/clip-vit-large-patch14", "model.safetensors"),)

    def __init__(
        self,
        checkpoint: str | PathLike[str] = "openai/clip-vit-large-patch14",
        *,
        name: str = "clip",
        scale: float | Literal["logit_scale"] = 1.0,
        prompt_template: str | None = None,
        **options: Any,
    ) -> None:
        if isinstance(scale, str) and scale != "logit_scale":
            raise ValueError(f"Reward '{name}' got scale={scale!r}; give a number or 'logit_scale'.")
        if prompt_template is not None and "{}" not in prompt_template:
            raise ValueError(
                f"Reward '{name}' got prompt_template={prompt_template!r}; put {{}} in the prompt's place."
            )
        super().__init__(checkpoint, name=name, **options)
        self.prompt_template = prompt_template or "{}"
        self.scale = self.tower.logit_scale if scale == "logit_scale" else float(scale)
        if self.scale:
            # The temperature that the checkpoint was trained at, in units of these scores.
            self.default_reward_scale = self.tower.logit_scale / abs(self.scale)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """`scale * cosine`, `[B]`, of images `[B, 3, H, W]` in [0, 1] and `B` prompts; in float32 at least."""
        return self.scale * (self.shared_image_features(images) * self.text_features(prompts)).sum(-1)

    def text_features(self, prompts: Sequence[str]) -> Tensor:
        """Unit features `[B, D]` of `B` prompts, on the model's device, without a graph; cached."""
        return self.tower.text_features([self.prompt_template.replace("{}", prompt) for prompt in prompts])
