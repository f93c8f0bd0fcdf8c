"""What the distillation of a published model computes and holds, counted on the meta device."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from diamond_diffusers.core.memory_use import peak_bytes
from diamond_diffusers.families.base import Family
from diamond_diffusers.maps.diamond_map import DiamondMap
from diamond_diffusers.training.data.trajectories import INNER_STEPS, TrajectoryDraws
from diamond_diffusers.training.module import DistilledModule

from .fused_attention import fused_attention
from .memory_counts import prepared_model, weights_of
from .memory_recipes import largest_block

LEVEL = 1.0
PAIR = TrajectoryDraws().num_trajectories
TRAJECTORY_EVALUATIONS = 1 + PAIR * (INNER_STEPS - 1)
"""Of an observation: at pure inner noise both trajectories have the same posterior mean."""
TRAINED_BYTES = {"the map's weights": 4, "their gradients": 4, "their moments": 8, "their average": 4}
"""Of a trained number: all are in float32."""
FORMS = {"bfloat16": 2.0, "fp8": 1.0, "int8": 1.0, "nf4": 0.5 + 4 / 64}
"""Bytes of a number of the frozen network; NF4 has a scale of four bytes for each 64 numbers."""


@dataclass(frozen=True)
class DistillationCounts:
    """What the distillation of a model takes.

    Attributes:
        network, text_encoders, autoencoder: numbers of the base.
        largest_block: numbers of the largest block of the network, which FSDP gathers as one.
        trained: numbers of the LoRA and of the conditioning layers.
        latents, features: numbers of an image's latents and of a caption's features.
        guided_rows: rows of the network in an evaluation of the teacher: two under classifier-free guidance.
        forward: floating-point operations of a row of the network.
        update: those of a row forward and back, with nothing computed again.
        activations: the most bytes at once of an observation, which has two rows, forward and back, the gradients
            of the trained numbers included.
        checkpointed: the same with gradient checkpointing.
    """

    network: int
    text_encoders: int
    autoencoder: int
    largest_block: int
    trained: int
    latents: int
    features: int
    guided_rows: int
    forward: int
    update: int
    activations: int
    checkpointed: int


@cache
def distillation_counts(
    name: str, pixels: int, rank: int, size: str = "full", device: str = "meta"
) -> DistillationCounts:
    """Counts for a model of `PUBLISHED_MODELS` whose base is in bfloat16.

    Args:
        name: of the model.
        pixels: height and width of its images.
        rank: of the LoRA.
        size: as published, or `tiny`.
        device: `meta`, where attention is counted by the rule of fused kernels; elsewhere it is really computed.

    Raises:
        ValueError: a model of this family has no Diamond Map.
    """
    family, conditions, latents = prepared_model(name, pixels, torch.bfloat16, size, device)
    family.network_module.requires_grad_(False)
    with torch.device(device):
        diamond_map = DistilledModule(DiamondMap(family, rank)).diamond_map
        diamond_map.conditioning.to(device)
    parameters = diamond_map.trained_parameters()
    index = torch.zeros(PAIR, dtype=torch.long, device=latents.device)
    rows = latents[index]
    pair = conditions.rows(index)

    def loss(count: int) -> Tensor:
        told = pair if count == PAIR else conditions
        denoised = diamond_map.mean_denoiser(rows[:count], 1.0, 0.5, rows[:count], LEVEL, told)
        return denoised.float().square().mean()

    def differentiate(count: int) -> None:
        torch.autograd.grad(loss(count), parameters)

    with torch.no_grad():
        forward = _operations(lambda: loss(1))
    weights = weights_of(name)
    return DistillationCounts(
        network=weights.network,
        text_encoders=weights.text_encoders,
        autoencoder=weights.decoder,
        largest_block=largest_block(name),
        trained=sum(parameter.numel() for parameter in parameters),
        latents=latents[0].numel(),
        features=sum(feature[0].numel() for feature in conditions.features.values()),
        guided_rows=1 if conditions.negative_features is None else 2,
        forward=forward,
        update=_operations(lambda: differentiate(1)),
        activations=_peak(family, differentiate, False, device),
        checkpointed=_peak(family, differentiate, True, device),
    )


def _operations(function: Callable[[], object]) -> int:
    counter = FlopCounterMode(display=False)
    with counter:
        function()
    return int(counter.get_total_flops())


def _peak(family: Family, differentiate: Callable[[int], None], in_blocks: bool, device: str) -> int:
    def evaluate() -> None:
        with family.evaluating_network(in_blocks):
            differentiate(PAIR)

    with fused_attention() if device == "meta" else nullcontext():
        return peak_bytes(evaluate)


def guided_step_operations(name: str, pixels: int) -> int:
    """Floating-point operations of a `pathwise` step of a particle: network and decoder, forward and back."""
    family, conditions, latents = prepared_model(name, pixels, torch.bfloat16, "full", "meta")
    for part in family.parts():
        part.requires_grad_(False)
    x = latents.requires_grad_(True)

    def step() -> None:
        images = family.decode(family.predict(x, LEVEL, conditions), conditions)
        torch.autograd.grad(images.float().sum(), x)

    return _operations(step)
