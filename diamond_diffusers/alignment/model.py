"""The law that a run samples from: a model, a reward, and the count of what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..backbones.base import Backbone, Conditions
from ..cost import Cost
from ..levels import Denoiser, Level, as_level
from ..rewards.base import Reward


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

    Rows of any number are evaluated in chunks of `particle_batch_size`; `owners [N]` names the image that each row
    belongs to.

    Args:
        backbone: the model family.
        conditions: of the `B` images.
        prompts: their `B` prompts, for the reward.
        reward: None where only the plain model is sampled.
        reward_scale: multiplies the reward (inverse temperature).
        particle_batch_size: rows of one network, decoder or reward call; None for all at once.
    """

    def __init__(
        self,
        backbone: Backbone,
        conditions: Conditions,
        prompts: Sequence[str],
        reward: Reward | None = None,
        reward_scale: float = 1.0,
        particle_batch_size: int | None = None,
    ) -> None:
        if particle_batch_size is not None and particle_batch_size < 1:
            raise ValueError(f"particle_batch_size is {particle_batch_size}; give at least 1, or None for no limit")
        self.backbone = backbone
        self.conditions = conditions
        self.prompts = list(prompts)
        self.reward = reward
        self.reward_scale = reward_scale
        self.particle_batch_size = particle_batch_size
        self.cost = Cost()

    @property
    def num_images(self) -> int:
        return len(self.prompts)

    def owners(self, rows_per_image: int, device: torch.device | str = "cpu") -> Tensor:
        """The owners of `rows_per_image` consecutive rows of every image."""
        return torch.arange(self.num_images, device=device).repeat_interleave(rows_per_image)

    def chunks(self, num_rows: int) -> list[slice]:
        """Slices that cover `num_rows` rows in chunks of `particle_batch_size`."""
        size = self.particle_batch_size or num_rows
        return [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]

    def denoiser(self, owners: Tensor) -> Denoiser:
        """The denoiser of rows with these owners, or of equally many consecutive copies of each of them."""

        def denoise(x: Tensor, noise_to_signal: Level) -> Tensor:
            row_owners = owners.repeat_interleave(len(x) // len(owners))
            level = as_level(noise_to_signal)
            return torch.cat(
                [
                    self.backbone.denoise(
                        x[chunk], level[chunk] if level.ndim else level, self.conditions.rows(row_owners[chunk])
                    )
                    for chunk in self._counted_chunks(x)
                ]
            )

        return denoise

    def _counted_chunks(self, x: Tensor) -> list[slice]:
        evaluations = len(x) * self.conditions.evaluations_per_row
        self.cost.network_evaluations += evaluations
        if torch.is_grad_enabled() and x.requires_grad:
            # Every graph built here is traversed once.
            self.cost.backward_passes += evaluations
        return self.chunks(len(x))

    def decode(self, z: Tensor, owners: Tensor) -> Tensor:
        """Images `[N, 3, H, W]` in [0, 1] of clean latents `[N, ...]`."""
        self.cost.decodes += len(z)
        chunks = self.chunks(len(z))
        return torch.cat([self.backbone.decode(z[chunk], self.conditions.rows(owners[chunk])) for chunk in chunks])

    def evaluate(self, z: Tensor, owners: Tensor) -> Evaluation:
        """Decodes and scores clean latents `[N, ...]`."""
        images = self.decode(z, owners)
        prompts = [self.prompts[owner] for owner in owners.tolist()]
        chunks = self.chunks(len(z))
        outputs = [self.reward.evaluate(images[chunk], prompts[chunk]) for chunk in chunks]
        self.cost.reward_calls += len(z)
        terms = {name: torch.cat([output.terms[name] for output in outputs]) for name in outputs[0].terms}
        return Evaluation(torch.cat([output.total for output in outputs]), terms, images)

    def tilt(self, z: Tensor, owners: Tensor) -> Tensor:
        """`reward_scale * reward` of clean latents `[N K, ...]`, consecutive copies of the owners `[N]`."""
        owners = owners.repeat_interleave(len(z) // len(owners))
        return self.reward_scale * self.evaluate(z, owners).total.to(z.device)
