"""What a dry run has to know of a checkpoint: its class, its scheduler, and what else decides what it is asked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers
from diffusers import AutoModel, DiffusionPipeline

from ...families.registry import check_supported
from ...pipelines.loading import check_class
from .families import TINY_PIPELINES, TinyPipeline
from .parts import Part


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint without its weights.

    Attributes:
        pipeline: name of the stock class.
        scheduler: its scheduler.
        network: keywords of its network that decide what it is asked.
        pixels: height and width of its images, where a call gives none; None for those of its class.
    """

    pipeline: str
    scheduler: Part
    network: Mapping[str, Any] = field(default_factory=dict)
    pixels: int | None = None

    @property
    def tiny(self) -> TinyPipeline:
        """The tiny pipeline of its class.

        Raises:
            ValueError: there is none.
        """
        if self.pipeline not in TINY_PIPELINES:
            raise ValueError(
                f"--dry-run has no tiny {self.pipeline}; it has one of {', '.join(TINY_PIPELINES.names())}, and of a "
                "class that a file of yours registers with evaluation.dry_run.families.TINY_PIPELINES"
            )
        return TINY_PIPELINES.get(self.pipeline)


_SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
_SANA_SPRINT = Checkpoint("SanaSprintPipeline", Part("SCMScheduler"))

CHECKPOINTS: Mapping[str, Checkpoint] = {
    "black-forest-labs/FLUX.1-dev": Checkpoint(
        "FluxPipeline",
        Part("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True, "shift": 3.0}),
        {"guidance_embeds": True},
    ),
    "black-forest-labs/FLUX.1-schnell": Checkpoint(
        "FluxPipeline", Part("FlowMatchEulerDiscreteScheduler", {"shift": 1.0}), {"guidance_embeds": False}
    ),
    "stable-diffusion-v1-5/stable-diffusion-v1-5": Checkpoint(
        "StableDiffusionPipeline", Part("PNDMScheduler", {**_SCALED, "skip_prk_steps": True, "steps_offset": 1})
    ),
    "stabilityai/sd-turbo": Checkpoint(
        "StableDiffusionPipeline", Part("EulerDiscreteScheduler", {**_SCALED, "timestep_spacing": "trailing"})
    ),
    "stabilityai/stable-diffusion-xl-base-1.0": Checkpoint(
        "StableDiffusionXLPipeline",
        Part("EulerDiscreteScheduler", {**_SCALED, "timestep_spacing": "leading", "steps_offset": 1}),
    ),
    "stabilityai/sdxl-turbo": Checkpoint(
        "StableDiffusionXLPipeline",
        Part("EulerAncestralDiscreteScheduler", {**_SCALED, "timestep_spacing": "trailing", "steps_offset": 1}),
        {"sample_size": 64},
        pixels=512,
    ),
    "Efficient-Large-Model/Sana_Sprint_0.6B_1024px_diffusers": _SANA_SPRINT,
    "Efficient-Large-Model/Sana_Sprint_1.6B_1024px_diffusers": _SANA_SPRINT,
}
"""Those that are known by name, so that nothing is downloaded, for which some ask for a login."""


def is_known(model: str) -> bool:
    """Whether a model is the name of a checkpoint that is known, and no folder."""
    return model in CHECKPOINTS and not os.path.isdir(model)


def find_checkpoint(model: str, hub: Mapping[str, Any]) -> Checkpoint:
    """A checkpoint by its name, or by the configurations in its folder or repository, which are small files.

    Args:
        model: folder or Hub repository.
        hub: options of the Hub.

    Raises:
        OSError, TypeError, ValueError: there are no configurations, or they are of a class that is not supported.
    """
    if is_known(model):
        return CHECKPOINTS[model]
    name = check_class(model, **hub)
    index = DiffusionPipeline.load_config(model, **hub)
    scheduler: Any = getattr(diffusers, index["scheduler"][1])
    family = check_supported(name)
    network = AutoModel.load_config(model, subfolder=family.network_name, **hub)
    settings = Part(scheduler.__name__, scheduler.load_config(model, subfolder="scheduler", **hub))
    checkpoint = Checkpoint(name, settings)
    kept = {key: network[key] for key in checkpoint.tiny.kept if key in network}
    return Checkpoint(name, settings, kept, _pixels(kept))


def _pixels(network: Mapping[str, Any]) -> int | None:
    """Of the images of a UNet, whose autoencoder divides by 8."""
    size = network.get("sample_size")
    return 8 * size if isinstance(size, int) else None
