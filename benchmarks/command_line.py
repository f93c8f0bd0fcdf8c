"""How a benchmark becomes a command: `python -m benchmarks.NAME`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer

from diamond_diffusers.cli.main import ExplainingGroup


def command(benchmark: Callable[..., Any]) -> typer.Typer:
    """A command whose options are the arguments of a function; wrong input is answered by one sentence."""
    app = typer.Typer(cls=ExplainingGroup, add_completion=False, pretty_exceptions_enable=False)
    # Only groups explain errors, so that the function is that of a group without commands.
    app.callback(invoke_without_command=True, subcommand_metavar="")(benchmark)
    return app
