"""Noise optimisation without derivatives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.checks import check_counts
from ...core.tensors import expand
from ..noise_ascent import NoiseAscent, NoiseSampler
from ..noise_rounds import Sample
from . import METHODS


@METHODS.register("noise_evolution")
@dataclass(frozen=True)
class NoiseEvolution(NoiseAscent):
    """Noise optimisation without derivatives: an evolution strategy estimates the gradient (arXiv 1703.03864).

    With `delta_k ~ N(0, I)` and `a = sqrt(1 - perturbation^2)`, which keeps the law of the noise, ::

        gradient = mean_k delta_k (r(a eps + perturbation delta_k) - r(a eps - perturbation delta_k)) / (2 perturbation)

    estimates without bias the gradient of `r`, averaged over such noises. Its error grows with the number of latents'
    dimensions over `num_perturbations`. An iteration but the last, which samples one noise of each particle, samples
    `1 + 2 num_perturbations`.
    Further options and what is kept: see `NoiseAscent`.

    Args:
        num_perturbations: antithetic pairs of each iteration.
        perturbation: share in (0, 1) of fresh noise in them.

    Example:
        >>> pipe("a red star", alignment=NoiseEvolution(num_iterations=1), num_inference_steps=2)
    """

    num_perturbations: int = 1
    perturbation: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(num_perturbations=self.num_perturbations)
        if not 0 < self.perturbation < 1:
            raise ValueError(f"perturbation is {self.perturbation}; give a number between 0 and 1")

    def sample_and_gradient(self, sampler: NoiseSampler, noise: Tensor) -> tuple[Sample, Tensor]:
        sample, size = sampler(noise), self.perturbation
        count = self.num_perturbations
        fresh = sampler.random.aside.normal(count * self.num_particles, noise.shape[1:]).to(noise)
        fresh = fresh.unflatten(0, (-1, count))
        centre = (1 - size**2) ** 0.5 * noise[:, None]
        perturbed = torch.stack([centre + size * fresh, centre - size * fresh], 2)
        rewards, violations = sampler.rewards(perturbed.flatten(0, 2))

        def rise(scores: Tensor) -> Tensor:
            above, below = scores.reshape(*fresh.shape[:2], 2).unbind(2)
            return above - below

        rises = expand(sampler.law.scales(len(noise)), rewards[:, None]) * rise(rewards)
        if violations is not None:
            # Of what gradients follow, which knows no barrier.
            rises = rises - rise(violations)
        # A pair of which one has no reward tells nothing.
        rises = (rises / (2 * size)).nan_to_num(nan=0.0)
        return sample, torch.einsum("nk,nk...->n...", rises.to(fresh), fresh) / count
