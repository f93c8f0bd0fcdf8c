"""Human Preference Score v2."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Literal

from .clip import CLIPReward
from .clip.loading import OPEN_CLIP_PREFIX
from .hub import HUB_OPTIONS, download
from .preprocessing import LongestSidePadding
from .registry import register_reward

REPOSITORY = "xswu/HPSv2"
WEIGHT_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")


@register_reward("hpsv2")
class HPSv2Reward(CLIPReward):
    """Cosine of a CLIP ViT-H/14 that was trained on human choices, about 0.2 to 0.35.

    Args:
        checkpoint: None for the published one, from the Hub; a weights file in its layout (`.pt` or `.safetensors`);
            or any checkpoint that `CLIPReward` takes.
        preprocessing: `"pad"` as in the official package, which resizes the longer side to 224 and pads with black, or
            `"crop"`, which resizes the shorter side and crops the centre, as CLIP does.
        name: name under which the scores are reported.
        options: see `CLIPReward`.

    Raises:
        OSError, ValueError: as `CLIPReward`; or `preprocessing` is neither `"pad"` nor `"crop"`.

    Source: Wu et al. 2023, "Human Preference Score v2".
    """

    licence = "Apache-2.0"
    source = "Wu et al. 2023, arXiv:2306.09341"
    size = "2.0 GB"
    file_name: ClassVar[str] = "HPS_v2_compressed.pt"
    hub_files = ((REPOSITORY, file_name),)

    def __init__(
        self,
        checkpoint: str | PathLike[str] | None = None,
        *,
        preprocessing: Literal["pad", "crop"] = "pad",
        name: str = "hpsv2",
        **options: Any,
    ) -> None:
        if preprocessing not in ("pad", "crop"):
            raise ValueError(f"Reward '{name}' got preprocessing={preprocessing!r}; give 'pad' or 'crop'.")
        if checkpoint is None:
            hub_options = {key: options.pop(key) for key in HUB_OPTIONS if key in options}
            checkpoint = download(name, REPOSITORY, self.file_name, hub_options)
        if _is_weights_file(checkpoint):
            if not Path(checkpoint).is_file():
                raise OSError(f"Reward '{name}' got checkpoint='{checkpoint}', which does not exist; give another.")
            checkpoint = f"{OPEN_CLIP_PREFIX}ViT-H-14/{checkpoint}"
        super().__init__(checkpoint, name=name, **options)
        if preprocessing == "pad":
            crop = self.tower.preprocessing
            # Every CLIP is trained on pixels of one size.
            assert crop.size is not None
            self.preprocessing = LongestSidePadding(crop.size[0], crop.mean, crop.std)


def _is_weights_file(checkpoint: str | PathLike[str]) -> bool:
    return Path(checkpoint).suffix in WEIGHT_SUFFIXES and not str(checkpoint).startswith(OPEN_CLIP_PREFIX)
