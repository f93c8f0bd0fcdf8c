"""Rollouts of the trees of a batch: from where each starts to clean samples, level after level in common calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.interval import Interval, intervals
from ..transitions.base import Transition
from .base import Method
from .budget import EmptyModel, empty_law
from .denoising_tree import Node
from .law import Law
from .noise_rounds import Sample
from .random_source import RandomSource, driving_noise


@dataclass(frozen=True)
class Rollout:
    """A rollout on its way.

    Attributes:
        image: whose tree it belongs to.
        lane: which of the image's draws it takes.
        start: the state that it starts at.
    """

    image: int
    lane: int
    start: Node


@dataclass(frozen=True)
class Rollouts:
    """How the rollouts of a run are made.

    Attributes:
        method: resolved for the model; its transition moves the states.
        levels: of the run.
        branching: indices of the levels, falling in noise, whose states are kept, since they may have several children.
    """

    method: Method
    levels: Sequence[float]
    branching: Sequence[int]

    def __call__(
        self, law: Law, rollouts: Sequence[Rollout], noise: Tensor, num_lanes: int, random: RandomSource
    ) -> list[list[Node]]:
        """The new states of each rollout, of which the last is its leaf.

        Trees differ in the level at which their rollouts start, and move together from there on.

        Args:
            rollouts: those of one image are consecutive.
            noise: pure noise `[B L, ...]` for L lanes of each image, where rollouts from the root begin.
            num_lanes: L.
            random: what driving noise is drawn from: for every lane at every level, so that what an image receives does
                not depend on the others.
        """
        lanes = torch.tensor([each.image * num_lanes + each.lane for each in rollouts], device=noise.device)
        levels = [each.start.level for each in rollouts]
        given = [each.start.x for each in rollouts]
        x = noise[lanes] if all(row is None for row in given) else _with_rows(noise[lanes], given)
        states: list[list[Node]] = [[] for _ in rollouts]
        for index, interval in enumerate(intervals(self.levels)):
            driving = driving_noise(random, self.method.moves, noise, num_lanes, interval)
            moving = [number for number, level in enumerate(levels) if level <= index]
            if not moving:
                continue
            rows = torch.tensor(moving, device=noise.device)
            predicted = self._predicted(law, [rollouts[number] for number in moving], x[rows], index)
            if index in self.branching:
                for place, number in enumerate(moving):
                    if levels[number] < index:
                        known = None if predicted is None else predicted[place]
                        states[number].append(Node(index, x=x[number], predicted=known))
            network = law.rows_of([rollouts[number].image for number in moving]).network
            moved = self.method.moved(network, x[rows], interval, predicted, driving[lanes[rows]])
            x = moved if len(moving) == len(x) else x.to(moved).index_copy(0, rows, moved)
        evaluation = law.rows_of([each.image for each in rollouts]).evaluate(x)
        # Images of a large tree would fill a device.
        sample = Sample(x, evaluation.map(torch.Tensor.cpu))
        for row, nodes in enumerate(states):
            nodes.append(Node(len(self.levels) - 1, sample=sample, row=row))
        return states

    def _predicted(self, law: Law, rollouts: Sequence[Rollout], x: Tensor, index: int) -> Tensor | None:
        """What the model predicts at states of a level, where the transition needs it; known ones are reused."""
        known = [each.start.predicted if each.start.level == index else None for each in rollouts]
        new = [number for number, row in enumerate(known) if row is None]
        network = law.rows_of([rollouts[number].image for number in new]).network
        if not self.method.moves.needs_prediction(network):
            return None
        if not new:
            return torch.stack([row for row in known if row is not None])
        rows = torch.tensor(new, device=x.device)
        predicted = network.predict(x[rows], self.levels[index])
        if len(new) == len(known):
            return predicted
        return _with_rows(x.to(predicted).index_copy(0, rows, predicted), known)

    def prices(self, law: Law) -> dict[int, int]:
        """Network evaluations of a rollout from a state of each level that may branch, and from the root, -1.

        They count as in a budget (`Cost.equivalent_evaluations`), and are counted on an empty model.
        """
        empty = empty_law(law, EmptyModel)
        rows, x, cost = empty.rows(torch.zeros(1, 1)), torch.zeros(1, 1), empty.cost
        spent: list[tuple[int, int]] = []
        with torch.no_grad():
            for interval in intervals(self.levels):
                before, predicted = cost.equivalent_evaluations, None
                if self.method.moves.needs_prediction(rows.network):
                    predicted = rows.network.predict(x, interval.start)
                between = cost.equivalent_evaluations
                self.method.moves.step(rows.network, x, interval, predicted, x)
                spent.append((between - before, cost.equivalent_evaluations - between))
        whole = {level: sum(map(sum, spent[max(level, 0) :])) for level in (-1, *self.branching)}
        # The prediction at a state that is known need not be made again.
        return {level: price - (0 if level < 0 else spent[level][0]) for level, price in whole.items()}


def branching_levels(transition: Transition, levels: Sequence[float], wanted: Sequence[int]) -> list[int]:
    """Those of the wanted levels, as indices, from which something random leads to the next one of them.

    States of other levels would have children that are all the same.
    """
    steps: list[Interval] = intervals(levels)
    kept: list[int] = []
    end = len(steps)
    for level in sorted(wanted, reverse=True):
        if any(transition.is_random(step) for step in steps[level:end]):
            kept.append(level)
            end = level
    return kept[::-1]


def _with_rows(x: Tensor, given: Sequence[Tensor | None]) -> Tensor:
    """The rows `[N, ...]` with those that are given in their places."""
    chosen = [(number, row) for number, row in enumerate(given) if row is not None]
    places = torch.tensor([number for number, _ in chosen], device=x.device)
    rows = torch.stack([row for _, row in chosen])
    return x.to(rows).index_copy(0, places, rows)
