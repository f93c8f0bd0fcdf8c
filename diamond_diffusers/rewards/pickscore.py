"""PickScore: a preference score learned from the choices of the users of a web application."""

from __future__ import annotations

from os import PathLike
from typing import Any, Literal

from .clip import CLIPReward
from .registry import register_reward

OFFICIAL_CHECKPOINT = "yuvalkirstain/PickScore_v1"
OFFICIAL_PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


@register_reward("pickscore")
class PickScoreReward(CLIPReward):
    """PickScore, `logit_scale * cosine` of its CLIP: about 15 to 25, with differences that are log-odds of preference.

    Args:
        checkpoint: the published one, or another in its layout, by name or as a folder.
        processor: name or folder of the image processor and the tokenizer; by default the published ones for the
            published checkpoint, and the checkpoint's own for another one.
        name: name under which the scores are reported.
        scale: `"logit_scale"` for the checkpoint's own, about 100, or a number: 1 is the cosine.
        options: see `CLIPReward`.

    Raises:
        OSError, ValueError: as `CLIPReward`.

    Source: Kirstain et al. 2023, "Pick-a-Pic: An Open Dataset of User Preferences for Text-to-Image Generation".
    """

    licence = "MIT"
    source = "Kirstain et al. 2023, arXiv:2305.01569"
    size = "3.9 GB"
    default_reward_scale = 1.0
    hub_files = ((OFFICIAL_CHECKPOINT, "model.safetensors"), (OFFICIAL_PROCESSOR, "preprocessor_config.json"))

    def __init__(
        self,
        checkpoint: str | PathLike[str] = OFFICIAL_CHECKPOINT,
        *,
        processor: str | PathLike[str] | None = None,
        name: str = "pickscore",
        scale: float | Literal["logit_scale"] = "logit_scale",
        **options: Any,
    ) -> None:
        if processor is None and str(checkpoint) == OFFICIAL_CHECKPOINT:
            processor = OFFICIAL_PROCESSOR
        super().__init__(checkpoint, processor=processor, name=name, scale=scale, **options)
