"""A map is distilled from a base whose frozen weights are quantised."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from benchmarks.zoo.stable_diffusion import build_tiny_stable_diffusion
from diamond_diffusers import DiamondMapPipeline
from diamond_diffusers.maps.storage import load_diamond_map, read_map_config
from diamond_diffusers.pipelines import quantization
from diamond_diffusers.training import base_model, trainer
from diamond_diffusers.training.errors import TrainingError
from diamond_diffusers.training.trainer import Trainer

from .runs import assert_same, weights_of


@pytest.mark.parametrize("precision", ["bf16", pytest.param("no", marks=pytest.mark.slow)])
@pytest.mark.parametrize("model", ["unet", pytest.param("transformer", marks=pytest.mark.slow)])
def test_fp8_holds_the_base_in_a_byte_and_the_map_in_full(options, tiny_folder, tmp_path, model, precision):
    if model == "unet":
        build_tiny_stable_diffusion().save_pretrained(tmp_path / "unet")
    folder = tmp_path / "unet" if model == "unet" else tiny_folder
    shared = ["--pretrained_model_name_or_path", folder, "--resolution", 16, "--loss", "progressive"]
    shared += ["--quantize", "fp8", "--gradient_checkpointing", "--mixed_precision", precision, "--lr_warmup_steps", 0]
    run = Trainer(options(*shared, "--ema_decay", 0, "--max_train_steps", 1, "--num_validation_images", 1))
    network = run.pipe.family.network_module
    base = [weight for name, weight in network.named_parameters() if name.endswith("to_q.base_layer.weight")]
    assert base and {weight.dtype for weight in base} == {torch.float8_e4m3fn}
    before = weights_of(run)
    run.run()
    assert {parameter.dtype for parameter in run.parameters} == {torch.float32}
    moved = [(old != new).any() for old, new in zip(before, run.parameters, strict=True)]
    # A LoRA's first matrix has a gradient once its second one is not zero.
    assert sum(moved) >= len(moved) // 2
    assert {weight.dtype for weight in base} == {torch.float8_e4m3fn}
    saved = load_diamond_map(DiamondMapPipeline.from_pretrained(folder).family, run.options.output.output_dir)
    assert_same(weights_of(run), list(saved.weights().values()))
    assert read_map_config(run.options.output.output_dir)["training"]["quantize"] == "fp8"


def gradients(run: Trainer) -> list[torch.Tensor]:
    """Of one update of a map that is not at rest."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in run.parameters:
            parameter += 0.1 * torch.randn_like(parameter)
    z, features, kept = torch.randn(2, *run.latents_shape), run.teacher.features(["a ring", "a star"]), []
    run.optimizer.step = lambda: kept.extend(parameter.grad.clone() for parameter in run.parameters)
    run._update(iter([lambda: (z, features)]))
    return kept


@pytest.mark.parametrize("loss", ["progressive", pytest.param("central_difference", marks=pytest.mark.slow)])
def test_gradients_are_those_of_the_weights_that_fp8_stands_for(options, loss):
    """Blocks that are evaluated again find them, too; and a difference takes the step of what is computed with."""
    shared = ["--loss", loss, "--max_grad_norm", 0]
    plain, *quantised = (
        Trainer(options(*shared, *further, output=f"out {further}"))
        for further in ([], ["--quantize", "fp8"], ["--quantize", "fp8", "--gradient_checkpointing"])
    )
    weights = dict(plain.pipe.transformer.named_parameters())
    for name, weight in quantised[0].pipe.transformer.named_parameters():
        if weight.dtype == torch.float8_e4m3fn:
            weights[name].data = weight.data.float()
    expected = gradients(plain)
    for run in quantised:
        torch.testing.assert_close(gradients(run), expected, atol=1e-5, rtol=1e-3)


def test_int8_is_trained_on(options):
    pytest.importorskip("torchao")
    run = Trainer(options("--quantize", "int8", "--mixed_precision", "bf16", "--max_train_steps", 1))
    assert any(type(weight).__name__ == "Int8Tensor" for weight in run.pipe.transformer.parameters())
    run.run()


def test_nf4_is_asked_for_when_the_base_is_loaded(options, monkeypatch):
    """Whatever bitsandbytes makes of it, which needs a CUDA device."""
    seen = {}

    def load(model, **given):
        seen.update(given)
        raise OSError("as far as this test goes")

    monkeypatch.setattr("importlib.metadata.version", lambda name: "1.0")
    monkeypatch.setattr(trainer, "check_base_can_be_quantised", lambda *arguments: None)
    monkeypatch.setattr(base_model, "DiamondMapPipeline", SimpleNamespace(from_pretrained=load))
    with pytest.raises(TrainingError, match="as far as this test goes"):
        Trainer(options("--quantize", "nf4", "--mixed_precision", "bf16"))
    mapping = seen["quantization_config"].quant_mapping
    assert set(mapping) == {"transformer", "text_encoder_2"}
    assert {each.bnb_4bit_compute_dtype for each in mapping.values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("nf4", "--quantize is 'nf4', which needs a CUDA device, but the device is 'cpu'; take --quantize int8"),
        ("int8", "--quantize is 'int8', but torchao is not installed; pip install torchao"),
    ],
)
def test_what_cannot_be_is_refused_before_the_base_is_loaded(options, monkeypatch, form, message):
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    monkeypatch.setattr(trainer, "load_base", lambda *arguments: pytest.fail("loaded the base"))
    with pytest.raises(TrainingError, match=message):
        Trainer(options("--quantize", form))
