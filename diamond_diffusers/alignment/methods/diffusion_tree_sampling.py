"""Diffusion Tree Sampling: a tree of denoising states, from which samples of the tilted law are drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

from ..denoising_tree import DenoisingTree, Node
from ..tree_search import TreeSearch
from . import METHODS


@METHODS.register("diffusion_tree_sampling")
@dataclass(frozen=True)
class DiffusionTreeSampling(TreeSearch):
    """Diffusion Tree Sampling, DTS (Jain et al., arXiv 2506.20701): samples `p(z) exp(r(z))` from a tree of rollouts.

    Ways down, both those that grow the tree and those that draw what is returned, go to a child with probability
    proportional to `exp(v)`::

        from the root:  x' ~ exp(v(x')) over the children of x,  until x' is clean

    With more rollouts the values become right, and the samples those of the tilted law exactly; nothing else has to be
    right, as look-aheads have for SMC. The root's value, `out.log_evidence`, becomes `log Z`, but slowly: what is
    unlucky at first is seldom visited again, so that on a mixture it is .09 too low with 160 rollouts and .14 with 400.
    Both are of the law that the *transitions* sample, as of `SMC`. The samples of one tree (`num_particles`) may
    coincide.

    Growth, cost and budgets: see `TreeSearch`. C and `alpha` are the authors', of their images, and so are the levels
    that branch and a round of a single rollout. They take 1,000 to a million evaluations: below 36 rollouts, where all
    start at the root, a tree is self-normalised importance sampling. Theirs steps by DDIM with `eta=1`,
    `AncestralTransition()`, whose law is that of the default on ordinary models, and does not keep what the model has
    predicted. A tree never comes to rest at a known sample here: it goes down again, where theirs counts that as an
    iteration.

    Example:
        >>> method = DiffusionTreeSampling(num_rollouts=3)
        >>> out = pipe("a red star", alignment=method, num_inference_steps=2)
        >>> len(out.images), out.log_evidence.shape
        (1, torch.Size([1]))
    """

    default_selection = "sample"

    def choose(self, node: Node, random: Random) -> Node:
        largest = max(child.value for child in node.children)
        if largest == -math.inf:
            return random.choice(node.children)
        return random.choices(node.children, [math.exp(child.value - largest) for child in node.children])[0]

    def returned(self, tree: DenoisingTree, random: Random) -> list[Node]:
        return [self._drawn(tree.root, random) for _ in range(self.num_particles)]

    def _drawn(self, node: Node, random: Random) -> Node:
        while node.sample is None:
            node = self.choose(node, random)
        return node
