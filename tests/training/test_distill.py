"""Whole runs of the trainer on a tiny model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from diamond_diffusers import DiamondMapPipeline
from diamond_diffusers.files.foreign import ForeignFileError
from diamond_diffusers.maps.storage import load_diamond_map, read_map_config
from diamond_diffusers.training import checkpoints
from diamond_diffusers.training.arguments import TRAJECTORIES
from diamond_diffusers.training.checkpoints import Checkpoints
from diamond_diffusers.training.distill import Distillation
from diamond_diffusers.training.errors import TrainingError
from diamond_diffusers.training.losses import LOSSES
from diamond_diffusers.training.setup import load_base

STATE = {"step": 1, "options": {}, "weights": {}, "average": None, "schedule": {}, "scaler": None}
"""In the form of a checkpoint's."""


def weights_of(run: Distillation) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in run.parameters]


def assert_same(first: list[torch.Tensor], second: list[torch.Tensor]) -> None:
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("loss", [*sorted(LOSSES), TRAJECTORIES])
def test_a_run_saves_what_it_trained(options, loss):
    given = options("--loss", loss, "--ema_decay", 0, "--learning_rate", 0.01)
    run = Distillation(given)
    before = weights_of(run)
    base = {name: w.clone() for name, w in run.pipe.transformer.state_dict().items() if "diamond_map" not in name}
    run.run()
    assert all((old != new).any() for old, new in zip(before, run.parameters, strict=True))
    state = run.pipe.transformer.state_dict()
    assert all(torch.equal(state[name], weight) for name, weight in base.items())

    pipe = DiamondMapPipeline.from_pretrained(given.pretrained_model_name_or_path)
    loaded = load_diamond_map(pipe.family, given.output_dir)
    assert_same(weights_of(run), list(loaded.weights().values()))
    config = read_map_config(given.output_dir)
    assert config["defaults"]["true_cfg_scale"] == 3.0
    assert (config["training"]["loss"], config["training"]["steps"]) == (loss, 3)


@pytest.mark.parametrize("loss", ["lagrangian", "central_difference"])
def test_the_observation_is_learnt_from_where_that_is_wanted(options, loss):
    given = options("--loss", loss, "--ema_decay", 0, "--condition_on_observation")
    run = Distillation(given)
    run.run()
    pipe = DiamondMapPipeline.from_pretrained(given.pretrained_model_name_or_path)
    loaded = load_diamond_map(pipe.family, given.output_dir)
    assert loaded.conditioning.observation.weight.any()
    assert_same(weights_of(run), list(loaded.weights().values()))
    assert read_map_config(given.output_dir)["training"]["condition_on_observation"] is True


@pytest.mark.parametrize("loss", ["lagrangian", "central_difference"])
def test_what_is_trained_is_in_float32_on_a_base_in_half_precision(options, loss):
    """One small update moves every weight, where bfloat16 would round it away."""
    given = options("--mixed_precision", "bf16", "--loss", loss, "--ema_decay", 0)
    run = Distillation(given)
    assert run.pipe.family.network_module.context_embedder.weight.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in run.parameters} == {torch.float32}
    with torch.no_grad():
        for parameter in run.parameters:
            parameter += 0.1 * torch.randn_like(parameter)
    before = weights_of(run)
    run.run()
    moved = [(old != new).double().mean() for old, new in zip(before, run.parameters, strict=True)]
    assert min(moved) > 0.95
    pipe = DiamondMapPipeline.from_pretrained(given.pretrained_model_name_or_path)
    assert_same(weights_of(run), list(load_diamond_map(pipe.family, given.output_dir).weights().values()))


def test_the_averaged_weights_are_those_that_are_saved(options):
    given = options("--ema_decay", 0.9)
    run = Distillation(given)
    history = []
    step = run.average.step
    run.average.step = lambda parameters: (history.append(weights_of(run)), step(parameters))
    run.run()
    # min(decay, (1 + n) / (10 + n)), and all of the first.
    expected = history[0]
    for n, weights in enumerate(history[1:], 1):
        decay = min(0.9, (1 + n) / (10 + n))
        expected = [decay * old + (1 - decay) * new for old, new in zip(expected, weights, strict=True)]
    pipe = DiamondMapPipeline.from_pretrained(given.pretrained_model_name_or_path)
    saved = list(load_diamond_map(pipe.family, given.output_dir).weights().values())
    torch.testing.assert_close(saved, expected)
    assert any((old - new).abs().max() > 1e-7 for old, new in zip(saved, weights_of(run), strict=True))


