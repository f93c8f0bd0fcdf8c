"""HPSv3's network on transformers' Qwen2-VL, and the names under which its checkpoint was published."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import Qwen2VLConfig, Qwen2VLModel

from ..weight_files import check_layout

HEAD_WIDTHS = (1024, 16)
_PUBLISHED_NAMES = (("model.language_model.", "model."), ("model.visual.", "visual."), ("head.", "rm_head."))
EMBEDDING, UNUSED = "model.embed_tokens.weight", "lm_head.weight"


class HPSv3Network(nn.Module):
    """A Qwen2-VL with a head on the state of the reward token.

    Args:
        config: that of the Qwen2-VL.

    Source: Ma et al. 2025, "HPSv3: Towards Wide-Spectrum Human Preference Score", arXiv:2508.03789, section 4.
    """

    def __init__(self, config: Qwen2VLConfig) -> None:
        super().__init__()
        self.model = Qwen2VLModel(config)
        first, second = HEAD_WIDTHS
        self.head = nn.Sequential(
            nn.Linear(config.text_config.hidden_size, first),
            nn.ReLU(),
            nn.Dropout(0.05),
            nn.Linear(first, second),
            nn.ReLU(),
            nn.Linear(second, 2),
        )

    def forward(self, inputs: Mapping[str, Tensor], reward_token_id: int) -> Tensor:
        """Mean and spread `[B, 2]` of the score.

        Args:
            inputs: what Qwen2-VL's processor makes of images and texts, padded on the right.
            reward_token_id: the token that the head reads; the last one of each text counts.
        """
        ids = inputs["input_ids"]
        # The published network counts positions one by one, in images too, unlike the Qwen2-VL that it starts from.
        positions = torch.arange(ids.shape[1], device=ids.device).expand(3, *ids.shape)
        states = self.model(**inputs, position_ids=positions, use_cache=False).last_hidden_state
        places = (torch.arange(ids.shape[1], device=ids.device) * (ids == reward_token_id)).argmax(1)
        read = states[torch.arange(len(ids), device=ids.device), places]
        return self.head(read.to(next(self.head.parameters()).dtype))


def published_shapes(network: HPSv3Network) -> dict[str, torch.Size]:
    """Name and shape of every tensor of the network's checkpoint, in the layout in which it was published."""
    shapes = {_published_name(name): weight.shape for name, weight in network.state_dict().items()}
    return shapes | {UNUSED: shapes[EMBEDDING]}


def build_network(weights: Mapping[str, Tensor], config: Qwen2VLConfig, dtype: torch.dtype | None) -> HPSv3Network:
    """The network with published weights, for inference; the head is in float32.

    Args:
        weights: in the published layout.
        config: that of the Qwen2-VL which it starts from; the published vocabulary has one token more.
        dtype: dtype of the Qwen2-VL; None for that of the weights.

    Raises:
        ValueError: a tensor is missing, unexpected or of another shape; the first such one is named.
    """
    if EMBEDDING in weights:
        config.text_config.vocab_size = len(weights[EMBEDDING])
    with init_empty_weights():
        network = HPSv3Network(config)
    check_layout(weights, published_shapes(network))
    network.load_state_dict({name: weights[_published_name(name)] for name in network.state_dict()}, assign=True)
    # The published network was trained with frequencies of rotary positions that were rounded as its weights were.
    network.model.to(dtype=weights[EMBEDDING].dtype)
    network.model.to(dtype=dtype)
    network.head.float()
    return network.eval().requires_grad_(False)


def _published_name(name: str) -> str:
    for ours, published in _PUBLISHED_NAMES:
        if name.startswith(ours):
            return published + name.removeprefix(ours)
    return name
