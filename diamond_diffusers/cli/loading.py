"""How the commands load a model and its reward: every option is checked before anything large is downloaded."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..pipelines.quantization import cast_layerwise, check_quantization, quantization_config
from .loras import Lora, parsed_loras
from .options import usable_device, weights_dtype
from .records import LoadingOptions

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..families.base import Family
    from ..pipelines.pipeline import DiamondMapPipeline
    from ..rewards import Reward

OFFLOADS = ("model", "group", "sequential")

ModelName = Annotated[
    str | None, typer.Option(help="Folder or Hub repository of a diffusers pipeline; by default the embedded model.")
]
RewardExpression = Annotated[
    str | None,
    typer.Option("--reward", help="Such as '5*clip - miniature, nsfw < 0.2'; by default the model's own."),
]
RewardScale = Annotated[
    float | None,
    typer.Option(
        help="Multiplies the reward in the law p(image) exp(scale * reward); by default the model's own, else the "
        "reward's."
    ),
]
FoundRewardScale = Annotated[
    str | None,
    typer.Option(
        "--reward-scale",
        metavar="FLOAT|auto",
        help="Multiplies the reward in the law p(image) exp(scale * reward); by default the model's own, else the "
        "reward's. 'auto' finds that of each prompt from the rewards of 32 plain samples, drawn besides.",
    ),
]


def model_defaults(model: str | None, loading: LoadingOptions, source: str = "--model") -> dict[str, Any]:
    """The call defaults of a model and its Diamond Map, known before they are loaded."""
    from ..pipelines.loading import embedded_model, find_map, read_defaults

    if model is None and not (embedded_model() / "model_index.json").exists():
        raise ValueError("The embedded model is not installed; reinstall diamond-diffusers, or name one with --model")
    with _blaming(_named(model, source)):
        defaults = read_defaults(model or embedded_model(), **_hub(loading))
    if loading.diamond_map is not None:
        with _blaming(f"--diamond-map is {loading.diamond_map!r}, which", "give a folder or Hub repository of one"):
            found = find_map(loading.diamond_map, {})
        defaults |= {} if found is None else found.config["defaults"]
    return defaults


def named_reward(expression: str | None, defaults: dict[str, Any]) -> Reward | None:
    """The reward of an expression, else the model's own, if it has one."""
    from ..rewards import as_reward

    expression = defaults.get("reward") if expression is None else expression
    return None if expression is None else as_reward(expression)


def own_alignment(defaults: dict[str, Any], reward: Reward | None) -> str | Mapping[str, Any]:
    """The method of a run that names none, which is that of a call in Python, known before the model is loaded."""
    from ..pipelines.resolution import own_method

    return own_method(reward, defaults)  # type: ignore[return-value]


def load_model(model: str | None, loading: LoadingOptions, output: Path, source: str = "--model") -> DiamondMapPipeline:
    """The model where it is to compute, after a look at what else the run needs.

    Args:
        output: folder that the run writes to.
        source: what names the model, for the user.

    Raises:
        ValueError: an option is wrong, or cannot be used with another or with this model or machine.
    """
    from ..files.output import prepare_folder

    device = usable_device(loading.device)
    # The embedded model is small enough for float32 anywhere.
    dtype = weights_dtype(loading.dtype, "cpu" if model is None else device, loading.quantize is not None)
    loras = _check_options(model, loading, device)
    with _blaming(_named(model, source)):
        base = _located(model, loading)
    _check_parts(base, loading, loras)
    prepare_folder(output)
    preview_vae = _preview_vae(loading, dtype)
    with _blaming(_named(model, source)):
        pipe = _stock_model(model, base, loading, dtype)
    _add_parts(pipe, loading, loras, preview_vae)
    if loading.quantize == "fp8":
        cast_layerwise(pipe.family.network_module, dtype)
    _place(pipe, loading.offload, device)
    return pipe


