"""The matrix of model families, precisions and methods: its cells, and what holds in each, on any device."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from diamond_diffusers import (
    SMC,
    DiamondMapPipeline,
    GlassPosterior,
    Guidance,
    Guide,
    NoAlignment,
    WeightedPosterior,
)
from diamond_diffusers.alignment.base import Method

from .all_families import FAMILIES, family_of
from .family import PROMPTS, brightness, generators
from .stock import WORST_GAP

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
METHODS: dict[str, Method] = {
    "none": NoAlignment(),
    "smc": SMC(num_particles=3),
    "isotropic": Guidance(),
    "pathwise": Guidance(guide=Guide("pathwise")),
    "tilted_mean": Guidance(GlassPosterior(2, num_samples=3), Guide("tilted_mean")),
}
# A flow map without a denoiser draws its look-aheads by the map.
WITHOUT_DENOISER = {"tilted_mean": Guidance(WeightedPosterior(3, weights="reward_softmax"), Guide("tilted_mean"))}
NUM_STEPS = 2

Cell = tuple[str, torch.dtype, str]
CELLS: list[Cell] = [(family, dtype, method) for family in FAMILIES for dtype in DTYPES for method in METHODS]


def is_in_pairwise_cover(cell: Cell) -> bool:
    """Whether a cell is one of the fewest in which every two values of different axes meet.

    Each family meets each method once, in the precision that their places add up to: so five methods in a row meet all
    three precisions, and so do ten families.
    """
    family, dtype, method = cell
    return (list(FAMILIES).index(family) + list(METHODS).index(method)) % len(DTYPES) == DTYPES.index(dtype)


def assert_cell_holds(cell: Cell, device: torch.device) -> None:
    """Images and rewards are finite, near those in float32, and without alignment those of the stock pipeline."""
    family, dtype, method = cell
    images, rewards = drawn(family, dtype, method, device)
    assert images.isfinite().all() and rewards.isfinite().all()
    assert images.std() > 0.05
    resolution = torch.finfo(dtype).eps
    if dtype != torch.float32:
        # Several roundings of numbers of about 1 in each of the layers partly cancel.
        gap = (images - drawn(family, torch.float32, method, device)[0]).abs().mean()
        assert gap < min(WORST_GAP, 4 * resolution)
    if method == "none":
        # The stock loop rounds its latents after every step, which ours keeps in float32.
        tolerance = family_of(family).tolerance if dtype == torch.float32 else 8 * resolution
        torch.testing.assert_close(images, stock(family, dtype, device), atol=tolerance, rtol=0)


@cache
def drawn(family: str, dtype: torch.dtype, method: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images and rewards of a cell, in float32 on the CPU."""
    pipe = _pipe(family, dtype, device)
    methods = METHODS if pipe.family.has_denoiser else METHODS | WITHOUT_DENOISER
    out = pipe(
        PROMPTS[:1],
        reward=brightness,
        alignment=methods[method],
        particle_batch_size=2,
        **_call(family, dtype, device),
    )
    return out.images.float().cpu(), out.rewards.float().cpu()


@cache
def stock(family: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Images of the stock pipeline, in float32 on the CPU."""
    return _pipe(family, dtype, device).pipeline(PROMPTS[:1], **_call(family, dtype, device)).images.float().cpu()


@cache
def _pipe(family: str, dtype: torch.dtype, device: torch.device) -> DiamondMapPipeline:
    return DiamondMapPipeline.from_pipe(family_of(family).build().to(device, dtype))


def _call(family: str, dtype: torch.dtype, device: torch.device) -> dict[str, object]:
    """The same noise in every precision, by numbers that all of them hold."""
    noise = torch.randn(1, *family_of(family).latents_shape, generator=torch.Generator().manual_seed(5)).bfloat16()
    kept = _pipe(family, dtype, device).family.latents_dtype or dtype
    return {
        **family_of(family).call,
        "latents": noise.to(device, kept),
        "generator": generators(1),
        "num_inference_steps": NUM_STEPS,
        "output_type": "pt",
    }
