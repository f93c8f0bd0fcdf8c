"""Saving a model: the weights of the base alone, what goes beside them, and the way to the Hub."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from huggingface_hub import CommitInfo
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image
from torch import nn
from torchvision.transforms import functional
from torchvision.utils import make_grid

from ..backbones.base import Backbone
from ..models.storage import CONFIG_NAME, FORMAT_VERSION, MAP_FILES, save_diamond_map
from ..models.two_time import TwoTimeEmbedder
from ..schedulers import DiamondMapScheduler
from .loading import MAP_FOLDER
from .model_card import create_repository, remove_model_card, upload, write_model_card, write_stock_card

WRAPPERS = (BaseTunerLayer, TwoTimeEmbedder)
GRID_COLUMNS = 4


@contextmanager
def clean_weights(pipeline: DiffusionPipeline) -> Iterator[None]:
    """Takes adapters and wrappers out of a pipeline's networks, and puts them back."""
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    for component in pipeline.components.values():
        if isinstance(component, nn.Module):
            replaced += [
                (parent, name, child)
                for parent in component.modules()
                for name, child in parent.named_children()
                if isinstance(child, WRAPPERS)
            ]
    for parent, name, child in replaced:
        setattr(parent, name, _unwrapped(child))
    try:
        yield
    finally:
        for parent, name, child in replaced:
            setattr(parent, name, child)


@contextmanager
def stock_scheduler(pipeline: DiffusionPipeline) -> Iterator[None]:
    """Takes a `DiamondMapScheduler` out of a pipeline, for the stock one of its levels, and puts it back."""
    scheduler = pipeline.scheduler
    if isinstance(scheduler, DiamondMapScheduler):
        pipeline.scheduler = scheduler.stock_scheduler()
    try:
        yield
    finally:
        pipeline.scheduler = scheduler


def _unwrapped(module: nn.Module) -> nn.Module:
    if isinstance(module, TwoTimeEmbedder):
        return module.original_embedder
    return _unwrapped(module.base_layer) if isinstance(module, BaseTunerLayer) else module


def save_model(
    backbone: Backbone,
    defaults: Mapping[str, Any],
    base_defaults: Mapping[str, Any],
    folder: str | os.PathLike,
    *,
    license: str | None = None,
    sample_prompt: str | None = None,
    sample_images: Sequence[Image.Image] | None = None,
    push_to_hub: bool = False,
    repo_id: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
    create_pr: bool | None = None,
    **stock: Any,
) -> CommitInfo | None:
    """Saves a stock pipeline with the weights of its base, and beside it the defaults, and the map with its card.

    Args:
        defaults: of calls.
        base_defaults: of calls without the Diamond Map.
        folder: is created; a Diamond Map that was saved there before is replaced or removed.
        license, sample_prompt, sample_images: of the card of the Diamond Map.
        push_to_hub: whether the folder is then uploaded.
        repo_id, private, token, commit_message, create_pr: of the upload.
        **stock: of the stock `save_pretrained`.

    Returns:
        The commit on the Hub, if there is one.

    Raises:
        TypeError, ValueError: an argument is unknown or of no use, or LoRAs are fused into the weights; raised before
            anything is written.
    """
    pipeline, diamond_map = backbone.pipeline, backbone.posterior_map
    card = {"license": license, "sample_prompt": sample_prompt, "sample_images": sample_images}
    hub = {
        "repo_id": repo_id,
        "private": private,
        "token": token,
        "commit_message": commit_message,
        "create_pr": create_pr,
    }
    _check_stock(pipeline, stock)
    _refuse_fused(pipeline)
    if diamond_map is None:
        _refuse(card, "is for the model card of a Diamond Map, and there is none; load one first, or leave it out")
    if not push_to_hub:
        _refuse(hub, "is for the Hub; add push_to_hub=True, or leave it out")
    grid = None if sample_images is None else _grid(sample_images)
    if push_to_hub:
        repo_id = create_repository(repo_id or Path(folder).resolve().name, token, private)
    with clean_weights(pipeline), stock_scheduler(pipeline):
        pipeline.save_pretrained(folder, **stock)
    if diamond_map is not None:
        save_diamond_map(
            Path(folder) / MAP_FOLDER,
            diamond_map,
            defaults,
            diamond_map.training_facts,
            base_defaults=base_defaults,
            license=license,
        )
        write_model_card(folder, repo_id or str(folder), None, sample_prompt, grid)
    else:
        for name in MAP_FILES:
            (Path(folder) / MAP_FOLDER / name).unlink(missing_ok=True)
        remove_model_card(folder)
        write_defaults(folder, backbone.family, defaults)
        if push_to_hub:
            write_stock_card(folder, repo_id, token)
    if not push_to_hub:
        return None
    return upload(folder, repo_id, token, commit_message=commit_message, create_pr=create_pr)


def _check_stock(pipeline: DiffusionPipeline, options: Mapping[str, Any]) -> None:
    """Refuses what the stock method would take and forget."""
    for name in options.keys() - inspect.signature(pipeline.save_pretrained).parameters.keys():
        raise TypeError(f"save_pretrained has no argument {name!r}; leave it out")


def _refuse_fused(pipeline: DiffusionPipeline) -> None:
    """Refuses weights that are no longer those of the base."""
    for name, component in pipeline.components.items():
        if isinstance(component, nn.Module) and any(
            isinstance(module, BaseTunerLayer) and module.merged for module in component.modules()
        ):
            raise ValueError(
                f"LoRAs are fused into the weights of the {name}, and the base is saved; unfuse_lora() first"
            )


def _refuse(options: Mapping[str, Any], reason: str) -> None:
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"{name} {reason}")


def _grid(images: Sequence[Image.Image]) -> Image.Image:
    """One picture of several of one size."""
    images = [] if isinstance(images, Image.Image) else list(images)
    if not all(isinstance(image, Image.Image) for image in images) or len({image.size for image in images}) != 1:
        raise TypeError("sample_images must be a list of PIL images of one size; give the .images of a call's output")
    tensors = [functional.pil_to_tensor(image.convert("RGB")) for image in images]
    return functional.to_pil_image(make_grid(tensors, nrow=GRID_COLUMNS, pad_value=255))


def write_defaults(folder: str | os.PathLike, family: str, defaults: Mapping[str, Any]) -> None:
    """Writes call defaults beside a saved stock pipeline."""
    target = Path(folder) / MAP_FOLDER
    target.mkdir(parents=True, exist_ok=True)
    config = {"format_version": FORMAT_VERSION, "family": family, "defaults": dict(defaults)}
    (target / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n")
