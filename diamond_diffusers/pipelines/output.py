"""What a call of `DiamondMapPipeline` returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..alignment.trace import Trace
from ..cost import Cost


@dataclass
class DiamondMapPipelineOutput:
    """Images and what is known of them; `n` is their number.

    Attributes:
        images: PIL images, an array or a tensor, by `output_type`; image after image, and with
            `final_selection="all"` particle after particle of each.
        rewards: unscaled rewards `[n]`; None without a reward.
        reward_terms: each term of the reward before weighting, `[n]`.
        log_weights: normalised log-weights `[n]` of the returned particles within their image's cloud.
        log_evidence: estimate of `log E[exp(reward_scale * reward)]` for each prompt's image, or None.
        trace: figures of each step; `trace.plot()` draws them.
        cost: what the whole call has cost.
        nsfw_content_detected: for each image, whether the stock pipeline's safety checker blacked it out; None where
            there is no checker.
    """

    images: Any
    rewards: Tensor | None
    reward_terms: dict[str, Tensor]
    log_weights: Tensor
    log_evidence: Tensor | None
    trace: Trace
    cost: Cost
    nsfw_content_detected: list[bool] | None = None
