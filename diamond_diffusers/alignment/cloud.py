"""The particles of a run at one level."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from .evaluation import Evaluation
from .look_ahead import LookAhead


@dataclass(frozen=True)
class Cloud:
    """`P` particles of each of `B` images at one level, image after image.

    Attributes:
        x: `[B P, ...]` in the bounded coordinate.
        log_weights: `[B, P]` float64 on the CPU, unnormalised.
        log_evidence: `[B]`, gathered at resamplings, likewise.
        ahead: estimates at `x`; None where they are still to be made.
        final: the decoded and scored `x` at the last level, where a method has made it.
        values: of the particles as they were last estimated, `[B, P]`; None before anything is scored.
        figures: what the last step recorded for the trace.
    """

    x: Tensor
    log_weights: Tensor
    log_evidence: Tensor
    ahead: LookAhead | None = None
    final: Evaluation | None = None
    values: Tensor | None = None
    figures: dict[str, Tensor] = field(default_factory=dict)

    @property
    def estimates(self) -> LookAhead:
        """`ahead`, where it has been made."""
        assert self.ahead is not None, "a step makes the estimates at its particles before it uses them"
        return self.ahead
