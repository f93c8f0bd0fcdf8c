"""The trainer's speed is measured on the embedded model."""

from typer.testing import CliRunner

from benchmarks.distillation import app


def test_the_command_prints_a_row_for_each_size_of_batch():
    options = "--rank 2 --cache_location device --cache_dtype float16"
    result = CliRunner().invoke(app, ["--batch-sizes", "1", "--rows", "2", "--steps", "1", "--options", options])
    assert result.exit_code == 0, result.output
    header, row = (line for line in result.stdout.splitlines() if line.startswith("| "))
    assert header.startswith("| rows of an update | milliseconds to read them | updates a second |")
    size, *figures = map(float, row.strip("| ").split(" | "))
    # Reading may take less than a twentieth of a millisecond.
    assert size == 1 and len(figures) == 4 and figures[0] >= 0 and all(figure > 0 for figure in figures[1:])
    # An observation and two trajectories of nine states, 512 numbers of two bytes each, and the features of a caption.
    assert 19 * 512 * 2 < figures[-1] < 32_000
