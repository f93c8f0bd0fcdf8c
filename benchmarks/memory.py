"""What the published models take of a device's memory: `python -m benchmarks.memory --help`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console

from diamond_diffusers.alignment.memory_plan import RowUse
from diamond_diffusers.cli.options import named_dtype, positive_numbers, text_table
from diamond_diffusers.core.checks import check_choice

from .command_line import command
from .memory_counts import particle_memory, weights_of
from .memory_recipes import MODELS, Recipe, recipes
from .zoo.published import PUBLISHED_MODELS

GB = 10**9
PARTS = ("network", "decoder", "reward")


def counts(models: Sequence[str], pixels: Sequence[int], dtypes: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What a particle takes, in bytes, for each model, size and dtype."""
    for model in models:
        weights = weights_of(model)
        for size in pixels:
            for dtype in dtypes:
                kind = named_dtype(dtype)
                memory = particle_memory(model, size, kind)
                yield {
                    "model": model,
                    "checkpoint": PUBLISHED_MODELS[model].checkpoint,
                    "pixels": size,
                    "dtype": dtype,
                    "weights": {name: numbers * kind.itemsize for name, numbers in dataclasses.asdict(weights).items()},
                    "particle": {part: _as_counts(getattr(memory, part)) for part in PARTS},
                }


def _as_counts(use: RowUse) -> dict[str, int]:
    """The graph, and the most at once of a forward and a backward pass, with and without checkpointing."""
    return {
        "graph": use.graph,
        "peak": use.graph + use.working,
        "checkpointed_graph": use.checkpointed,
        "checkpointed_peak": use.checkpointed + use.again + use.working,
    }


Models = Annotated[str, typer.Option(help=f"Names, separated by commas, of {', '.join(PUBLISHED_MODELS)}; or all.")]
Pixels = Annotated[str, typer.Option(help="Heights and widths; numbers, separated by commas.")]
DTypes = Annotated[str, typer.Option(help="Of weights, separated by commas; float16 takes what bfloat16 takes.")]
Recipes = Annotated[bool, typer.Option("--recipes", help="Print how models fit onto cards, in place of counts.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON in place of a table.")]


def benchmark_memory(
    models: Models = "all",
    pixels: Pixels = "512,1024",
    dtypes: DTypes = "bfloat16,float32",
    with_recipes: Recipes = False,
    as_json: AsJson = False,
) -> None:
    """Counts what a particle of each published model takes, and CLIP ViT-L as its reward; nothing is allocated."""
    chosen = _chosen(models, MODELS if with_recipes else tuple(PUBLISHED_MODELS))
    if with_recipes:
        found = [recipe for model in chosen for recipe in recipes(model)]
        if as_json:
            typer.echo(json.dumps([dataclasses.asdict(recipe) for recipe in found], indent=2))
        else:
            print_recipes(found)
        return
    sizes = positive_numbers("--pixels", pixels, int, "512,1024")
    rows = list(counts(chosen, sizes, dtypes.split(",")))
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        print_counts(rows)


def _chosen(models: str, all_models: tuple[str, ...]) -> tuple[str, ...]:
    if models == "all":
        return all_models
    for name in models.split(","):
        check_choice("--models", name, all_models)
    return tuple(models.split(","))


def print_counts(rows: Iterable[dict[str, Any]]) -> None:
    """Gigabytes of weights, and of a particle as "graph, checkpointed peak" of each part."""
    table = text_table(
        "model", "pixels", "dtype", *("network", "text encoders", "decoder"), *(f"{part}'s graph" for part in PARTS),
        *(f"{part} checkpointed" for part in PARTS),
    )  # fmt: skip
    for row in rows:
        particle = row["particle"].values()
        table.add_row(
            row["model"],
            str(row["pixels"]),
            row["dtype"],
            *(_gigabytes(weight) for weight in row["weights"].values()),
            *(_gigabytes(part["graph"]) for part in particle),
            *(_gigabytes(part["checkpointed_peak"]) for part in particle),
        )
    Console(width=200).print(table)


def print_recipes(found: Iterable[Recipe]) -> None:
    """A row for each model and card."""
    table = text_table("model", "card", "weights", "on the device", "chunk", "evaluated again", "a run takes", "in all")
    for recipe in found:
        plan = recipe.plan
        again = [name for name, is_again in dataclasses.asdict(plan.gradient_checkpointing).items() if is_again]
        size = plan.particle_batch_size
        table.add_row(
            recipe.model,
            f"{recipe.card} GB",
            recipe.loading.name if plan.fits else "does not fit",
            _gigabytes(recipe.weights),
            "all" if size is None else str(size),
            ", ".join(again) or "–",
            _gigabytes(plan.num_bytes),
            _gigabytes(recipe.weights + plan.num_bytes),
        )
    Console(width=160).print(table)


def _gigabytes(size: float) -> str:
    return f"{size / GB:.2f}"


app = command(benchmark_memory)

if __name__ == "__main__":
    app()
