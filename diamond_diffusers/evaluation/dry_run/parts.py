"""The components of tiny pipelines: real classes with configurations of a few channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import diffusers
import transformers
from torch import nn

from ...miniature.tokenizer import clip_tokenizer, t5_tokenizer

WIDTH = 8
"""Channels of text encoders and networks."""
TOKENS = 16
"""The most tokens of a prompt."""


@dataclass(frozen=True)
class Part:
    """A component.

    Attributes:
        class_name: in diffusers or transformers.
        config: keywords of its constructor, or of the configuration that transformers makes it of.
        tokenizer: makes the tokenizer whose vocabulary it has; None for what reads no tokens.
    """

    class_name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Callable[[], Any] | None = None

    def with_config(self, changes: Mapping[str, Any]) -> Part:
        """The same class with other keywords."""
        return replace(self, config={**self.config, **changes})

    def build(self) -> Any:
        """The component with random weights."""
        config = {**self.config, **({} if self.tokenizer is None else _vocabulary(self.tokenizer()))}
        if hasattr(diffusers, self.class_name):
            made = getattr(diffusers, self.class_name)(**config)
        else:
            kind = getattr(transformers, self.class_name)
            made = kind(kind.config_class(**config))
        return made.eval() if isinstance(made, nn.Module) else made


Component = Part | Callable[[], Any] | None
"""A part; a function that makes what has no weights, such as a tokenizer; or None for a component that is absent."""


def build_components(components: Mapping[str, Component]) -> dict[str, Any]:
    """The components of a pipeline by their names in it."""
    return {name: _built(component) for name, component in components.items()}


def _built(component: Component) -> Any:
    if component is None:
        return None
    return component.build() if isinstance(component, Part) else component()


def _vocabulary(tokenizer: Any) -> dict[str, Any]:
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    return {"vocab_size": len(tokenizer)} | {f"{name}_token_id": id for name, id in ids.items() if id is not None}


def clip(class_name: str = "CLIPTextModel") -> Part:
    """A text encoder of CLIP's; of two layers, since SDXL reads the last but one."""
    sizes = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "projection_dim": WIDTH, "num_attention_heads": 2}
    layers = {"num_hidden_layers": 2, "max_position_embeddings": TOKENS}
    return Part(class_name, {**sizes, **layers}, clip_tokenizer)


def t5(width: int = WIDTH) -> Part:
    """A text encoder of T5's."""
    sizes = {"d_model": width, "d_ff": width, "d_kv": WIDTH, "num_layers": 1, "num_heads": 1}
    return Part("T5EncoderModel", sizes, t5_tokenizer)


def gemma() -> Part:
    """A text encoder of Gemma's."""
    sizes = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 1, "head_dim": WIDTH}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1}
    return Part("Gemma2Model", {**sizes, **heads}, clip_tokenizer)


def autoencoder(**config: Any) -> Part:
    """The convolutional autoencoder of Stable Diffusion and of its successors, which divides sizes by 8."""
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    sizes = {"block_out_channels": (4,) * 4, "layers_per_block": 1, "norm_num_groups": 2, "latent_channels": 4}
    return Part("AutoencoderKL", {**blocks, **sizes, **config})


WITHOUT_QUANTISER = {"use_quant_conv": False, "use_post_quant_conv": False}
