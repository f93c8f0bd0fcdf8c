"""A tiny BLIP with made-up weights that anyone can make again, by which the official program was run too."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import BertTokenizerFast, BlipConfig, BlipForQuestionAnswering, BlipImageProcessor

from diamond_diffusers.evaluation.suites.blip import ENCODE

VOCABULARY = Path(__file__).parents[1] / "fixtures" / "rewards" / "tokenizers" / "bert-base-uncased" / "vocab.txt"


def tiny_config() -> BlipConfig:
    """Of two layers of 32 numbers, with BERT's own vocabulary."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {"vocab_size": ENCODE + 1, "encoder_hidden_size": 32, "max_position_embeddings": 64}
    # The decoder begins with the token before the encoder's.
    text |= {"bos_token_id": ENCODE - 1, "projection_dim": 8, "layer_norm_eps": 1e-12}
    vision = {"image_size": 64, "patch_size": 16, "layer_norm_eps": 1e-6, "intermediate_size": 128}
    return BlipConfig(text_config=sizes | text, vision_config=sizes | vision)


@torch.no_grad()
def fill(model: torch.nn.Module) -> None:
    """Weights that depend on their names alone."""
    for name, weight in model.named_parameters():
        count, phase = weight.numel(), zlib.crc32(name.encode()) % 1000
        wave = torch.sin(0.7 * torch.arange(count, dtype=torch.float64) ** 1.1 + phase).reshape(weight.shape)
        scale = 0.3 if weight.ndim > 1 else 0.1
        weight.copy_(scale * wave + float(weight.ndim == 1 and name.lower().endswith("norm.weight")))


def pictures() -> list[Image.Image]:
    """Three, of a size that has to be changed."""
    rows, columns = np.mgrid[0:50, 0:90]
    waves = [np.stack([127 + 120 * np.sin(rows / (3 + k) + columns / (5 + c)) for c in range(3)], -1) for k in range(3)]
    return [Image.fromarray(wave.astype(np.uint8)) for wave in waves]


def save_tiny_blip(folder: Path) -> BertTokenizerFast:
    """A checkpoint with its processor; returns the tokeniser."""
    model = BlipForQuestionAnswering(tiny_config())
    fill(model)
    model.save_pretrained(folder)
    BlipImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    tokenizer = BertTokenizerFast(vocab=str(VOCABULARY))
    tokenizer.save_pretrained(folder)
    return tokenizer
