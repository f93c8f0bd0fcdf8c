"""Trains the embedded models: `python -m benchmarks.miniature.train --help`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer
from diffusers import AutoencoderKL

from diamond_diffusers.files.staging import staged
from diamond_diffusers.pipelines.loading import embedded_model

from .build import save_pipeline
from .train_autoencoder import train_autoencoder
from .train_clip import save_clip, train_clip
from .train_flow import train_flow

app = typer.Typer(help="Trains the models of the miniature world; a killed run resumes from its folder.")

WEIGHTS = embedded_model().parent
"""Of the package in this repository, which ships them."""

Folder = Annotated[Path, typer.Option(help="Where checkpoints are kept.")]
NumSteps = Annotated[int, typer.Option(help="Length of the whole run in optimisation steps.")]
Seed = Annotated[int, typer.Option(help="Seed of weights and batches.")]
Output = Annotated[Path, typer.Option(help="Where the trained model is saved.")]


@app.callback()
def log_progress() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")


@app.command()
def autoencoder(
    folder: Folder = Path("runs/autoencoder"),
    num_steps: NumSteps = 2900,
    seed: Seed = 1,
    output: Output = WEIGHTS / "pipeline" / "vae",
) -> None:
    """Trains the autoencoder between images and latents."""
    trained = train_autoencoder(folder, num_steps, seed=seed)
    with staged(output) as stage:
        trained.save_pretrained(stage.path)


@app.command()
def clip(
    folder: Folder = Path("runs/clip"),
    num_steps: NumSteps = 2700,
    seed: Seed = 2,
    output: Output = WEIGHTS / "clip",
) -> None:
    """Trains the reward, a CLIP that tells hard negatives from the truth."""
    save_clip(train_clip(folder, num_steps, seed=seed), output)


@app.command()
def flow(
    autoencoder: Annotated[Path, typer.Option(help="A trained autoencoder.")] = WEIGHTS / "pipeline" / "vae",
    folder: Folder = Path("runs/flow"),
    num_steps: NumSteps = 5300,
    seed: Seed = 3,
    output: Output = WEIGHTS / "pipeline",
) -> None:
    """Trains the flow model on the autoencoder's latents and saves the whole pipeline."""
    encoder = AutoencoderKL.from_pretrained(autoencoder)
    save_pipeline(train_flow(encoder, folder, num_steps, seed=seed), encoder, output)


if __name__ == "__main__":
    app()
