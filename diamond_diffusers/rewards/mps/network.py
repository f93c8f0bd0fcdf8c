"""MPS's network on transformers' CLIP, and the names under which its checkpoint was published."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu
from transformers import CLIPConfig, CLIPModel
from transformers.modeling_layers import GradientCheckpointingLayer

from ..weight_files import check_layout

# The CLIP that MPS starts from: laion/CLIP-ViT-H-14-laion2B-s32B-b79K.
CLIP_CONFIG = CLIPConfig(
    text_config={
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "hidden_act": "gelu",
    },
    vision_config={
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "patch_size": 14,
        "hidden_act": "gelu",
    },
    projection_dim=1024,
)
NUM_LAYERS, NUM_HEADS, HEAD_DIM = 4, 16, 64
WIDENING = 4

_PUBLISHED_NAMES = (("clip.", "model."), ("layers.", "cross_model.layers."))
_PUBLISHED_PARTS = ((".cross.", ".0.fn."), (".parallel.", ".1.fn."))


class SwiGLU(nn.Module):
    """The first half of the last axis, gated by the second."""

    def forward(self, states: Tensor) -> Tensor:
        """Maps `[..., 2 D]` to `[..., D]`."""
        values, gate = states.chunk(2, dim=-1)
        return silu(gate) * values


class RotaryEmbedding(nn.Module):
    """Rotates the pairs of a head's channels by angles that grow with the position.

    Args:
        dim: number of channels of a head.
    """

    inv_freq: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("inv_freq", 10000.0 ** -(torch.arange(0, dim, 2) / dim))

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> RotaryEmbedding:
        # In bfloat16 the angles of the last patches would be off by up to 0.5.
        exact = self.inv_freq
        super()._apply(function, recurse)
        self.inv_freq = exact.to(self.inv_freq.device)
        return self

    def forward(self, states: Tensor) -> Tensor:
        """States `[..., L, D]` rotated by the positions 0 to `L - 1`."""
        positions = torch.arange(states.shape[-2], device=states.device, dtype=torch.float32)
        angles = torch.outer(positions, self.inv_freq).repeat(1, 2)
        first, second = states.chunk(2, dim=-1)
        turned = torch.cat([-second, first], dim=-1)
        return states * angles.cos().to(states.dtype) + turned * angles.sin().to(states.dtype)


class CrossAttention(nn.Module):
    """The image's patches attend to the prompt's tokens; all heads share one key and value. Beside it, a SwiGLU.

    Args:
        dim: number of channels.
        num_heads: number of heads.
        head_dim: number of channels of a head.
    """

    def __init__(self, dim: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, num_heads * head_dim, bias=False)
        self.to_kv = nn.Linear(dim, 2 * head_dim, bias=False)
        self.to_out = nn.Linear(num_heads * head_dim, dim, bias=False)
        self.ff = nn.Sequential(
            nn.Linear(dim, 2 * WIDENING * dim, bias=False), SwiGLU(), nn.Linear(WIDENING * dim, dim, bias=False)
        )

    def forward(self, patches: Tensor, tokens: Tensor, is_read: Tensor) -> Tensor:
        """The change of patches `[B, P, D]` by tokens `[B, L, D]`, of which those are read where `[B, L]` is true."""
        patches = self.norm(patches)
        query = _split_heads(self.to_q(patches), self.num_heads)
        key, value = (part[:, None] for part in self.to_kv(tokens).chunk(2, dim=-1))
        attended = _attend(query, key, value, is_read[:, None, None])
        return self.to_out(attended) + self.ff(patches)


class ParallelBlock(nn.Module):
    """Self-attention of the patches with rotary positions, and beside it a SwiGLU.

    Args:
        dim: number of channels.
        num_heads: number of heads, which share one key and value.
        head_dim: number of channels of a head.
    """

    def __init__(self, dim: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.widths = num_heads * head_dim, head_dim, head_dim, 2 * WIDENING * dim
        self.norm = nn.LayerNorm(dim)
        self.rotary_emb = RotaryEmbedding(head_dim)
        self.fused_attn_ff_proj = nn.Linear(dim, sum(self.widths), bias=False)
        self.attn_out = nn.Linear(num_heads * head_dim, dim, bias=False)
        self.ff_out = nn.Sequential(SwiGLU(), nn.Linear(WIDENING * dim, dim, bias=False))

    def forward(self, patches: Tensor) -> Tensor:
        """The change of patches `[B, P, D]`."""
        query, key, value, wide = self.fused_attn_ff_proj(self.norm(patches)).split(self.widths, dim=-1)
        query = self.rotary_emb(_split_heads(query, self.num_heads))
        attended = _attend(query, self.rotary_emb(key)[:, None], value[:, None], None)
        return self.attn_out(attended) + self.ff_out(wide)


class MPSLayer(GradientCheckpointingLayer):
    """One of the layers that let the patches read the prompt.

    Args:
        dim: number of channels.
        num_heads: number of heads.
        head_dim: number of channels of a head.
    """

    def __init__(self, dim: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.cross = CrossAttention(dim, num_heads, head_dim)
        self.parallel = ParallelBlock(dim, num_heads, head_dim)

    def forward(self, patches: Tensor, tokens: Tensor, is_read: Tensor) -> Tensor:
        """Patches `[B, P, D]` after the layer; see `CrossAttention`."""
        patches = patches + self.cross(patches, tokens, is_read)
        return patches + self.parallel(patches)


class MPSNetwork(nn.Module):
    """A CLIP whose patches read those tokens of the prompt that the condition is about.

    Args:
        config: that of the CLIP.
        num_layers: number of layers that read the prompt.
        num_heads: number of their heads.
        head_dim: number of channels of a head.

    Source: Zhang et al. 2024, "Learning Multi-dimensional Human Preference", arXiv:2405.14705, section 4.
    """

    def __init__(
        self, config: CLIPConfig, num_layers: int = NUM_LAYERS, num_heads: int = NUM_HEADS, head_dim: int = HEAD_DIM
    ) -> None:
        super().__init__()
        self.clip = CLIPModel(config)
        self.layers = nn.ModuleList(MPSLayer(config.projection_dim, num_heads, head_dim) for _ in range(num_layers))

    def encode_texts(self, input_ids: Tensor) -> Tensor:
        """Features `[N, L + 1, D]` of texts `[N, L]`: one of each token, and that of the whole text."""
        outputs = self.clip.text_model(input_ids=input_ids)
        states = torch.cat([outputs.last_hidden_state, outputs.pooler_output[:, None]], dim=1)
        return self.clip.text_projection(states)

    def forward(self, pixels: Tensor, texts: Tensor, condition: Tensor, threshold: float) -> Tensor:
        """Scores `[B]`.

        Args:
            pixels: normalised, `[B, 3, H, W]`.
            texts: features of the prompts by `encode_texts`, `[B, L + 1, D]`.
            condition: features of the condition by `encode_texts`, `[1, L + 1, D]`.
            threshold: a token of the prompt is read if its similarity to the condition is more than this part of the
                largest one.
        """
        tokens = texts[:, :-1]
        # Half precision would move tokens across the threshold.
        similarity = (tokens.float() @ condition[:, :-1].float().mT).amax(-1)
        is_read = similarity / similarity.amax(-1, keepdim=True) > threshold
        patches = self.clip.visual_projection(self.clip.vision_model(pixel_values=pixels).last_hidden_state)
        for layer in self.layers:
            patches = layer(patches, tokens, is_read)
        features, prompts = (nn.functional.normalize(each.float(), dim=-1) for each in (patches[:, 0], texts[:, -1]))
        return self.clip.logit_scale.float().exp() * (features * prompts).sum(-1)


def published_shapes(network: MPSNetwork) -> dict[str, torch.Size]:
    """Name and shape of every tensor of the network's checkpoint, in the layout in which it was published."""
    shapes = {_published_name(name): weight.shape for name, weight in network.state_dict().items()}
    return shapes | {name: torch.Size([1, length]) for name, length in _position_ids(network).items()}


