"""The option `--dry-run`: a command loads tiny random weights, and prints what it would cost with the real ones."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from .loading import check_model, model_defaults
from .loras import parsed_loras
from .options import MAX_COUNT
from .records import LoadingOptions, StockOptions

if TYPE_CHECKING:
    from ..evaluation.dry_run.counting import DryRun
    from ..rewards import Reward

DryRunFlag = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Draw a few prompts on a CPU, with tiny random weights in place of the model and the rewards, and print "
        "what the whole would cost; nothing large is downloaded, and nothing is written.",
    ),
]
DryRunPrompts = Annotated[
    int, typer.Option("--dry-run-prompts", min=1, max=MAX_COUNT, help="Prompts that --dry-run draws.")
]


@dataclass(frozen=True)
class StandIns:
    """What a dry run of a command loads, and where it may write.

    Attributes:
        model, loading, stock, prompts_source: to be taken in place of the command's options.
        folder: a temporary one, which is there until the command ends.
    """

    model: str | None
    loading: LoadingOptions
    stock: StockOptions
    prompts_source: str | None
    folder: Path


def stand_ins(
    context: typer.Context,
    model: str | None,
    loading: LoadingOptions,
    stock: StockOptions,
    prompts_source: str | None,
) -> StandIns:
    """Makes tiny random weights for everything that a command loads; the embedded model is small enough as it is.

    Args:
        context: of the command, whose other options follow.

    Raises:
        OSError, TypeError, ValueError: the model is not known, or there is no tiny pipeline of its class.
    """
    folder = Path(context.with_resource(tempfile.TemporaryDirectory()))
    placed = replace(
        loading,
        variant=None,
        revision=None,
        preview_vae=None,
        quantize=None,
        dtype="float32",
        device="cpu",
        offload=None,
    )
    prompts_source = _prompts(prompts_source, folder)
    if model is None and not loading.lora and loading.diamond_map is None:
        return StandIns(None, placed, stock, prompts_source, folder)
    from ..evaluation.dry_run.stand_ins import save_lora, save_map
    from ..pipelines.loading import embedded_model

    tiny, has_map = embedded_model(), loading.diamond_map is not None
    if model is not None:
        tiny, has_own_map = _saved(model, loading, stock, folder)
        has_map |= has_own_map
        # Those of the stand-in are part of it.
        stock = replace(stock, height=None, width=None)
    texts = []
    for number, lora in enumerate(parsed_loras(loading.lora or ())):
        file = folder / f"lora_{number}.safetensors"
        save_lora(tiny, lora.source, lora.weight_name, file)
        texts.append(f"{lora.name}={file}={lora.weight}")
    if has_map:
        save_map(tiny, folder / "map")
    placed = replace(placed, lora=texts or None, diamond_map=str(folder / "map") if has_map else None)
    return StandIns(None if model is None else str(tiny), placed, stock, prompts_source, folder)


def _saved(model: str, loading: LoadingOptions, stock: StockOptions, folder: Path) -> tuple[Path, bool]:
    """The folder of a tiny pipeline in a model's place, and whether the model comes with a Diamond Map."""
    from ..evaluation.dry_run.checkpoints import is_known
    from ..evaluation.dry_run.stand_ins import save_stand_in
    from ..pipelines.loading import base_of, find_map

    size = (stock.height, stock.width)
    if is_known(model):
        # It declares no defaults.
        return save_stand_in(model, folder, *size), False
    hub: dict[str, Any] = {} if loading.revision is None else {"revision": loading.revision}
    defaults = model_defaults(model, replace(loading, diamond_map=None))
    found = find_map(model, hub)
    base, hub = base_of(model, hub, found)
    check_model(str(base), hub)
    return save_stand_in(str(base), folder, *size, defaults, **hub), found is not None


def _prompts(source: str | None, folder: Path) -> str | None:
    """A file of as many texts as a published one holds, so that it is not downloaded; another source as it is."""
    from ..evaluation.known_prompts import KNOWN_PROMPTS

    if source not in KNOWN_PROMPTS:
        return source
    file = folder / "prompts.txt"
    file.write_text("".join(f"prompt {number}\n" for number in range(KNOWN_PROMPTS[source].num_prompts)))
    return str(file)


def dry_reward(expression: str | None, defaults: Mapping[str, Any]) -> Reward | None:
    """A stand-in of the reward of an expression, else of the model's own, if it has one."""
    from ..evaluation.dry_run.rewards import stand_in_reward

    expression = defaults.get("reward") if expression is None else expression
    return None if expression is None else stand_in_reward(expression)


def refuse_with_dry_run(**options: Any) -> None:
    """Raises a `ValueError` for an option that a dry run cannot tell the cost of; `options` by the flag's name."""
    _refuse(options, "whose cost depends on the scores of a real reward, which --dry-run does not ask")


def refuse_of_real_runs(**options: Any) -> None:
    """Raises a `ValueError` for an option about what a real run draws or how long it takes; `options` as above."""
    _refuse(options, "which is about images or seconds of a real run, of which --dry-run has none")


def _refuse(options: Mapping[str, Any], why: str) -> None:
    for name, value in options.items():
        # A switch that is off, too, is not given.
        if value is not None and value is not False:
            raise ValueError(f"--{name.replace('_', '-')} is {value}, {why}; drop one of them")


def print_dry_runs(runs: list[DryRun]) -> None:
    """Prints what was counted."""
    from ..evaluation.dry_run.counting import table
    from ..evaluation.text_tables import rich_table

    console = Console()
    console.print(rich_table(table(runs)))
    tried = " or ".join(str(count) for count in sorted({run.num_tried for run in runs}))
    text = (
        f"Counted on {runs[0].num_drawn} of {runs[0].num_images} images, with tiny random weights. An evaluation under "
        "classifier-free guidance counts 2. 'backward counts 2' is what --budgets and --max-network-evaluations "
        "limit; 'forward alone' leaves backward passes out, as many papers do. The reward calls of all images hold "
        f"the trials of the reward before sampling: {tried} for each call, of which there are {runs[0].num_calls}."
    )
    console.print(text, soft_wrap=True, highlight=False, markup=False)
