"""The command line: `diamond-diffusers --help`. What is heavy to import is imported by the command that needs it."""

from __future__ import annotations

import errno
from collections.abc import Collection, Sequence
from importlib.metadata import version
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from ..core.memory_errors import want_of_memory
from ..files.extensions import import_extension
from .benchmark import benchmark, redraw
from .check import check
from .evaluate import evaluate
from .generate import generate, help_of_alignment, help_of_posterior
from .models import models
from .remote_rewards import name_remote_reward
from .rewards import rewards
from .score import score
from .serve_reward import serve_reward

USER_ERRORS = (ValueError, TypeError, OSError, ImportError)
SAVING = {
    "--particle-batch-size": "lower --particle-batch-size",
    "--batch-size": "lower --batch-size",
    "--gradient-checkpointing": "take --gradient-checkpointing true",
    "--quantize": "take --quantize",
    "--offload": "take --offload on a GPU",
    "--height": "take smaller images",
}
"""What saves memory, by the option that a command has for it."""


class ExplainingGroup(TyperGroup):
    """Shows an error in the user's input, or a want of memory, as one sentence."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except Exception as error:
            command = self.commands.get(ctx.invoked_subcommand or "", self)
            sentence = _sentence_on(error, _flags_of(command.params), _flags_of(self.params))
            if sentence is None:
                raise
            Console(stderr=True).print(f"[bold red]Error:[/] {escape(sentence)}", soft_wrap=True, highlight=False)
            raise typer.Exit(2) from error


def _flags_of(parameters: Sequence[Any]) -> set[str]:
    return {flag for parameter in parameters for flag in parameter.opts}


def _sentence_on(error: Exception, flags: Collection[str], general: Collection[str]) -> str | None:
    """What the user of a command with these options is told of an error; None where it is no matter of theirs.

    Args:
        general: the options that stand before the command.
    """
    if isinstance(error, USER_ERRORS):
        return None if getattr(error, "errno", None) == errno.EPIPE else str(error)
    # The parser's error of an option that the command lacks.
    unknown = getattr(error, "option_name", None)
    if unknown in general and unknown not in flags:
        return f"{unknown} stands after the command; write: diamond-diffusers {unknown} ... COMMAND ..."
    reason = want_of_memory(error) if isinstance(error, (RuntimeError, MemoryError)) else None
    if reason is None:
        return None
    remedies = [remedy for flag, remedy in SAVING.items() if flag in flags] or ["free some of it"]
    return f"{reason}; {', or '.join(remedies)}"


app = typer.Typer(cls=ExplainingGroup, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def main() -> None:
    """Entry point of the console script."""
    app()


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"diamond-diffusers {version('diamond-diffusers')}")
        raise typer.Exit()


Version = Annotated[
    bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
]
Extensions = Annotated[
    list[str] | None,
    typer.Option(
        "--import",
        metavar="FILE_OR_MODULE",
        help="A .py file or a module of yours, whose methods, parts and rewards can then be named; before the command; "
        "may come several times.",
    ),
]
RemoteRewards = Annotated[
    list[str] | None,
    typer.Option(
        "--remote-reward",
        metavar="NAME=URL",
        help="A service that scores images, whose NAME expressions can then use; or NAME=FILE, a .yaml or .json file "
        "that describes one; before the command; may come several times.",
    ),
]


@app.callback()
def root(
    ctx: typer.Context,
    extensions: Extensions = None,
    remote_rewards: RemoteRewards = None,
    show_version: Version = False,
) -> None:
    """Draws images that obey a reward, with diffusion and flow models as they are."""
    for extension in extensions or ():
        import_extension(extension)
    for remote in remote_rewards or ():
        name_remote_reward(remote)
    if extensions:
        _list_new_names(ctx)


def _list_new_names(ctx: typer.Context) -> None:
    """Writes the help of options that list names anew."""
    lists = {"alignment": help_of_alignment, "posterior": help_of_posterior}
    assert isinstance(ctx.command, TyperGroup), "the program is a group of commands"
    for command in ctx.command.commands.values():
        for parameter in command.params:
            if parameter.name in lists:
                parameter.help = lists[parameter.name]()  # type: ignore[attr-defined]


for command in (generate, check, rewards, score, serve_reward, benchmark, redraw, evaluate, models):
    app.command()(command)