def build_network(weights: Mapping[str, Tensor], config: CLIPConfig, **sizes: int) -> MPSNetwork:
    """The network with published weights, in float32, for inference.

    Args:
        weights: in the published layout, with or without the prefix "mps." of a later release.
        config: that of the CLIP.
        sizes: further arguments of `MPSNetwork`.

    Raises:
        ValueError: a tensor is missing, unexpected or of another shape; the first such one is named.
    """
    weights = {name.removeprefix("mps."): weight for name, weight in weights.items()}
    with torch.device("meta"):
        network = MPSNetwork(config, **sizes)
    # Newer releases of transformers save no position ids.
    check_layout(weights, published_shapes(network), optional=_position_ids(network))
    named = {name: weights[_published_name(name)].float() for name in network.state_dict()}
    network.load_state_dict(named, assign=True)
    for model in (network.clip.text_model, network.clip.vision_model):
        # No checkpoint fills this buffer, so it is still without storage.
        embeddings = model.embeddings
        embeddings.position_ids = torch.arange(embeddings.position_ids.shape[1])[None]
    return network.eval().requires_grad_(False)


def _published_name(name: str) -> str:
    for ours, published in _PUBLISHED_NAMES:
        if name.startswith(ours):
            name = published + name.removeprefix(ours)
            break
    for ours, published in _PUBLISHED_PARTS:
        name = name.replace(ours, published)
    return name


def _position_ids(network: MPSNetwork) -> dict[str, int]:
    models = {"text_model": network.clip.text_model, "vision_model": network.clip.vision_model}
    return {
        f"model.{name}.embeddings.position_ids": model.embeddings.position_ids.shape[1]
        for name, model in models.items()
    }


def _split_heads(states: Tensor, num_heads: int) -> Tensor:
    return states.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def _attend(query: Tensor, key: Tensor, value: Tensor, is_read: Tensor | None) -> Tensor:
    """Attention of heads `[B, H, P, D]` to the one key and value `[B, 1, L, D]`, as `[B, P, H D]`."""
    heads = (-1, query.shape[1], -1, -1)
    attended = scaled_dot_product_attention(query, key.expand(heads), value.expand(heads), attn_mask=is_read)
    return attended.transpose(1, 2).flatten(2)
