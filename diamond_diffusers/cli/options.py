"""Options, checks and tables that all commands use."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer
from rich.table import Table

from ..files.foreign import writable

if TYPE_CHECKING:
    import torch

Number = TypeVar("Number", int, float)
MAX_SEED = 2**62
MAX_COUNT = 100_000
"""Of particles, steps, images and the like."""
MAX_PIXELS = 16_384
MAX_NUMBER = 10**9
DTYPES = ("float32", "bfloat16", "float16")


def checked_texts(option: typer.CallbackParam, given: Any) -> Any:
    """What a terminal handed over for an option; raises a `ValueError` where that is no text."""
    for text in [given] if isinstance(given, str) else given or ():
        if (shown := writable(text)) != text:
            name = option.metavar or option.opts[0]
            raise ValueError(f"{name} is '{shown}', which is not in UTF-8; set the terminal to UTF-8, or write it anew")
    return given


def all_texts(given: Sequence[str] | None, source: str | None, name: str) -> list[str]:
    """The texts that a command was given, then those of a file of prompts.

    Args:
        source: what `--prompts` names.
        name: of what gives texts besides `--prompts`, for the user.

    Raises:
        ValueError: there is none, or the file cannot be read.
    """
    from ..evaluation.benchmark.prompts import prompts_in
    from ..evaluation.known_prompts import find_prompts

    texts = list(given or ())
    if source is not None:
        texts += [prompt.text for prompt in prompts_in(find_prompts(source))]
    if not texts:
        raise ValueError(f"{name} is not given, and neither is --prompts; give at least one text")
    return texts


PromptsSource = Annotated[
    str | None,
    typer.Option(
        "--prompts",
        metavar="NAME|FILE",
        callback=checked_texts,
        help="Name of a benchmark, such as geneval or dpg_bench; its file, or one with a prompt a line (.txt); or "
        "OWNER/REPOSITORY/FILE[@REVISION] of a data set on the Hub.",
    ),
]
Device = Annotated[str, typer.Option(help="Such as cuda, cuda:1, xpu, mps or cpu; 'auto' is a GPU where there is one.")]
DType = Annotated[
    str,
    typer.Option(
        help="float32, bfloat16 or float16; 'auto' is bfloat16 for quantised models and for named ones on a GPU, else "
        "float32."
    ),
]
Offload = Annotated[
    str | None,
    typer.Option(
        help="Keeps weights off the accelerator while they are not used: model (one component at a time), group "
        "(block by block, on CUDA the next one ahead of its use) or sequential (layer by layer, the least, slow)."
    ),
]
ParticleBatchSize = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=MAX_COUNT,
        help="Most rows of one network call, all of one image, which is then the same in every batch; by default those "
        "of all images at once, and fewer where memory is short.",
    ),
]


def usable_device(device: str) -> str:
    """The device by that name; "auto" is a GPU where there is one.

    Raises:
        ValueError: it is not usable on this machine.
    """
    import torch

    from ..alignment.free_memory import ACCELERATORS

    if device == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        return found.type if found is not None and found.type in ACCELERATORS else "cpu"
    try:
        # Where nothing can be read back, as from "meta", nothing can be drawn.
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ValueError(f"--device is {device!r}, which is not usable here; take cpu or auto") from error
    return device


def weights_dtype(dtype: str, device: str, is_quantized: bool = False) -> torch.dtype:
    """The dtype by that name; "auto" is bfloat16 on a GPU and for quantised models, and float32 on a CPU.

    Raises:
        ValueError: there is no such dtype for weights.
    """
    auto = "float32" if device.startswith("cpu") and not is_quantized else "bfloat16"
    return named_dtype(auto if dtype == "auto" else dtype)


def named_dtype(dtype: str) -> torch.dtype:
    """The dtype by that name.

    Raises:
        ValueError: there is no such dtype for weights.
    """
    import torch

    if dtype not in DTYPES:
        raise ValueError(f"--dtype is {dtype!r}; choose auto, float32, bfloat16 or float16")
    return getattr(torch, dtype)


def positive_numbers(option: str, text: str, number: Callable[[str], Number], example: str) -> list[Number]:
    """The numbers of an option that takes several, separated by commas.

    Raises:
        ValueError: one is no number, not positive, or above `MAX_NUMBER`.
    """
    try:
        found = [number(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 < each <= MAX_NUMBER for each in found):
        raise ValueError(f"{option} is {text!r}; give positive numbers such as {example}, up to {MAX_NUMBER}")
    return found


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


PlannedBatchSize = Annotated[
    str | None,
    typer.Option(
        "--particle-batch-size",
        metavar="INTEGER|auto",
        help="Most rows of one network call, all of one image, which is then the same in every batch. 'auto', the "
        "default on accelerators, is what fits into memory; by default a CPU takes those of all images at once, and "
        "fewer where memory is short.",
    ),
]
PlannedCheckpointing = Annotated[
    str | None,
    typer.Option(
        "--gradient-checkpointing",
        metavar="true|false|auto",
        help="Evaluate again on the backward pass, instead of holding what was computed. 'auto', the default on "
        "accelerators, does so for what does not fit into memory.",
    ),
]


def memory_options(particle_batch_size: str | None, gradient_checkpointing: str | None) -> dict[str, Any]:
    """The options of a call that say how it uses memory, from those of a command.

    Raises:
        ValueError: one is neither a value of its own nor auto.
    """
    from ..core.checks import check_counts
    from ..core.conversions import Texts

    size = Texts().fitted(particle_batch_size, int | Literal["auto"] | None, "--particle-batch-size")
    if isinstance(size, int):
        check_counts(**{"--particle-batch-size": size})
    checkpointing = Texts().fitted(gradient_checkpointing, bool | Literal["auto"] | None, "--gradient-checkpointing")
    return {"particle_batch_size": size, "gradient_checkpointing": checkpointing}
