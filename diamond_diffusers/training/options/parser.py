"""Reads the options of a run from the command line, and from a file that it names."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...files.extensions import import_extension
from .checks import problems
from .config import as_defaults, read_config
from .fields import Option, options_of
from .records import RECORDS, Options

_PROGRAM = "accelerate launch -m diamond_diffusers.training.distill"


def parse_options(arguments: Sequence[str] | None = None) -> Options:
    """The options of a run, checked.

    Args:
        arguments: arguments of the command line; None for those of this process. Options of the file that `--config`
            names count where the command line does not give them.

    Raises:
        SystemExit: an option is unknown, out of range, or cannot be used with another.
        ImportError: a file or module of the user's own raised an exception, whose traceback stands before.
    """
    options = [option for record in RECORDS.values() for option in options_of(record)]
    early = _early_parser(options).parse_known_args(arguments)[0]
    try:
        settings = {} if early.config is None else read_config(early.config)
        names_data = [option.flag for option in options if option.names_data]
        if any(getattr(early, name) is not None for name in names_data):
            settings = {name: value for name, value in settings.items() if name not in names_data}
        # What a user's file registers is a choice of the options below.
        for name in (getattr(early, "import") or settings.get("import") or "").split(","):
            if name.strip():
                import_extension(name.strip())
        defaults = as_defaults(early.config, settings, options)
    except ValueError as error:
        build_parser().error(str(error))
    parser = build_parser()
    parser.set_defaults(**defaults)
    given = _as_records(parser.parse_args(arguments))
    if (problem := next(problems(given), None)) is not None:
        parser.error(problem)
    return given


def build_parser() -> argparse.ArgumentParser:
    """The parser of all options, in groups of one record each."""
    parser = argparse.ArgumentParser(
        prog=_PROGRAM,
        description="Distils a Posterior Diamond Map from a text-to-image model.",
        allow_abbrev=False,
        formatter_class=_HelpFormatter,
    )
    _add_config(parser)
    for record in RECORDS.values():
        group = parser.add_argument_group((record.__doc__ or "").partition("\n")[0].rstrip("."))
        for option in options_of(record):
            _add(group, option)
    return parser


def _early_parser(options: Sequence[Option]) -> argparse.ArgumentParser:
    """Reads the options that decide how all others are read: the file of options, the imports, and the data named."""
    parser = argparse.ArgumentParser(prog=_PROGRAM, allow_abbrev=False, add_help=False)
    _add_config(parser)
    for option in options:
        if option.names_data or option.flag == "import":
            _add(parser, option)
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, help="YAML file of these options; the command line goes before it.")


def _add(parser: argparse._ActionsContainer, option: Option) -> None:
    shared: dict[str, Any] = {"dest": option.flag, "default": option.default, "help": option.help}
    if option.kind is bool:
        # `--name` sets it and `--no-name` unsets it.
        parser.add_argument(f"--{option.flag}", action=argparse.BooleanOptionalAction, **shared)
    else:
        choices = None if option.choices is None else option.choices()
        parser.add_argument(f"--{option.flag}", type=option.convert, choices=choices, **shared)


def _as_records(given: argparse.Namespace) -> Options:
    parts = {
        part: record(**{option.name: getattr(given, option.flag) for option in options_of(record)})
        for part, record in RECORDS.items()
    }
    return Options(**parts)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults in the help, unless they say nothing."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)
