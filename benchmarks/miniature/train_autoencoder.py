"""Trains the miniature's `AutoencoderKL`: 64x64 images to 8x8 latents of eight channels."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from diamond_diffusers.miniature.render import IMAGE_SIZE, render, sample_world

from .training_loop import TrainingLoop

logger = logging.getLogger(__name__)

# Scale of the Laplace law of a pixel (images in [-1, 1]): sets how many nats a latent may cost.
PIXEL_SCALE = 0.03


def build_autoencoder() -> AutoencoderKL:
    """An untrained autoencoder in FLUX's layout: no quantisation convolutions, shift and scale of the latents."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=(8, 16, 32, 64),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=4,
        sample_size=IMAGE_SIZE,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def autoencoder_loss(autoencoder: AutoencoderKL, images: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Evidence lower bound of images `[B, 3, H, W]` in [-1, 1] per pixel, plus the squared error."""
    posterior = autoencoder.encode(images).latent_dist
    decoded = autoencoder.decode(posterior.sample()).sample
    divergence = posterior.kl().mean() / images[0].numel()
    squared = (decoded - images).square().mean()
    loss = (decoded - images).abs().mean() + squared + PIXEL_SCALE * divergence
    psnr = 10 * torch.log10(4 / squared.detach())
    return loss, {"psnr": psnr.item(), "nats": posterior.kl().mean().item()}


@torch.no_grad()
def measure_latents(autoencoder: AutoencoderKL, num_images: int = 4096, seed: int = 1) -> tuple[float, float]:
    """Mean and standard deviation of sampled latents over all dimensions."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    batches = [
        autoencoder.encode(render(sample_world(rng, 64)[1]) * 2 - 1).latent_dist.sample()
        for _ in range(num_images // 64)
    ]
    latents = torch.cat(batches)
    return latents.mean().item(), latents.std().item()


def train_autoencoder(folder: Path, num_steps: int, batch_size: int = 32, seed: int = 1) -> AutoencoderKL:
    """Trains (or resumes) in `folder` and returns the averaged autoencoder with its latent shift and scale set."""
    torch.manual_seed(seed)
    model = build_autoencoder().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.99), weight_decay=0.0)
    loop = TrainingLoop(model, [optimizer], folder, num_steps, seed)

    def loss(rng: random.Random) -> tuple[Tensor, dict[str, float]]:
        images = render(sample_world(rng, batch_size)[1]) * 2 - 1
        return autoencoder_loss(model, images.contiguous(memory_format=torch.channels_last))

    averaged = loop.run(loss).eval()
    mean, deviation = measure_latents(averaged)
    averaged.register_to_config(shift_factor=mean, scaling_factor=1 / deviation)
    return averaged
