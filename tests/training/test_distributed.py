"""Two processes train as one does."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator, DistributedType
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from diamond_diffusers.core.levels import add_noise
from diamond_diffusers.core.tensors import expand
from diamond_diffusers.maps.storage import CONDITIONING_NAME, LORA_NAME
from diamond_diffusers.training.data import sources
from diamond_diffusers.training.errors import TrainingError
from diamond_diffusers.training.losses import LOSSES
from diamond_diffusers.training.losses.residuals import Batch, diagonal
from diamond_diffusers.training.trainer import Trainer, full

from .processes import in_two_processes, sharding_accelerator

FLUX_BLOCKS = ("FluxTransformerBlock", "FluxSingleTransformerBlock")


class Perturbed(Trainer):
    """Starts where every parameter has a gradient, in every process alike."""

    def _build_optimizer(self) -> None:
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in self.diamond_map.trained_parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        super()._build_optimizer()


def gradients(given, accelerator: Accelerator | None = None) -> list[torch.Tensor]:
    """Of one update on rows 0 and 1, of which a process of two sees one."""
    run = Perturbed(given, accelerator)
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(2, *run.latents_shape, generator=generator)
    features = run.teacher.features(["a ring", "a red circle"])
    draws = [torch.rand(2, generator=generator).double() for _ in range(3)]
    eps = [torch.randn(2, *run.latents_shape, generator=generator) for _ in range(2)]
    if accelerator is not None:
        assert run.accelerator.num_processes == 2
        mine = slice(run.accelerator.process_index, run.accelerator.process_index + 1)
        z, features = z[mine], {name: feature[mine] for name, feature in features.items()}
        draws, eps = [draw[mine] for draw in draws], [noise[mine] for noise in eps]
    if run.accelerator.distributed_type == DistributedType.FSDP:
        assert all(isinstance(parameter, DTensor) for parameter in run.parameters)
    run.loss = FixedLoss(given.loss.name, draws, eps)
    kept = []
    run.optimizer.step = lambda: kept.extend(full(parameter.grad).clone() for parameter in run.parameters)
    run._update(iter([lambda: (z, features)]))
    return kept


class FixedLoss:
    """A loss whose times and noise are given, so that rows do not depend on the batch that they are in."""

    def __init__(self, name, draws, eps):
        self.name, self.draws, self.eps = name, draws, eps

    def __call__(self, diamond_map, data, conditions, batch_number):
        level, s, r = self.draws
        level, s = 0.5 + level, 0.5 + s / 2
        inner = expand(s, data)
        x = add_noise(data, self.eps[0], level)
        batch = Batch(x, level, (1 - inner) * data + inner * self.eps[1], s, r * s, conditions)
        with sdpa_kernel(SDPBackend.MATH):
            rows = LOSSES.get(self.name)().squared_residuals(diamond_map, batch) + diagonal(diamond_map, batch)
        return rows.mean(), {}


WAYS = {
    "replicas": lambda: Accelerator(cpu=True),
    "shards": lambda: sharding_accelerator(*FLUX_BLOCKS),
}


@pytest.mark.parametrize(
    ("way", "loss"),
    [
        ("replicas", "lagrangian"),
        pytest.param("replicas", "central_difference", marks=pytest.mark.slow),
        ("shards", "lagrangian"),
        pytest.param("shards", "central_difference", marks=pytest.mark.slow),
    ],
)
def test_the_gradients_are_those_of_the_doubled_batch(options, way, loss):
    given = options("--loss", loss, "--max_grad_norm", 1e9)
    expected = gradients(given)
    assert all(gradient.any() for gradient in expected)

    def child() -> None:
        torch.testing.assert_close(gradients(given, WAYS[way]()), expected, atol=1e-5, rtol=1e-4)

    in_two_processes(child)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_run_is_resumed_and_saved(options, way):
    """Four updates are two and two, in the weights that are saved."""
    shared = ["--checkpointing_steps", 2, "--loss", "central_difference", "--gradient_checkpointing"]
    unbroken = options(*shared, "--max_train_steps", 4, output="unbroken")
    first = options(*shared, "--max_train_steps", 2, output="broken")
    second = options(*shared, "--max_train_steps", 4, "--resume_from_checkpoint", "latest", output="broken")

    def child() -> None:
        accelerator = WAYS[way]()
        # It would take leave of the other process.
        accelerator.end_training = lambda: None
        for given in (unbroken, first):
            Trainer(given, accelerator).run()
        run = Trainer(second, accelerator)
        assert run.step == 2
        run.run()
        assert len(list((second.output.output_dir / "checkpoint-4").iterdir())) == (2 if way == "shards" else 1)

    in_two_processes(child)
    for name in (LORA_NAME, CONDITIONING_NAME):
        expected, found = load_file(unbroken.output.output_dir / name), load_file(second.output.output_dir / name)
        assert all(torch.equal(weight, found[key]) for key, weight in expected.items())
    if way == "shards":
        with pytest.raises(TrainingError, match=r"states of 2 processes, and this run has 1; start as many"):
            Trainer(second)


def test_what_cannot_be_distributed_is_refused(options):
    accelerator = sharding_accelerator()
    with pytest.raises(TrainingError, match="cannot draw samples of the teacher; add --cache_trajectories or"):
        Trainer(options("--teacher_samples"), accelerator)
    with pytest.raises(TrainingError, match="--quantize is 'fp8', but FSDP was not made to work with quantised"):
        Trainer(options("--quantize", "fp8", "--loss", "progressive"), accelerator)
    accelerator.state.fsdp_plugin.fsdp_version = 1
    with pytest.raises(TrainingError, match="set fsdp_version: 2"):
        Trainer(options(), accelerator)
    accelerator.state.distributed_type = DistributedType.DEEPSPEED
    accelerator.state.deepspeed_plugins = SimpleNamespace(zero_stage=3, selected=True)
    with pytest.raises(TrainingError, match="choose stage 1 or 2"):
        Trainer(options(), accelerator)


@pytest.mark.parametrize("loss", [pytest.param("central_difference", marks=pytest.mark.slow), "trajectories"])
def test_shards_of_a_base_in_half_precision_train(options, loss):
    """With accelerate's own policy, which would cast what is trained, and the loss; and the teacher is sharded too."""
    given = options("--loss", loss, "--gradient_checkpointing", "--lr_warmup_steps", 0, "--max_train_steps", 1)

    def child() -> None:
        accelerator = sharding_accelerator(*FLUX_BLOCKS, mixed_precision="bf16")
        accelerator.end_training = lambda: None
        run = Perturbed(given, accelerator)
        assert run.pipe.family.network_module.context_embedder.weight.dtype == torch.bfloat16
        dtypes = set()
        add = run.figures.add
        run.figures.add = lambda step, kept: (dtypes.update(value.dtype for value in kept.values()), add(step, kept))
        before = [full(weight).clone() for weight in run.parameters]
        run.run()
        assert dtypes == {weight.dtype for weight in run.parameters} == {torch.float32}
        assert all((full(new) != old).any() for old, new in zip(before, run.parameters, strict=True))

    in_two_processes(child)


@pytest.mark.slow
def test_shards_learn_from_rows_that_the_whole_base_has_drawn(options, prompts_file):
    """An odd number of them, in files of one row each, so that the processes evaluate the teacher differently often."""
    shared = ["--prompts_file", prompts_file, "--teacher_num_inference_steps", 1, "--loss", "trajectories"]
    shared += ["--cache_trajectories", "--max_train_steps", 2, "--num_validation_images", 1]
    alone, together = options(*shared, output="alone"), options(*shared, "--train_batch_size", 1, output="together")

    def child(given, accelerator) -> None:
        accelerator.end_training = lambda: None
        run = Trainer(given, accelerator)
        # The rows are there by now, and their time counts.
        assert run.effort.seconds > 0
        run.run()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "rows_of_shard", lambda resolution: 1)
        Trainer(alone).run()
        in_two_processes(lambda: child(together, sharding_accelerator(*FLUX_BLOCKS)))
    cached = [sorted((given.output.output_dir / "cache").rglob("*.safetensors")) for given in (alone, together)]
    assert [file.name for file in cached[0]] == [file.name for file in cached[1]]
    assert len(cached[0]) == 3
    for one, other in zip(*cached, strict=True):
        torch.testing.assert_close(load_file(one), load_file(other))
