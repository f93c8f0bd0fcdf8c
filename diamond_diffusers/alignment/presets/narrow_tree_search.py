"""Search by a narrow tree of denoising states."""

from __future__ import annotations

from typing import Any

from ...core.model import Model
from ...core.serial import with_options
from ..methods.diffusion_tree_search import DiffusionTreeSearch
from . import PRESETS


@PRESETS.register("narrow_tree_search")
def narrow_tree_search(model: Model | None = None, **options: Any) -> DiffusionTreeSearch:
    """Diffusion Tree Search (arXiv 2506.20701) with fewer children of a state: our own, for budgets of some hundreds.

    A state that was visited N times has less than `sqrt(N)` children, where the authors allow `2 N^0.8`. So one rollout
    in several, not nearly all of the first 36, starts from pure noise, and the others go on from the best states known.
    """
    return with_options(DiffusionTreeSearch(widening=1.0, widening_exponent=0.5), options)
