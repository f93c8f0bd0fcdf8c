"""Losses are read now and then, and updates that a scaler of gradients skips are counted."""

from __future__ import annotations

import math

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch.utils._python_dispatch import TorchDispatchMode

from diamond_diffusers.training.errors import TrainingError
from diamond_diffusers.training.figures import GRADIENT_NORM, Blame, Figures, SkippedUpdates
from diamond_diffusers.training.optimisation import build_optimizer, build_schedule
from diamond_diffusers.training.options.records import OptimizerOptions
from diamond_diffusers.training.trainer import Trainer

from .runs import weights_of

CHEAP = ["--loss", "progressive", "--train_batch_size", 1, "--num_validation_images", 1]
BLAME = Blame("lagrangian", torch.float16)


def figures(*rows: dict[str, float]) -> Figures:
    kept = Figures(BLAME, lambda values: values)
    for step, row in enumerate(rows):
        kept.add(step, {name: torch.tensor(value) for name, value in row.items()})
    return kept


def test_figures_are_means_over_the_updates_that_had_them():
    kept = figures({"loss": 1.0, "diagonal": 5.0}, {"loss": 3.0, GRADIENT_NORM: 7.0})
    assert kept.read() == {"loss": 2.0, "diagonal": 5.0}
    assert kept.read() == {}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"loss": 1.0}, {"loss": math.nan, GRADIENT_NORM: math.inf}, {"loss": math.inf}],
            r"^the loss is nan at step 1 \(--loss lagrangian, base in float16\); lower --learning_rate or "
            "--max_grad_norm, take --mixed_precision bf16 or no, and resume from the last checkpoint$",
        ),
        ([{"loss": 1.0, GRADIENT_NORM: math.inf}, {"loss": math.nan}], "^the norm of the gradients is inf at step 0"),
    ],
)
def test_the_first_that_is_no_number_is_named(rows, message):
    with pytest.raises(TrainingError, match=message):
        figures(*rows).read()


class Readings(TorchDispatchMode):
    """Counts the values that are read from tensors, for which a device would be waited for."""

    count = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.count += function == torch.ops.aten._local_scalar_dense.default
        return function(*arguments, **(keywords or {}))


def test_nothing_is_read_between_two_logs(options):
    caching = ["--loss", "trajectories", "--cache_trajectories", "--cache_location", "device"]
    run = Trainer(options(*caching, "--max_train_steps", 5, "--logging_steps", 3))
    source, is_logged, counts = run._open_source(), [], []
    for _ in range(4):
        with Readings() as readings:
            is_logged.append(bool(run._update(source)))
        run.step += 1
        counts.append(readings.count)
    assert is_logged == [False, False, True, False] and counts == [0, 0, 0, 0]


def test_nothing_is_drawn_of_weights_that_a_loss_has_spoilt(options):
    given = [*CHEAP, "--max_train_steps", 6, "--logging_steps", 6, "--validation_prompt", "a", "--validation_steps", 2]
    run = Trainer(options(*given))
    run.parameters[0].data.fill_(torch.nan)
    run._validate = lambda prompt: pytest.fail("drawn of NaN")
    with pytest.raises(TrainingError, match=r"^the loss is nan at step 0 \(--loss progressive"):
        run.run()


def test_figures_are_logged_now_and_then(options, monkeypatch):
    given = [*CHEAP, "--max_train_steps", 5, "--logging_steps", 2, "--checkpointing_steps", 9]
    run, logged, losses = Trainer(options(*given)), {}, []
    monkeypatch.setattr(run.accelerator, "log", lambda figures, step: logged.update({step: figures}))
    add = run.figures.add
    run.figures.add = lambda step, kept: (
        add(step, kept),
        losses.extend(kept[name].item() for name in {"loss"} & {*kept}),
    )
    run.run()
    assert list(logged) == [2, 4, 5]
    means = [sum(losses[:2]) / 2, sum(losses[2:4]) / 2, losses[4]]
    assert [figures["loss"] for figures in logged.values()] == pytest.approx(means)
    assert all("learning_rate" in figures and "skipped_updates" not in figures for figures in logged.values())