def test_accumulated_gradients_are_those_of_a_batch(options):
    """The mean over micro-steps, clipped once."""
    gradients = {}
    for count in (1, 2):
        run = Distillation(options("--gradient_accumulation_steps", count, output=f"out{count}"))
        run.loss = lambda diamond_map, data, conditions, batch_number: (
            sum(weight.sum() for weight in diamond_map.weights().values()) * data.sum(),
            {},
        )
        sums = [torch.tensor([2.0]), torch.tensor([4.0])] if count == 2 else [torch.tensor([3.0])]
        clipped = []
        run.accelerator.clip_grad_norm_ = lambda parameters, norm, clipped=clipped: clipped.append(
            torch.stack([parameter.grad.mean() for parameter in parameters])
        )
        features = run.teacher.features(["a ring"])
        run._update(iter([lambda z=z: (z, features) for z in sums]))  # noqa: B023
        assert len(clipped) == 1
        gradients[count] = clipped[0]
    torch.testing.assert_close(gradients[1], gradients[2])


def test_checkpointed_gradients_are_the_same(options):
    gradients = []
    for further in ([], ["--gradient_checkpointing"]):
        run = Distillation(options("--loss", "central_difference", "--max_grad_norm", 1e9, *further))
        with torch.no_grad():
            for parameter in run.parameters:
                torch.manual_seed(parameter.numel())
                parameter += 0.1 * torch.randn_like(parameter)
        torch.manual_seed(3)
        z = torch.randn(2, *run.latents_shape)
        features = run.teacher.features(["a ring", "a red circle"])
        kept = []
        run.optimizer.step = lambda run=run, kept=kept: kept.append([p.grad.clone() for p in run.parameters])
        run._update(iter([lambda z=z, features=features: (z, features)]))
        gradients.append(kept[0])
    torch.testing.assert_close(gradients[0], gradients[1])


def _killed_in_the_middle(given, monkeypatch_step: str) -> None:
    """What the child does: a run that dies by SIGKILL."""
    run = Distillation(given)
    if monkeypatch_step == "update":
        update = run._update
        run._update = lambda source: os.kill(os.getpid(), signal.SIGKILL) if run.step == 3 else update(source)
    else:
        save = torch.save

        def save_half(state, file):
            if state["step"] == 4:
                file.write_bytes(b"half")
                os.kill(os.getpid(), signal.SIGKILL)
            save(state, file)

        checkpoints.torch.save = save_half
    run.run()


@pytest.mark.parametrize(
    ("moment", "special"),
    [
        ("update", ["--random_flip"]),
        ("checkpoint", ["--random_flip"]),
        ("update", ["--loss", TRAJECTORIES, "--cache_trajectories"]),
        ("update", ["--teacher_samples", "--teacher_num_inference_steps", 1, "--loss", "progressive"]),
    ],
)
def test_killed_and_resumed_it_ends_at_the_same_weights(options, moment, special):
    further = ["--max_train_steps", 5, "--checkpointing_steps", 2, "--gradient_accumulation_steps", 2]
    further += [*special, "--lr_scheduler", "cosine", "--max_train_samples", 7]
    unbroken = Distillation(options(*further, output="unbroken"))
    unbroken.run()

    given = options(*further, "--resume_from_checkpoint", "latest", output="killed")
    child = os.fork()
    if child == 0:
        try:
            _killed_in_the_middle(given, moment)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert not (given.output_dir / "diamond_map_config.json").exists()
    assert (given.output_dir / "checkpoint-4.partial").exists() == (moment == "checkpoint")

    resumed = Distillation(given)
    assert resumed.step == 2
    assert not list(given.output_dir.glob("*.partial"))
    resumed.run()
    assert_same(weights_of(unbroken), weights_of(resumed))
    assert_same(unbroken.average.shadow_params, resumed.average.shadow_params)


