"""The law that a run samples from: a model, a reward, and the count of what they cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..core.cost import Cost
from ..core.flow_map import flow_map_of
from ..core.levels import Level, as_level
from ..core.model import Conditions, Model
from ..core.network import Network
from ..rewards.base import Reward, RewardOutput
from .processes import Chunk, ParticleShards


@dataclass(frozen=True)
class Evaluation:
    """What decoding and scoring `N` clean latents gave.

    Attributes:
        total: the unscaled reward, `[N]`.
        terms: each of its terms, `[N]`.
        images: `[N, 3, H, W]` in [0, 1].
    """

    total: Tensor
    terms: dict[str, Tensor]
    images: Tensor


class TiltedModel:
    """`p(z | prompt) exp(reward_scale * reward(z, prompt))` for each of `B` images.

    Rows of any number are evaluated in chunks of `particle_batch_size`, the last one filled up, so that a row's result
    does not depend on how many others there are; `owners [N]` names the image that each row belongs to.

    Args:
        family: the model family.
        conditions: of the `B` images.
        prompts: their `B` prompts, for the reward.
        reward: None where only the plain model is sampled.
        reward_scale: multiplies the reward (inverse temperature); any finite number.
        particle_batch_size: rows of one network, decoder or reward call; None for all at once.
        score_model: another model of the same latents and its conditions, which gives the posterior mean in place of
            the family.
        gradient_checkpointing: whether network, decoder and reward are evaluated again on the backward pass, instead
            of holding what they computed.
        shards: the processes over which chunks are spread; None where this one evaluates them all.
    """

    def __init__(
        self,
        family: Model,
        conditions: Conditions,
        prompts: Sequence[str],
        reward: Reward | None = None,
        reward_scale: float = 1.0,
        particle_batch_size: int | None = None,
        score_model: tuple[Model, Conditions] | None = None,
        gradient_checkpointing: bool = False,
        shards: ParticleShards | None = None,
    ) -> None:
        check_reward_scale(reward_scale)
        if particle_batch_size is not None and particle_batch_size < 1:
            raise ValueError(f"particle_batch_size is {particle_batch_size}; give at least 1, or None for no limit")
        self.family = family
        self.conditions = conditions
        self.prompts = list(prompts)
        self.reward = reward
        self.reward_scale = reward_scale
        self.particle_batch_size = particle_batch_size
        self.score_model = score_model
        self.gradient_checkpointing = gradient_checkpointing
        self.shards = shards
        self.cost = Cost()

    @property
    def num_images(self) -> int:
        return len(self.prompts)

    def owners(self, rows_per_image: int, device: torch.device | str = "cpu") -> Tensor:
        """The owners of `rows_per_image` consecutive rows of every image."""
        return torch.arange(self.num_images, device=device).repeat_interleave(rows_per_image)

    def of_rows(self, owners: Tensor) -> TiltedModel:
        """This law at rows with these owners `[N]`, each as an image of its own; costs are counted together."""
        part = copy(self)
        part.conditions = self.conditions.rows(owners)
        part.prompts = [self.prompts[owner] for owner in owners.tolist()]
        if self.score_model is not None:
            scores, conditions = self.score_model
            part.score_model = scores, conditions.rows(owners)
        return part

    def rows_at_once(self, num_rows: int) -> int:
        """How many of `num_rows` rows all processes together evaluate at a time."""
        if self.particle_batch_size is None:
            return num_rows
        return self.particle_batch_size * (self.shards.num_processes if self.shards is not None else 1)

    def network(self, owners: Tensor) -> Network:
        """The model at rows with these owners, or at equally many consecutive copies of each of them."""
        scores, score_conditions = self.score_model or (self.family, self.conditions)
        family, conditions = self.family, self.conditions

        def predict(x: Tensor, noise_to_signal: Level) -> Tensor:
            return self._evaluate(family.predict, family, conditions, owners, (x,), noise_to_signal)

        def denoise(x: Tensor, noise_to_signal: Level) -> Tensor:
            return self._evaluate(scores.denoise, scores, score_conditions, owners, (x,), noise_to_signal)

        def flow_map(x: Tensor, noise_to_signal: Level, next_noise_to_signal: Level) -> Tensor:
            levels = (noise_to_signal, next_noise_to_signal)
            return self._evaluate(family.flow_map, family, conditions, owners, (x,), *levels)

        def diamond_map(xbar: Tensor, s: Level, r: Level, x: Tensor, noise_to_signal: Level) -> Tensor:
            def mapped(xbar: Tensor, x: Tensor, noise_to_signal: Level, s: Level, r: Level, rows: Conditions) -> Tensor:
                return family.diamond_map(xbar, s, r, x, noise_to_signal, rows)

            # Its guidance is baked in.
            unguided = replace(conditions, negative_features=None)
            return self._evaluate(mapped, family, unguided, owners, (xbar, x), noise_to_signal, s, r)

        predicts_mean = family.predicts_mean and self.score_model is None
        inner_map = diamond_map if family.has_diamond_map else None
        return Network(
            predict,
            (predict if predicts_mean else denoise) if scores.has_denoiser else None,
            flow_map if family.has_flow_map else inner_map and flow_map_of(inner_map),
            predicts_mean,
            min(family.max_noise_to_signal, scores.max_noise_to_signal),
            inner_map,
        )

    def _evaluate(
        self,
        function: Callable[..., Tensor],
        model: Model,
        conditions: Conditions,
        owners: Tensor,
        states: tuple[Tensor, ...],
        *levels: Level,
    ) -> Tensor:
        """Rows of states through a function of (states, levels, conditions), in chunks and counted."""
        num_rows = len(states[0])
        row_owners = owners.repeat_interleave(num_rows // len(owners))
        row_levels = [as_level(level) for level in levels]
        is_tracked = torch.is_grad_enabled() and any(state.requires_grad for state in states)

        def at_rows(index: Tensor) -> list[Tensor]:
            return [level[index.to(level.device)] if level.ndim else level for level in row_levels]

        def evaluate_rows(index: Tensor, *rows: Tensor) -> Tensor:
            return function(*rows, *at_rows(index), conditions.rows(row_owners[index]))

        for index, kept in self._chunks(states[0]):
            evaluations = kept * model.evaluations_per_row(at_rows(index)[0], conditions)
            self.cost.network_evaluations += evaluations
            # Every graph built here is traversed once.
            self.cost.backward_passes += evaluations if is_tracked else 0
        return self._over_chunks(
            lambda index, kept, *rows: self._checkpointed(evaluate_rows, index, *rows)[:kept], *states
        )

    def _over_chunks(self, function: Callable[..., Tensor], *rows: Tensor) -> Tensor:
        """Rows through a function of (index, kept, rows) of a chunk, which returns what is kept of it."""

        def evaluate(chunks: Sequence[Chunk], *rows: Tensor) -> Tensor:
            return torch.cat([function(index, kept, *(row[index] for row in rows)) for index, kept in chunks])

        chunks = self._chunks(rows[0])
        return evaluate(chunks, *rows) if self.shards is None else self.shards.evaluate(evaluate, chunks, *rows)

    def _chunks(self, x: Tensor) -> list[Chunk]:
        """Indices that cover the rows of `x` in chunks, the last filled up with its last row, and how many to keep."""
        num_processes = self.shards.num_processes if self.shards is not None else 1
        size = self.particle_batch_size or math.ceil(len(x) / num_processes)
        starts = range(0, len(x), size)
        positions = torch.arange(size, device=x.device)
        return [((start + positions).clamp(max=len(x) - 1), min(size, len(x) - start)) for start in starts]

    def _checkpointed(self, function: Callable[..., Any], index: Tensor, *rows: Tensor) -> Any:
        if self.gradient_checkpointing and torch.is_grad_enabled() and any(state.requires_grad for state in rows):
            return checkpoint(function, index, *rows, use_reentrant=False)
        return function(index, *rows)

    def decode(self, z: Tensor, owners: Tensor) -> Tensor:
        """Images `[N, 3, H, W]` in [0, 1] of clean latents `[N, ...]`."""
        self.cost.decodes += len(z)
        return self._over_chunks(lambda index, kept, rows: self._decode_rows(owners[index], rows)[:kept], z)

    def evaluate(self, z: Tensor, owners: Tensor, noise_to_signal: Level = 0.0) -> Evaluation:
        """Decodes and scores clean latents `[N, ...]`, looked ahead to from a level, which rewards may ask for."""
        images = self.decode(z, owners)
        self.cost.reward_calls += len(z)
        names: list[str] = []

        def score_rows(index: Tensor, kept: int, latents: Tensor, images: Tensor) -> Tensor:
            output = self._score_rows(index, kept, owners, noise_to_signal, latents, images)
            names[:] = output.terms
            return torch.stack([output.total[:kept], *(term[:kept] for term in output.terms.values())], 1)

        total, *terms = self._over_chunks(score_rows, z, images).unbind(1)
        return Evaluation(total, dict(zip(names, (term.detach() for term in terms), strict=True)), images)

    def tilt(self, z: Tensor, owners: Tensor, noise_to_signal: Level = 0.0) -> Tensor:
        """`reward_scale * reward` of look-aheads `[N K, ...]` from a level, consecutive copies of the owners `[N]`."""
        owners = owners.repeat_interleave(len(z) // len(owners))
        self.cost.decodes += len(z)
        self.cost.reward_calls += len(z)

        def score_rows(index: Tensor, kept: int, latents: Tensor) -> Tensor:
            # Images of look-aheads are scored where they are decoded, and not kept.
            images = self._decode_rows(owners[index], latents, preview=True)
            return self._score_rows(index, kept, owners, noise_to_signal, latents, images).total[:kept]

        return self.reward_scale * self._over_chunks(score_rows, z).to(z.device)

    def _decode_rows(self, owners: Tensor, z: Tensor, preview: bool = False) -> Tensor:
        def decode(owners: Tensor, rows: Tensor) -> Tensor:
            # Sums over pixels, as rewards take, round by the order in memory, which is the decoder's own.
            return self.family.decode(rows, self.conditions.rows(owners), preview).contiguous()

        return self._checkpointed(decode, owners, z)

    def _score_rows(
        self, index: Tensor, kept: int, owners: Tensor, noise_to_signal: Level, latents: Tensor, images: Tensor
    ) -> RewardOutput:
        """The scores of one chunk of the rows whose owners and levels are given."""
        if not self.reward.differentiable:
            # It gains nothing from a filled-up chunk.
            index, latents, images = index[:kept], latents[:kept], images[:kept]
        level = as_level(noise_to_signal)

        def score(index: Tensor, latents: Tensor, images: Tensor) -> RewardOutput:
            prompts = [self.prompts[owner] for owner in owners[index].tolist()]
            row_levels = level[index.to(level.device)] if level.ndim else level
            return self.reward.evaluate(images, prompts, latents=latents, noise_to_signal=row_levels)

        return self._checkpointed(score, index, latents, images)


def check_reward_scale(reward_scale: float) -> None:
    """Raises a `ValueError` for one that is no finite number."""
    if not isinstance(reward_scale, Real) or not math.isfinite(reward_scale):
        raise ValueError(f"reward_scale is {reward_scale!r}; give a finite number (a negative one lowers the reward)")
