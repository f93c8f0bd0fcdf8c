"""Networks that score by BLIP, on transformers' modules, and the names under which their checkpoints were published."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn
from transformers import BlipTextConfig, BlipVisionConfig
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from ..weight_files import check_layout

# The published network: ViT-L/16 and BERT-base with cross-attention. transformers' own BLIP defaults differ in the
# vision layer norm's eps (1e-5) and in the number of text heads (8).
VISION_CONFIG = BlipVisionConfig(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    image_size=224,
    patch_size=16,
    layer_norm_eps=1e-6,
)
TEXT_CONFIG = BlipTextConfig(encoder_hidden_size=1024, num_attention_heads=12)

SCORE_MEAN, SCORE_STD = 0.16717362830052426, 1.0333394966054072
PROJECTION_DIM = 256
HEAD_WIDTHS = (1024, 128, 64, 16, 1)
# Dropout layers take the numbers that are left out.
HEAD_NAMES = ("0", "2", "4", "6", "7")

_PUBLISHED_NAMES = (
    ("vision.embeddings.class_embedding", "blip.visual_encoder.cls_token"),
    ("vision.embeddings.position_embedding", "blip.visual_encoder.pos_embed"),
    ("vision.embeddings.patch_embedding.", "blip.visual_encoder.patch_embed.proj."),
    ("vision.encoder.layers.", "blip.visual_encoder.blocks."),
    ("vision.post_layernorm.", "blip.visual_encoder.norm."),
    (".self_attn.qkv.", ".attn.qkv."),
    (".self_attn.projection.", ".attn.proj."),
    (".layer_norm1.", ".norm1."),
    (".layer_norm2.", ".norm2."),
    ("text.", "blip.text_encoder."),
    ("head.", "mlp.layers."),
)


class BLIPRewardNetwork(nn.Module):
    """A BLIP whose text tower reads the prompt and sees the image, with a head on the prompt's first token.

    Args:
        vision_config: configuration of the image tower.
        text_config: configuration of the text tower, which attends to the image tower's patches in every layer.
        head: maps the first token's state `[B, D]` to scores `[B, 1]`; its layers have their published names.

    Source: Xu et al. 2023, "ImageReward", arXiv:2304.05977, section 3; the BLIP towers are Li et al. 2022,
    arXiv:2201.12086.
    """

    head: nn.Sequential

    def __init__(self, vision_config: BlipVisionConfig, text_config: BlipTextConfig, head: nn.Sequential) -> None:
        super().__init__()
        self.vision = BlipVisionModel(vision_config)
        self.text = BlipTextModel(text_config, add_pooling_layer=False)
        self.head = head

    def forward(self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Scores `[B]` of normalised pixels `[B, 3, H, W]` and token ids and their mask, both `[B, L]`."""
        patches = self.vision(pixels).last_hidden_state
        states = self.text(input_ids, attention_mask=attention_mask, encoder_hidden_states=patches).last_hidden_state
        return self.head(states[:, 0].to(next(self.head.parameters()).dtype))[:, 0]


class ImageRewardNetwork(BLIPRewardNetwork):
    """ImageReward's network, which maps pixels and token ids to standardised scores.

    Args:
        vision_config: configuration of the image tower.
        text_config: configuration of the text tower.
    """

    def __init__(self, vision_config: BlipVisionConfig, text_config: BlipTextConfig) -> None:
        layers = (nn.Linear(*pair) for pair in pairwise((text_config.hidden_size, *HEAD_WIDTHS)))
        # No activations: the published head is a chain of linear maps.
        head = nn.Sequential(OrderedDict(zip(HEAD_NAMES, layers, strict=True)))
        super().__init__(vision_config, text_config, head)

    def forward(self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Standardised scores `[B]`; see `BLIPRewardNetwork`."""
        return (super().forward(pixels, input_ids, attention_mask) - SCORE_MEAN) / SCORE_STD


class CycleRewardNetwork(BLIPRewardNetwork):
    """CycleReward's network, which maps pixels and token ids to logits.

    Args:
        vision_config: configuration of the image tower.
        text_config: configuration of the text tower.

    Source: Bahng et al. 2025, "Cycle Consistency as Reward", arXiv:2506.02095.
    """

    def __init__(self, vision_config: BlipVisionConfig, text_config: BlipTextConfig) -> None:
        layers: list[nn.Module] = []
        for pair in pairwise((text_config.hidden_size, *HEAD_WIDTHS)):
            layers += [nn.Linear(*pair), nn.GELU()]
        super().__init__(vision_config, text_config, nn.Sequential(*layers[:-1]))


def published_shapes(network: BLIPRewardNetwork) -> dict[str, torch.Size]:
    """Name and shape of every tensor of the network's checkpoint, in the layout in which it was published."""
    vision, text = network.vision.config, network.text.config
    unused = {
        "blip.text_encoder.embeddings.position_ids": (1, text.max_position_embeddings),
        "blip.vision_proj.weight": (PROJECTION_DIM, vision.hidden_size),
        "blip.vision_proj.bias": (PROJECTION_DIM,),
        "blip.text_proj.weight": (PROJECTION_DIM, text.hidden_size),
        "blip.text_proj.bias": (PROJECTION_DIM,),
    }
    used = {_published_name(name): weight.shape for name, weight in network.state_dict().items()}
    return used | {name: torch.Size(shape) for name, shape in unused.items()}


def build_network(
    weights: Mapping[str, Tensor],
    vision_config: BlipVisionConfig,
    text_config: BlipTextConfig,
    network_class: Callable[[BlipVisionConfig, BlipTextConfig], BLIPRewardNetwork] = ImageRewardNetwork,
) -> BLIPRewardNetwork:
    """The network with published weights, in float32, for inference.

    Raises:
        ValueError: a tensor is missing, unexpected or of another shape; the first such one is named.
    """
    with torch.device("meta"):
        network = network_class(vision_config, text_config)
    check_layout(weights, published_shapes(network))
    named = {name: weights[_published_name(name)].float() for name in network.state_dict()}
    network.load_state_dict(named, assign=True)
    # No checkpoint holds this buffer, so it is still without storage.
    positions = torch.arange(text_config.max_position_embeddings)
    network.text.embeddings.position_ids = positions.expand(1, -1)
    return network.eval().requires_grad_(False)


def _published_name(name: str) -> str:
    for ours, published in _PUBLISHED_NAMES:
        name = name.replace(ours, published)
    return name
