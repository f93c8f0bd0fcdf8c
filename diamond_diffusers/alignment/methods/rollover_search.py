"""Rollover search: candidates of a step are drawn until one is better than all before, and the rest are saved."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ...core.checks import check_counts
from ...core.deferred import read
from ...core.interval import Interval
from ...core.tensors import sent
from ...posteriors.base import PosteriorSampler
from ...posteriors.denoiser import DenoiserPoint
from ...transitions.base import Transition
from ..base import Method
from ..cloud import Cloud
from ..evaluation import Evaluation
from ..law import Law
from ..look_ahead import LookAhead, look_ahead
from ..look_ahead_search import highest, valued
from ..random_source import RandomSource, driving_noise
from . import METHODS


@dataclass(frozen=True, kw_only=True)
class RolloverCloud(Cloud):
    """A cloud that knows how its searches stand.

    Attributes:
        records: the highest value that each particle's search has met so far, `[B P]` float64 on the CPU.
        savings: candidates that each has saved, `[B P]` on the CPU.
        saved_evaluations: network evaluations that it has saved with them, `[B P]` on the CPU.
        num_steps: of the run.
        num_moves: that the particles have made.
    """

    records: Tensor
    savings: Tensor
    saved_evaluations: Tensor
    num_steps: int
    num_moves: int = 0

    def affordable(self, price: int) -> Tensor:
        """How many saved candidates of this price in evaluations each particle can draw, `[B P]`."""
        return self.savings if price == 0 else self.savings.minimum(self.saved_evaluations // price)


@METHODS.register("rollover_search")
@dataclass(frozen=True)
class RolloverSearch(Method):
    """Particle search with rollover budget forcing (RBF, Kim et al., arXiv 2503.19385).

    Every step has a quota of candidates. They are drawn one by one until one of them has a higher value than any
    candidate of this search before, and what is left of the quota rolls over to the next step::

        start:      y = the best of num_candidates noises;  record = V(y);  saved = 0
        each step:  draw y'_1, y'_2, ... ~ transition(y)  until V(y'_j) > record  or  j = num_candidates + saved
                    saved = num_candidates + saved - j
                    y = the best of these y';  record = max(record, V(y))
        last step but one:  all num_candidates + saved are drawn;  the last, where it is random:  num_candidates

    So what a run costs is fixed, whatever the rewards: steps at which good candidates are common give to those at which
    they are rare. With T steps and W particles, `DenoiserPoint` and a transition that is random in all steps but the
    last, an image costs exactly `W T num_candidates` network evaluations, and as many scores and W. What a budget sets
    is the quota. A quota of 1 leaves no choice, and costs no look-aheads. Where classifier-free guidance covers some of
    the levels alone, candidates of one step cost more evaluations than those of another; there savings buy no more
    candidates than were saved, nor than the saved evaluations pay for, so that a run costs at most what its quotas do.

    Values are those of look-aheads, and the true reward after the last step. Particles are independent searches, each
    with records and savings of its own. All images of a call draw their candidates side by side, and those whose step
    has ended wait for the others: a step takes as many rounds as its slowest search, so that it is the batch which
    fills an accelerator. Among equals the first candidate is kept, which moves as plain sampling with the same
    transition does: a `reward_scale` of 0 returns the plain sample. The preset `rbf` has the authors' settings.

    Args:
        num_particles: independent searches W of each image, of which the best result is returned.
        num_candidates: quota of a step for each search, and the noises that it starts from.
        posterior: draws the look-aheads from which values are estimated.
        transition: how particles move, stochastic; None for `GlassTransition()`, and `RenoiseTransition()` where the
            model is a few-step one.

    Example:
        >>> pipe("a red star", alignment=RolloverSearch(num_candidates=2), num_inference_steps=3)
    """

    num_particles: int = 1
    num_candidates: int = 4
    posterior: PosteriorSampler = field(default_factory=DenoiserPoint)
    transition: Transition | None = None

    default_selection = "best"
    grows = "num_candidates"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(num_candidates=self.num_candidates)
        self.check_moves_are_random("the candidates of a step", "path_search")

    def start(self, law: Law, x: Tensor, num_steps: int) -> RolloverCloud:
        cloud = super().start(law, x, num_steps)
        return RolloverCloud(
            **vars(cloud),
            records=torch.full((len(x),), -math.inf, dtype=torch.float64),
            savings=torch.zeros(len(x), dtype=torch.long),
            saved_evaluations=torch.zeros(len(x), dtype=torch.long),
            num_steps=num_steps,
        )

    def step(self, law: Law, cloud: Cloud, interval: Interval, random: RandomSource) -> RolloverCloud:
        assert isinstance(cloud, RolloverCloud), "`start` makes one"
        if cloud.num_moves == 0 and self.num_candidates > 1:
            cloud = self._with_best_noises(law, cloud, interval.start, random)
        cloud = replace(cloud, num_moves=cloud.num_moves + 1)
        predicted = self.predicted_of(law, cloud, interval.start)
        chooses = self.num_candidates > 1 and self.moves.is_random(interval)
        if not chooses and not interval.is_last:
            noise = driving_noise(random, self.moves, cloud.x, self.num_particles, interval)
            x = self.moved(law.rows(cloud.x).network, cloud.x, interval, predicted, noise)
            return replace(cloud, x=x, ahead=None, figures={})
        candidates, before = _Candidates(len(cloud.x)), law.cost.equivalent_evaluations
        candidates.add(torch.arange(len(cloud.x)), *self._drawn(law, cloud.x, predicted, interval, random))
        price = (law.cost.equivalent_evaluations - before) // len(cloud.x)
        quotas = self.num_candidates + cloud.affordable(price) if chooses else candidates.counts.clone()
        # Candidates at clean data have no look-ahead, so that those of noisy levels are not saved for them.
        draws_all = cloud.num_moves >= cloud.num_steps - 1
        while len(particles := candidates.wanted(cloud.records, quotas, draws_all)):
            images, rows = particles // self.num_particles, sent(particles, cloud.x.device)
            _, groups = torch.unique_consecutive(images, return_counts=True)
            drawn = self._drawn(
                law.of_images(images, tuple(groups.tolist())),
                cloud.x[rows],
                None if predicted is None else predicted[rows],
                interval,
                random.aside.of_rows(images),
            )
            candidates.add(particles, *drawn)
        fewer = self.num_candidates - candidates.counts
        savings, saved_evaluations = cloud.savings + fewer, cloud.saved_evaluations + price * fewer
        if draws_all:
            savings, saved_evaluations = torch.zeros_like(savings), torch.zeros_like(saved_evaluations)
        return replace(candidates.best_of(cloud), savings=savings, saved_evaluations=saved_evaluations)

    def _with_best_noises(
        self, law: Law, cloud: RolloverCloud, noise_to_signal: float, random: RandomSource
    ) -> RolloverCloud:
        """The cloud that begins at the best of several noises for each particle, its own first."""
        count = self.num_candidates
        others = random.aside.normal(self.num_particles * (count - 1), cloud.x.shape[1:]).to(cloud.x)
        x = torch.cat([cloud.x[:, None], others.unflatten(0, (len(cloud.x), -1))], 1).flatten(0, 1)
        needed = self.moves.needs_prediction(law.rows(x).network)
        ahead = look_ahead(law, self.posterior, x, noise_to_signal, random.aside, with_prediction=needed)
        kept = highest(ahead.values.unflatten(0, (-1, count)), 1)
        ahead = ahead.rows(kept)
        return replace(cloud, x=x[kept], ahead=ahead, records=read(ahead.values).double())

    def _drawn(
        self, law: Law, x: Tensor, predicted: Tensor | None, interval: Interval, random: RandomSource
    ) -> tuple[Tensor, LookAhead, Evaluation | None, Tensor]:
        """A candidate of each row of `x`, equally many of each image, and what `valued` knows of it."""
        network = law.rows(x).network
        noise = driving_noise(random, self.moves, x, len(x) // law.num_images, interval)
        moved = self.moved(network, x, interval, predicted, noise)
        needed = self.moves.needs_prediction(network)
        return moved, *valued(law, self.posterior, moved, interval, random.aside, with_prediction=needed)


class _Candidates:
    """The candidates that a step has drawn so far, of which it knows the best of each particle.

    Args:
        num_particles: of all images together, N.
    """

    def __init__(self, num_particles: int) -> None:
        self.counts = torch.zeros(num_particles, dtype=torch.long)
        self.best = [-math.inf] * num_particles
        self.rows = [0] * num_particles
        self.drawn: list[tuple[Tensor, LookAhead, Evaluation | None, Tensor]] = []

    def add(self, particles: Tensor, x: Tensor, ahead: LookAhead, final: Evaluation | None, values: Tensor) -> None:
        """Adds candidates `[n, ...]` of these particles, `[n]` on the CPU, and their values."""
        row = sum(len(values) for *_, values in self.drawn)
        for particle, value in zip(particles.tolist(), read(values).tolist(), strict=True):
            if self.counts[particle] == 0 or value > self.best[particle]:
                self.best[particle], self.rows[particle] = value, row
            self.counts[particle] += 1
            row += 1
        self.drawn.append((x, ahead, final, values))

    def wanted(self, records: Tensor, quotas: Tensor, draws_all: bool) -> Tensor:
        """The particles that draw another candidate, or, of those that draw all at once, each as often as it draws."""
        left = quotas - self.counts
        particles = torch.arange(len(left))
        if draws_all:
            return particles.repeat_interleave(left)
        return particles[(left > 0) & ~(torch.tensor(self.best, dtype=torch.float64) > records)]

    def best_of(self, cloud: RolloverCloud) -> RolloverCloud:
        """The cloud of the best candidate of each particle."""
        xs, aheads, finals, values = zip(*self.drawn, strict=True)
        rows = sent(torch.tensor(self.rows), xs[0].device)
        ahead, shape = LookAhead.joined(aheads).rows(rows), cloud.log_weights.shape
        first, *others = finals
        return replace(
            cloud,
            x=torch.cat(xs)[rows],
            ahead=ahead,
            final=first and first.map(lambda *parts: torch.cat(parts), *others).rows(rows),
            values=torch.cat(values)[rows].unflatten(0, shape),
            figures=ahead.figures(shape[1]),
            records=torch.maximum(cloud.records, torch.tensor(self.best, dtype=torch.float64)),
        )
