"""Human Preference Score v2.1."""

from __future__ import annotations

from os import PathLike
from typing import Any

from .hpsv2 import REPOSITORY, HPSv2Reward
from .registry import register_reward


@register_reward("hpsv2_1")
class HPSv21Reward(HPSv2Reward):
    """Cosine of a CLIP of version 2.1, which was trained on cleaner choices; everything else is as in `HPSv2Reward`."""

    file_name = "HPS_v2.1_compressed.pt"
    hub_files = ((REPOSITORY, file_name),)

    def __init__(self, checkpoint: str | PathLike[str] | None = None, *, name: str = "hpsv2_1", **options: Any) -> None:
        super().__init__(checkpoint, name=name, **options)
