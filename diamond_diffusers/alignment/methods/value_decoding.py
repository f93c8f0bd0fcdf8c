"""Soft value-based decoding: of the candidates of each block of steps one is kept, by its value."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...core.checks import check_counts
from ...core.deferred import read
from ...core.interval import Interval
from ...core.tensors import sent
from ..cloud import Cloud
from ..law import Law
from ..look_ahead_search import highest
from ..random_source import RandomSource
from . import METHODS
from .beam_search import BeamSearch
from .posterior_resampling import choose


@dataclass(frozen=True, kw_only=True)
class BlockCloud(Cloud):
    """A cloud that knows where it stands in a block; within one its rows are the candidates of all particles.

    Attributes:
        num_moves: that the particles have made.
    """

    num_moves: int = 0


@METHODS.register("value_decoding")
@dataclass(frozen=True)
class ValueDecoding(BeamSearch):
    """Draws candidates of every block of steps and keeps one of each particle, by the softmax of their values.

    With values `V` from look-aheads, and M candidates of each particle::

        each block:  y'_m ~ transitions of block_size steps from y,  m = 1..M
                     y = y'_m with probability ~ exp(V(y'_m) / temperature)

    Candidates part at the first random step of a block. After the last step the true reward takes the place of `V`.
    With blocks of one step this is soft value-based decoding (SVDD, arXiv 2408.08252); longer ones make it blockwise
    control (CoDe, arXiv 2502.00968), and one block of all steps best-of-M over stochastic samples from one noise.
    The presets `svdd` and `code` have their authors' settings.

    At temperature 1 a particle follows the optimal soft policy `p(y' | y) exp(V(y') - V(y))` as M grows, so that it
    samples the law `p(z) exp(r(z))`, as far as the values are exact; the authors' temperature alpha is that of the
    reward, `1 / reward_scale`. At temperature 0 the highest value is kept, and M sets how far rewards rise. Particles
    are independent of one another, where `BeamSearch` lets the branches of all of them compete: with one particle,
    blocks of one step and temperature 0 the two are the same. A `reward_scale` of 0 returns the plain sample.

    With T steps and W particles, `DenoiserPoint` and `AncestralTransition()`, whose last step is not random, an image
    costs `W (1 + (T - 1) M)` network evaluations where no block begins at the last step. What a budget sets is
    the number of candidates.

    Args:
        num_particles: independent particles W of each image, of which the best is returned.
        branching: candidates M of each particle in a block.
        posterior: draws the look-aheads from which values are estimated.
        transition: how particles move, stochastic; None for `GlassTransition()`, and `RenoiseTransition()` where the
            model is a few-step one.
        block_size: steps of a block; the last block of a run may be shorter.
        temperature: of the choice, in units of the scaled reward, at least 0.

    Example:
        >>> pipe("a red star", alignment=ValueDecoding(branching=2, block_size=2), num_inference_steps=4)
    """

    num_particles: int = 1
    block_size: int = 1
    temperature: float = 1.0

    grows = "branching"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(block_size=self.block_size)
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature}; give a number of at least 0, which keeps the best")

    def start(self, law: Law, x: Tensor, num_steps: int) -> BlockCloud:
        return BlockCloud(**vars(super().start(law, x, num_steps)))

    def step(self, law: Law, cloud: Cloud, interval: Interval, random: RandomSource) -> BlockCloud:
        assert isinstance(cloud, BlockCloud), "`start` makes one"
        num_moves = cloud.num_moves + 1
        ends_block = interval.is_last or num_moves % self.block_size == 0
        move = super().step if ends_block else self.branched
        moved = move(law, cloud, interval, random)
        assert isinstance(moved, BlockCloud), "it is the same cloud with other particles"
        return replace(_of_rows(moved, len(moved.x) // law.num_images), num_moves=num_moves)

    def kept(self, values: Tensor, random: RandomSource) -> Tensor:
        candidates = values.reshape(len(values) * self.num_particles, -1)
        if self.temperature == 0:
            return highest(candidates, 1)
        known = read(candidates).double()
        # Nothing tells those of an infinite value apart, such as where no candidate has a reward.
        below = (known - known.amax(1, keepdim=True)).nan_to_num(nan=0.0, neginf=-math.inf)
        chosen = choose(below / self.temperature, random.aside)
        return sent(chosen + candidates.shape[1] * torch.arange(len(chosen)), values.device)


def _of_rows(cloud: BlockCloud, count: int) -> BlockCloud:
    """The cloud with equal weights of `count` rows of each image, each with the value of the particle it came from."""
    log_weights = cloud.log_weights[:, :1].expand(-1, count)
    values = cloud.values
    if values is not None and values.shape[1] != count:
        values = values.repeat_interleave(count // values.shape[1], 1)
    return replace(cloud, log_weights=log_weights, values=values)
