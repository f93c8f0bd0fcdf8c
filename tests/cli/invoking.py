"""Runs commands within this process."""

from typer.testing import CliRunner

from diamond_diffusers.cli.main import app


def invoke(*arguments, columns=250):
    """The result of a command, whatever becomes of it."""
    environment = {"COLUMNS": str(columns), "TERM": "dumb"}
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=environment)


def succeed(*arguments):
    """The output of a command that should succeed."""
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.output


def refusal(*arguments):
    """The sentence with which a command is refused."""
    result = invoke(*arguments)
    assert result.exit_code == 2 and "Traceback" not in result.output, result.output + repr(result.exception)
    (error,) = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    return error
