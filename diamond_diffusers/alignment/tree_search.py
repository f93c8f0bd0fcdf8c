"""What sampling and search by a tree of denoising states share: rounds of rollouts, and a budget that they keep to."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from random import Random
from typing import Self

import torch
from torch import Tensor

from ..core.checks import check_counts
from ..core.values import BARRIER, final_values
from ..transitions.base import Transition
from ..transitions.sampled_model import SampledModel
from .cloud import Cloud
from .denoising_tree import DenoisingTree, Node
from .law import Law
from .methods.smc import valuations
from .noise_rounds import NoiseRounds, Sample
from .out_of_memory import with_smaller_chunks
from .random_source import RandomSource
from .result import AlignmentResult
from .smc_parts.resampling import uniform
from .trace import Trace
from .tree_rollouts import Rollout, Rollouts, branching_levels


@dataclass(frozen=True)
class GrownSample(Sample):
    """Samples of trees, with what the trees know.

    Attributes:
        mean_value, best_value: of all leaves of each image, `[B]`.
        log_evidence: the values of the roots, `[B]`.
    """

    mean_value: Tensor
    best_value: Tensor
    log_evidence: Tensor

    def figures(self, law: Law) -> dict[str, Tensor]:
        names = ("mean_value", "best_value", "log_evidence")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class TreeSearch(NoiseRounds):
    """Grows a tree of denoising states for each image (Jain et al., arXiv 2506.20701), rollout after rollout.

    A state `x_t` has a value `v`, an estimate of `log E[exp(r(z)) | x_t]`, a number `N` of visits, and children that
    were drawn from it. The root's children are pure noise. Each rollout::

        selection:  from the root, go to a child by the policy, as long as a state has C N^alpha children or more
        expansion:  draw a new child of the state that this ends at
        rollout:    go on from there to a clean sample z; its states become part of the tree
        backup:     v = r(z) at the leaf;  v(x) = log mean exp(v) over the children, from there to the root;  N += 1

    States have several children at pure noise and at `num_branchings` levels below it. What the model has predicted at
    a state is kept, so that a further child costs an evaluation less.

    An image costs at most `num_rollouts` plain samples, and `num_rollouts` decodes and reward calls. A budget of
    network evaluations (`max_network_evaluations`) is spent as far as it goes: on as many rollouts as it pays for, of
    which the last start where there is enough left for them. How many these are depends on what the tree finds. With
    the authors' widening, the first 36 rollouts all start at the root, which is best-of-N.

    The first rollouts are the plain samples of the `num_particles` particles, which a `reward_scale` of 0 returns. A
    callback is called once a round, and a `Watch` looks at what the trees would return: see `NoiseRounds`.

    Subclasses say by what policy a tree is descended.

    Args:
        transition: how states move; stochastic. None for `GlassTransition()`, and `RenoiseTransition()` where the model
            is a few-step one.
        num_particles: samples that the tree of an image returns.
        num_rollouts: of a tree; at least those of the particles are made.
        num_branchings: how many levels branch below pure noise, at even shares of the steps: 4 for after 20, 40, 60 and
            80 % of them. None for all.
        widening: C above, above 0.
        widening_exponent: `alpha` above, in (0, 1).
        round_size: rollouts of a round, which are evaluated together and do not know of each other's rewards.
        max_evaluations: network evaluations that the tree of an image keeps to; None for no limit. It is set by a call
            that is given `max_network_evaluations`.
    """

    num_rollouts: int = 64
    num_branchings: int | None = 4
    widening: float = 2.0
    widening_exponent: float = 0.8
    round_size: int = 1
    max_evaluations: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(num_rollouts=self.num_rollouts, round_size=self.round_size, max_evaluations=self.max_evaluations)
        if self.num_branchings is not None and self.num_branchings < 0:
            raise ValueError(
                f"num_branchings is {self.num_branchings}; give a whole number of at least 0, or None for every level"
            )
        if not 0 < self.widening < math.inf:
            raise ValueError(f"widening is {self.widening}; give a number above 0")
        if not 0 < self.widening_exponent < 1:
            raise ValueError(f"widening_exponent is {self.widening_exponent}; give a number between 0 and 1")
        self.check_moves_are_random("that the children of a state", "random_search")

    @property
    def grows(self) -> str | None:  # type: ignore[override]
        return "num_rollouts" if self.max_evaluations is None else None

    @abstractmethod
    def choose(self, node: Node, random: Random) -> Node:
        """The child that a way down takes while the tree grows.

        Args:
            node: a state with children.
            random: of the image's tree.
        """

    @abstractmethod
    def returned(self, tree: DenoisingTree, random: Random) -> list[Node]:
        """The `num_particles` leaves that the tree comes to.

        Args:
            tree: with at least so many leaves.
            random: draws the same after every round, so that leaves change where values do.
        """

    def default_transition(self, model: SampledModel) -> Transition:
        return model.stochastic_transition()

    def within(self, max_network_evaluations: int | None, max_reward_calls: int | None) -> Self:
        if max_network_evaluations is None:
            return self
        num_rollouts = max_network_evaluations if max_reward_calls is None else max_reward_calls
        return replace(self, num_rollouts=num_rollouts, max_evaluations=max_network_evaluations)

    def num_stages(self, law: Law, levels: Sequence[float]) -> int:
        further = max(0, self.num_rollouts - self.num_particles)
        rounds = math.ceil(further / self.round_size)
        if self.max_evaluations is None:
            return 1 + rounds
        prices = self.resolve(law.model).rollouts(levels).prices(law)
        left = self.max_evaluations - self.num_particles * prices[-1]
        if left < min(prices.values()):
            return 1
        # A stage has the price of a plain sample for each rollout of a round, and the last what is left over.
        return 1 + min(rounds, max(1, left // (self.round_size * prices[-1])))

    def rounds(
        self, law: Law, x: Tensor, levels: Sequence[float], random: RandomSource
    ) -> Iterator[tuple[Sample, Sample]]:
        growth, num_stages = _Growth(self, law, x, levels, random), self.num_stages(law, levels)
        yield growth.latest(self.num_particles), growth.returned()
        for stage in range(1, num_stages):
            count = growth.grow(is_last=stage + 1 == num_stages)
            yield growth.latest(count), growth.returned()

    def cloud_of(self, law: Law, best: Sample) -> Cloud:
        assert isinstance(best, GrownSample), "`rounds` yields them"
        return replace(super().cloud_of(law, best), log_evidence=best.log_evidence)

    def finish(self, law: Law, cloud: Cloud, trace: Trace) -> AlignmentResult:
        result = super().finish(law, cloud, trace)
        return result if cloud.final is None else replace(result, log_evidence=cloud.log_evidence)

    def rollouts(self, levels: Sequence[float]) -> Rollouts:
        """How rollouts over these levels are made by this method, resolved for a model."""
        wanted = sorted(valuations(self.num_branchings, len(levels) - 1))
        return Rollouts(self, levels, branching_levels(self.moves, levels, wanted))


class _Growth:
    """The trees of a run as they grow, beginning with the plain samples of the particles.

    Args:
        method: resolved for the model.
        law, x, levels, random: as of `Method.iterate`.
    """

    def __init__(self, method: TreeSearch, law: Law, x: Tensor, levels: Sequence[float], random: RandomSource) -> None:
        self.method, self.law, self.x, self.random = method, law, x, random
        self.trees = [DenoisingTree(method.widening, method.widening_exponent) for _ in range(law.num_images)]
        self.rollouts = method.rollouts(levels)
        self.prices = None if method.max_evaluations is None else self.rollouts.prices(law)
        whole = 0 if self.prices is None else method.num_particles * self.prices[-1]
        # Of an image, what its rollouts take, and what they may take up to the end of this stage.
        self.spent, self.allowance = [whole] * law.num_images, whole
        self.waiting: list[Node | None] = [None] * law.num_images
        self._roll([[tree.root] * method.num_particles for tree in self.trees], x, random)
        seeds = [float(uniform(1, random.aside.of_image(image))) for image in range(law.num_images)]
        self.randoms, self.seeds = [Random(seed) for seed in seeds], seeds

    def grow(self, is_last: bool) -> int:
        """A stage: one round, or as many as the price of one that starts at the root pays for.

        Returns:
            How many rollouts an image has had, at most.
        """
        before = [len(tree.leaves) for tree in self.trees]
        if self.prices is None:
            self._round()
        else:
            assert self.method.max_evaluations is not None, "it is what has a price"
            further = self.allowance + self.method.round_size * self.prices[-1]
            self.allowance = self.method.max_evaluations if is_last else further
            while self._round():
                pass
        return max(len(tree.leaves) - count for tree, count in zip(self.trees, before, strict=True))

    def latest(self, count: int) -> Sample:
        """The latest leaves of all images, so many of each where all have as many."""
        count = max(1, min(count, *(len(tree.leaves) for tree in self.trees)))
        return self._sample([tree.leaves[-count:] for tree in self.trees])

    def returned(self) -> GrownSample:
        """What the trees come to."""
        count, is_tilted = self.method.num_particles, self.law.is_tilted
        return self._sample(
            [
                self.method.returned(tree, Random(seed)) if is_tilted else tree.leaves[:count]
                for tree, seed in zip(self.trees, self.seeds, strict=True)
            ]
        )

    def _sample(self, leaves: Sequence[Sequence[Node]]) -> GrownSample:
        """Chosen leaves, equally many of each image."""
        rows = [(leaf.sample, slice(leaf.row, leaf.row + 1)) for nodes in leaves for leaf in nodes if leaf.sample]
        first, *others = [sample.evaluation.map(itemgetter(row)) for sample, row in rows]
        device = self.x.device
        evaluation = first.map(lambda *parts: torch.cat(parts).to(device), *others)
        evidence = torch.tensor([tree.root.value for tree in self.trees], dtype=torch.float64)
        if self.law.is_constrained:
            # Where no leaf holds the constraints, nothing is known of how probable that is.
            evidence = evidence.masked_fill(evidence < -BARRIER, -math.inf)
        return GrownSample(
            torch.cat([sample.latents[row] for sample, row in rows]),
            evaluation,
            torch.tensor([tree.total_value / len(tree.leaves) for tree in self.trees], dtype=torch.float64),
            torch.tensor([tree.best_value for tree in self.trees], dtype=torch.float64),
            evidence,
        )

    def _round(self) -> bool:
        """Further rollouts of all trees that can have any; whether there were some."""
        starts = [self._starts(image) for image in range(len(self.trees))]
        if not any(starts):
            return False
        # Trees that end earlier than others draw no more.
        random = self.random.aside.of_images([image for image, of_image in enumerate(starts) if of_image])
        self._roll(starts, random.normal(self.method.round_size, self.x.shape[1:]).to(self.x), random)
        return True

    def _starts(self, image: int) -> list[Node]:
        """Where the rollouts of a round start in the tree of an image."""
        tree, starts, prices = self.trees[image], list[Node](), self.prices
        choose = partial(self.method.choose, random=self.randoms[image])
        while len(starts) < min(self.method.round_size, self.method.num_rollouts - len(tree.leaves)):
            if prices is None:
                node = tree.start(choose)
            else:
                assert self.method.max_evaluations is not None, "it is what has a price"
                left = self.method.max_evaluations - self.spent[image]
                if left < min(prices.values()):
                    break
                affordable = {level for level, price in prices.items() if price <= left}
                node = self.waiting[image] or tree.start(choose, affordable)
                is_late = self.spent[image] + prices[node.level] > self.allowance
                self.waiting[image] = node if is_late else None
                if is_late:
                    break
                self.spent[image] += prices[node.level]
            node.num_pending += 1
            starts.append(node)
        return starts

    def _roll(self, starts: Sequence[Sequence[Node]], noise: Tensor, random: RandomSource) -> None:
        """Rollouts from these states of each image, which become part of the trees."""
        growing = [(image, of_image) for image, of_image in enumerate(starts) if of_image]
        per_image = len(noise) // len(growing)
        wanted = [
            Rollout(image, place * per_image + lane, start)
            for place, (image, of_image) in enumerate(growing)
            for lane, start in enumerate(of_image)
        ]
        function = partial(self.rollouts, self.law, wanted, noise, random)
        rolled = with_smaller_chunks(self.law.execution, function, random)
        for rollout, states, value in zip(wanted, rolled, self._values(wanted, rolled), strict=True):
            rollout.start.num_pending = max(0, rollout.start.num_pending - 1)
            self.trees[rollout.image].add(rollout.start, states, value)

    def _values(self, rollouts: Sequence[Rollout], rolled: Sequence[Sequence[Node]]) -> list[float]:
        """The values of the clean samples that rollouts of one round have come to."""
        sample = rolled[0][-1].sample
        assert sample is not None, "it ends a rollout"
        scored, scales = sample.evaluation, self.law.scales()[[rollout.image for rollout in rollouts]]
        values = final_values(scored.total, scales, scored.violation)
        if not (values < math.inf).all():
            raise ValueError(
                f"the largest value is {values.max().item()}, but values are averaged by their exponential and must be "
                "numbers below infinity; lower reward_scale, or mend the reward"
            )
        listed: list[float] = values.tolist()
        return listed
