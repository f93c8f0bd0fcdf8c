"""The command `diamond-diffusers rewards`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from .options import first_sentence, text_table

IN_ALL_TERMINALS = ("name", "gradient", "scale", "download", "usable here")
IN_WIDE_TERMINALS = (*IN_ALL_TERMINALS, "licence", "what")
OF_ONE_REWARD = ("what", "gradient", "scale", "licence", "source", "download", "usable here")
WIDTH_FOR_SENTENCES = 120
MAX_WIDTH = 20

Names = Annotated[list[str] | None, typer.Argument(metavar="NAME", help="Tells all about these, in place of the list.")]
Format = Annotated[str, typer.Option("--format", help="'table', or 'csv' with all that is known of each.")]


def rewards(names: Names = None, output_format: Format = "table") -> None:
    """Lists the rewards that expressions can name, and whether each can be used here."""
    if output_format not in ("table", "csv"):
        raise ValueError(f"--format is {output_format!r}; choose table or csv")
    from ..rewards import available_rewards, registered_reward

    for name in names or ():
        registered_reward(name)
    described = [_described(name) for name in names or available_rewards()]
    if output_format == "csv":
        _print_csv(described)
    elif names:
        _print_each(described)
    else:
        _print_list(described)


def _described(name: str) -> dict[str, str]:
    """What is told of a reward, by its header; `details` goes on with what "usable here" says."""
    from ..rewards import registered_reward
    from ..rewards.availability import verdict_and_details

    try:
        reward = registered_reward(name)
    except ImportError as error:
        unknown = dict.fromkeys((*OF_ONE_REWARD, "details"), "–")
        return {"name": name, **unknown, "usable here": f"no: {error}", "details": ""}
    differentiable: bool | None = getattr(reward, "differentiable", None)
    verdict, details = verdict_and_details(reward)
    return {
        "name": name,
        "gradient": "found on use" if differentiable is None else "yes" if differentiable else "no",
        "scale": f"{getattr(reward, 'default_reward_scale', None) or 1.0:g}",
        "licence": getattr(reward, "licence", "–"),
        "source": getattr(reward, "source", "–"),
        "download": getattr(reward, "size", "–"),
        "usable here": verdict,
        "details": details,
        "what": first_sentence(reward),
    }


def _print_list(described: list[dict[str, str]]) -> None:
    console = Console()
    headers = IN_ALL_TERMINALS if console.width < WIDTH_FOR_SENTENCES else IN_WIDE_TERMINALS
    table = text_table(*headers)
    # Names are there to be copied.
    table.columns[0].no_wrap = True
    # The longest entries are not to take the sentences' room.
    for column in table.columns:
        if column.header in ("download", "licence"):
            column.max_width = MAX_WIDTH
    for reward in described:
        table.add_row(*(escape(reward[header]) for header in headers))
    console.print(table)
    console.print("All about one of them: diamond-diffusers rewards NAME", soft_wrap=True, highlight=False)


def _print_each(described: list[dict[str, str]]) -> None:
    console = Console()
    for reward in described:
        console.print(escape(reward["name"]), style="bold", soft_wrap=True, highlight=False)
        for header in OF_ONE_REWARD:
            text = reward[header] + (reward["details"] if header == "usable here" else "")
            console.print(f"  {header}: {text}", soft_wrap=True, highlight=False, markup=False)


def _print_csv(described: list[dict[str, str]]) -> None:
    from ..files.csv_tables import csv_table

    rows = [[each["name"], *(each[header] for header in OF_ONE_REWARD)] for each in described]
    for row, each in zip(rows, described, strict=True):
        row[-1] += each["details"]
    typer.echo(csv_table(["name", *OF_ONE_REWARD], rows), nl=False)