def found_reward_scale(text: str | None) -> float | Literal["auto"] | None:
    """The scale that a call is given.

    Raises:
        ValueError: the text is neither a number nor auto.
    """
    from ..alignment.reward_scales import check_reward_scale
    from ..core.conversions import Texts

    scale: float | Literal["auto"] | None = Texts().fitted(text, float | Literal["auto"] | None, "--reward-scale")
    if isinstance(scale, float):
        check_reward_scale(scale, "--reward-scale")
    return scale


@dataclass(frozen=True)
class _Base:
    """A pipeline that is to be loaded.

    Attributes:
        place: folder or Hub repository.
        hub: options of the Hub.
        class_name: of the stock pipeline.
        family: class of the family.
    """

    place: str | os.PathLike[str]
    hub: dict[str, Any]
    class_name: str
    family: type[Family]

    def config(self, component: str) -> dict[str, Any]:
        """The settings of a component, of which a small file alone is read."""
        from diffusers import AutoModel

        return AutoModel.load_config(self.place, subfolder=component, **self.hub)


def _located(model: str | None, loading: LoadingOptions) -> _Base:
    from ..families.registry import check_supported
    from ..pipelines.loading import base_of, check_class, embedded_model, find_map

    named, hub = model or embedded_model(), _hub(loading)
    place, hub = base_of(named, hub, find_map(named, hub))
    class_name = check_class(place, **hub)
    return _Base(place, hub, class_name, check_supported(class_name))


def _hub(loading: LoadingOptions) -> dict[str, Any]:
    return {} if loading.revision is None else {"revision": loading.revision}


def _check_options(model: str | None, loading: LoadingOptions, device: str) -> list[Lora]:
    """Checks what can be told from the options and this machine alone, and returns the LoRAs."""
    from ..core.checks import check_choice

    if loading.offload is not None:
        check_choice("--offload", loading.offload, OFFLOADS)
        if device.startswith("cpu"):
            raise ValueError(
                f"--offload is {loading.offload!r}, but the device is the CPU, where all weights are anyway; leave it "
                "out, or name an accelerator with --device"
            )
    if loading.quantize is not None:
        check_quantization(loading.quantize, device, loading.offload)
    is_local = model is None or os.path.isdir(model)
    if loading.revision is not None and is_local:
        place = "the embedded model" if model is None else f"the folder {model!r}"
        raise ValueError(f"--revision is {loading.revision!r}, but {place} has no revisions; leave it out")
    if loading.variant is not None and model is None:
        raise ValueError(f"--variant is {loading.variant!r}, but the embedded model has no variants; leave it out")
    loras = parsed_loras(loading.lora or ())
    if loading.few_step is not None:
        _few_step(loading.few_step, loras)
    return loras


def _few_step(text: str, loras: list[Lora]) -> bool | tuple[str, ...]:
    """What `few_step` of the pipeline takes."""
    if text in ("true", "false"):
        return text == "true"
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if all(name != lora.name for lora in loras):
            known = ", ".join(lora.name for lora in loras) or "none"
            raise ValueError(
                f"--few-step is {text!r}, but the adapters that --lora names are {known}; give true, false or names of "
                "these"
            )
    return names


def _check_parts(base: _Base, loading: LoadingOptions, loras: list[Lora]) -> None:
    """Checks the parts beside the base by their small files, before the base is downloaded."""
    from ..families.lora_files import read_lora
    from ..maps.map_config import check_base_config, read_map_config
    from ..pipelines.loading import class_of, find_map

    for lora in loras:
        stock = class_of(base.class_name)
        if not hasattr(stock, "load_lora_weights"):
            raise ValueError(f"--lora is {lora.text!r}, but diffusers loads no LoRA into a {base.class_name}")
        with _blaming(f"--lora is {lora.text!r}, which", f"give a LoRA of a {base.class_name}"):
            read_lora(stock, lora.source, **lora.options)
    if loading.preview_vae is not None:
        with _blaming(f"--preview-vae is {loading.preview_vae!r}, which", "give an AutoencoderTiny of diffusers"):
            _check_preview_vae(base, loading.preview_vae)
    if loading.diamond_map is not None:
        with _blaming(f"--diamond-map is {loading.diamond_map!r}, which", "give a map of this model"):
            found = find_map(loading.diamond_map, {})
            config = read_map_config(loading.diamond_map) if found is None else found.config
            network = base.config(base.family.network_name)
            check_base_config(base.family.name, {**network, "network": network.get("_class_name")}, config)


