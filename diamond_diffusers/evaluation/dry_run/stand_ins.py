"""Tiny random weights in the place of a checkpoint, its LoRAs and its Diamond Map, saved where a command loads them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import save_file

from ...families.lora_files import read_lora
from ...families.two_time import TwoTimeEmbedder
from ...maps.diamond_map import DiamondMap
from ...maps.storage import save_diamond_map
from ...pipelines.loading import class_of
from ...pipelines.pipeline import DiamondMapPipeline
from .checkpoints import Checkpoint, find_checkpoint
from .parts import Part, build_components

TOKEN = 16
"""Pixels of a token's side, in the models whose noise levels depend on the number of tokens."""
FLOW_MAPS = ("gabeguofanclub/flux-1-dev-flowmap-lsd",)
"""Repositories of LoRAs of two times, which make FLUX a flow map."""
_SECOND_TIME = "time_text_embed.second_embedder."


def save_stand_in(
    model: str,
    folder: Path,
    height: int | None = None,
    width: int | None = None,
    defaults: Mapping[str, Any] | None = None,
    **hub: Any,
) -> Path:
    """Saves a tiny random pipeline of a checkpoint's class, with its scheduler and noise levels; its images are tiny.

    Args:
        model: folder or Hub repository of the checkpoint.
        folder: into which the pipeline's is put, under a name by which few-step models are recognised.
        height, width: of the images that the checkpoint would draw; None for its own.
        defaults: call defaults that the checkpoint declares.
        **hub: options of the Hub.

    Returns:
        The folder of the pipeline.

    Raises:
        OSError, TypeError, ValueError: the checkpoint is not known, or there is no tiny pipeline of its class.
    """
    checkpoint = find_checkpoint(model, hub)
    tiny = checkpoint.tiny
    own = checkpoint.pixels or tiny.pixels
    network = tiny.components[tiny.network]
    assert isinstance(network, Part), "the network of a tiny pipeline is a part"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        components = build_components({**tiny.components, tiny.network: network.with_config(checkpoint.network)})
    scheduler = _scheduler(checkpoint, height or own, width or own)
    pipeline = class_of(checkpoint.pipeline)(**components, scheduler=scheduler, **tiny.options)
    pipeline.set_progress_bar_config(disable=True)
    target = folder / re.sub(r"[^\w.-]", "_", Path(model).name)
    DiamondMapPipeline(pipeline, {**(defaults or {}), **tiny.call}).save_pretrained(target)
    return target


def _scheduler(checkpoint: Checkpoint, height: int, width: int) -> Any:
    """The checkpoint's scheduler, whose noise levels are those of images of that size, whatever the size of ours."""
    scheduler = checkpoint.scheduler.build()
    config = scheduler.config
    if not config.get("use_dynamic_shifting"):
        return scheduler
    shift = calculate_shift(
        (height // TOKEN) * (width // TOKEN),
        config.get("base_image_seq_len", 256),
        config.get("max_image_seq_len", 4096),
        config.get("base_shift", 0.5),
        config.get("max_shift", 1.15),
    )
    return type(scheduler).from_config(config, base_shift=shift, max_shift=shift)


def save_lora(model: Path, source: str, weight_name: str | None, file: Path) -> None:
    """Saves a random LoRA of a tiny pipeline; it is one of two times where the LoRA that it stands for is.

    Args:
        model: folder of the tiny pipeline.
        source, weight_name: file, folder or Hub repository of the LoRA that it stands for, and the file in it.
        file: which is written.
    """
    pipe = DiamondMapPipeline.from_pretrained(model)
    network, prefix = pipe.family.network_module, pipe.family.network_name
    targets = ["to_q", "to_v"]
    if _is_two_time(type(pipe.pipeline), source, weight_name):
        network.time_text_embed = TwoTimeEmbedder(network.time_text_embed)
        targets += ["timestep_embedder.linear_1", "timestep_embedder.linear_2"]
    inject_adapter_in_model(LoraConfig(r=1, lora_alpha=1, target_modules=targets, init_lora_weights=False), network)
    weights = get_peft_model_state_dict(network)
    save_file({f"{prefix}.{name}": weight.contiguous() for name, weight in weights.items()}, file)


def _is_two_time(pipeline: Any, source: str, weight_name: str | None) -> bool:
    if not Path(source).exists():
        return source in FLOW_MAPS
    options = {} if weight_name is None else {"weight_name": weight_name}
    return any(_SECOND_TIME in key for key in read_lora(pipeline, source, **options))


def save_map(model: Path, folder: Path) -> None:
    """Saves a new Diamond Map of a tiny pipeline, into which no guidance is baked."""
    pipe = DiamondMapPipeline.from_pretrained(model)
    pipe.unload_diamond_map()
    save_diamond_map(folder, DiamondMap(pipe.family, rank=1), pipe.defaults, {}, base_model=str(model))
