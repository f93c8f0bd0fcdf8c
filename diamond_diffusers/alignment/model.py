"""The law that a run samples from: a model, a reward, and the count of what they cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..backbones.base import Conditions, Denoising
from ..cost import Cost
from ..levels import Level, as_level
from ..network import Network
from ..rewards.base import Reward, RewardOutput


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
        backbone: the model family.
        conditions: of the `B` images.
        prompts: their `B` prompts, for the reward.
        reward: None where only the plain model is sampled.
        reward_scale: multiplies the reward (inverse temperature).
        particle_batch_size: rows of one network, decoder or reward call; None for all at once.
        score_model: another model of the same latents and its conditions, which gives the posterior mean in place of
            the backbone.
        gradient_checkpointing: whether network, decoder and reward are evaluated again on the backward pass, instead
            of holding what they computed.
    """

    def __init__(
        self,
        backbone: Denoising,
        conditions: Conditions,
        prompts: Sequence[str],
        reward: Reward | None = None,
        reward_scale: float = 1.0,
        particle_batch_size: int | None = None,
        score_model: tuple[Denoising, Conditions] | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        if particle_batch_size is not None and particle_batch_size < 1:
            raise ValueError(f"particle_batch_size is {particle_batch_size}; give at least 1, or None for no limit")
        self.backbone = backbone
        self.conditions = conditions
        self.prompts = list(prompts)
        self.reward = reward
        self.reward_scale = reward_scale
        self.particle_batch_size = particle_batch_size
        self.score_model = score_model
        self.gradient_checkpointing = gradient_checkpointing
        self.cost = Cost()

    @property
    def num_images(self) -> int:
        return len(self.prompts)

    def owners(self, rows_per_image: int, device: torch.device | str = "cpu") -> Tensor:
        """The owners of `rows_per_image` consecutive rows of every image."""
        return torch.arange(self.num_images, device=device).repeat_interleave(rows_per_image)

    def network(self, owners: Tensor) -> Network:
        """The model at rows with these owners, or at equally many consecutive copies of each of them."""
        scores, score_conditions = self.score_model or (self.backbone, self.conditions)
        backbone, conditions = self.backbone, self.conditions

        def predict(x: Tensor, noise_to_signal: Level) -> Tensor:
            return self._evaluate(backbone.predict, backbone, conditions, owners, (x,), noise_to_signal)

        def denoise(x: Tensor, noise_to_signal: Level) -> Tensor:
            return self._evaluate(scores.denoise, scores, score_conditions, owners, (x,), noise_to_signal)

        def flow_map(x: Tensor, noise_to_signal: Level, next_noise_to_signal: Level) -> Tensor:
            levels = (noise_to_signal, next_noise_to_signal)
            return self._evaluate(backbone.flow_map, backbone, conditions, owners, (x,), *levels)

        def diamond_map(xbar: Tensor, s: float, r: float, x: Tensor, noise_to_signal: Level) -> Tensor:
            def mapped(xbar: Tensor, x: Tensor, noise_to_signal: Level, rows: Conditions) -> Tensor:
                return backbone.diamond_map(xbar, s, r, x, noise_to_signal, rows)

            # Its guidance is baked in.
            unguided = replace(conditions, negative_features=None)
            return self._evaluate(mapped, backbone, unguided, owners, (xbar, x), noise_to_signal)

        predicts_mean = backbone.predicts_mean and self.score_model is None
        return Network(
            predict,
            (predict if predicts_mean else denoise) if scores.has_denoiser else None,
            flow_map if backbone.has_flow_map else None,
            predicts_mean,
            min(backbone.max_noise_to_signal, scores.max_noise_to_signal),
            diamond_map if backbone.has_diamond_map else None,
        )

    def _evaluate(
        self,
        function: Callable[..., Tensor],
        model: Denoising,
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

        results = []
        for index, kept in self._chunks(states[0]):
            evaluations = kept * model.evaluations_per_row(at_rows(index)[0], conditions)
            self.cost.network_evaluations += evaluations
            # Every graph built here is traversed once.
            self.cost.backward_passes += evaluations if is_tracked else 0
            results.append(self._checkpointed(evaluate_rows, index, *(state[index] for state in states))[:kept])
        return torch.cat(results)

    def _chunks(self, x: Tensor) -> list[tuple[Tensor, int]]:
        """Indices that cover the rows of `x` in chunks, the last filled up with its last row, and how many to keep."""
        size = self.particle_batch_size or len(x)
        starts = range(0, len(x), size)
        positions = torch.arange(size, device=x.device)
        return [((start + positions).clamp(max=len(x) - 1), min(size, len(x) - start)) for start in starts]

    def _checkpointed(self, function: Callable[..., Any], index: Tensor, *rows: Tensor) -> Any:
        if self.gradient_checkpointing and torch.is_grad_enabled() and any(state.requires_grad for state in rows):
            return checkpoint(function, index, *rows, use_reentrant=False)
        return function(index, *rows)

    def decode(self, z: Tensor, owners: Tensor, preview: bool = False) -> Tensor:
        """Images `[N, 3, H, W]` in [0, 1] of clean latents `[N, ...]`."""
        self.cost.decodes += len(z)

        def decode_rows(index: Tensor, rows: Tensor) -> Tensor:
            return self.backbone.decode(rows, self.conditions.rows(owners[index]), preview)

        return torch.cat([self._checkpointed(decode_rows, index, z[index])[:kept] for index, kept in self._chunks(z)])

    def evaluate(self, z: Tensor, owners: Tensor, noise_to_signal: Level = 0.0, preview: bool = False) -> Evaluation:
        """Decodes and scores clean latents `[N, ...]`, looked ahead to from a level, which rewards may ask for."""
        images = self.decode(z, owners, preview)
        self.cost.reward_calls += len(z)
        level = as_level(noise_to_signal)

        def score_rows(index: Tensor, rows: Tensor) -> RewardOutput:
            prompts = [self.prompts[owner] for owner in owners[index].tolist()]
            row_levels = level[index.to(level.device)] if level.ndim else level
            return self.reward.evaluate(rows, prompts, latents=z[index], noise_to_signal=row_levels)

        outputs = []
        for index, kept in self._chunks(images):
            # A reward without tensor operations gains nothing from a filled-up chunk.
            index = index if self.reward.differentiable else index[:kept]
            outputs.append((self._checkpointed(score_rows, index, images[index]), kept))
        terms = {
            name: torch.cat([output.terms[name][:kept] for output, kept in outputs]) for name in outputs[0][0].terms
        }
        return Evaluation(torch.cat([output.total[:kept] for output, kept in outputs]), terms, images)

    def tilt(self, z: Tensor, owners: Tensor, noise_to_signal: Level = 0.0) -> Tensor:
        """`reward_scale * reward` of look-aheads `[N K, ...]` from a level, consecutive copies of the owners `[N]`."""
        owners = owners.repeat_interleave(len(z) // len(owners))
        return self.reward_scale * self.evaluate(z, owners, noise_to_signal, preview=True).total.to(z.device)
