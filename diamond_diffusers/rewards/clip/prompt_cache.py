"""Text features that are computed once per distinct prompt."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class PromptCache:
    """Encodes each distinct prompt once, and remembers the prompts used last.

    Args:
        capacity: number of prompts that are remembered between calls.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._features: OrderedDict[str, Tensor] = OrderedDict()

    def __call__(self, prompts: Sequence[str], encode: Callable[[list[str]], Tensor]) -> Tensor:
        """The features `[B, ...]` of `B` prompts, without a graph; repeated prompts cost nothing.

        Args:
            prompts: `B` prompts.
            encode: maps N prompts to features `[N, ...]`; always the same function.
        """
        distinct = list(dict.fromkeys(prompts))
        missing = [prompt for prompt in distinct if prompt not in self._features]
        if missing:
            with torch.no_grad():
                encoded = encode(missing)
            # A row that is a view would keep the features of its whole batch alive.
            self._features.update({prompt: row.clone() for prompt, row in zip(missing, encoded, strict=True)})
        for prompt in distinct:
            self._features.move_to_end(prompt)
        features = torch.stack([self._features[prompt] for prompt in prompts])
        while len(self._features) > self._capacity:
            self._features.popitem(last=False)
        return features

    def to(self, device: torch.device) -> None:
        """Moves the features of all prompts."""
        self._features = OrderedDict((prompt, row.to(device)) for prompt, row in self._features.items())

    def clear(self) -> None:
        """Forgets all prompts."""
        self._features.clear()
