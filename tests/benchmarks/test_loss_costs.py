"""The cost of a step of each distillation loss is counted, not assumed."""

from typer.testing import CliRunner

from benchmarks.loss_costs import app, measure


def test_the_costs_are_counted():
    """Evaluations of a row; the teacher's, under guidance, count two."""
    counted = {name: rows for name, rows, _, _ in measure(batch_size=2, num_steps=1)}
    assert counted == {"lagrangian": 3, "central_difference": 4, "progressive": 3, "eulerian": 6, "trajectories": 1}


def test_the_command_prints_a_row_for_each_loss():
    result = CliRunner().invoke(app, ["--batch-size", "2", "--num-steps", "1"])
    assert result.exit_code == 0, result.output
    rows = [line for line in result.stdout.splitlines() if line.startswith("| ")]
    assert rows[0] == "| loss | evaluations a row | seconds a step | relative |"
    names = {row.split(" | ")[0].removeprefix("| ") for row in rows[1:]}
    assert names == {"lagrangian", "central_difference", "progressive", "eulerian", "trajectories"}
