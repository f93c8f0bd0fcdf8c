"""Noised clean latents of a model, and what posterior samplers draw there."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from diamond_diffusers.alignment.budget import EmptyModel
from diamond_diffusers.alignment.execution import Execution
from diamond_diffusers.alignment.law import Law, ScoreModel
from diamond_diffusers.alignment.random_source import RandomSource
from diamond_diffusers.core.levels import RectifiedFlowPath, add_noise
from diamond_diffusers.miniature.grammar import Caption, held_out_captions
from diamond_diffusers.miniature.render import IMAGE_SIZE, render, sample_scene
from diamond_diffusers.pipelines.pipeline import DiamondMapPipeline
from diamond_diffusers.posteriors.base import PosteriorSampler, PosteriorSamples
from diamond_diffusers.rewards import Reward


@dataclass(frozen=True)
class Observations:
    """Noised clean latents, and what the model predicts there.

    Attributes:
        law: of `N` images.
        x: `[N, ...]` in the bounded coordinate.
        noise_to_signal: their level.
        predicted: by the model as loaded, `[N, ...]`.
        reference_noise, sampler_noise: independent standard normals `[N, K, ...]`, for up to K look-aheads of each.
    """

    law: Law
    x: Tensor
    noise_to_signal: float
    predicted: Tensor
    reference_noise: Tensor
    sampler_noise: Tensor

    @classmethod
    def of(cls, law: Law, clean: Tensor, level: float, num_samples: int, seed: int) -> Observations:
        """Clean latents `[N, ...]` noised to a time of rectified flow, or to the model's largest level below it."""
        network = law.rows(clean).network
        kappa = min(RectifiedFlowPath().noise_to_signal(level).item(), network.max_noise_to_signal)
        x = add_noise(clean, keyed_noise(f"{seed} {level} observations", clean, 1), kappa)
        reference_noise, sampler_noise = (
            keyed_noise(f"{seed} {level} {name}", clean, num_samples).unflatten(0, (len(clean), -1))
            for name in ("reference", "samplers")
        )
        return cls(law, x, kappa, network.predict(x, kappa), reference_noise, sampler_noise)

    def draw(self, sampler: PosteriorSampler, noise: Tensor) -> PosteriorSamples:
        """Look-aheads of all observations from the first of their noise `[N, K, ...]`."""
        network = self.law.rows(self.x).network
        rows = noise[:, : sampler.num_samples].flatten(0, 1)
        return sampler.sample(network, self.x, self.noise_to_signal, self.predicted, rows)

    def network_evaluations(self, sampler: PosteriorSampler) -> int:
        """What the look-aheads of one observation cost in a run, which predicts there where they use that."""
        law, first, x = self.law, torch.zeros(1, dtype=torch.long), torch.zeros(1, 1)
        scores = law.score_model
        empty = Law(
            EmptyModel(law.model),
            law.conditions.rows(first),
            [""],
            score_model=scores and ScoreModel(EmptyModel(scores.model), scores.conditions.rows(first)),
        )
        network = empty.rows(x).network
        predicted = network.predict(x, self.noise_to_signal) if sampler.needs_prediction(network) else None
        sampler.sample(network, x, self.noise_to_signal, predicted, torch.zeros(sampler.num_samples, 1))
        return empty.cost.network_evaluations

    def score(self, drawn: PosteriorSamples) -> Tensor:
        """The scaled rewards of look-aheads, `[N, K]`."""
        rewards = self.law.rows(self.x).tilt(drawn.samples.flatten(0, 1), self.noise_to_signal)
        return rewards.double().reshape(drawn.log_weights.shape)


def keyed_noise(key: str, latents: Tensor, rows_per_latent: int) -> Tensor:
    """Standard normals `[N rows_per_latent, ...]` for latents `[N, ...]`, each of which has its own generator."""
    seeds = [random.Random(f"{key} {index}").getrandbits(63) for index in range(len(latents))]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return RandomSource(generators, len(latents), latents.device).normal(rows_per_latent, latents.shape[1:])


@contextmanager
def tilted_law(
    pipe: DiamondMapPipeline,
    prompts: Sequence[str],
    reward: Reward | None = None,
    reward_scale: float = 1.0,
    particle_batch_size: int | None = None,
) -> Iterator[Law]:
    """A pipeline's model for some prompts, as its own call has it; valid while the context is open.

    Raises:
        ValueError: the guidance is not what the model's Diamond Map was distilled with.
    """
    call = pipe.prepare(list(prompts))
    with call.active():
        if call.family.has_diamond_map:
            call.check_baked_guidance()
        if reward is not None:
            reward.to(device=call.device)
        execution = Execution(particle_batch_size)
        yield Law(call.family, call.conditions, call.texts, reward, reward_scale, call.scores, execution)


def shuffled_captions(count: int, seed: int = 0) -> list[Caption]:
    """The first of the held-out captions of the miniature world in a random order.

    Raises:
        ValueError: there are not that many.
    """
    captions = list(held_out_captions())
    if count > len(captions):
        raise ValueError(f"num_observations is {count}; give at most {len(captions)}, or prompts of your own")
    random.Random(seed).shuffle(captions)
    return captions[:count]


@torch.no_grad()
def rendered_latents(pipe: DiamondMapPipeline, captions: Sequence[Caption], seed: int = 0) -> Tensor:
    """Latents `[N, ...]` of a render of each caption.

    Raises:
        ValueError: the pipeline draws images of another size.
    """
    size = pipe.defaults.get("height")
    if size != IMAGE_SIZE:
        raise ValueError(
            f"prompt is not given, so that renders of the miniature world would be observed, which are {IMAGE_SIZE} "
            f"pixels high; this model draws {size or 'its own number'}: name prompts, whose samples are observed then"
        )
    scenes = [sample_scene(caption, random.Random(f"{seed} {index}")) for index, caption in enumerate(captions)]
    mean, deviation = pipe.family.encode_images(2 * render(scenes) - 1)
    return (mean + deviation * keyed_noise(f"{seed} latents", mean, 1)).float()


def sampled_latents(
    pipe: DiamondMapPipeline, prompts: Sequence[str], seed: int = 0, particle_batch_size: int | None = None
) -> Tensor:
    """Clean latents `[N, ...]` that the model itself draws of each prompt."""
    generators = [torch.Generator().manual_seed(1_000_000 * seed + index) for index in range(len(prompts))]
    return pipe(
        list(prompts),
        alignment="none",
        generator=generators,
        particle_batch_size=particle_batch_size,
        output_type="latent",
    ).images.float()
