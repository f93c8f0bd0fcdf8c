"""The published architectures with random weights, in full size and shrunken: enough to measure what a step costs.

Text encoders are left out; prompt features are random tensors of the right shapes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

SIZES = ("tiny", "full")
TINY_PIXELS, TINY_TOKENS = 64, 8


@dataclass(frozen=True)
class Part:
    """A component: its class in diffusers, its published configuration, and what differs in the tiny model."""

    class_name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    tiny: Mapping[str, Any] = field(default_factory=dict)

    def build(self, size: str) -> Any:
        config = {**self.config, **self.tiny} if size == "tiny" else self.config
        return getattr(diffusers, self.class_name)(**config)


@dataclass(frozen=True)
class PublishedModel:
    """A model to measure.

    Attributes:
        checkpoint: whose sizes are the full ones.
        pipeline: its class in diffusers.
        modules: the network and the autoencoder.
        scheduler: of the checkpoint.
        features: shapes of one prompt's features, from the network's configuration and the number of tokens.
        tokens: of a prompt of the full model.
        pixels: height and width of an image of the full model.
        options: of the pipeline's constructor.
        call: keywords of every call.
    """

    checkpoint: str
    pipeline: str
    modules: Mapping[str, Part]
    scheduler: Part
    features: Callable[[Any, int], dict[str, tuple[int, ...]]]
    tokens: int
    pixels: int
    options: Mapping[str, Any] = field(default_factory=dict)
    call: Mapping[str, Any] = field(default_factory=dict)

    def build(self, size: str, device: str, dtype: torch.dtype) -> DiffusionPipeline:
        """The stock pipeline, its weights random, without text encoders."""
        pipeline_class = getattr(diffusers, self.pipeline)
        with torch.device(device), _default_dtype(dtype):
            built = {name: part.build(size).eval() for name, part in self.modules.items()}
        parameters = inspect.signature(pipeline_class).parameters.values()
        absent = {parameter.name: None for parameter in parameters if parameter.default is inspect.Parameter.empty}
        return pipeline_class(**{**absent, **built, "scheduler": self.scheduler.build(size), **self.options})

    def arguments(self, pipeline: DiffusionPipeline, size: str, pixels: int | None) -> dict[str, Any]:
        """Keywords of a call for one image of one prompt."""
        network = pipeline.components.get("transformer") or pipeline.components["unet"]
        shapes = self.features(network.config, self.tokens if size == "full" else TINY_TOKENS)
        generator = torch.Generator().manual_seed(0)
        pixels = pixels or (self.pixels if size == "full" else TINY_PIXELS)

        def features(name: str, shape: tuple[int, ...]) -> Tensor:
            rows = torch.ones(1, *shape) if "mask" in name else torch.randn(1, *shape, generator=generator)
            return rows.to(network.device, network.dtype)

        return {
            "height": pixels,
            "width": pixels,
            **self.call,
            **{name: features(name, shape) for name, shape in shapes.items()},
        }


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(previous)


def _with_negatives(**shapes: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return shapes | {f"negative_{name}": shape for name, shape in shapes.items()}


def _autoencoder(**config: Any) -> Part:
    """The convolutional autoencoder of Stable Diffusion and of its successors."""
    shape = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
    }
    return Part("AutoencoderKL", shape | config, {"block_out_channels": (32,) * 4, "layers_per_block": 1})


_WITHOUT_QUANTISER = {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
_LATENT_DIFFUSION_SCHEDULE = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
}

PUBLISHED_MODELS = {
    "sana_sprint": PublishedModel(
        checkpoint="Sana_Sprint_0.6B_1024px",
        pipeline="SanaSprintPipeline",
        modules={
            "transformer": Part(
                "SanaTransformer2DModel",
                {
                    "num_attention_heads": 36,
                    "attention_head_dim": 32,
                    "num_layers": 28,
                    "num_cross_attention_heads": 16,
                    "cross_attention_head_dim": 72,
                    "cross_attention_dim": 1152,
                    "guidance_embeds": True,
                    "qk_norm": "rms_norm_across_heads",
                },
                {
                    "num_attention_heads": 2,
                    "num_layers": 2,
                    "num_cross_attention_heads": 2,
                    "cross_attention_head_dim": 32,
                    "cross_attention_dim": 64,
                    "caption_channels": 64,
                },
            ),
            "vae": Part(
                "AutoencoderDC",
                {
                    "latent_channels": 32,
                    "encoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
                    "decoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
                    "encoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
                    "decoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
                    "encoder_layers_per_block": (2, 2, 2, 3, 3, 3),
                    "decoder_layers_per_block": (3,) * 6,
                    "encoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
                    "decoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
                    "downsample_block_type": "conv",
                    "upsample_block_type": "interpolate",
                    "scaling_factor": 0.41407,
                },
                {
                    "encoder_block_out_channels": (32,) * 6,
                    "decoder_block_out_channels": (32,) * 6,
                    "encoder_layers_per_block": (1,) * 6,
                    "decoder_layers_per_block": (1,) * 6,
                },
            ),
        },
        scheduler=Part("SCMScheduler"),
        features=lambda config, tokens: {
            "prompt_embeds": (tokens, config.caption_channels),
            "prompt_attention_mask": (tokens,),
        },
        tokens=300,
        pixels=1024,
        # The stock intermediate time is for two steps.
        call={"use_resolution_binning": False, "intermediate_timesteps": None},
    ),
    "flux": PublishedModel(
        checkpoint="FLUX.1-dev",
        pipeline="FluxPipeline",
        modules={
            "transformer": Part(
                "FluxTransformer2DModel",
                {"guidance_embeds": True},
                {
                    "num_layers": 1,
                    "num_single_layers": 2,
                    "num_attention_heads": 2,
                    "attention_head_dim": 32,
                    "axes_dims_rope": (8, 12, 12),
                    "joint_attention_dim": 64,
                    "pooled_projection_dim": 32,
                },
            ),
            "vae": _autoencoder(**_WITHOUT_QUANTISER, scaling_factor=0.3611, shift_factor=0.1159),
        },
        scheduler=Part("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True, "shift": 3.0}),
        features=lambda config, tokens: {
            "prompt_embeds": (tokens, config.joint_attention_dim),
            "pooled_prompt_embeds": (config.pooled_projection_dim,),
        },
        tokens=512,
        pixels=1024,
    ),
    "stable_diffusion_3": PublishedModel(
        checkpoint="stable-diffusion-3-medium",
        pipeline="StableDiffusion3Pipeline",
        modules={
            "transformer": Part(
                "SD3Transformer2DModel",
                {
                    "num_layers": 24,
                    "num_attention_heads": 24,
                    "caption_projection_dim": 1536,
                    "pos_embed_max_size": 192,
                },
                {
                    "num_layers": 2,
                    "num_attention_heads": 2,
                    "attention_head_dim": 32,
                    "caption_projection_dim": 64,
                    "joint_attention_dim": 64,
                    "pooled_projection_dim": 32,
                },
            ),
            "vae": _autoencoder(**_WITHOUT_QUANTISER, scaling_factor=1.5305, shift_factor=0.0609),
        },
        scheduler=Part("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        features=lambda config, tokens: _with_negatives(
            prompt_embeds=(tokens, config.joint_attention_dim),
            pooled_prompt_embeds=(config.pooled_projection_dim,),
        ),
        tokens=333,
        pixels=1024,
    ),
    "sdxl": PublishedModel(
        checkpoint="stable-diffusion-xl-base-1.0",
        pipeline="StableDiffusionXLPipeline",
        modules={
            "unet": Part(
                "UNet2DConditionModel",
                {
                    "sample_size": 128,
                    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                    "block_out_channels": (320, 640, 1280),
                    "transformer_layers_per_block": (1, 2, 10),
                    "attention_head_dim": (5, 10, 20),
                    "cross_attention_dim": 2048,
                    "use_linear_projection": True,
                    "addition_embed_type": "text_time",
                    "addition_time_embed_dim": 256,
                    "projection_class_embeddings_input_dim": 2816,
                },
                {
                    "block_out_channels": (32, 32, 64),
                    "layers_per_block": 1,
                    "transformer_layers_per_block": (1, 1, 2),
                    "attention_head_dim": (2, 2, 4),
                    "cross_attention_dim": 64,
                    "projection_class_embeddings_input_dim": 6 * 256 + 32,
                },
            ),
            "vae": _autoencoder(latent_channels=4, scaling_factor=0.13025, sample_size=1024),
        },
        scheduler=Part("EulerDiscreteScheduler", {**_LATENT_DIFFUSION_SCHEDULE, "timestep_spacing": "leading"}),
        features=lambda config, tokens: _with_negatives(
            prompt_embeds=(tokens, config.cross_attention_dim),
            pooled_prompt_embeds=(config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim,),
        ),
        tokens=77,
        pixels=1024,
        options={"add_watermarker": False},
    ),
    "stable_diffusion": PublishedModel(
        checkpoint="stable-diffusion-v1-5",
        pipeline="StableDiffusionPipeline",
        modules={
            "unet": Part(
                "UNet2DConditionModel",
                {"sample_size": 64, "cross_attention_dim": 768},
                {"block_out_channels": (32, 32, 64, 64), "layers_per_block": 1, "cross_attention_dim": 64},
            ),
            "vae": _autoencoder(latent_channels=4, scaling_factor=0.18215),
        },
        scheduler=Part(
            "DDIMScheduler", {**_LATENT_DIFFUSION_SCHEDULE, "clip_sample": False, "set_alpha_to_one": False}
        ),
        features=lambda config, tokens: _with_negatives(prompt_embeds=(tokens, config.cross_attention_dim)),
        tokens=77,
        pixels=512,
        options={"requires_safety_checker": False},
    ),
}
"""By the name of their family."""
