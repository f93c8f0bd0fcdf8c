"""The warning of texts that are longer than a model reads."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

logger = logging.getLogger(__name__)


class TruncationWarning:
    """Warns of the first text that is cut, once.

    Args:
        name: name of the reward.
        limit: how much of a text is read.
        unit: what is counted.
    """

    def __init__(self, name: str, limit: int, unit: str = "tokens") -> None:
        self.name, self.limit, self.unit = name, limit, unit
        self.given = False

    def __call__(self, texts: Sequence[str], count: Callable[[list[str]], list[int]]) -> None:
        """Looks at texts, unless the warning was given.

        Args:
            texts: any number; the same one often occurs many times.
            count: the length of each of several texts before they are cut.
        """
        if self.given:
            return
        distinct = list(dict.fromkeys(texts))
        for text, length in zip(distinct, count(distinct), strict=True):
            if length > self.limit:
                cut = f"reads only {self.limit} of the {length} {self.unit} of {text!r}"
                logger.warning("Reward '%s' %s; longer prompts are cut.", self.name, cut)
                self.given = True
                return
