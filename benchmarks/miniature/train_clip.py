"""Trains the miniature's reward: a `CLIPModel` that tells each kind of hard negative from the truth."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast

from diamond_diffusers.files.staging import staged
from diamond_diffusers.miniature.grammar import Caption, held_out_captions
from diamond_diffusers.miniature.judge import objects_satisfy
from diamond_diffusers.miniature.render import IMAGE_SIZE, Scene, render, sample_scene, sample_world
from diamond_diffusers.miniature.tokenizer import MAX_LENGTH, clip_tokenizer

from .clip_heads import SceneHeads
from .degradation import degrade
from .hard_negatives import KINDS, hard_negatives, true_captions
from .muon import BatchedMuon
from .training_loop import TrainingLoop

logger = logging.getLogger(__name__)

PROJECTION_DIM = 96
MAX_LOG_SCALE = math.log(100.0)

# How many negatives of each kind one image is scored against.
NEGATIVES_PER_KIND = {"colour": 3, "shape": 3, "count": 2, "relation": 2}
HEADS_WEIGHT = 1.0
PLACE_AMPLITUDE = 0.2

MODEL_CARD = """---
license: apache-2.0
library_name: transformers
---

# The reward of the miniature world

A tiny `CLIPModel` ({parameters:.2f} million parameters, 64x64 images, word-level tokenizer) that scores how well an
image of coloured shapes shows its caption. It is trained from scratch on rendered scenes, against hard negatives for
every word, with auxiliary heads for shapes, colours and places that are thrown away afterwards, by

    python -m benchmarks.miniature.train clip

The 300 held-out captions of the benchmark are no part of its training. Share of pairs in which the true caption of a
fresh scene, one for each held-out caption, scores above a hard negative, on clean renders and on damaged ones (blur,
loss of detail, contrast, noise):

| hard negative | clean | damaged |
|---|---|---|
{rows}

