"""A tiny random Z-Image."""

from __future__ import annotations

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from transformers import Qwen3Config, Qwen3Model

from diamond_diffusers.miniature.tokenizer import t5_tokenizer

from .parts import build_tiny_vae, finished

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role }} {{ message.content }} {% endfor %}"
    "{% if add_generation_prompt %}assistant{% endif %}"
)


def build_tiny_z_image() -> ZImagePipeline:
    """Z-Image with 16-pixel images, 4x4 latents and 4 tokens, which the network pads to 32."""
    torch.manual_seed(0)
    tokenizer = t5_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(token)
    # The stock initialisation leaves the output small, which would hide mistakes.
    torch.nn.init.normal_(transformer.all_final_layer["2-1"].linear.weight, std=0.3)
    text_encoder = Qwen3Model(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=64,
        )
    )
    # At its initial scale the embedding makes all prompts alike.
    torch.nn.init.normal_(text_encoder.embed_tokens.weight)
    vae = build_tiny_vae(0.1159, 0.3611)
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return finished(ZImagePipeline(scheduler, vae, text_encoder, tokenizer, transformer))
