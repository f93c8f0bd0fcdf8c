"""Tiny random pipelines by the stock class that they are of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...core.registry import Registry
from ...miniature.tokenizer import clip_tokenizer, t5_tokenizer
from .parts import TOKENS, WIDTH, WITHOUT_QUANTISER, Component, Part, autoencoder, clip, gemma, t5


@dataclass(frozen=True)
class TinyPipeline:
    """How a tiny pipeline of a stock class is made; one of a family of your own is registered with `TINY_PIPELINES`.

    Attributes:
        components: all but the scheduler, by their names in the pipeline.
        network: name of the component that predicts.
        call: keywords of its calls, above all the size of its images; the size of the real ones does not count.
        options: of the pipeline's constructor besides components.
        pixels: height and width of the real model's images, where a call gives none.
        kept: keywords of the real network's configuration that decide what it is asked, and change no sizes.
    """

    components: Mapping[str, Component]
    network: str = "transformer"
    call: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    pixels: int = 1024
    kept: tuple[str, ...] = ()


TINY_PIPELINES: Registry[TinyPipeline] = Registry("tiny pipeline", "tiny_pipelines")
"""By the name of the stock class, such as `FluxPipeline`."""

_SMALL = {"height": 32, "width": 32}
_SHORT = {"max_sequence_length": TOKENS}


def _unet(**config: Any) -> Part:
    blocks = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    sizes = {"block_out_channels": (4, 8), "layers_per_block": 1, "attention_head_dim": 2, "norm_num_groups": 2}
    return Part("UNet2DConditionModel", {**blocks, **sizes, **config})


_STABLE_DIFFUSION = TinyPipeline(
    {
        "vae": autoencoder(scaling_factor=0.18215),
        "text_encoder": clip(),
        "tokenizer": clip_tokenizer,
        "unet": _unet(sample_size=64, cross_attention_dim=WIDTH),
        "safety_checker": None,
        "feature_extractor": None,
    },
    network="unet",
    call=_SMALL,
    options={"requires_safety_checker": False},
    pixels=512,
    kept=("sample_size", "time_cond_proj_dim"),
)
_SANA_TRANSFORMER = Part(
    "SanaTransformer2DModel",
    {
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 1,
        "num_attention_heads": 1,
        "attention_head_dim": WIDTH,
        "num_cross_attention_heads": 1,
        "cross_attention_head_dim": WIDTH,
        "cross_attention_dim": WIDTH,
        "caption_channels": WIDTH,
        "sample_size": 32,
    },
)
_DEEP_AUTOENCODER = Part(
    "AutoencoderDC",
    {
        "latent_channels": 4,
        "attention_head_dim": 4,
        "encoder_block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"),
        "decoder_block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"),
        "encoder_block_out_channels": (4, 4, 4),
        "decoder_block_out_channels": (4, 4, 4),
        "encoder_layers_per_block": (1, 1, 1),
        "decoder_layers_per_block": (1, 1, 1),
        "encoder_qkv_multiscales": ((), (), (5,)),
        "decoder_qkv_multiscales": ((), (), (5,)),
        "upsample_block_type": "interpolate",
        "downsample_block_type": "conv",
        "scaling_factor": 0.41407,
    },
)


def _sana(**config: Any) -> TinyPipeline:
    components: dict[str, Component] = {
        "tokenizer": clip_tokenizer,
        "text_encoder": gemma(),
        "vae": _DEEP_AUTOENCODER,
        "transformer": _SANA_TRANSFORMER.with_config(config),
    }
    return TinyPipeline(components, call={**_SMALL, **_SHORT, "use_resolution_binning": False})


for name, tiny in {
    "FluxPipeline": TinyPipeline(
        {
            "vae": autoencoder(**WITHOUT_QUANTISER, scaling_factor=0.3611, shift_factor=0.1159),
            "text_encoder": clip(),
            "tokenizer": clip_tokenizer,
            "text_encoder_2": t5(),
            "tokenizer_2": t5_tokenizer,
            "transformer": Part(
                "FluxTransformer2DModel",
                {
                    "in_channels": 16,
                    "num_layers": 1,
                    "num_single_layers": 1,
                    "attention_head_dim": WIDTH,
                    "num_attention_heads": 1,
                    "joint_attention_dim": WIDTH,
                    "pooled_projection_dim": WIDTH,
                    "axes_dims_rope": (2, 2, 4),
                },
            ),
        },
        call={**_SMALL, **_SHORT},
        kept=("guidance_embeds",),
    ),
    "StableDiffusionPipeline": _STABLE_DIFFUSION,
    "LatentConsistencyModelPipeline": _STABLE_DIFFUSION,
    "StableDiffusionXLPipeline": TinyPipeline(
        {
            "vae": autoencoder(scaling_factor=0.13025),
            "text_encoder": clip(),
            "text_encoder_2": clip("CLIPTextModelWithProjection"),
            "tokenizer": clip_tokenizer,
            "tokenizer_2": clip_tokenizer,
            "unet": _unet(
                sample_size=128,
                cross_attention_dim=2 * WIDTH,
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=4,
                projection_class_embeddings_input_dim=6 * 4 + WIDTH,
            ),
        },
        network="unet",
        call=_SMALL,
        options={"add_watermarker": False},
        kept=("sample_size", "time_cond_proj_dim"),
    ),
    "StableDiffusion3Pipeline": TinyPipeline(
        {
            "vae": autoencoder(**WITHOUT_QUANTISER, scaling_factor=1.5305, shift_factor=0.0609),
            "text_encoder": clip("CLIPTextModelWithProjection"),
            "tokenizer": clip_tokenizer,
            "text_encoder_2": clip("CLIPTextModelWithProjection"),
            "tokenizer_2": clip_tokenizer,
            "text_encoder_3": t5(2 * WIDTH),
            "tokenizer_3": t5_tokenizer,
            "transformer": Part(
                "SD3Transformer2DModel",
                {
                    "sample_size": 4,
                    "in_channels": 4,
                    "out_channels": 4,
                    "num_layers": 2,
                    "attention_head_dim": WIDTH,
                    "num_attention_heads": 1,
                    "joint_attention_dim": 2 * WIDTH,
                    "caption_projection_dim": WIDTH,
                    "pooled_projection_dim": 2 * WIDTH,
                    "pos_embed_max_size": 8,
                },
            ),
        },
        call={**_SMALL, **_SHORT},
    ),
    "SanaPipeline": _sana(),
    "SanaSprintPipeline": _sana(guidance_embeds=True, qk_norm="rms_norm_across_heads"),
}.items():
    TINY_PIPELINES.register(name)(tiny)
