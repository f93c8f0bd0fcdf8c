"""The published text encoders, and a reward, without weights: enough to count what they take."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)

_CLIP_LARGE_TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}


def _clip_bigg() -> nn.Module:
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, projection_dim=1280
        )
    )


def _t5_xxl() -> nn.Module:
    return T5EncoderModel(
        T5Config(
            vocab_size=32128,
            d_model=4096,
            d_ff=10240,
            d_kv=64,
            num_heads=64,
            num_layers=24,
            feed_forward_proj="gated-gelu",
        )
    )


def _qwen_3_4b() -> nn.Module:
    return Qwen3Model(
        Qwen3Config(
            vocab_size=151936,
            hidden_size=2560,
            intermediate_size=9728,
            num_hidden_layers=36,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=128,
        )
    )


def _qwen_2_5_vl_7b() -> nn.Module:
    text = {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    }
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584}
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)
    )


TEXT_ENCODERS: dict[str, Callable[[], nn.Module]] = {
    "clip_l": lambda: CLIPTextModel(CLIPTextConfig(**_CLIP_LARGE_TEXT)),
    "clip_bigg": _clip_bigg,
    "t5_xxl": _t5_xxl,
    # The configuration's defaults are those of 9 B parameters.
    "gemma_2_2b": lambda: Gemma2Model(
        Gemma2Config(hidden_size=2304, num_hidden_layers=26, num_attention_heads=8, num_key_value_heads=4)
    ),
    "qwen_3_4b": _qwen_3_4b,
    "qwen_2_5_vl_7b": _qwen_2_5_vl_7b,
}
"""By name."""


def clip_large() -> CLIPModel:
    """CLIP ViT-L/14."""
    vision = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 14,
    }
    return CLIPModel(CLIPConfig(text_config=_CLIP_LARGE_TEXT, vision_config=vision, projection_dim=768))


def num_weights(name: str) -> int:
    """Of the text encoder of a name, counted on the meta device."""
    with torch.device("meta"):
        return sum(weight.numel() for weight in TEXT_ENCODERS[name]().parameters())