@pytest.mark.parametrize(
    ("further", "difference"),
    [
        (("--rank", 3), "--rank 2, and this one has 3"),
        (("--ema_decay", 0), "--ema_decay 0.9999, and this one has 0.0"),
        (("--lora_layers", "to_v"), "--lora_layers None, and this one has to_v"),
        (("--loss", "progressive"), "--loss lagrangian, and this one has progressive"),
        (("--train_batch_size", 1), "--train_batch_size 2, and this one has 1"),
        (("--adam_beta1", 0.8), "--adam_beta1 0.9, and this one has 0.8"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(options, monkeypatch, further, difference):
    monkeypatch.setattr(Distillation, "_build_map", lambda self: pytest.fail("loaded the base"))
    before = Distillation._decisive_options(SimpleNamespace(given=options(), accelerator=Accelerator()))
    Checkpoints(options().output_dir).save(1, {**STATE, "options": before})
    with pytest.raises(TrainingError, match=rf"checkpoint-1 is of a run with {difference}; resume with its options"):
        Distillation(options("--resume_from_checkpoint", "latest", *further))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "the state in '.*checkpoint-1' has no 'options'; resume from another checkpoint"),
        ({**STATE, "options": [1]}, "options of the state in '.*' is a list in place of an object"),
        ({**STATE, "weights": {"a\nb": 1}}, r"weights\.a\\nb of the state in '.*' is 1 in place of Tensor"),
        ({**STATE, "step": -1}, "holds no state of a run"),
        ({**STATE, "average": 3}, "average of the state in '.*' is 3 in place of an object or null"),
        ({**STATE, "average": {}}, "average of the state in '.*' has no 'shadow_params'"),
    ],
)
def test_a_checkpoint_without_a_state_is_refused_before_the_base_is_loaded(options, monkeypatch, state, message):
    monkeypatch.setattr(Distillation, "_build_map", lambda self: pytest.fail("loaded the base"))
    Checkpoints(options().output_dir).save(1, {})
    torch.save({"step": 1, **state}, options().output_dir / "checkpoint-1" / "state-0.pt")
    with pytest.raises((TrainingError, ForeignFileError), match=message):
        Distillation(options("--resume_from_checkpoint", "latest"))


@pytest.mark.parametrize("part", ["weights", "schedule", "optimizer"])
def test_a_checkpoint_with_a_part_of_another_model_is_refused(options, part):
    first = Distillation(options())
    first._save_checkpoint()
    file = first.given.output_dir / "checkpoint-0" / "state-0.pt"
    state = torch.load(file, weights_only=True)
    state[part] = {"odd": torch.zeros(2)}
    torch.save(state, file)
    with pytest.raises(TrainingError, match=r"checkpoint-0 is of another run \(.*\); resume from another checkpoint"):
        Distillation(options("--resume_from_checkpoint", "latest"))


def test_a_folder_with_checkpoints_is_not_started_in_again(options):
    Checkpoints(options().output_dir).save(1, {})
    with pytest.raises(TrainingError, match=r"is no checkpoint; there are checkpoint-1"):
        Distillation(options("--resume_from_checkpoint", "checkpoint-7"))
    with pytest.raises(TrainingError, match=r"holds checkpoint-1 already, and this run starts at step 0"):
        Distillation(options())


def test_a_resumed_run_takes_its_own_learning_rate(options):
    shared = ["--checkpointing_steps", 2, "--lr_scheduler", "linear", "--lr_warmup_steps", 0, "--max_train_steps", 4]
    first = Distillation(options(*shared, "--learning_rate", 0.01))
    first.step = 2
    for _ in range(2):
        first.optimizer.step()
        first.schedule.step()
    first._save_checkpoint()
    for rate in (0.01, 0.002):
        resumed = Distillation(options(*shared, "--learning_rate", rate, "--resume_from_checkpoint", "latest"))
        rates = []
        for _ in range(2):
            rates.append(resumed.optimizer.param_groups[0]["lr"])
            resumed.schedule.step()
        assert rates == pytest.approx([rate / 2, rate / 4])


def test_a_loss_that_is_no_number_stops_the_run(options):
    run = Distillation(options())
    with torch.no_grad():
        run.parameters[0].fill_(torch.nan)
    with pytest.raises(TrainingError, match=r"the loss is nan at step 0; lower --learning_rate"):
        run.run()


@pytest.mark.parametrize("moment", ["checkpoint", "map"])
def test_weights_that_are_no_numbers_after_the_last_update_are_not_saved(options, moment):
    run = Distillation(options("--max_train_steps", 1, "--checkpointing_steps", 1 if moment == "checkpoint" else 9))
    step = run.optimizer.step

    def spoil():
        step()
        with torch.no_grad():
            run.parameters[0].view(-1)[0] = torch.nan

    run.optimizer.step = spoil
    with pytest.raises(TrainingError, match=r"the sum of the weights is nan at step 1; lower --learning_rate"):
        run.run()
    assert not run.checkpoints.complete() and not (run.given.output_dir / "pytorch_lora_weights.safetensors").exists()


