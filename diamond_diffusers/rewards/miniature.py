"""The embedded reward: a small CLIP that knows the miniature world."""

from __future__ import annotations

from importlib import resources

import torch

from .clip import CLIPReward
from .registry import register_reward


@register_reward("miniature")
class MiniatureReward(CLIPReward):
    """The reward of the embedded model: `exp(logit_scale) * cosine` of the CLIP that comes with the package.

    The scale is that of the CLIP's training. So the difference between the scores of two captions for an image is their
    log-likelihood ratio, and `exp(reward)` tilts a sampler by that likelihood without a further scale.

    Args:
        device: of the model; images are moved to it.
        dtype: of the two towers.

    Raises:
        OSError: the package was installed without its weights.
    """

    licence = "Apache-2.0"
    source = "diamond_diffusers.miniature"
    size = "none"
    default_reward_scale = 1.0
    is_free = True
    hub_files = ()

    def __init__(self, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32) -> None:
        folder = resources.files("diamond_diffusers.miniature") / "weights" / "clip"
        if not folder.is_dir():
            raise OSError(
                f"Reward 'miniature' finds no weights at '{folder}'; install diamond-diffusers with its package data."
            )
        super().__init__(str(folder), name="miniature", scale="logit_scale", device=device, dtype=dtype)
