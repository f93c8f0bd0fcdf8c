"""Whole runs of the trainer on a tiny model."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from diamond_diffusers import DiamondMapPipeline
from diamond_diffusers.maps.storage import load_diamond_map, read_map_config
from diamond_diffusers.training.base_model import check_initial_map, load_base, new_map
from diamond_diffusers.training.errors import TrainingError
from diamond_diffusers.training.losses import LOSSES
from diamond_diffusers.training.options.records import MapOptions
from diamond_diffusers.training.trainer import Trainer

from .runs import assert_same, weights_of


@pytest.mark.parametrize("loss", LOSSES.names())
def test_a_run_saves_what_it_trained(options, loss):
    given = options("--loss", loss, "--ema_decay", 0, "--learning_rate", 0.01)
    run = Trainer(given)
    before = weights_of(run)
    base = {name: w.clone() for name, w in run.pipe.transformer.state_dict().items() if "diamond_map" not in name}
    run.run()
    assert all((old != new).any() for old, new in zip(before, run.parameters, strict=True))
    state = run.pipe.transformer.state_dict()
    assert all(torch.equal(state[name], weight) for name, weight in base.items())

    pipe = DiamondMapPipeline.from_pretrained(given.model.pretrained_model_name_or_path)
    loaded = load_diamond_map(pipe.family, given.output.output_dir)
    assert_same(weights_of(run), list(loaded.weights().values()))
    config = read_map_config(given.output.output_dir)
    assert config["defaults"]["true_cfg_scale"] == 3.0
    assert (config["training"]["loss"], config["training"]["steps"]) == (loss, 3)


@pytest.mark.parametrize("loss", ["lagrangian", "central_difference"])
def test_the_observation_is_learnt_from_where_that_is_wanted(options, loss):
    given = options("--loss", loss, "--ema_decay", 0, "--condition_on_observation")
    run = Trainer(given)
    run.run()
    pipe = DiamondMapPipeline.from_pretrained(given.model.pretrained_model_name_or_path)
    loaded = load_diamond_map(pipe.family, given.output.output_dir)
    assert loaded.conditioning.observation.weight.any()
    assert_same(weights_of(run), list(loaded.weights().values()))
    assert read_map_config(given.output.output_dir)["training"]["condition_on_observation"] is True


@pytest.mark.parametrize("loss", ["lagrangian", "central_difference"])
def test_what_is_trained_is_in_float32_on_a_base_in_half_precision(options, loss):
    """One small update moves every weight, where bfloat16 would round it away."""
    given = options("--mixed_precision", "bf16", "--loss", loss, "--ema_decay", 0)
    run = Trainer(given)
    assert run.pipe.family.network_module.context_embedder.weight.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in run.parameters} == {torch.float32}
    with torch.no_grad():
        for parameter in run.parameters:
            parameter += 0.1 * torch.randn_like(parameter)
    before = weights_of(run)
    run.run()
    moved = [(old != new).double().mean() for old, new in zip(before, run.parameters, strict=True)]
    assert min(moved) > 0.95
    pipe = DiamondMapPipeline.from_pretrained(given.model.pretrained_model_name_or_path)
    assert_same(weights_of(run), list(load_diamond_map(pipe.family, given.output.output_dir).weights().values()))


def test_the_averaged_weights_are_those_that_are_saved(options):
    given = options("--ema_decay", 0.9)
    run = Trainer(given)
    history = []
    step = run.average.step
    run.average.step = lambda parameters: (history.append(weights_of(run)), step(parameters))
    run.run()
    # min(decay, (1 + n) / (10 + n)), and all of the first.
    expected = history[0]
    for n, weights in enumerate(history[1:], 1):
        decay = min(0.9, (1 + n) / (10 + n))
        expected = [decay * old + (1 - decay) * new for old, new in zip(expected, weights, strict=True)]
    pipe = DiamondMapPipeline.from_pretrained(given.model.pretrained_model_name_or_path)
    saved = list(load_diamond_map(pipe.family, given.output.output_dir).weights().values())
    torch.testing.assert_close(saved, expected)
    assert any((old - new).abs().max() > 1e-7 for old, new in zip(saved, weights_of(run), strict=True))


def test_accumulated_gradients_are_those_of_a_batch(options):
    """The mean over micro-steps, clipped once."""
    gradients = {}
    for count in (1, 2):
        run = Trainer(options("--gradient_accumulation_steps", count, output=f"out{count}"))
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
        run = Trainer(options("--loss", "central_difference", "--max_grad_norm", 1e9, *further))
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


def test_a_loss_that_is_no_number_stops_the_run(options):
    run = Trainer(options())
    with torch.no_grad():
        run.parameters[0].fill_(torch.nan)
    with pytest.raises(
        TrainingError, match=r"the loss is nan at step 0 \(--loss lagrangian, base in float32\); lower --l"
    ):
        run.run()


@pytest.mark.parametrize("moment", ["checkpoint", "map"])
def test_weights_that_are_no_numbers_after_the_last_update_are_not_saved(options, moment):
    run = Trainer(options("--max_train_steps", 1, "--checkpointing_steps", 1 if moment == "checkpoint" else 9))
    step = run.optimizer.step

    def spoil():
        step()
        with torch.no_grad():
            run.parameters[0].view(-1)[0] = torch.nan

    run.optimizer.step = spoil
    with pytest.raises(
        TrainingError, match=r"the sum of the weights is nan at step 1 \(--loss .*\); lower --learning_rate"
    ):
        run.run()
    assert (
        not run.checkpoints.complete()
        and not (run.options.output.output_dir / "pytorch_lora_weights.safetensors").exists()
    )


def test_a_gradient_that_is_no_number_stops_the_run_before_it_is_applied(options):
    run = Trainer(options("--checkpointing_steps", 1, "--logging_steps", 1))
    clip = run.accelerator.clip_grad_norm_

    def spoil(parameters, norm):
        if run.step == 1:
            parameters[0].grad.fill_(torch.inf)
        return clip(parameters, norm)

    run.accelerator.clip_grad_norm_ = spoil
    with pytest.raises(
        TrainingError, match=r"the norm of the gradients is inf at step 1 \(--loss .*\); lower --learning"
    ):
        run.run()
    assert all(weight.isfinite().all() for weight in run.parameters)
    assert [checkpoint.name for checkpoint in run.checkpoints.complete()] == ["checkpoint-1"]


def test_gradients_are_clipped_where_that_is_wanted(options):
    norms = {}
    for limit in (0, 1e-3):
        run = Trainer(options("--max_grad_norm", limit))
        run.optimizer.step = lambda run=run, limit=limit: norms.update(
            {limit: torch.nn.utils.get_total_norm([p.grad for p in run.parameters])}
        )
        z = torch.zeros(2, *run.latents_shape)
        run._update(iter([lambda run=run, z=z: (z, run.teacher.features(["a ring", "a star"]))]))
    assert norms[0] > 0.01 and norms[1e-3] == pytest.approx(1e-3, rel=1e-3)


def test_unused_parameters_are_not_looked_for_in_forward_mode(options):
    accelerator = Accelerator(kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])
    with pytest.raises(TrainingError, match=r"find_unused_parameters has no forward-mode rule"):
        Trainer(options(), accelerator)
    Trainer(options("--loss", "progressive"), accelerator)


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
    run, steps = Trainer(given), []
    validate = run._validate
    run._validate = lambda prompt: (steps.append(run.step), validate(prompt))[1]
    run.run()
    assert steps == [2, 3]
    assert {file.name for file in (given.output.output_dir / "validation").iterdir()} == {"step-2.png", "step-3.png"}
    events = list((given.output.output_dir / "logs").rglob("events*"))
    assert any(b"validation" in file.read_bytes() for file in events)
    assert any(b"learning_rate" in file.read_bytes() for file in events)
    assert "a ring" in (given.output.output_dir / "README.md").read_text()


def test_tf32_is_allowed_where_that_is_asked_for(options, monkeypatch):
    monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(allow_tf32=False))
    Trainer(options())
    assert not torch.backends.cuda.matmul.allow_tf32
    Trainer(options("--allow_tf32"))
    assert torch.backends.cuda.matmul.allow_tf32


def test_the_autoencoder_is_not_rounded(options):
    """In half precision its latents would be off by a hundredth."""
    weights = [load_base(options().model, dtype).pipeline.vae.state_dict() for dtype in (torch.float32, torch.bfloat16)]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())


def test_layers_and_the_scale_of_the_lora_are_as_asked_for(options):
    run = Trainer(options("--lora_layers", "to_q, to_k", "--lora_alpha", 6, "--max_train_steps", 1))
    assert {name.split(".")[-4] for name in run.diamond_map.lora_parameters} == {"to_q", "to_k"}
    assert run.diamond_map.lora_alpha == 6
    run.run()
    pipe = DiamondMapPipeline.from_pretrained(run.options.model.pretrained_model_name_or_path)
    assert load_diamond_map(pipe.family, run.options.output.output_dir).lora_alpha == 6


class TestInitialMap:
    def test_a_run_goes_on_from_it(self, options):
        """Without updates that move it, it is that map; its rank is taken."""
        first = Trainer(options("--rank", 3, "--condition_on_observation", "--ema_decay", 0, output="first"))
        first.run()
        folder = first.options.output.output_dir
        second = Trainer(options("--initial_map", folder, "--rank", 64, "--learning_rate", 0, "--ema_decay", 0))
        assert_same(weights_of(first), weights_of(second))
        second.run()
        assert_same(weights_of(first), weights_of(second))
        told = read_map_config(second.options.output.output_dir)["training"]
        assert (told["rank"], told["condition_on_observation"]) == (3, True)
        # Not where it is on this machine.
        assert told["initial_map"] == folder.name == "first"

    def test_it_is_found_beside_its_base_too(self):
        pipe = DiamondMapPipeline.from_pretrained()
        expected = {name: weight.clone() for name, weight in pipe.family.posterior_map.weights().items()}
        pipe.unload_diamond_map()
        given = MapOptions(initial_map="miniature")
        check_initial_map(given, None)
        found = new_map(given, pipe.family).weights()
        assert found.keys() == expected.keys()
        assert all(torch.equal(weight, found[name]) for name, weight in expected.items())

    def test_a_missing_one_is_found_missing_before_the_base_is_loaded(self, options, tmp_path, monkeypatch):
        monkeypatch.setattr(
            "diamond_diffusers.training.trainer.load_base", lambda *given: pytest.fail("loaded the base")
        )
        with pytest.raises(TrainingError, match=r"--initial_map .*nothing cannot be loaded: .*"):
            Trainer(options("--initial_map", tmp_path / "nothing", "--rank", 64))


def test_as_many_trajectories_are_drawn_as_the_options_say(options):
    run = Trainer(options("--loss", "trajectories", "--num_trajectories", 3, "--pure_noise_share", 1))
    drawn, _ = next(run._open_source())()
    assert drawn.states.shape[:2] == (2, 3)
    assert drawn.noise_to_signal.isinf().all()


def test_a_cache_holds_as_many_trajectories_as_the_options_say(options):
    run = Trainer(options("--loss", "trajectories", "--cache_trajectories", "--num_trajectories", 3))
    drawn, _ = next(run._open_source())()
    assert drawn.states.shape[:2] == (2, 3)