def test_a_gradient_that_is_no_number_stops_the_run_before_it_is_applied(options):
    run = Distillation(options("--checkpointing_steps", 1))
    clip = run.accelerator.clip_grad_norm_

    def spoil(parameters, norm):
        if run.step == 1:
            parameters[0].grad.fill_(torch.inf)
        return clip(parameters, norm)

    run.accelerator.clip_grad_norm_ = spoil
    with pytest.raises(TrainingError, match=r"the norm of the gradients is inf at step 1; lower --learning_rate"):
        run.run()
    assert all(weight.isfinite().all() for weight in run.parameters)
    assert [checkpoint.name for checkpoint in run.checkpoints.complete()] == ["checkpoint-1"]


def test_gradients_are_clipped_where_that_is_wanted(options):
    norms = {}
    for limit in (0, 1e-3):
        run = Distillation(options("--max_grad_norm", limit))
        run.optimizer.step = lambda run=run, limit=limit: norms.update(
            {limit: torch.nn.utils.get_total_norm([p.grad for p in run.parameters])}
        )
        z = torch.zeros(2, *run.latents_shape)
        run._update(iter([lambda run=run, z=z: (z, run.teacher.features(["a ring", "a star"]))]))
    assert norms[0] > 0.01 and norms[1e-3] == pytest.approx(1e-3, rel=1e-3)


def test_unused_parameters_are_not_looked_for_in_forward_mode(options):
    accelerator = Accelerator(kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])
    with pytest.raises(TrainingError, match=r"find_unused_parameters has no forward-mode rule"):
        Distillation(options(), accelerator)
    Distillation(options("--loss", "progressive"), accelerator)


def test_validation_and_trackers(options):
    given = options(
        "--report_to",
        "tensorboard",
        "--validation_prompt",
        "a ring",
        "--validation_steps",
        2,
        "--checkpointing_steps",
        9,
    )
    run, steps = Distillation(given), []
    validate = run._validate
    run._validate = lambda prompt: (steps.append(run.step), validate(prompt))[1]
    run.run()
    assert steps == [2, 3]
    assert {file.name for file in (given.output_dir / "validation").iterdir()} == {"step-2.png", "step-3.png"}
    events = list((given.output_dir / "logs").rglob("events*"))
    assert any(b"validation" in file.read_bytes() for file in events)
    assert any(b"learning_rate" in file.read_bytes() for file in events)
    assert "a ring" in (given.output_dir / "README.md").read_text()


def test_it_is_launched_by_accelerate(tiny_folder, tmp_path):
    """And the limit of checkpoints is that of the command line."""
    config = tmp_path / "run.yaml"
    config.write_text(
        f"pretrained_model_name_or_path: {tiny_folder}\ndataset_name: miniature\nmax_train_samples: 2\n"
        "max_train_steps: 2\ntrain_batch_size: 1\nrank: 2\nloss: progressive\nnum_validation_images: 1\n"
        "report_to: none\nmixed_precision: bf16\ncheckpointing_steps: 1\n"
    )
    machine = "--cpu --num_processes 1 --num_machines 1 --dynamo_backend no --mixed_precision no"
    threads = ["--num_cpu_threads_per_process", "1"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", *machine.split(), *threads]
    own = ["-m", "diamond_diffusers.training.distill", "--config", str(config), "--checkpoints_total_limit", "1"]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [*launch, *own, "--output_dir", str(tmp_path / "out")], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert read_map_config(tmp_path / "out")["training"]["mixed_precision"] == "bf16"
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-2"]


def test_tf32_is_allowed_where_that_is_asked_for(options, monkeypatch):
    monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(allow_tf32=False))
    Distillation(options())
    assert not torch.backends.cuda.matmul.allow_tf32
    Distillation(options("--allow_tf32"))
    assert torch.backends.cuda.matmul.allow_tf32


def test_the_autoencoder_is_not_rounded(options):
    """In half precision its latents would be off by a hundredth."""
    weights = [load_base(options(), dtype).pipeline.vae.state_dict() for dtype in (torch.float32, torch.bfloat16)]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())


def test_layers_and_the_scale_of_the_lora_are_as_asked_for(options):
    run = Distillation(options("--lora_layers", "to_q, to_k", "--lora_alpha", 6, "--max_train_steps", 1))
    assert {name.split(".")[-4] for name in run.diamond_map.lora_parameters} == {"to_q", "to_k"}
    assert run.diamond_map.lora_alpha == 6
    run.run()
    pipe = DiamondMapPipeline.from_pretrained(run.given.pretrained_model_name_or_path)
    assert load_diamond_map(pipe.family, run.given.output_dir).lora_alpha == 6
