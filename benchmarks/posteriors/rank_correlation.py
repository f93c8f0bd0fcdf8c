"""Whether two lists of numbers rank alike."""

from __future__ import annotations

import torch
from scipy.stats import rankdata
from torch import Tensor


def rank_correlation(first: Tensor, second: Tensor) -> float | None:
    """Spearman's rank correlation of two lists `[N]`, ties at their mean rank; None where either is constant."""
    ranks = [torch.from_numpy(rankdata(values.cpu())) for values in (first, second)]
    centred = [rank - rank.mean() for rank in ranks]
    norms = centred[0].norm() * centred[1].norm()
    return (centred[0] @ centred[1] / norms).item() if norms > 0 else None