def _check_preview_vae(base: _Base, source: str) -> None:
    from diffusers import AutoencoderTiny

    tiny, full = AutoencoderTiny.load_config(source), base.config("vae")
    if tiny.get("_class_name") != "AutoencoderTiny":
        raise ValueError(f"it is a {tiny.get('_class_name')}")
    channels, own = tiny.get("latent_channels", 4), full.get("latent_channels") or full.get("z_dim")
    if own is not None and channels != own:
        raise ValueError(f"its latents have {channels} channels, but those of the model {own}")


def _preview_vae(loading: LoadingOptions, dtype: torch.dtype) -> nn.Module | None:
    if loading.preview_vae is None:
        return None
    from diffusers import AutoencoderTiny

    with _blaming(f"--preview-vae is {loading.preview_vae!r}, which", "give an AutoencoderTiny of diffusers"):
        return AutoencoderTiny.from_pretrained(loading.preview_vae, torch_dtype=dtype)


def _stock_model(model: str | None, base: _Base, loading: LoadingOptions, dtype: torch.dtype) -> DiamondMapPipeline:
    """The model as it was saved, quantised if that is done on loading."""
    from ..pipelines.loading import class_of
    from ..pipelines.pipeline import DiamondMapPipeline

    options: dict[str, Any] = _hub(loading)
    if loading.variant is not None:
        options["variant"] = loading.variant
    if loading.quantize is not None:
        index = class_of(base.class_name).load_config(base.place, **base.hub)
        config = quantization_config(loading.quantize, index, base.family.network_name, dtype)
        options |= {} if config is None else {"quantization_config": config}
    return DiamondMapPipeline.from_pretrained(model, dtype=dtype, **options)


def _add_parts(
    pipe: DiamondMapPipeline, loading: LoadingOptions, loras: list[Lora], preview_vae: nn.Module | None
) -> None:
    """Adds the Diamond Map, the LoRAs and the decoder of look-aheads."""
    if loading.diamond_map is not None:
        with _blaming(f"--diamond-map is {loading.diamond_map!r}, which", "give a map of this model"):
            pipe.load_diamond_map(loading.diamond_map)
    for lora in loras:
        with _blaming(f"--lora is {lora.text!r}, which", "give a LoRA of this model"):
            pipe.load_lora_weights(lora.source, adapter_name=lora.name, **lora.options)
    if len(loras) > 1 or any(lora.weight != 1 for lora in loras):
        pipe.set_adapters([lora.name for lora in loras], [lora.weight for lora in loras])
    if loading.few_step is not None:
        pipe.few_step = _few_step(loading.few_step, loras)  # type: ignore[misc]
    if preview_vae is not None:
        pipe.preview_vae = preview_vae  # type: ignore[misc]


def _place(pipe: DiamondMapPipeline, offload: str | None, device: str) -> None:
    """Moves the model to its device, or has diffusers move what is used there."""
    import torch

    if offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    elif offload == "group":
        streams = device.startswith("cuda")
        pipe.enable_group_offload(
            torch.device(device), offload_type="block_level", num_blocks_per_group=1, use_stream=streams
        )
    else:
        pipe.to(device)
    if pipe.preview_vae is not None:
        pipe.preview_vae.to(device)


def _named(model: str | None, source: str = "--model") -> str:
    return f"{source} is not given, and the embedded model" if model is None else f"{source} is {model!r}, which"


@contextmanager
def _blaming(
    subject: str, remedy: str = "give a folder or Hub repository of a pipeline that `diamond-diffusers models` lists"
) -> Iterator[None]:
    """Turns the many ways in which something cannot be loaded into one sentence."""
    from ..files.foreign_models import UNLOADABLE, why_unloadable

    try:
        yield
    except UNLOADABLE as error:
        reason = why_unloadable(error).split(" (")[0]
        raise ValueError(f"{subject} cannot be loaded ({reason}); {remedy}") from error
