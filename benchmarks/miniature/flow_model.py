"""The miniature's flow model: FLUX's transformer and text encoders at small sizes, and the pipeline around them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from diamond_diffusers.miniature.tokenizer import clip_tokenizer, t5_tokenizer

LATENT_CHANNELS = 8
LATENT_SIZE = 8
PACKED_CHANNELS = 4 * LATENT_CHANNELS
TEXT_WIDTH = 128
MAX_SEQUENCE_LENGTH = 12
HEADS = 5
HEAD_DIM = 32


def build_transformer() -> FluxTransformer2DModel:
    """An untrained transformer whose blocks start as the identity (adaLN-Zero, arXiv 2212.09748)."""
    transformer = FluxTransformer2DModel(
        in_channels=PACKED_CHANNELS,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=HEAD_DIM,
        num_attention_heads=HEADS,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        guidance_embeds=False,
        axes_dims_rope=(8, 12, 12),
    )
    for module in transformer.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    modulations = [block.norm1.linear for block in transformer.transformer_blocks]
    modulations += [block.norm1_context.linear for block in transformer.transformer_blocks]
    modulations += [block.norm.linear for block in transformer.single_transformer_blocks]
    for linear in [*modulations, transformer.norm_out.linear, transformer.proj_out]:
        nn.init.zeros_(linear.weight)
    return transformer


def build_clip_text_encoder() -> CLIPTextModel:
    """An untrained CLIP text model that pools at the end-of-text token."""
    tokenizer = clip_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=TEXT_WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def build_t5_encoder() -> T5EncoderModel:
    """An untrained T5 encoder; it alone carries word order, since FLUX gives all text tokens one position."""
    tokenizer = t5_tokenizer()
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=TEXT_WIDTH,
        d_kv=32,
        d_ff=2 * TEXT_WIDTH,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=16,
        relative_attention_max_distance=16,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
        is_encoder_decoder=False,
        use_cache=False,
    )
    return T5EncoderModel(config)


@cache
def _tokenizers() -> tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast]:
    return clip_tokenizer(), t5_tokenizer()


def tokenize(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Token ids of texts as `FluxPipeline.encode_prompt` computes them: `[B, 16]` for CLIP, `[B, 12]` for T5."""
    clip, t5 = _tokenizers()
    settings = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    clip_ids = clip(list(texts), max_length=clip.model_max_length, **settings).input_ids
    return clip_ids, t5(list(texts), max_length=MAX_SEQUENCE_LENGTH, **settings).input_ids


def pack(latents: Tensor) -> Tensor:
    """Latents `[B, 8, 8, 8]` as FLUX's tokens `[B, 16, 32]`."""
    return FluxPipeline._pack_latents(latents, *latents.shape)


class FlowModel(nn.Module):
    """The parts of the pipeline that are trained together: the transformer and both text encoders."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = build_transformer()
        self.text_encoder = build_clip_text_encoder()
        self.text_encoder_2 = build_t5_encoder()
        half = LATENT_SIZE // 2
        image_ids = FluxPipeline._prepare_latent_image_ids(1, half, half, "cpu", torch.float32)
        self.register_buffer("image_ids", image_ids, persistent=False)
        self.register_buffer("text_ids", torch.zeros(MAX_SEQUENCE_LENGTH, 3), persistent=False)

    def forward(self, noised: Tensor, sigmas: Tensor, clip_ids: Tensor, t5_ids: Tensor) -> Tensor:
        """The velocity (noise minus latents) at packed noised latents.

        Args:
            noised: `(1 - sigma) * latents + sigma * noise`, `[B, 16, 32]`.
            sigmas: noise levels in [0, 1], `[B]`.
            clip_ids, t5_ids: as `tokenize` returns them.

        Returns:
            `[B, 16, 32]`.
        """
        return self.transformer(
            hidden_states=noised,
            encoder_hidden_states=self.text_encoder_2(t5_ids)[0],
            pooled_projections=self.text_encoder(clip_ids).pooler_output,
            timestep=sigmas,
            img_ids=self.image_ids,
            txt_ids=self.text_ids,
            return_dict=False,
        )[0]


def build_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """FLUX's own scheduler settings."""
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )


def build_pipeline(flow: FlowModel, autoencoder: AutoencoderKL) -> FluxPipeline:
    """The trained parts as a stock pipeline, in evaluation mode."""
    return FluxPipeline(
        scheduler=build_scheduler(),
        vae=autoencoder.eval(),
        text_encoder=flow.text_encoder.eval(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=flow.text_encoder_2.eval(),
        tokenizer_2=t5_tokenizer(),
        transformer=flow.transformer.eval(),
    )
