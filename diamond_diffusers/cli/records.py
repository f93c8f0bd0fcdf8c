"""Options that several commands share, as records."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Annotated, Any, get_type_hints

import typer

from .options import MAX_PIXELS, checked_texts

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
