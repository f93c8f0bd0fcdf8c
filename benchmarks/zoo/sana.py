"""SANA and SANA-Sprint with 32-pixel images and 8x8 latents."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderDC,
    FlowMatchEulerDiscreteScheduler,
    SanaPipeline,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
)
from torch import nn
from transformers import Gemma2Config, Gemma2Model

from diamond_diffusers.miniature.tokenizer import clip_tokenizer

from .parts import finished

LATENTS_SHAPE = (4, 8, 8)


def build_tiny_sana() -> SanaPipeline:
    """A `SanaPipeline` with a shifted `FlowMatchEulerDiscreteScheduler`."""
    return _build(SanaPipeline, FlowMatchEulerDiscreteScheduler(shift=3.0), guidance_embeds=False)


def build_tiny_sana_sprint() -> SanaSprintPipeline:
    """A `SanaSprintPipeline` of the same latents."""
    return _build(SanaSprintPipeline, SCMScheduler(), guidance_embeds=True)


def _build(pipeline_class: type, scheduler: nn.Module, guidance_embeds: bool) -> SanaPipeline | SanaSprintPipeline:
    torch.manual_seed(0)
    tokenizer = clip_tokenizer()
    text_encoder = Gemma2Model(
        Gemma2Config(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    # The stock initialisation hardly tells prompts apart.
    nn.init.normal_(text_encoder.embed_tokens.weight, std=1.0)
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=32,
        qk_norm="rms_norm_across_heads",
        guidance_embeds=guidance_embeds,
    )
    vae = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), (5,)),
        decoder_qkv_multiscales=((), (), (5,)),
        upsample_block_type="interpolate",
        downsample_block_type="conv",
        scaling_factor=0.41407,
    )
    pipeline = pipeline_class(tokenizer, text_encoder, vae, transformer, scheduler)
    # Stock diffusers cannot offload it piece by piece either: accelerate loses the scaled embedding's weight.
    pipeline._exclude_from_cpu_offload = ["text_encoder"]
    return finished(pipeline)