It knows the captions of `diamond_diffusers.miniature.grammar` and nothing else.
"""


def build_clip() -> CLIPModel:
    """An untrained CLIP for 64x64 images (8x8 patches of 8x8 pixels) and the words of the grammar."""
    tokenizer = clip_tokenizer()
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 96,
        "intermediate_size": 288,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_LENGTH,
        "hidden_act": "gelu",
        "projection_dim": PROJECTION_DIM,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = {
        "hidden_size": 96,
        "intermediate_size": 288,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": IMAGE_SIZE,
        "patch_size": 8,
        "hidden_act": "gelu",
        "projection_dim": PROJECTION_DIM,
    }
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=PROJECTION_DIM))
    # CLIP's own initial embeddings are so small beside the patches that places are learned late.
    grid = IMAGE_SIZE // vision["patch_size"]
    positions = clip.vision_model.embeddings.position_embedding.weight
    positions.data[1:] = PLACE_AMPLITUDE * grid_waves(grid, vision["hidden_size"])
    return clip


def grid_waves(grid: int, width: int) -> Tensor:
    """Sines and cosines of row and column, `[grid * grid, width]` in [-1, 1]; patches go row by row."""
    frequencies = 16.0 ** -torch.linspace(0, 1, width // 4)
    phases = torch.arange(grid)[:, None] * frequencies
    waves = torch.cat([phases.sin(), phases.cos()], dim=1)
    return torch.cat([waves.repeat_interleave(grid, 0), waves.repeat(grid, 1)], dim=1)


class ScorerInTraining(nn.Module):
    """A CLIP with the heads that only its training needs."""

    def __init__(self) -> None:
        super().__init__()
        self.clip = build_clip()
        vision = self.clip.config.vision_config
        self.heads = SceneHeads(vision.hidden_size, IMAGE_SIZE // vision.patch_size)


def normalise(images: Tensor) -> Tensor:
    """Maps images in [0, 1] to what the embedded CLIP expects: mean and standard deviation one half."""
    return (images - 0.5) / 0.5


def embed_texts(clip: CLIPModel, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> Tensor:
    """Unit embeddings `[N, D]` of captions."""
    tokens = tokenizer(list(texts), padding=True, return_tensors="pt")
    pooled = clip.text_model(**tokens).pooler_output
    return nn.functional.normalize(clip.text_projection(pooled), dim=-1)


def embed_images(clip: CLIPModel, images: Tensor) -> Tensor:
    """Unit embeddings `[B, D]` of images `[B, 3, 64, 64]` in [0, 1]."""
    pooled = clip.vision_model(normalise(images)).pooler_output
    return nn.functional.normalize(clip.visual_projection(pooled), dim=-1)


def sample_confusable_world(rng: random.Random, count: int) -> tuple[list[Caption], list[Scene]]:
    """`count` captions with scenes, in pairs: the second caption of a pair is a hard negative of the first scene."""
    captions, scenes = sample_world(rng, count // 2, with_single_objects=False)
    close = [_one_per_kind(caption, scene, rng) for caption, scene in zip(captions, scenes, strict=True)]
    partners = [rng.choice(negatives) for negatives in close]
    captions = [rng.choice(_seen(true_captions(s.objects, c))) for c, s in zip(captions, scenes, strict=True)]
    return captions + partners, scenes + [sample_scene(caption, rng) for caption in partners]


def _seen(captions: Sequence[Caption]) -> list[Caption]:
    held_out = set(held_out_captions())
    return [caption for caption in captions if caption not in held_out]


def _one_per_kind(caption: Caption, scene: Scene, rng: random.Random) -> list[Caption]:
    by_kind = hard_negatives(caption, scene.objects)
    return [rng.choice(seen) for negatives in by_kind.values() if (seen := _seen(negatives))]


def _negatives_of(caption: Caption, scene: Scene, rng: random.Random) -> list[str]:
    chosen = []
    for kind, negatives in hard_negatives(caption, scene.objects).items():
        seen = _seen(negatives)
        chosen += rng.sample(seen, min(len(seen), NEGATIVES_PER_KIND.get(kind, 1)))
    return [negative.text for negative in chosen]


def contrastive_loss(
    clip: CLIPModel,
    tokenizer: PreTrainedTokenizerFast,
    images: Tensor,
    captions: Sequence[Caption],
    scenes: Sequence[Scene],
    rng: random.Random,
) -> tuple[Tensor, dict[str, float]]:
    """Each image against its hard negatives and the batch's captions that are false of it; each caption against the
    images that do not satisfy it.

    Args:
        images: unit embeddings `[B, D]`.

    Returns:
        The sum of both cross entropies, and how often the true caption scores highest.
    """
    negatives = [_negatives_of(caption, scene, rng) for caption, scene in zip(captions, scenes, strict=True)]
    texts = list(dict.fromkeys([c.text for c in captions] + [text for row in negatives for text in row]))
    index = {text: i for i, text in enumerate(texts)}
    scale = clip.logit_scale.clamp(max=MAX_LOG_SCALE).exp()
    scores = scale * images @ embed_texts(clip, tokenizer, texts).T

    own = torch.tensor([index[caption.text] for caption in captions])
    in_batch = scores[:, own]
    true = torch.tensor([[objects_satisfy(scene.objects, caption) for caption in captions] for scene in scenes])
    masked = in_batch.masked_fill(true & ~torch.eye(len(captions), dtype=torch.bool), -torch.inf)
    width = max(map(len, negatives))
    columns = torch.tensor([[index[text] for text in row] + [-1] * (width - len(row)) for row in negatives])
    hard = scores.gather(1, columns.clamp(min=0)).masked_fill(columns < 0, -torch.inf)

    diagonal = torch.arange(len(captions))
    over_texts = nn.functional.cross_entropy(torch.cat([masked, hard], dim=1), diagonal)
    over_images = nn.functional.cross_entropy(masked.T, diagonal)
    best = (in_batch.diagonal() > hard.max(dim=1).values).float().mean()
    figures = {"texts": over_texts.item(), "images": over_images.item(), "first": best.item(), "scale": scale.item()}
    return over_texts + over_images, figures


def build_optimizers(model: ScorerInTraining) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for everything else."""
    named = list(model.named_parameters())
    matrices = [value for name, value in named if ".layers." in name and value.ndim == 2]
    rest = [value for name, value in named if ".layers." not in name or value.ndim != 2]
    return [
        BatchedMuon(matrices, lr=2e-3, weight_decay=0.02),
        torch.optim.AdamW(rest, lr=2e-3, betas=(0.9, 0.98), weight_decay=0.02, fused=True),
    ]


