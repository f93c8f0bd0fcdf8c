"""Options that several commands share, as records."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Annotated, Any, get_type_hints

import typer

from .options import MAX_PIXELS, Device, DType, Offload, checked_texts

Pixels = Annotated[int | None, typer.Option(min=1, max=MAX_PIXELS, help="In pixels; by default the model's own.")]


@dataclass(frozen=True)
class StockOptions:
    """Options for arguments of the stock pipeline's `__call__`; None stands for the model's own.

    Example:
        >>> StockOptions(guidance_scale=3.0, height=64).given()
        {'guidance_scale': 3.0, 'height': 64}
    """

    guidance_scale: Annotated[
        float | None, typer.Option(help="The model's prompt guidance (embedded in FLUX.1-dev).")
    ] = None
    true_cfg_scale: Annotated[float | None, typer.Option(help="FLUX's classifier-free guidance.")] = None
    negative_prompt: Annotated[
        str | None, typer.Option(callback=checked_texts, help="What classifier-free guidance leads away from.")
    ] = None
    height: Pixels = None
    width: Pixels = None

    def given(self) -> dict[str, Any]:
        """Those that are not None, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class WeightOptions:
    """Options that say which weights a model is made of; by default those that were saved with it."""

    variant: Annotated[str | None, typer.Option(help="Of the model's weight files, such as fp16.")] = None
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of the model's repository on the Hub.")
    ] = None
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]SOURCE[=WEIGHT]",
            callback=checked_texts,
            help="A LoRA: file, folder, Hub repository, or OWNER/REPOSITORY/FILE; its adapter name is default_0, "
            "default_1... by default, and its weight 1; may come several times.",
        ),
    ] = None
    few_step: Annotated[
        str | None,
        typer.Option(
            help="true or false: whether the model is a few-step one; or the names of the --lora, separated by commas, "
            "that make it one. By default the checkpoint decides."
        ),
    ] = None
    diamond_map: Annotated[str | None, typer.Option(help="Folder or Hub repository of a Diamond Map of the model.")] = (
        None
    )
    preview_vae: Annotated[
        str | None,
        typer.Option(help="Folder or Hub repository of an AutoencoderTiny of the model's latents, for look-aheads."),
    ] = None
    quantize: Annotated[
        str | None,
        typer.Option(
            help="nf4 (bitsandbytes) or int8 (torchao): of the network and the large text encoders; fp8: the network's "
            "weights as they are stored, each cast while it is used."
        ),
    ] = None

    def of_weights(self) -> dict[str, Any]:
        """These options by name, for a record: they decide what is drawn, and where it is drawn does not."""
        return {field.name: getattr(self, field.name) for field in fields(WeightOptions)}


@dataclass(frozen=True)
class LoadingOptions(WeightOptions):
    """Options that say how a model is loaded; by default whole, on one device.

    Example:
        >>> LoadingOptions(variant="fp16", offload="model").of_weights()["variant"]
        'fp16'
    """

    dtype: DType = "auto"
    device: Device = "auto"
    offload: Offload = None


def takes_records(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameters may be records of options: typer, which knows no records, sees their fields.

    Args:
        command: its parameters are options, or dataclasses whose fields are.

    Example:
        >>> @takes_records
        ... def show(text: str, *, stock: StockOptions) -> None: ...
        >>> list(inspect.signature(show).parameters)
        ['text', 'guidance_scale', 'true_cfg_scale', 'negative_prompt', 'height', 'width']
    """
    hints = get_type_hints(command, include_extras=True)
    records: dict[str, Any] = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name in records:
            parameters += _options_of(records[name])
        else:
            parameters.append(parameter.replace(annotation=hints[name]))

    @functools.wraps(command)
    def with_records(*given: Any, **options: Any) -> None:
        made = {
            name: record(**{field.name: options.pop(field.name) for field in fields(record) if field.name in options})
            for name, record in records.items()
        }
        command(*given, **options, **made)

    # typer reads both.
    with_records.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_records.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return with_records


def _options_of(record: type) -> list[inspect.Parameter]:
    """The fields of a record as parameters of a function."""
    hints, keyword = get_type_hints(record, include_extras=True), inspect.Parameter.KEYWORD_ONLY
    return [
        inspect.Parameter(field.name, keyword, default=field.default, annotation=hints[field.name])
        for field in fields(record)
    ]
