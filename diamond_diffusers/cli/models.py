"""The command `diamond-diffusers models`."""

from __future__ import annotations

import inspect

from rich.console import Console
from rich.markup import escape

from .options import first_sentence, text_table


def models() -> None:
    """Lists the model families, and the embedded model."""
    from ..families import FAMILIES
    from ..pipelines.loading import embedded_model, read_defaults

    table = text_table("diffusers pipeline", "family", "what")
    for name in FAMILIES.names():
        try:
            family = FAMILIES.get(name)
        except ImportError as error:
            table.add_row(name, "–", escape(f"not usable here: {error}"))
            continue
        table.add_row(name, family.name, escape(first_sentence(inspect.getmodule(family))))
    console = Console()
    console.print(table)
    folder = embedded_model()
    if not (folder / "model_index.json").exists():
        console.print("The embedded model is not installed.")
        return
    defaults = ", ".join(f"{key} {value!r}" for key, value in read_defaults(folder).items())
    console.print(f"Without --model the embedded miniature world is used: {defaults}.", soft_wrap=True)
