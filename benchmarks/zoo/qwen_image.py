"""A tiny random Qwen-Image."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from diamond_diffusers.miniature.grammar import vocabulary

from .parts import finished

PAD, UNKNOWN = "<|endoftext|>", "<|unknown|>"


def qwen_tokenizer() -> PreTrainedTokenizerFast:
    """The words of the grammar; markers, line ends and punctuation are tokens.

    So Qwen-Image's template starts with 34 tokens, as with its own tokenizer; the pipeline drops that many.
    """
    ids = {word: index for index, word in enumerate([PAD, UNKNOWN, *vocabulary()])}
    words = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    words.normalizer = normalizers.Lowercase()
    pattern = Regex(r"<\|\w+\|>|\n|\w+|[^\w\s]")
    words.pre_tokenizer = pre_tokenizers.Split(pattern, behavior="removed", invert=True)
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token=PAD, unk_token=UNKNOWN, padding_side="right")


def build_tiny_qwen_image() -> QwenImagePipeline:
    """Qwen-Image with 16-pixel images, 4x4 latents and 4 tokens."""
    torch.manual_seed(0)
    tokenizer = qwen_tokenizer()
    transformer = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
    )
    # The stock initialisation leaves the output small, which would hide mistakes.
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.5)
    text_encoder = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config={
                "vocab_size": len(tokenizer),
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "rope_parameters": {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1e6},
            },
            vision_config={
                "depth": 1,
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_heads": 2,
                "out_hidden_size": 16,
            },
        )
    )
    # At its initial scale the embedding makes all prompts alike.
    torch.nn.init.normal_(text_encoder.get_input_embeddings().weight)
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.3, -0.2, 0.1, 0.0],
        latents_std=[1.5, 0.8, 1.2, 2.0],
    )
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, max_shift=0.9, shift_terminal=0.02)
    return finished(QwenImagePipeline(scheduler, vae, text_encoder, tokenizer, transformer))
