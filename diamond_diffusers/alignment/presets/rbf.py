"""Rollover budget forcing."""

from __future__ import annotations

from typing import Any

from ...core.model import Model
from ...core.serial import with_options
from ...posteriors.denoiser import DenoiserPoint
from ...transitions.vp_sde import VPSDETransition
from ..methods.rollover_search import RolloverSearch
from . import PRESETS


@PRESETS.register("rbf")
def rbf(model: Model | None = None, **options: Any) -> RolloverSearch:
    """Rollover budget forcing (Kim et al., arXiv 2503.19385): rollover search x VP-SDE transitions x denoiser point.

    Their setting of FLUX.1 schnell, with 10 steps at 1024 x 1024 pixels: two searches of 25 noises, and of 25
    candidates a step, 500 evaluations in all; the better result is returned. The SDE is theirs, with the diffusion
    `3 r^2` in the time `r` of the variance-preserving path. The size of the reward, and so `reward_scale`, does not
    count.

    Their code differs in this: quotas divide the budget by the number of steps, one more than there are choices, so
    that a step but the last has 22 candidates, and the last what is left (in all as many); it takes Euler-Maruyama
    steps, which have the law of the steps here as they shrink; it returns the predicted sample of the last candidate
    as it is, which here is scored once more; and its steps are those of `r = sqrt(1 - (1 - t)^2)` for even steps of
    `t`, the last of which leads from `kappa = 2.4` to the image, while here the call's scheduler gives the levels.
    Below those levels this SDE adds hardly any noise, so that candidates are much alike: with many steps there, another
    transition makes more of the search, such as `rbf(transition="glass")`.
    """
    return with_options(RolloverSearch(2, 25, DenoiserPoint(), VPSDETransition()), options)
