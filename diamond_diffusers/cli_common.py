"""What the commands share."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")


def usable_device(device: str) -> str:
    """The device by that name; "auto" is a GPU where there is one.

    Raises:
        ValueError: it is not usable on this machine.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device is {device!r}, which is not usable here; take cpu or auto") from error
    return device


def named_dtype(dtype: str) -> torch.dtype:
    """The dtype by that name.

    Raises:
        ValueError: there is no such dtype for weights.
    """
    import torch

    if dtype not in DTYPES:
        raise ValueError(f"--dtype is {dtype!r}; choose auto, float32, bfloat16 or float16")
    return getattr(torch, dtype)


def text_table(*headers: str) -> Table:
    """An empty table."""
    table = Table()
    for header in headers:
        # Long words are broken, not cut.
        table.add_column(header, overflow="fold")
    return table


def first_sentence(documented: Any) -> str:
    """Of an object's documentation, without markup."""
    paragraph = (inspect.getdoc(documented) or "–").split("\n\n")[0]
    return paragraph.replace("\n", " ").replace("`", "").split(". ")[0].split("; ")[0].removesuffix(".")
