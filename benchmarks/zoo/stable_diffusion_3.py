"""A tiny random Stable Diffusion 3, or 3.5."""

from __future__ import annotations

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
    T5Config,
    T5EncoderModel,
)

from diamond_diffusers.miniature.tokenizer import clip_tokenizer, t5_tokenizer

from .parts import build_tiny_vae, finished


def build_tiny_stable_diffusion_3(version: str = "3.5", dynamic_shifting: bool = False) -> StableDiffusion3Pipeline:
    """SD3 with 16-pixel images, 4x4 latents and 4 tokens; version 3.5 normalises keys and has dual attention."""
    torch.manual_seed(0)
    clip_tokens, t5_tokens = clip_tokenizer(), t5_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=4,
        patch_size=2,
        in_channels=4,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=64,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        out_channels=4,
        pos_embed_max_size=8,
        **({"qk_norm": "rms_norm", "dual_attention_layers": (0,)} if version == "3.5" else {}),
    )
    # The stock initialisation leaves the output near zero, which would hide mistakes.
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.5)
    clip_config = CLIPTextConfig(
        vocab_size=len(clip_tokens),
        hidden_size=32,
        intermediate_size=37,
        projection_dim=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=16,
        bos_token_id=clip_tokens.bos_token_id,
        eos_token_id=clip_tokens.eos_token_id,
        pad_token_id=clip_tokens.pad_token_id,
    )
    first, second = CLIPTextModelWithProjection(clip_config), CLIPTextModelWithProjection(clip_config)
    third = T5EncoderModel(T5Config(vocab_size=len(t5_tokens), d_model=64, d_ff=37, d_kv=8, num_layers=1, num_heads=4))
    vae = build_tiny_vae(0.0609, 1.5305)
    return finished(
        StableDiffusion3Pipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic_shifting),
            vae=vae,
            text_encoder=first,
            tokenizer=clip_tokens,
            text_encoder_2=second,
            tokenizer_2=clip_tokenizer(),
            text_encoder_3=third,
            tokenizer_3=t5_tokens,
            transformer=transformer,
        )
    )


def add_tiny_ip_adapter(pipeline: StableDiffusion3Pipeline) -> None:
    """Gives the pipeline a random IP-Adapter and its image encoder."""
    from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
    from diffusers.models.embeddings import IPAdapterTimeImageProjection

    torch.manual_seed(1)
    transformer = pipeline.transformer
    transformer.image_proj = IPAdapterTimeImageProjection(
        embed_dim=24, output_dim=32, hidden_dim=64, depth=1, heads=1, num_queries=3, timestep_in_dim=32
    ).eval()
    transformer.set_attn_processor(
        {
            name: SD3IPAdapterJointAttnProcessor2_0(
                hidden_size=32, ip_hidden_states_dim=32, head_dim=16, timesteps_emb_dim=64
            )
            for name in transformer.attn_processors
        }
    )
    config = SiglipVisionConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    pipeline.register_modules(
        image_encoder=SiglipVisionModel(config).eval(),
        feature_extractor=SiglipImageProcessor(size={"height": 16, "width": 16}),
    )
