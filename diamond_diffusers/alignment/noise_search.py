"""Search over the noise that sampling starts from: random search, and zero-order search around a pivot."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..core.checks import check_counts
from ..core.interval import intervals
from ..core.tensors import where_rows
from ..transitions.base import Transition
from .law import Law
from .look_ahead_search import highest
from .noise_rounds import NoiseRounds, Sample, plain_sample
from .out_of_memory import with_smaller_chunks
from .random_source import RandomSource


@dataclass(frozen=True)
class NoiseSearch(NoiseRounds):
    """Samples many noises, round after round, and keeps the sample of the highest reward (arXiv 2501.09732).

    A noise is what sampling starts from and, where the transition draws noise, what it draws in each step. The best
    so far is the pivot of the next round. The first is that of plain sampling, and among equal rewards the first is
    kept, so that a `reward_scale` of 0 returns the plain sample.

    An image costs `num_particles * num_candidates` plain samples, decodes and reward calls. What a budget sets is the
    number of candidates.

    A callback is called once a round: see `NoiseRounds`. Subclasses say where candidates lie.

    Args:
        num_candidates: noises tried for each particle in all, the plain one included.
        round_size: candidates of one round; the last may hold fewer.
        transition: how particles move; None for how the stock pipeline moves them.
        num_particles: searches of each image, each from a noise of its own; the best sample is returned.
    """

    num_candidates: int = 16
    round_size: int = 4
    transition: Transition | None = None
    num_particles: int = 1

    grows = "num_candidates"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(num_candidates=self.num_candidates, round_size=self.round_size)

    @abstractmethod
    def propose(self, pivot: Tensor, fresh: Tensor) -> Tensor:
        """Candidates of a round, of the shape of `fresh`.

        Args:
            pivot: the best noise of each particle so far, `[B P, 1, S, ...]`, where `S` counts the start and the draws.
            fresh: standard normal, `[B P, n, S, ...]`.
        """

    def num_stages(self, law: Law, levels: Sequence[float]) -> int:
        return math.ceil(self.num_candidates / self.round_size)

    def rounds(
        self, law: Law, x: Tensor, levels: Sequence[float], random: RandomSource
    ) -> Iterator[tuple[Sample, Sample]]:
        pivot, best = self.plain_noise(x, levels, random), None
        for tried in range(0, self.num_candidates, self.round_size):
            count = min(self.round_size, self.num_candidates - tried)
            fresh = random.aside.normal(self.num_particles * count * pivot.shape[1], x.shape[1:]).to(x)
            noise = self.propose(pivot[:, None], fresh.unflatten(0, (len(x), count, -1)))
            if best is None:
                noise[:, 0] = pivot
            noise = noise.flatten(0, 1)
            sample = with_smaller_chunks(law.execution, partial(self._sample, law, noise, levels))
            pivot, best = self._best(law, pivot, best, noise, sample)
            yield sample, best

    def _sample(self, law: Law, noise: Tensor, levels: Sequence[float]) -> Sample:
        return plain_sample(law, self.moves, noise[:, 0], levels, _Draws(noise, law.num_images))

    def plain_noise(self, x: Tensor, levels: Sequence[float], random: RandomSource) -> Tensor:
        """The noise of plain sampling from `x`, `[B P, S, ...]`."""
        num_draws = sum(self.moves.draws_noise(interval) for interval in intervals(levels))
        return torch.stack([x, *(random.normal(self.num_particles, x.shape[1:]).to(x) for _ in range(num_draws))], 1)

    def _best(
        self, law: Law, pivot: Tensor, best: Sample | None, noise: Tensor, sample: Sample
    ) -> tuple[Tensor, Sample]:
        """The noise of each particle whose sample has the highest scaled reward so far, and that sample."""
        values = law.final_values(sample.evaluation).unflatten(0, (len(pivot), -1))
        rows = highest(values, 1)
        found = Sample(sample.latents[rows], sample.evaluation.rows(rows))
        if best is None:
            return noise[rows], found
        better = law.final_values(found.evaluation) > law.final_values(best.evaluation)
        return where_rows(better, noise[rows], pivot), best.improved_by(found, law)


class _Draws(RandomSource):
    """The draws of given noises `[N, S, ...]`, step after step."""

    def __init__(self, noise: Tensor, num_images: int) -> None:
        super().__init__(None, num_images)
        self.steps = iter(noise[:, 1:].unbind(1))

    def normal(self, rows_per_image: int, shape: Sequence[int]) -> Tensor:
        return next(self.steps)
