"""What decoding and scoring clean latents gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Evaluation:
    """What decoding and scoring `N` clean latents gave.

    Attributes:
        total: the unscaled reward, `[N]`; NaN where it has failed and a run goes on without.
        terms: each of its terms, `[N]`.
        images: `[N, 3, H, W]` in [0, 1].
        violation: of constraints, `[N]`, as of `RewardOutput`; None where there are none.
    """

    total: Tensor
    terms: dict[str, Tensor]
    images: Tensor
    violation: Tensor | None = None

    def map(self, function: Callable[..., Tensor], *others: Evaluation) -> Evaluation:
        """The function of each tensor of this evaluation and of others of the same reward."""

        def mapped(name: str) -> Tensor:
            return function(*(getattr(each, name) for each in (self, *others)))

        terms = {name: function(*(each.terms[name] for each in (self, *others))) for name in self.terms}
        violation = None if self.violation is None else mapped("violation")
        return Evaluation(mapped("total"), terms, mapped("images"), violation)

    def rows(self, index: Tensor) -> Evaluation:
        """The evaluations of the rows `index`."""
        return self.map(lambda rows: rows[index.to(rows.device)])
