"""The command `python -m benchmarks.posteriors`."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from diamond_diffusers.cli.loading import (
    ModelName,
    RewardExpression,
    RewardScale,
    load_model,
    model_defaults,
    named_reward,
)
from diamond_diffusers.cli.options import MAX_COUNT, MAX_SEED, checked_texts, positive_numbers
from diamond_diffusers.cli.records import LoadingOptions, takes_records
from diamond_diffusers.evaluation.benchmark.records import fingerprint, modules_of
from diamond_diffusers.evaluation.text_tables import rich_table
from diamond_diffusers.pipelines.resolution import own_reward_scale

from ..command_line import command
from .comparison import Settings, compare_posteriors
from .observations import rendered_latents, sampled_latents, shuffled_captions, tilted_law
from .report import text_tables, write_report

Levels = Annotated[
    str, typer.Option(help="Noise levels as times of rectified flow, above 0 and up to 1, separated by commas.")
]
Prompts = Annotated[
    list[str] | None,
    typer.Option(
        "--prompt",
        callback=checked_texts,
        help="Whose samples are observed, in turn; by default renders of held-out captions.",
    ),
]
NumObservations = Annotated[int, typer.Option(min=2, max=MAX_COUNT, help="Observations at each level.")]
NumSamples = Annotated[int, typer.Option(min=4, max=MAX_COUNT, help="Look-aheads of each observation; an even number.")]
Seed = Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Of all draws.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Rows of one network, decoder or reward call.")]
Results = Annotated[Path, typer.Option(help="Folder of the tables, the plot and the record.")]


@takes_records
def benchmark_posteriors(
    *,
    model: ModelName = None,
    prompt: Prompts = None,
    levels: Levels = "0.3,0.5,0.7,0.9,1.0",
    num_observations: NumObservations = 6,
    num_samples: NumSamples = 16,
    seed: Seed = 0,
    batch_size: BatchSize = 16,
    reward: RewardExpression = None,
    reward_scale: RewardScale = None,
    loading: LoadingOptions,
    output: Results = Path("out/posteriors"),
) -> None:
    """Compares posterior samplers with a fine GLASS posterior: their laws, and the values that they give."""
    settings = Settings(positive_numbers("--levels", levels, float, "0.3,0.5,0.9"), num_samples, seed=seed)
    captions = [] if prompt else shuffled_captions(num_observations, seed)
    texts = [prompt[i % len(prompt)] for i in range(num_observations)] if prompt else [c.text for c in captions]
    scored_by = named_reward(reward, model_defaults(model, loading))
    pipe = load_model(model, loading, output)
    pipe.set_progress_bar_config(disable=True)
    # A Diamond Map brings defaults of its own.
    scored_by = scored_by or named_reward(None, pipe.defaults)
    scale = own_reward_scale(scored_by, pipe.defaults) if reward_scale is None else reward_scale
    settings.reference.check(pipe.family)
    clean = sampled_latents(pipe, texts, seed, batch_size) if prompt else rendered_latents(pipe, captions, seed)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with (
        tilted_law(pipe, texts, scored_by, scale, batch_size) as tilted,
        Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as progress,
    ):
        bar = progress.add_task("levels", total=len(settings.levels))
        result = compare_posteriors(tilted, clean, settings, on_level=lambda done: progress.update(bar, completed=done))
    facts = {
        "model": model or "embedded",
        "loading": loading.of_weights(),
        "model_weights": fingerprint(modules_of({**pipe.components, "diamond_map": pipe.family.posterior_map})),
        "model_defaults": pipe.defaults,
        "dtype": str(pipe.dtype),
        "reward": None if scored_by is None else scored_by.name,
        "reward_scale": scale,
        "observed": "samples of the model" if prompt else "renders of held-out captions",
        "prompts": texts,
        "batch_size": batch_size,
        "version": version("diamond-diffusers"),
    }
    write_report(result, settings, facts, output)
    console = Console()
    for table in text_tables(result, settings):
        console.print(table.title, style="bold", markup=False, highlight=False, soft_wrap=True)
        console.print(rich_table(table), end="\n\n")
    if scored_by is None:
        console.print("Values are not compared: the model has no reward of its own; name one with --reward.")
    console.print(f"Tables, plot and results are in {output}", soft_wrap=True, highlight=False)


app = command(benchmark_posteriors)

if __name__ == "__main__":
    app()
