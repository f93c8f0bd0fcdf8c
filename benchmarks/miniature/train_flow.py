"""Trains the miniature's flow model on cached latents: FLUX's transformer with its T5 and CLIP text encoders."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from diamond_diffusers.miniature.grammar import COLOURS, SHAPES

from .flow_data import FlowDataset
from .flow_model import FlowModel, pack, tokenize
from .muon import BatchedMuon, product_dtype
from .training_loop import TrainingLoop

logger = logging.getLogger(__name__)

CAPTION_DROPOUT = 0.1
# Location and scale of a noise level's log odds in training: FLUX's sampling spends more steps on high noise.
LOG_ODDS = (0.4, 1.2)
CONTENT_WEIGHT = 0.1


class FlowTrainer(nn.Module):
    """The flow model with a head that names what each of the 4x4 cells of the image will show.

    The head reads the image tokens half-way through the transformer and is dropped after training: features that
    know shapes and colours make the velocity quick to learn (arXiv 2410.06940).
    """

    def __init__(self) -> None:
        super().__init__()
        self.flow = FlowModel()
        width = self.flow.transformer.inner_dim
        self.num_labels = (1 + len(SHAPES), 1 + len(COLOURS))
        self.content_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, sum(self.num_labels)))

    def forward(self, noised: Tensor, sigmas: Tensor, clip_ids: Tensor, t5_ids: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Velocity `[B, 16, 32]`, and the logits of each cell's shape and colour, `[B, 16, 9]` each."""
        blocks = self.flow.transformer.single_transformer_blocks
        tokens: list[Tensor] = []
        hook = blocks[len(blocks) // 2 - 1].register_forward_hook(lambda _, __, output: tokens.append(output[1]))
        try:
            velocity = self.flow(noised, sigmas, clip_ids, t5_ids)
        finally:
            hook.remove()
        return velocity, list(self.content_head(tokens[0]).split(self.num_labels, dim=-1))


def sample_sigmas(count: int) -> Tensor:
    """Noise levels in (0, 1) from a logit-normal law, `[count]`."""
    location, scale = LOG_ODDS
    return torch.sigmoid(location + scale * torch.randn(count))


def flow_loss(
    trainer: FlowTrainer, latents: Tensor, clip_ids: Tensor, t5_ids: Tensor, contents: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """Squared error of the velocity plus the cells' cross-entropies, with some captions replaced by the empty one.

    Args:
        latents: normalised, `[B, 8, 8, 8]`.
        clip_ids, t5_ids: token ids `[B, 16]` and `[B, 12]`.
        contents: shape and colour labels of the cells, `[B, 16, 2]`.
    """
    dropped = torch.rand(len(latents), 1) < CAPTION_DROPOUT
    empty_clip_ids, empty_t5_ids = tokenize([""])
    clip_ids = torch.where(dropped, empty_clip_ids, clip_ids)
    t5_ids = torch.where(dropped, empty_t5_ids, t5_ids)

    clean, sigmas = pack(latents), sample_sigmas(len(latents))
    noise = torch.randn_like(clean)
    noised = torch.lerp(clean, noise, sigmas[:, None, None])
    # On a CPU the fused attention's backward pass is slow in bfloat16; everything else is faster than in float32.
    half = torch.autocast(clean.device.type, torch.bfloat16, enabled=product_dtype() == torch.bfloat16)
    with half, sdpa_kernel(SDPBackend.MATH):
        velocity, logits = trainer(noised, sigmas, clip_ids, t5_ids)
    squared = (velocity.float() - (noise - clean)).square().mean()
    content = sum(cross_entropy(x.float().flatten(0, 1), contents[..., i].flatten()) for i, x in enumerate(logits))
    return squared + CONTENT_WEIGHT * content, {"velocity": squared.item(), "content": content.item()}


def build_optimizers(trainer: FlowTrainer, matrix_rate: float, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embeddings, vectors, and what faces latents and text."""
    hidden = [
        parameter
        for name, parameter in trainer.named_parameters()
        if parameter.ndim == 2 and ("blocks." in name or "layers." in name or "encoder.block." in name)
        if "relative_attention_bias" not in name
    ]
    chosen = {id(parameter) for parameter in hidden}
    rest = [parameter for parameter in trainer.parameters() if id(parameter) not in chosen]
    return [
        BatchedMuon(hidden, lr=matrix_rate, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def train_flow(
    autoencoder: AutoencoderKL,
    folder: Path,
    num_steps: int,
    batch_size: int = 96,
    num_images: int = 65536,
    seed: int = 3,
) -> FlowModel:
    """Trains (or resumes) in `folder` and returns the averaged flow model.

    Args:
        autoencoder: trained, with its latents' shift and scale.
        num_images: rendered and encoded once, into `folder`.
    """
    dataset = FlowDataset.load_or_build(folder / "dataset.pt", autoencoder, num_images, seed)
    torch.manual_seed(seed)
    trainer = FlowTrainer()
    loop = TrainingLoop(trainer, build_optimizers(trainer, 6e-3, 2e-3), folder, num_steps, seed)

    def loss(rng: random.Random) -> tuple[Tensor, dict[str, float]]:
        return flow_loss(trainer, *dataset.sample(rng, batch_size))

    return loop.run(loss).flow.eval()