def scaled(run: Trainer, overflows) -> Trainer:
    """A run with a scaler as accelerate makes one on a GPU, whose gradients overflow at some steps."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14)
    optimizer = build_optimizer(run.options.optimizer, run.parameters, is_scaled=True)
    run.schedule = build_schedule(run.options.schedule, optimizer, run.options.updates.max_train_steps)
    run.optimizer = AcceleratedOptimizer(optimizer, scaler=scaler)
    run.accelerator.scaler = scaler
    run.accelerator._optimizers = [run.optimizer]
    backward = run.accelerator.backward

    def overflow(loss):
        backward(loss)
        if overflows(run.step):
            run.parameters[-1].grad.view(-1)[0] = torch.inf

    run.accelerator.backward = overflow
    return run


def test_skipped_updates_are_counted_and_move_nothing_on(options, monkeypatch):
    given = [*CHEAP, "--max_train_steps", 4, "--logging_steps", 1, "--lr_scheduler", "linear", "--lr_warmup_steps", 0]
    run = scaled(Trainer(options(*given)), lambda step: step in (0, 2))
    logged, weights = [], []
    monkeypatch.setattr(run.accelerator, "log", lambda figures, step: logged.append(figures))
    follow_up = run._follow_up
    run._follow_up = lambda: (follow_up(), weights.append((weights_of(run), run.average.optimization_step)))[0]
    before = weights_of(run)
    run.run()
    assert [figures["skipped_updates"] for figures in logged] == [1, 1, 2, 2]
    rate = run.options.optimizer.learning_rate
    assert [figures["learning_rate"] for figures in logged] == pytest.approx([rate, 0.75 * rate, 0.75 * rate, rate / 2])
    assert [count for _, count in weights] == [0, 1, 1, 2]
    moved = [
        any((old != new).any() for old, new in zip(first, second, strict=True))
        for first, second in zip([before, *(now for now, _ in weights)], [now for now, _ in weights], strict=False)
    ]
    assert moved == [False, True, False, True]
    assert run.accelerator.scaler.get_scale() == 2.0**12


def test_skipped_updates_are_remembered_by_a_checkpoint(options):
    given = [
        *CHEAP,
        "--max_train_steps",
        9,
        "--checkpointing_steps",
        1,
        "--lr_scheduler",
        "linear",
        "--lr_warmup_steps",
        0,
    ]
    run = scaled(Trainer(options(*given)), lambda step: step == 1)
    source = run._open_source()
    for _ in range(2):
        run._update(source)
        run._follow_up()
        run.step += 1
    run._save_checkpoint()
    state = run.checkpoints.load(run.checkpoints.find("latest"))
    assert state["skipped"] == {"total": 1, "in_a_row": 1}
    again = scaled(Trainer(options(*given, output="again")), lambda step: False)
    again.step = 2
    again._load_state(run.checkpoints.find("latest"), state)
    assert again.skipped == SkippedUpdates(1, 1)
    assert again.schedule.get_last_lr() == run.schedule.get_last_lr() == [pytest.approx(1e-4 * 8 / 9)]


def test_ten_skipped_updates_in_a_row_end_the_run(options):
    run = scaled(Trainer(options(*CHEAP, "--max_train_steps", 20)), lambda step: step > 0)
    run.blame = Blame("progressive", torch.float16)
    message = (
        r"^10 updates in a row were skipped, the last at step 10: gradients are infinite or not a number even if the "
        r"loss is multiplied by no more than 16 \(--loss progressive, base in float16\); lower --learning_rate, take "
        r"--mixed_precision bf16 or no, and resume from the last checkpoint$"
    )
    with pytest.raises(TrainingError, match=message):
        run.run()
    assert run.step == 10 and run.skipped == SkippedUpdates(10, 10)


def test_a_loss_that_is_no_number_is_named_before_its_gradients(options):
    run = scaled(Trainer(options(*CHEAP, "--max_train_steps", 20, "--logging_steps", 20)), lambda step: True)
    run.parameters[0].data.fill_(torch.nan)
    with pytest.raises(TrainingError, match=r"^the loss is nan at step 0 \(--loss progressive"):
        run.run()


def test_the_optimiser_is_fused_unless_a_scaler_has_to_know_what_is_skipped():
    weights = [torch.nn.Parameter(torch.zeros(2))]
    assert build_optimizer(OptimizerOptions(), weights).defaults["fused"] is True
    assert not build_optimizer(OptimizerOptions(), weights, is_scaled=True).defaults["fused"]
    # A device without such a kernel.
    elsewhere = [torch.nn.Parameter(torch.zeros(2, device="meta"))]
    assert not build_optimizer(OptimizerOptions(), elsewhere).defaults["fused"]
