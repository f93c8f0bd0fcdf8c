"""A tiny random Lumina 2."""

from __future__ import annotations

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Lumina2Pipeline, Lumina2Transformer2DModel
from transformers import Gemma2Config, Gemma2Model

from diamond_diffusers.miniature.tokenizer import t5_tokenizer

from .parts import build_tiny_vae, finished


def build_tiny_lumina2() -> Lumina2Pipeline:
    """Lumina 2 with 32-pixel images, 4x4 latents and 4 tokens; the pipeline fixes the scale of its decoder at 8."""
    torch.manual_seed(0)
    tokenizer = t5_tokenizer()
    transformer = Lumina2Transformer2DModel(
        sample_size=4,
        patch_size=2,
        in_channels=4,
        hidden_size=32,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(8, 4, 4),
        axes_lens=(64, 32, 32),
        cap_feat_dim=16,
    )
    # The stock initialisation leaves the output small, which would hide mistakes.
    torch.nn.init.normal_(transformer.norm_out.linear_2.weight, std=0.3)
    text_encoder = Gemma2Model(
        Gemma2Config(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    # At its initial scale the embedding makes all prompts alike.
    torch.nn.init.normal_(text_encoder.embed_tokens.weight)
    vae = build_tiny_vae(0.1159, 0.3611, (4, 4, 8, 8))
    scheduler = FlowMatchEulerDiscreteScheduler(shift=6.0)
    return finished(Lumina2Pipeline(transformer, scheduler, vae, text_encoder, tokenizer))
