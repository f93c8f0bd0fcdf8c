"""PixArt-Sigma with 16-pixel images and 4x4 latents."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, DDIMScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel
from torch import nn
from transformers import T5Config, T5EncoderModel

from diamond_diffusers.miniature.tokenizer import t5_tokenizer

from .parts import finished

LATENTS_SHAPE = (4, 4, 4)
BETAS = {"beta_start": 0.0001, "beta_end": 0.006}
"""Milder than PixArt's: a random network's noise, divided by the real alpha of 0.006, would give latents of 1000."""


def build_tiny_pixart_sigma() -> PixArtSigmaPipeline:
    """A `PixArtSigmaPipeline` that predicts variances too, with a `DDIMScheduler`."""
    torch.manual_seed(0)
    tokenizer = t5_tokenizer()
    text_encoder = T5EncoderModel(
        T5Config(vocab_size=len(tokenizer), d_model=32, d_ff=37, d_kv=8, num_layers=1, num_heads=4)
    )
    transformer = PixArtTransformer2DModel(
        sample_size=32,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=32,
        in_channels=4,
        out_channels=8,
        use_additional_conditions=False,
    )
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=(4, 8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.13025,
    )
    # The stock initialisation leaves the output near zero, which would hide mistakes.
    nn.init.normal_(transformer.proj_out.weight, std=0.5)
    scheduler = DDIMScheduler(**BETAS, clip_sample=False, timestep_spacing="trailing")
    return finished(PixArtSigmaPipeline(tokenizer, text_encoder, vae, transformer, scheduler))
