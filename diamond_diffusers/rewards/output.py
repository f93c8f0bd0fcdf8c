"""What a reward says of a batch of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
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

    def differentiated(self) -> Tensor:
        """`[B, 1 or 2]`, with its graph: the total and, where there are constraints, how far they are violated."""
        return torch.stack([self.total] if self.violation is None else [self.total, self.violation], 1)

    def columns(self) -> Tensor:
        """Everything as one tensor `[B, C]`, from which `of_columns` makes the output again."""
        return torch.cat([self.differentiated(), *(term[:, None] for term in self.terms.values())], 1)

    @classmethod
    def of_columns(cls, columns: Tensor, names: Sequence[str]) -> RewardOutput:
        """The output of these `columns`, whose terms have the given names."""
        scores = columns.unbind(1)
        total, *violation = scores[: len(scores) - len(names)]
        terms = scores[len(scores) - len(names) :]
        return cls(total, dict(zip(names, terms, strict=True)), *violation)
