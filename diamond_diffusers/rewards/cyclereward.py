"""CycleReward: how well an image could be told back from its prompt, and the prompt from the image."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor

from .errors import first_line
from .hub import download_from_page, page_path
from .imagereward.base import BERT, BLIPReward
from .registry import register_reward

if TYPE_CHECKING:
    from transformers import BlipTextConfig, BlipVisionConfig

    from .imagereward.network import BLIPRewardNetwork

RELEASE = "https://github.com/hjbahng/cyclereward/releases/download/v1.0.0"
VARIANTS = {"combo": "CycleReward-Combo.pth", "t2i": "CycleReward-T2I.pth", "i2t": "CycleReward-I2T.pth"}


@register_reward("cyclereward")
class CycleReward(BLIPReward):
    """Cycle consistency of image and prompt, learned without human labels; a logit of no fixed range.

    It was trained to prefer the image from which another model tells the prompt back best, and the caption from which
    another model paints the image best. It knows longer prompts than `imagereward`: up to 128 tokens.

    Args:
        checkpoint: None for the published one of the `variant`, from the project's release; or a repository on the Hub
            that holds `model.safetensors`, a local `.pth` or `.safetensors` file in the published layout, or a folder
            with such a file.
        variant: what the published checkpoint was trained on: `"t2i"` on images of the same prompt, `"i2t"` on captions
            of the same image, `"combo"` on both, which its authors recommend.
        name: name under which the scores are reported.
        options: those of `BLIPReward`.

    Raises:
        OSError: the checkpoint or the tokenizer cannot be found or read.
        TypeError: an option is unknown.
        ValueError: the checkpoint is of another architecture, or `variant` is unknown.

    Source: Bahng et al. 2025, "Cycle Consistency as Reward: Learning Image-Text Alignment without Human Preferences".
    """

    licence = "MIT"
    source = "Bahng et al. 2025, arXiv:2506.02095"
    size = "1.8 GB"
    default_reward_scale = 1.0
    hub_files = ((BERT, "vocab.txt"),)

    max_tokens = 128
    file_names: ClassVar[tuple[str, ...]] = (*VARIANTS.values(), "model.safetensors")

    def __init__(
        self,
        checkpoint: str | PathLike[str] | None = None,
        *,
        variant: Literal["combo", "t2i", "i2t"] = "combo",
        name: str = "cyclereward",
        **options: Any,
    ) -> None:
        if variant not in VARIANTS:
            raise ValueError(f"Reward '{name}' got variant={variant!r}; give one of {', '.join(VARIANTS)}.")
        super().__init__(_released(name, VARIANTS[variant]) if checkpoint is None else checkpoint, name=name, **options)

    def build_network(
        self, weights: Mapping[str, Tensor], vision_config: BlipVisionConfig, text_config: BlipTextConfig
    ) -> BLIPRewardNetwork:
        """See `BLIPReward`."""
        # It loads transformers' BLIP.
        from .imagereward.network import CycleRewardNetwork, build_network

        return build_network(weights, vision_config, text_config, CycleRewardNetwork)

    @classmethod
    def missing_downloads(cls) -> list[str]:
        """See `Reward`; the released weights count too."""
        path = page_path(VARIANTS["combo"])
        return super().missing_downloads() + ([] if path.exists() else [path.name])


def _released(name: str, file: str) -> Path:
    url = f"{RELEASE}/{file}"
    try:
        return download_from_page(url)
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"Reward '{name}' cannot download {url} ({first_line(error)}); give checkpoint=..., a local copy of that "
            "file."
        ) from error
