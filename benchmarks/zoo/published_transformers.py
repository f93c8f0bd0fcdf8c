"""Published diffusion transformers besides those of `published`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .published_parts import WITHOUT_QUANTISER, Part, PublishedModel, autoencoder, with_negatives

_DEEP_COMPRESSION = Part(
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
)
_SMALL_SANA = {
    "num_attention_heads": 2,
    "num_layers": 2,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 32,
    "cross_attention_dim": 64,
    "caption_channels": 64,
}
_FLUX_AUTOENCODER = autoencoder(**WITHOUT_QUANTISER, scaling_factor=0.3611, shift_factor=0.1159)


def _guided_captions(channels: str) -> Callable[[Any, int], dict[str, tuple[int, ...]]]:
    """Shapes of a prompt's embeddings, of the network's channels of that name, and its mask; and the negative one's."""
    return lambda config, tokens: with_negatives(
        prompt_embeds=(tokens, getattr(config, channels)), prompt_attention_mask=(tokens,)
    )


def _stable_diffusion_3(
    checkpoint: str, config: Mapping[str, Any], tiny: Mapping[str, Any] | None = None
) -> PublishedModel:
    """A Stable Diffusion 3 of 24 layers, with what its network has of its own."""
    medium = {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536}
    small = {
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 32,
        "caption_projection_dim": 64,
        "joint_attention_dim": 64,
        "pooled_projection_dim": 32,
    }
    return PublishedModel(
        checkpoint=checkpoint,
        pipeline="StableDiffusion3Pipeline",
        modules={
            "transformer": Part("SD3Transformer2DModel", {**medium, **config}, {**small, **(tiny or {})}),
            "vae": autoencoder(**WITHOUT_QUANTISER, scaling_factor=1.5305, shift_factor=0.0609),
        },
        scheduler=Part("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        features=lambda config, tokens: with_negatives(
            prompt_embeds=(tokens, config.joint_attention_dim),
            pooled_prompt_embeds=(config.pooled_projection_dim,),
        ),
        tokens=333,
        pixels=1024,
        text_encoders=("clip_l", "clip_bigg", "t5_xxl"),
    )


PUBLISHED_TRANSFORMERS = {
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
                _SMALL_SANA,
            ),
            "vae": _DEEP_COMPRESSION,
        },
        scheduler=Part("SCMScheduler"),
        features=lambda config, tokens: {
            "prompt_embeds": (tokens, config.caption_channels),
            "prompt_attention_mask": (tokens,),
        },
        tokens=300,
        pixels=1024,
        text_encoders=("gemma_2_2b",),
        # The stock intermediate time is for two steps.
        call={"use_resolution_binning": False, "intermediate_timesteps": None},
    ),
    "sana": PublishedModel(
        checkpoint="Sana_1600M_1024px_BF16_diffusers",
        pipeline="SanaPipeline",
        modules={
            "transformer": Part("SanaTransformer2DModel", {}, _SMALL_SANA),
            "vae": _DEEP_COMPRESSION,
        },
        scheduler=Part("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        features=_guided_captions("caption_channels"),
        tokens=300,
        pixels=1024,
        text_encoders=("gemma_2_2b",),
        call={"use_resolution_binning": False},
    ),
    "pixart_sigma": PublishedModel(
        checkpoint="PixArt-Sigma-XL-2-1024-MS",
        pipeline="PixArtSigmaPipeline",
        modules={
            "transformer": Part(
                "PixArtTransformer2DModel",
                {"caption_channels": 4096, "interpolation_scale": 2, "use_additional_conditions": False},
                {
                    "num_attention_heads": 2,
                    "attention_head_dim": 32,
                    "num_layers": 2,
                    "cross_attention_dim": 64,
                    "caption_channels": 64,
                },
            ),
            "vae": autoencoder(latent_channels=4, scaling_factor=0.13025, sample_size=1024),
        },
        scheduler=Part("DDIMScheduler", {"beta_start": 0.0001, "beta_end": 0.02, "clip_sample": False}),
        features=_guided_captions("caption_channels"),
        tokens=300,
        pixels=1024,
        text_encoders=("t5_xxl",),
        call={"use_resolution_binning": False, "negative_prompt": None},
    ),
    "stable_diffusion_3": _stable_diffusion_3("stable-diffusion-3-medium", {"pos_embed_max_size": 192}),
    "stable_diffusion_3.5": _stable_diffusion_3(
        "stable-diffusion-3.5-medium",
        {"pos_embed_max_size": 384, "dual_attention_layers": tuple(range(13)), "qk_norm": "rms_norm"},
        {"dual_attention_layers": (0,)},
    ),
    "z_image": PublishedModel(
        checkpoint="Z-Image-Turbo",
        pipeline="ZImagePipeline",
        modules={
            "transformer": Part(
                "ZImageTransformer2DModel",
                {},
                {
                    "dim": 64,
                    "n_layers": 2,
                    "n_refiner_layers": 1,
                    "n_heads": 2,
                    "n_kv_heads": 2,
                    "cap_feat_dim": 64,
                    "axes_dims": [8, 12, 12],
                },
            ),
            "vae": _FLUX_AUTOENCODER,
        },
        scheduler=Part("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        features=lambda config, tokens: {"prompt_embeds": (tokens, config.cap_feat_dim)},
        # Prompts are not padded.
        tokens=128,
        pixels=1024,
        text_encoders=("qwen_3_4b",),
        call={"guidance_scale": 0.0},
    ),
    "qwen_image": PublishedModel(
        checkpoint="Qwen-Image",
        pipeline="QwenImagePipeline",
        modules={
            "transformer": Part(
                "QwenImageTransformer2DModel",
                {},
                {
                    "num_layers": 2,
                    "attention_head_dim": 32,
                    "num_attention_heads": 2,
                    "joint_attention_dim": 64,
                    "axes_dims_rope": (8, 12, 12),
                },
            ),
            "vae": Part("AutoencoderKLQwenImage", {}, {"base_dim": 32, "dim_mult": [1] * 4, "num_res_blocks": 1}),
        },
        scheduler=Part(
            "FlowMatchEulerDiscreteScheduler",
            {"use_dynamic_shifting": True, "max_shift": 0.9, "max_image_seq_len": 8192, "shift_terminal": 0.02},
        ),
        features=lambda config, tokens: {
            "prompt_embeds": (tokens, config.joint_attention_dim),
            "prompt_embeds_mask": (tokens,),
        },
        # Prompts are not padded.
        tokens=128,
        pixels=1024,
        text_encoders=("qwen_2_5_vl_7b",),
    ),
    "lumina2": PublishedModel(
        checkpoint="Lumina-Image-2.0",
        pipeline="Lumina2Pipeline",
        modules={
            "transformer": Part(
                "Lumina2Transformer2DModel",
                {"cap_feat_dim": 2304},
                {
                    "hidden_size": 64,
                    "num_layers": 2,
                    "num_refiner_layers": 1,
                    "num_attention_heads": 2,
                    "num_kv_heads": 1,
                    "multiple_of": 16,
                    "cap_feat_dim": 64,
                    "axes_dim_rope": (8, 12, 12),
                },
            ),
            "vae": _FLUX_AUTOENCODER,
        },
        scheduler=Part("FlowMatchEulerDiscreteScheduler", {"shift": 6.0}),
        features=_guided_captions("cap_feat_dim"),
        tokens=256,
        pixels=1024,
        text_encoders=("gemma_2_2b",),
    ),
}
"""By short names."""