def train_clip(folder: Path, num_steps: int, batch_size: int = 64, seed: int = 2) -> CLIPModel:
    """Trains (or resumes) in `folder` and returns the averaged CLIP."""
    torch.manual_seed(seed)
    tokenizer = clip_tokenizer()
    model = ScorerInTraining()
    loop = TrainingLoop(model, build_optimizers(model), folder, num_steps, seed)

    def loss(rng: random.Random) -> tuple[Tensor, dict[str, float]]:
        captions, scenes = sample_confusable_world(rng, batch_size)
        strength = min(1.0, 2 * loop.step / num_steps)
        images = degrade(render(scenes), strength)
        seen = model.clip.vision_model(normalise(images), output_hidden_states=True)
        embedded = nn.functional.normalize(model.clip.visual_projection(seen.pooler_output), dim=-1)
        contrast, figures = contrastive_loss(model.clip, tokenizer, embedded, captions, scenes, rng)
        auxiliary, head_figures = model.heads.loss(seen.pooler_output, seen.hidden_states[-2][:, 1:], scenes)
        if loop.step % 500 == 0:
            _log_table(model.clip)
        return contrast + HEADS_WEIGHT * auxiliary, {**figures, **head_figures}

    averaged = loop.run(loss).clip.eval()
    with torch.no_grad():
        averaged.logit_scale.clamp_(max=MAX_LOG_SCALE)
    _log_table(averaged)
    return averaged


def _log_table(clip: CLIPModel) -> None:
    for kind, share in hard_negative_accuracy(clip).items():
        logger.info("  %-16s %.4f", kind, share)


@torch.no_grad()
def hard_negative_accuracy(
    clip: CLIPModel, captions: Sequence[Caption] | None = None, seed: int = 0, damage: float = 0.0
) -> dict[str, float]:
    """How often a scene's true caption scores above a hard negative.

    Args:
        clip: the model under test.
        captions: the true captions, one fresh scene each; by default the 300 held-out ones.
        seed: of the scenes.
        damage: strength of the images' degradation, from 0 to 1.

    Returns:
        For each of `KINDS` the share of (true, negative) pairs that are told apart.
    """
    captions = held_out_captions() if captions is None else captions
    rng = random.Random(seed)
    tokenizer = clip_tokenizer()
    scenes = [sample_scene(caption, rng) for caption in captions]
    negatives = [hard_negatives(caption, scene.objects) for caption, scene in zip(captions, scenes, strict=True)]
    images = embed_images(clip, degrade(render(scenes), damage, torch.Generator().manual_seed(seed)))
    texts = list({c.text for c in captions} | {n.text for row in negatives for kind in row.values() for n in kind})
    index = {text: i for i, text in enumerate(texts)}
    scores = images @ embed_texts(clip, tokenizer, texts).T
    told_apart: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    for row, caption, by_kind in zip(scores.tolist(), captions, negatives, strict=True):
        for kind, found in by_kind.items():
            told_apart[kind] += [row[index[caption.text]] > row[index[negative.text]] for negative in found]
    return {kind: sum(pairs) / len(pairs) for kind, pairs in told_apart.items() if pairs}


def save_clip(clip: CLIPModel, folder: Path) -> None:
    """Saves the model with its processor and a model card; `CLIPModel` and `CLIPProcessor` load it from `folder`."""
    images = CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    clean, damaged = hard_negative_accuracy(clip), hard_negative_accuracy(clip, damage=1.0)
    rows = "\n".join(f"| {kind} | {clean[kind]:.1%} | {damaged[kind]:.1%} |" for kind in clean)
    card = MODEL_CARD.format(parameters=clip.num_parameters() / 1e6, rows=rows)
    with staged(folder) as stage:
        clip.save_pretrained(stage.path)
        CLIPProcessor(image_processor=images, tokenizer=clip_tokenizer()).save_pretrained(stage.path)
        (stage.path / "README.md").write_text(card)
