"""The published architectures with random weights, in full size and shrunken: enough to measure what a step costs.

Text encoders are left out; prompt features are random tensors of the right shapes.
"""

from __future__ import annotations

from .published_parts import WITHOUT_QUANTISER, Part, PublishedModel, autoencoder, with_negatives
from .published_transformers import PUBLISHED_TRANSFORMERS

_LATENT_DIFFUSION_SCHEDULE = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
}

PUBLISHED_MODELS = {
    **PUBLISHED_TRANSFORMERS,
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
            "vae": autoencoder(**WITHOUT_QUANTISER, scaling_factor=0.3611, shift_factor=0.1159),
        },
        scheduler=Part("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True, "shift": 3.0}),
        features=lambda config, tokens: {
            "prompt_embeds": (tokens, config.joint_attention_dim),
            "pooled_prompt_embeds": (config.pooled_projection_dim,),
        },
        tokens=512,
        pixels=1024,
        text_encoders=("clip_l", "t5_xxl"),
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
            "vae": autoencoder(latent_channels=4, scaling_factor=0.13025, sample_size=1024),
        },
        scheduler=Part("EulerDiscreteScheduler", {**_LATENT_DIFFUSION_SCHEDULE, "timestep_spacing": "leading"}),
        features=lambda config, tokens: with_negatives(
            prompt_embeds=(tokens, config.cross_attention_dim),
            pooled_prompt_embeds=(config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim,),
        ),
        tokens=77,
        pixels=1024,
        text_encoders=("clip_l", "clip_bigg"),
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
            "vae": autoencoder(latent_channels=4, scaling_factor=0.18215),
        },
        scheduler=Part(
            "DDIMScheduler", {**_LATENT_DIFFUSION_SCHEDULE, "clip_sample": False, "set_alpha_to_one": False}
        ),
        features=lambda config, tokens: with_negatives(prompt_embeds=(tokens, config.cross_attention_dim)),
        tokens=77,
        pixels=512,
        text_encoders=("clip_l",),
        options={"requires_safety_checker": False},
    ),
}
"""By the name of their family, with the version where a family has several."""
