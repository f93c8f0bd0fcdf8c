"""The command `diamond-diffusers check`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from .interruption import interruptible
from .loading import load_model, model_defaults, named_reward
from .options import MAX_COUNT, MAX_SEED, checked_texts, text_table
from .records import LoadingOptions, StockOptions, takes_records

if TYPE_CHECKING:
    from ..evaluation.check.checks import Found

ModelArgument = Annotated[
    str | None,
    typer.Argument(metavar="MODEL", help="Folder or Hub repository of a diffusers pipeline; else the embedded model."),
]
Prompt = Annotated[str, typer.Option(callback=checked_texts, help="What is drawn.")]
RewardExpression = Annotated[
    str | None, typer.Option("--reward", help="A reward to try besides brightness; by default the model's own.")
]
NumSteps = Annotated[
    int | None,
    typer.Option("--num-inference-steps", min=1, max=MAX_COUNT, help="Steps of each image; 2 or 4 by default."),
]
Seed = Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Of every image.")]
Report = Annotated[Path, typer.Option(dir_okay=False, help="The JSON file to attach to a report.")]
STYLES = {"passed": "green", "failed": "bold red", "measured": "", "skipped": "dim"}
"""Of verdicts."""


@takes_records
def check(
    model: ModelArgument = None,
    *,
    prompt: Prompt = "a red circle",
    reward: RewardExpression = None,
    num_inference_steps: NumSteps = None,
    seed: Seed = 0,
    stock: StockOptions,
    loading: LoadingOptions,
    output: Report = Path("out/check.json"),
) -> None:
    """Checks a model on this machine: the stock image, gradients, a rising reward, time and memory."""
    from ..evaluation.check.checks import FAILED, run_checks
    from ..evaluation.check.report import report
    from ..evaluation.check.runs import Runs
    from ..evaluation.files import write_json

    own = named_reward(reward, model_defaults(model, loading, "MODEL"))
    pipe = load_model(model, loading, output.parent, "MODEL")
    own = None if own is None else own.to(device=pipe.family.device)
    arguments = {"num_inference_steps": num_inference_steps, **stock.given()}
    found: dict[str, Found] = {}
    with interruptible(pipe, "the rows so far") as is_interrupted:
        runs = Runs(pipe, prompt, arguments, own, seed, is_interrupted)
        # What is asked for wrongly is no fault of the model, of which every row would tell.
        pipe.prepare(**runs.call)
        with Console(stderr=True).status("") as status:
            for name, each in run_checks(runs, lambda name: status.update(name)):
                if is_interrupted():
                    break
                found[name] = each
        settings = {"model": model or "embedded", "loading": loading.of_weights(), "offload": loading.offload}
        write_json(output, report(runs, found, settings))
        _print(found)
        Console().print(f"The report to attach is {output}", soft_wrap=True, markup=False, highlight=False)
    if any(each.verdict == FAILED for each in found.values()):
        raise typer.Exit(1)


def _print(found: dict[str, Found]) -> None:
    table = text_table("check", "verdict", "what was found")
    for name, each in found.items():
        table.add_row(name, Text(each.verdict, STYLES[each.verdict]), escape(each.told))
    Console().print(table)
