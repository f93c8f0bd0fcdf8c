"""A tree of denoising states, whose values are backed up from the clean samples that its branches end in."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from .noise_rounds import Sample

MAX_PASSES = 10_000
"""After so many ways down in a row that all end at known samples a tree is widened at the last, wherever it may be."""


@dataclass(eq=False)
class Node:
    """A state of a tree.

    Attributes:
        level: index of its noise level among those of the run; -1 for the root, whose children are pure noise.
        parent: the state that it was drawn from; None for the root.
        x: the state `[...]`; None for the root.
        predicted: what the model predicts there, `[...]`, where the transition needs it.
        sample: of a leaf, the samples of its round.
        row: which of them it is.
        value: estimate of `log E[exp(r(z))]` given the state.
        visits: N of the paper.
        children: states drawn from this one.
        num_pending: rollouts on their way that will end in further children.
    """

    level: int
    parent: Node | None = None
    x: Tensor | None = None
    predicted: Tensor | None = None
    sample: Sample | None = None
    row: int = 0
    value: float = 0.0
    visits: int = 1
    children: list[Node] = field(default_factory=list)
    num_pending: int = 0

    @property
    def path(self) -> Iterator[Node]:
        """From this state up to the root."""
        node: Node | None = self
        while node is not None:
            yield node
            node = node.parent


Choice = Callable[[Node], Node]
"""Which child of a state a way down takes."""


class DenoisingTree:
    """The tree of one image.

    Args:
        widening: C of progressive widening (arXiv 2506.20701): a state that was visited N times has less than
            `C N^alpha` children.
        widening_exponent: `alpha`.

    Attributes:
        root: whose value is the estimate of `log Z`.
        leaves: in the order in which they were made.
        total_value, best_value: sum and maximum of their values.
    """

    def __init__(self, widening: float, widening_exponent: float) -> None:
        self.widening, self.widening_exponent = widening, widening_exponent
        self.root = Node(level=-1)
        self.leaves: list[Node] = []
        self.total_value, self.best_value = 0.0, -math.inf

    def start(self, choose: Choice, levels: Collection[int] | None = None) -> Node:
        """Selection: the state that the next rollout starts at, the first on a way down that is to have another child.

        Args:
            choose: the policy of the tree.
            levels: indices of the levels at which the rollout may start, one of which is on every way down; None for
                all.
        """
        for _ in range(MAX_PASSES):
            node, last = self.root, self.root
            while node.sample is None:
                if levels is None or node.level in levels:
                    last = node
                    if self._is_open(node):
                        return node
                node = choose(node)
            # A known sample tells nothing new, and costs nothing; the states on the way are visited.
            for visited in _parents(node):
                visited.visits += 1
        return last

    def _is_open(self, node: Node) -> bool:
        limit = self.widening * node.visits**self.widening_exponent
        return not node.children or len(node.children) + node.num_pending < limit

    def add(self, start: Node, states: Sequence[Node], value: float) -> None:
        """Expansion and backup: the states of a rollout, the last of them its leaf, whose value goes up to the root."""
        for parent, node in zip([start, *states[:-1]], states, strict=True):
            node.parent = parent
            parent.children.append(node)
        leaf = states[-1]
        leaf.value = value
        self.leaves.append(leaf)
        self.total_value, self.best_value = self.total_value + value, max(self.best_value, value)
        for node in _parents(leaf):
            node.value = log_mean_exp([child.value for child in node.children])
            node.visits += 1


def _parents(node: Node) -> Iterator[Node]:
    path = node.path
    next(path)
    return path


def log_mean_exp(values: Sequence[float]) -> float:
    """`log mean exp` of values below infinity; `-inf` where all are."""
    largest = max(values)
    if largest == -math.inf:
        return largest
    return largest + math.log(math.fsum(math.exp(value - largest) for value in values) / len(values))
