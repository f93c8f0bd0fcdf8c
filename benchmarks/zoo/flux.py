"""A tiny random FLUX."""

from __future__ import annotations

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from diamond_diffusers.miniature.tokenizer import clip_tokenizer, t5_tokenizer

from .parts import build_tiny_vae, finished


def build_tiny_flux(guidance_embeds: bool = False) -> FluxPipeline:
    """FLUX with 16-pixel images, 4x4 latents and 4 tokens."""
    torch.manual_seed(0)
    first, second = clip_tokenizer(), t5_tokenizer()
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 4, 8),
    )
    # The stock initialisation leaves the output near zero, which would hide mistakes.
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.5)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(first),
            hidden_size=32,
            intermediate_size=37,
            num_hidden_layers=1,
            num_attention_heads=4,
            max_position_embeddings=16,
            bos_token_id=first.bos_token_id,
            eos_token_id=first.eos_token_id,
            pad_token_id=first.pad_token_id,
        )
    )
    text_encoder_2 = T5EncoderModel(
        T5Config(vocab_size=len(second), d_model=32, d_ff=37, d_kv=8, num_layers=1, num_heads=4)
    )
    vae = build_tiny_vae(0.06, 1.5)
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15)
    return finished(FluxPipeline(scheduler, vae, text_encoder, first, text_encoder_2, second, transformer))
