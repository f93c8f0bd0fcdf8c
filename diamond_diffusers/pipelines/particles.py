"""Where the particles of a run start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..alignment.base import Method
from ..alignment.random_source import RandomSource
from ..core.model import Conditions
from ..core.tensors import working_dtype
from ..families.base import Family


def starting_particles(
    family: Family,
    arguments: Mapping[str, Any],
    conditions: Conditions,
    alignment: Method,
    level: float,
    random: RandomSource,
    latents: Tensor | None,
) -> Tensor:
    """Particles `[B P, ...]` in the bounded coordinate; the first of each image starts where the stock pipeline would.

    Args:
        latents: starting noise as the stock pipeline takes it, a row for each image or each particle; None to draw it.

    Raises:
        TypeError: `latents` is no tensor.
        ValueError: the number or the shape of rows of `latents` does not fit, or all particles of an image would be the
            same.
    """
    count, particles = random.num_images, alignment.num_particles
    if latents is not None:
        if not isinstance(latents, Tensor):
            raise TypeError(f"latents is a {type(latents).__name__}; give a tensor with a row for each image")
        of_one = family.prepare_latents(arguments, conditions, 1, torch.Generator()).shape[1:]
        if latents.shape[1:] != of_one:
            raise ValueError(
                f"latents is of shape {list(latents.shape)}; at this height and width a row is of shape {list(of_one)}"
            )
        latents = _row_for_each_particle(alignment, count, latents)
        x = family.prepare_latents(arguments, conditions, count * particles, None, latents)
    else:
        x = family.prepare_latents(arguments, conditions, count, random.generators)
        if particles > 1:
            generators = random.aside.generators
            if isinstance(generators, list):
                generators = [generator for generator in generators for _ in range(particles - 1)]
            more = family.prepare_latents(arguments, conditions, count * (particles - 1), generators)
            x = torch.cat([x.unflatten(0, (count, 1)), more.unflatten(0, (count, -1))], 1).flatten(0, 1)
    return family.from_stock(x.to(working_dtype(x)), level)


def _row_for_each_particle(alignment: Method, count: int, latents: Tensor) -> Tensor:
    particles = alignment.num_particles
    if len(latents) not in (count, count * particles):
        raise ValueError(
            f"latents holds {len(latents)} rows for {count} images of {particles} particles; "
            f"give {count} or {count * particles}"
        )
    if len(latents) == count and particles > 1:
        if alignment.transition is not None and not alignment.transition.is_stochastic:
            raise ValueError(
                f"latents holds {count} rows, from which all {particles} particles of an image would take the "
                f"same deterministic path; give {count * particles} rows or a stochastic transition"
            )
        latents = latents.repeat_interleave(particles, 0)
    return latents
