"""Finds the reward's scale of a call from plain samples of its prompts."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from ..alignment.auto_scale import AutoRewardScale
from ..alignment.law import Law
from ..alignment.methods.none import NoAlignment
from ..alignment.random_source import RandomSource
from ..alignment.reward_of_each_image import rewards_and_images
from ..core.tensors import working_dtype
from .call import Call

logger = logging.getLogger(__name__)

SAMPLES_AT_ONCE = 4
"""Of each prompt: as many as most methods have particles, for which there is memory."""


def random_of_prompts(call: Call) -> RandomSource:
    """Random numbers of each prompt, apart from those of the run, which is what it would be without.

    They go by the generator of the prompt's first image, as it stands by now.
    """
    first, given = _first_images(call), call.arguments.generator
    if isinstance(given, Sequence) and len(given) == call.num_images:
        given = [given[image] for image in first.tolist()]
    # What the run draws aside is seeded by the same generators.
    return RandomSource(given, len(first), call.device).aside.aside


def found_reward_scale(
    scale: AutoRewardScale, call: Call, law: Law, levels: Sequence[float], random: RandomSource
) -> Tensor:
    """The scale of each image, `[B]`: that of its prompt.

    Args:
        scale: how it is found.
        call: whose prompts are sampled.
        law: of the call; what is evaluated is counted in its cost.
        levels: of the run.
        random: as of `random_of_prompts`.

    Raises:
        ValueError: the rewards of a prompt's samples tell no scale.
    """
    rewards = plain_rewards(call, law, levels, scale.num_samples, random)
    num_images = call.arguments.num_images_per_prompt
    scales: list[float] = []
    for image, row in zip(_first_images(call), rewards, strict=True):
        prompt, reward = call.texts[image], law.reward_at(image[None])
        is_constraint = all(each.is_constraint for each, _ in rewards_and_images(reward))
        try:
            # What constrains alone is not scaled.
            scales.append(1.0 if is_constraint else scale.of_rewards(row))
        except ValueError as error:
            raise ValueError(
                f"reward_scale is 'auto', but for the prompt {prompt[:60]!r} {error}; give a number"
            ) from None
    logger.info("reward_scale: %s, from %d plain samples of each prompt.", shown_scales(scales), scale.num_samples)
    return torch.tensor(scales, dtype=torch.float64).repeat_interleave(num_images)


def shown_scales(scales: Sequence[float]) -> str:
    """Scales in one line."""
    return ", ".join(f"{scale:.4g}" for scale in scales)


@torch.no_grad()
def plain_rewards(call: Call, law: Law, levels: Sequence[float], num_samples: int, random: RandomSource) -> Tensor:
    """The rewards of plain samples of each prompt, `[prompts, num_samples]` on the CPU; NaN where one was skipped."""
    plain = law.of_images(_first_images(call))
    drawn: list[Tensor] = []
    for start in range(0, num_samples, SAMPLES_AT_ONCE):
        method = NoAlignment(num_particles=min(SAMPLES_AT_ONCE, num_samples - start))
        result = method.run(plain, _noise(call, random, method.num_particles, levels[0]), levels, random)
        assert result.rewards is not None, "a scale is looked for where there is a reward"
        drawn.append(result.rewards.cpu())
    return torch.cat(drawn, 1)


def _first_images(call: Call) -> Tensor:
    """The first image of each prompt."""
    return torch.arange(0, call.num_images, call.arguments.num_images_per_prompt)


def _noise(call: Call, random: RandomSource, num_rows: int, level: float) -> Tensor:
    """Starting noise of so many rows of each prompt, `[prompts * num_rows, ...]` in the bounded coordinate."""
    generators = random.generators
    if isinstance(generators, list):
        generators = [generator for generator in generators for _ in range(num_rows)]
    count = random.num_images * num_rows
    x = call.family.prepare_latents(call.arguments, call.conditions, count, generators, None)
    return call.family.from_stock(x.to(working_dtype(x)), level)
