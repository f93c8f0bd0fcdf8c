"""One command measures guided steps at published sizes."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import full_size
from benchmarks.cost import StepCost, Workload
from benchmarks.full_size import ROWS, app


def lines(*options: str) -> list[dict]:
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_every_model_has_its_lines_whatever_becomes_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(workload: Workload, particles: tuple[int, ...]):
        if workload.family == "sdxl":
            raise torch.OutOfMemoryError("too large")
        for count in particles:
            yield StepCost(count, count, count, count, 0.5, 7, None)

    monkeypatch.setattr(full_size, "measure", measured)
    printed = lines("--device", "cpu")
    wanted = [(row.family, row.pixels, count) for row in ROWS if row.family != "sdxl" for count in row.particles]
    found = [(line["family"], line["pixels"], line["num_particles"]) for line in printed if "error" not in line]
    assert found == wanted
    (failed,) = [line for line in printed if "error" in line]
    assert (failed["family"], failed["error"]) == ("sdxl", "OutOfMemoryError: too large")
    assert {(line["size"], line["dtype"], line["device"]) for line in printed} == {("full", "float32", "cpu")}


@pytest.mark.gpu
def test_the_command_measures_on_a_gpu(gpu: torch.device) -> None:
    """Of shrunken models, in seconds; those of full size take minutes."""
    printed = lines("--size", "tiny", "--device", str(gpu))
    assert not [line for line in printed if "error" in line]
    assert all(line["seconds"] > 0 and line["graph_bytes"] > 0 for line in printed)
    assert len(printed) == sum(len(row.particles) for row in ROWS)
