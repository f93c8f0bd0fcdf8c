"""The second time of a flow map, in the layout of the published FLUX.1 flow-map LoRA."""

from __future__ import annotations

import copy

from torch import Tensor, nn


class TwoTimeEmbedder(nn.Module):
    """A time embedder that also takes pairs of times; it embeds each by an embedder of its own, and takes the mean.

    A flow map from `t` to `t'` needs both times. Before training, the embedding of `(t, t)` is that of `t`.

    Args:
        original_embedder: embeds `(timestep [N], ...)`; its copy becomes `second_embedder`.
    """

    def __init__(self, original_embedder: nn.Module) -> None:
        super().__init__()
        self.original_embedder = original_embedder
        self.second_embedder = copy.deepcopy(original_embedder)

    def forward(self, timestep: Tensor, *conditions: Tensor) -> Tensor:
        """The embedding of times `[N]`, or of pairs of times `[N, 2]`."""
        if timestep.ndim == 1:
            return self.original_embedder(timestep, *conditions)
        first, second = timestep.unbind(-1)
        return (self.original_embedder(first, *conditions) + self.second_embedder(second, *conditions)) / 2
