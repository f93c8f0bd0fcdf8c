"""FGA-BLIP2's network on transformers' BLIP-2, and the names under which its checkpoint was published."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2VisionConfig
from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel, Blip2TextEmbeddings, Blip2VisionModel

from ..weight_files import check_layout

# The published network: EVA-CLIP's ViT-g/14 without its last layer, and a BERT-base with one token more.
VISION_CONFIG = Blip2VisionConfig(
    hidden_size=1408,
    intermediate_size=6144,
    num_hidden_layers=39,
    num_attention_heads=16,
    image_size=364,
    patch_size=14,
    layer_norm_eps=1e-6,
)
QFORMER_CONFIG = Blip2QFormerConfig(vocab_size=30523, encoder_hidden_size=1408, use_qformer_text_input=True)
NUM_QUERIES = 32
FINAL_NORM_EPS = 1e-5
"""Of the norm behind the image tower, whose own norms have another one."""

PROJECTION_DIM = 256
MASK_WIDTHS = (256, 128, 64, 16, 1)

_PUBLISHED_NAMES = (
    ("vision.embeddings.class_embedding", "visual_encoder.cls_token"),
    ("vision.embeddings.position_embedding", "visual_encoder.pos_embed"),
    ("vision.embeddings.patch_embedding.", "visual_encoder.patch_embed.proj."),
    ("vision.encoder.layers.", "visual_encoder.blocks."),
    ("vision.post_layernorm.", "ln_vision."),
    (".self_attn.qkv.", ".attn.qkv."),
    (".self_attn.projection.", ".attn.proj."),
    (".layer_norm1.", ".norm1."),
    (".layer_norm2.", ".norm2."),
    ("qformer.layernorm.", "Qformer.bert.embeddings.LayerNorm."),
    ("qformer.encoder.", "Qformer.bert.encoder."),
    ("attention.attention.", "attention.self."),
    ("embeddings.word_", "Qformer.bert.embeddings.word_"),
    ("embeddings.position_embeddings", "Qformer.bert.embeddings.position_embeddings"),
)
_POSITION_IDS = "Qformer.bert.embeddings.position_ids"
_BIAS = ".attn.qkv.bias"


class EvalMuseNetwork(nn.Module):
    """A BLIP-2 whose queries see the image and read the prompt; the mean of their matching probabilities is the score.

    Args:
        vision_config: configuration of the image tower.
        qformer_config: configuration of the Q-Former, which reads the prompt.
        num_queries: number of queries.

    Source: Han et al. 2024, "EvalMuse-40K", arXiv:2412.18150, section 4; BLIP-2 is Li et al. 2023, arXiv:2301.12597.
    """

    def __init__(
        self,
        vision_config: Blip2VisionConfig,
        qformer_config: Blip2QFormerConfig,
        num_queries: int = NUM_QUERIES,
    ) -> None:
        super().__init__()
        self.vision = Blip2VisionModel(vision_config)
        self.vision.post_layernorm.eps = FINAL_NORM_EPS
        self.embeddings = Blip2TextEmbeddings(qformer_config)
        self.qformer = Blip2QFormerModel(qformer_config)
        self.query_tokens = nn.Parameter(torch.zeros(1, num_queries, qformer_config.hidden_size))
        self.itm_head = nn.Linear(qformer_config.hidden_size, 2)

    def forward(self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Scores `[B]`, 1 to 5, of normalised pixels `[B, 3, H, W]` and token ids and their mask, both `[B, L]`."""
        patches = self.vision(pixels).last_hidden_state
        queries = self.query_tokens.expand(len(pixels), -1, -1)
        count = queries.shape[1]
        states = self.qformer(
            query_embeds=self.embeddings(input_ids=input_ids, query_embeds=queries),
            query_length=count,
            attention_mask=torch.cat([attention_mask.new_ones(len(pixels), count), attention_mask], dim=1),
            encoder_hidden_states=patches.to(queries.dtype),
        ).last_hidden_state
        matches = self.itm_head(states[:, :count]).softmax(-1)[..., 1]
        return 1 + 4 * matches.mean(1)


def published_shapes(network: EvalMuseNetwork) -> dict[str, torch.Size]:
    """Name and shape of every tensor of the network's checkpoint, in the layout in which it was published."""
    shapes: dict[str, torch.Size] = {}
    for name, weight in network.state_dict().items():
        published = _published_name(name)
        if published.endswith(_BIAS):
            # The image tower has no bias of keys.
            width = torch.Size([len(weight) // 3])
            shapes |= {published.replace(_BIAS, f".attn.{part}_bias"): width for part in ("q", "v")}
        else:
            shapes[published] = weight.shape
    return shapes | {name: torch.Size(shape) for name, shape in _unused_shapes(network).items()}


def build_network(
    weights: Mapping[str, Tensor],
    vision_config: Blip2VisionConfig,
    qformer_config: Blip2QFormerConfig,
    num_queries: int = NUM_QUERIES,
) -> EvalMuseNetwork:
    """The network with published weights, in float32, for inference.

    Raises:
        ValueError: a tensor is missing, unexpected or of another shape; the first such one is named.
    """
    with torch.device("meta"):
        network = EvalMuseNetwork(vision_config, qformer_config, num_queries)
    check_layout(weights, published_shapes(network), optional=[_POSITION_IDS])
    named = {name: _read(weights, _published_name(name)).float() for name in network.state_dict()}
    network.load_state_dict(named, assign=True)
    # No checkpoint fills this buffer, so it is still without storage.
    network.embeddings.position_ids = torch.arange(qformer_config.max_position_embeddings)[None]
    return network.eval().requires_grad_(False)


def _read(weights: Mapping[str, Tensor], published: str) -> Tensor:
    if not published.endswith(_BIAS):
        return weights[published]
    query, value = (weights[published.replace(_BIAS, f".attn.{part}_bias")] for part in ("q", "v"))
    return torch.cat([query, torch.zeros_like(query), value])


def _published_name(name: str) -> str:
    for ours, published in _PUBLISHED_NAMES:
        if ours.startswith(".") or ours.startswith("attention"):
            name = name.replace(ours, published)
        elif name.startswith(ours):
            name = published + name.removeprefix(ours)
    return name


def _unused_shapes(network: EvalMuseNetwork) -> dict[str, tuple[int, ...]]:
    """What the checkpoint holds beside the network of the score: for its training, and for other tasks of BLIP-2."""
    config = network.qformer.config
    hidden, words = config.hidden_size, config.vocab_size
    predictions = "Qformer.cls.predictions."
    shapes: dict[str, tuple[int, ...]] = {
        "temp": (),
        _POSITION_IDS: (1, config.max_position_embeddings),
        f"{predictions}bias": (words,),
        f"{predictions}decoder.weight": (words, hidden),
        f"{predictions}decoder.bias": (words,),
        f"{predictions}transform.dense.weight": (hidden, hidden),
        f"{predictions}transform.dense.bias": (hidden,),
        f"{predictions}transform.LayerNorm.weight": (hidden,),
        f"{predictions}transform.LayerNorm.bias": (hidden,),
    }
    for projection in ("vision_proj", "text_proj"):
        shapes |= {f"{projection}.weight": (PROJECTION_DIM, hidden), f"{projection}.bias": (PROJECTION_DIM,)}
    for index, width in enumerate(MASK_WIDTHS):
        layer = f"mask_proj.layers.{2 * index}"
        shapes |= {f"{layer}.weight": (width, hidden if index == 0 else MASK_WIDTHS[index - 1])}
        shapes |= {f"{layer}.bias": (width,)}
    return shapes
