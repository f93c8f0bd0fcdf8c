"""What a reward says of a batch of images."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class RewardOutput:
    """The scores of one batch.

    Attributes:
        total: `[B]`, float32, on the images' device; carries the graph to the images where they require gradients.
        terms: the scores `[B]` of every reward by name, before weights and transforms, float32, without a graph; for
            reports.
        violation: `[B]`, 0 for images that hold all constraints, and positive, in nats, for those that violate one; as
            `total`, with its graph. None for a reward without constraints. A reward that passes on the total of another
            passes on this, too.
    """

    total: Tensor
    terms: dict[str, Tensor]
    violation: Tensor | None = None
