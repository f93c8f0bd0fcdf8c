"""What a run of the trainer takes is what the trainer really computes and holds."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from benchmarks import distillation_plan
from benchmarks.distillation_counts import TRAJECTORY_EVALUATIONS, DistillationCounts, distillation_counts
from benchmarks.distillation_plan import MEASURED, Run, app, disk_bytes, rank_bytes, stages
from benchmarks.memory_counts import prepared_model
from diamond_diffusers.maps.diamond_map import DiamondMap
from diamond_diffusers.training.data.trajectories import Trajectories
from diamond_diffusers.training.losses.trajectories import TrajectoryLoss
from diamond_diffusers.training.module import DistilledModule

from ..documentation import METHODS

GB = 10**9
COUNTS = DistillationCounts(
    network=1000, text_encoders=500, autoencoder=100, largest_block=50, trained=10, latents=8, features=4,
    guided_rows=2, forward=1000, update=2500, activations=4000, checkpointed=1040,
)  # fmt: skip
RUN = Run(captions=100, updates=50, batch_size=4, rows_at_once=2, teacher_steps=20)


def test_hours_are_operations_over_speed():
    drawn, followed, learnt = stages(COUNTS, RUN, teraflops=1e-9)
    assert (drawn.row_operations, followed.row_operations) == (20 * 2 * 1000, 15 * 2 * 1000)
    # Two rows forward and back, and forward again.
    assert learnt.row_operations == 2 * (2500 + 1000)
    assert [stage.rows for stage in (drawn, followed, learnt)] == [100, 100, 200]
    assert learnt.hours == pytest.approx(200 * 7000 / 1000 / 3600)
    two = Run(100, 50, 4, 2, 20, processes=2)
    # Twice as many processes cache in half of the time, and learn from twice as many rows in the same.
    assert stages(COUNTS, two, 1e-9)[0].hours == drawn.hours / 2
    assert stages(COUNTS, two, 1e-9)[2].hours == learnt.hours


def test_measured_speeds_take_the_place_of_estimates():
    drawn, followed, learnt = stages(COUNTS, RUN, 1.0, rows_per_second=0.5, updates_per_second=0.25)
    assert drawn.hours + followed.hours == pytest.approx(100 / 0.5 / 3600)
    assert drawn.hours / followed.hours == pytest.approx(20 / 15)
    assert learnt.hours == pytest.approx(50 / 0.25 / 3600)


def test_what_a_process_holds():
    whole, shards = rank_bytes(COUNTS, RUN), rank_bytes(COUNTS, RUN, 4)
    assert sum(whole.values()) == 2 * 1000 + 20 * 10 + 2 * (1040 - 40)
    assert shards["base"] == whole["base"] / 4 and shards["blocks that are gathered"] == 2 * 2 * 50
    assert shards["activations"] == whole["activations"]
    nf4 = rank_bytes(COUNTS, Run(100, 50, 4, 2, 20, form="nf4", checkpointing=False))
    assert nf4["base"] == 1000 * (0.5 + 4 / 64) and nf4["activations"] == 2 * (4000 - 40)
    assert disk_bytes(COUNTS, 100) == 100 * 2 * (19 * 8 + 4)


@pytest.mark.parametrize("name", ["stable_diffusion", pytest.param("flux", marks=pytest.mark.slow)])
def test_operations_are_those_of_the_trainer(name):
    """Of trajectories and of an update, counted while they are really computed."""
    counts = distillation_counts(name, 64, 2, "tiny", "cpu")
    family, conditions, latents = prepared_model(name, 64, torch.bfloat16, "tiny", "cpu")
    family.network_module.requires_grad_(False)
    diamond_map = DistilledModule(DiamondMap(family, 2)).diamond_map
    assert counts.trained == sum(weight.numel() for weight in diamond_map.trained_parameters())
    with FlopCounterMode(display=False) as counter:
        data = Trajectories.draw(family, latents, conditions)
    evaluation = counts.guided_rows * counts.forward
    # The map's own layers, which the teacher has not, and the attention of an unguided row are all that differs.
    assert counter.get_total_flops() == pytest.approx(TRAJECTORY_EVALUATIONS * evaluation, rel=0.15)
    with FlopCounterMode(display=False) as counter:
        TrajectoryLoss()(diamond_map, data, conditions, 0)[0].backward()
    assert counter.get_total_flops() == pytest.approx(2 * counts.update, rel=0.02)


def test_the_command_prints_a_plan(monkeypatch):
    monkeypatch.setattr(distillation_plan, "distillation_counts", lambda *arguments: COUNTS)
    call = ["--model", "flux", "--processes", "8", "--captions", "1000000", "--batch-size", "2", "--accumulated", "4"]
    result = CliRunner().invoke(app, [*call, "--rows-per-second", "2"])
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert "FSDP over 8" in text and "takes 0.3 GB on the disk" in text
    # A million rows of eight processes, two a second each.
    total = sum(stage.hours for stage in stages(COUNTS, Run(10**6, 20_000, 8, 2, 20, 8), 300, 2))
    assert f"│ in all │ │ │ {total:.2f} │" in text and total == pytest.approx(17.36, abs=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "qwen_image"], "--model is 'qwen_image'; choose one of"),
        (["--quantize", "int3"], "--quantize is 'int3'; choose one of"),
    ],
)
def test_bad_options_are_one_sentence(options, message):
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_speeds_are_those_of_the_page():
    """Which says where they were measured."""
    page = METHODS.with_name("hardware.md").read_text(encoding="utf-8")
    for _, _, _, _, seconds in MEASURED:
        assert f"{seconds:.2f}" in page
