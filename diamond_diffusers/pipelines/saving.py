"""Saves a model, with the weights of the base alone, and uploads it to the Hub."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from huggingface_hub import CommitInfo
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image
from torch import nn

from ..families.base import Family
from ..families.two_time import TwoTimeEmbedder
from ..files.output import writing
from ..files.staging import Stage, check_folder, staged
from ..maps.diamond_map import DiamondMap
from ..maps.map_config import CONFIG_NAME, declare_defaults
from ..maps.storage import MAP_FILES, save_diamond_map
from ..schedulers import DiamondMapScheduler
from .loading import MAP_FOLDER
from .model_card import CARD_NAME, card_of_map, check_card, create_repository, stock_card, upload, write_model_card

WRAPPERS = (BaseTunerLayer, TwoTimeEmbedder)
GRID_COLUMNS = 4
_MODEL = r"(?:diffusion_pytorch_model|pytorch_model|model)"
_WEIGHTS = (
    re.compile(_MODEL + r"(?P<variant>(\.[^.]+?)?)(-\d{5}-of-\d{5})?\.(bin|safetensors)"),
    re.compile(_MODEL + r"\.(bin|safetensors)\.index(?P<variant>(\.[^.]+)?)\.json"),
)
"""How diffusers and transformers name files of weights, and the list of what is in which of them."""


@contextmanager
def clean_weights(pipeline: DiffusionPipeline) -> Iterator[None]:
    """Context in which a pipeline's networks are without their adapters and wrappers."""
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
    """Context in which a pipeline's `DiamondMapScheduler` is replaced by the stock scheduler of the same levels."""
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
    family: Family,
    defaults: Mapping[str, Any],
    base_defaults: Mapping[str, Any],
    folder: str | os.PathLike[str],
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
    """Saves a stock pipeline with the weights of its base, and beside it the defaults and the map with its card.

    Args:
        defaults: call defaults.
        base_defaults: call defaults without the Diamond Map.
        folder: target folder, which is created or keeps its other files. A model or Diamond Map that was saved there
            before is replaced when the new one is complete.
        license, sample_prompt, sample_images: contents of the Diamond Map's card.
        push_to_hub: whether the folder is then uploaded.
        repo_id, private, token, commit_message, create_pr: options of the upload.
        **stock: options of the stock `save_pretrained`.

    Returns:
        The commit on the Hub, if there is one.

    Raises:
        TypeError, ValueError: an argument is unknown or without effect, a default cannot be saved, or LoRAs are fused
            into the weights; raised before anything is written.
        UnwritableError: something cannot be written; the folder is then as it was.
    """
    pipeline, diamond_map = family.pipeline, family.posterior_map
    card = {"license": license, "sample_prompt": sample_prompt, "sample_images": sample_images}
    hub = {"repo_id": repo_id, "private": private, "token": token, "commit_message": commit_message}
    hub["create_pr"] = create_pr
    _check_stock(pipeline, stock)
    _refuse_fused(pipeline)
    if diamond_map is None:
        _refuse(card, "is for the model card of a Diamond Map, and there is none; load one first, or leave it out")
    if not push_to_hub:
        _refuse(hub, "is for the Hub; add push_to_hub=True, or leave it out")
    check_card(license, sample_prompt)
    declare_defaults(family.name, defaults, base_defaults)
    grid = None if sample_images is None else _grid(sample_images)
    _refuse_map_alone(check_folder(folder))
    if push_to_hub:
        repo_id = create_repository(repo_id or Path(folder).resolve().name, token, private)
        card_of_stock = stock_card(repo_id, token) if diamond_map is None else None
    with writing(folder), staged(folder) as stage:
        _write_base(pipeline, stage, Path(folder), stock)
        if diamond_map is not None:
            assert isinstance(diamond_map, DiamondMap), "no other kind is loaded into a pipeline"
            save_diamond_map(
                stage.path / MAP_FOLDER,
                diamond_map,
                defaults,
                diamond_map.training_facts,
                base_defaults=base_defaults,
                license=license,
            )
            write_model_card(stage.path, repo_id or str(folder), None, sample_prompt, grid)
        else:
            stage.obsolete |= {f"{MAP_FOLDER}/{name}" for name in MAP_FILES} | card_of_map(folder)
            write_defaults(stage.path, family.name, defaults)
            if push_to_hub:
                assert card_of_stock is not None, "it was made before the upload, which it is for"
                card_of_stock.save(stage.path / CARD_NAME)
    if not push_to_hub:
        return None
    assert repo_id is not None, "the repository was made"
    return upload(folder, repo_id, token, commit_message=commit_message, create_pr=create_pr)


def _write_base(pipeline: DiffusionPipeline, stage: Stage, folder: Path, options: Mapping[str, Any]) -> None:
    """Writes the pipeline as it is without adapters, wrappers and our scheduler; options as of the stock method."""
    with clean_weights(pipeline), stock_scheduler(pipeline):
        pipeline.save_pretrained(stage.path, **options)
    stage.obsolete |= _former_weights(stage.path, folder)


def _refuse_map_alone(folder: Path) -> None:
    """Refuses a folder whose Diamond Map, with a base elsewhere, would be loaded in place of the model saved there."""
    if (folder / CONFIG_NAME).exists():
        raise ValueError(
            f"save_directory is '{folder}', which holds a Diamond Map alone, which would be loaded in place of this "
            "model; name another folder"
        )


def _former_weights(new: Path, folder: Path) -> set[str]:
    """Weight files of an earlier save that would be read in place of the new ones, or along with them.

    These are weights of the same component and variant in another format or another number of files.
    """
    written = {(file.parent.relative_to(new), _variant_of(file)) for file in new.rglob("*")}
    return {
        str(file.relative_to(folder))
        for parent, variant in written
        if variant is not None
        for file in (folder / parent).glob("*")
        if _variant_of(file) == variant
    }


def _variant_of(file: Path) -> str | None:
    """The variant of the weights in a file, empty if they have none; None if the file holds no weights."""
    found = next(filter(None, (pattern.fullmatch(file.name) for pattern in _WEIGHTS)), None)
    return None if found is None else found["variant"]


def _check_stock(pipeline: DiffusionPipeline, options: Mapping[str, Any]) -> None:
    """Refuses arguments that the stock method would accept and ignore."""
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
    """One image made of several images of one size."""
    images = [] if isinstance(images, Image.Image) else list(images)
    if not all(isinstance(image, Image.Image) for image in images) or len({image.size for image in images}) != 1:
        raise TypeError("sample_images must be a list of PIL images of one size; give the .images of a call's output")
    # Loading a model needs none of it.
    from torchvision.transforms import functional
    from torchvision.utils import make_grid

    tensors = [functional.pil_to_tensor(image.convert("RGB")) for image in images]
    return functional.to_pil_image(make_grid(tensors, nrow=GRID_COLUMNS, pad_value=255))


def write_defaults(folder: str | os.PathLike[str], family: str, defaults: Mapping[str, Any]) -> None:
    """Writes call defaults beside a saved stock pipeline.

    Raises:
        TypeError, ValueError: the defaults hold a value that cannot be saved; raised before anything is written.
    """
    declaration = declare_defaults(family, defaults)
    with staged(Path(folder) / MAP_FOLDER) as stage:
        (stage.path / CONFIG_NAME).write_text(declaration)
