"""What a check of a model finds: all is well with every family, and what is broken is told."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

from benchmarks.zoo.flux import build_tiny_flux
from benchmarks.zoo.stable_diffusion import build_tiny_latent_consistency
from diamond_diffusers import DiamondMapPipeline
from diamond_diffusers.evaluation.check import checks
from diamond_diffusers.evaluation.check.checks import CHECKS, Found, run_checks
from diamond_diffusers.evaluation.check.report import report
from diamond_diffusers.evaluation.check.runs import Runs, Timed
from diamond_diffusers.evaluation.files import plain
from diamond_diffusers.rewards import CallableReward

from ..families.all_families import FAMILIES, family_of

# A transformer, a UNet, and a few-step model whose autoencoder is another.
BY_DEFAULT = ("flux", "sana_sprint", "stable_diffusion")
NAMES = [name if name in BY_DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
SMALL = {"height": 16, "width": 16, "max_sequence_length": 12}


def found_in(
    pipeline: DiffusionPipeline, folder: Path, dtype: torch.dtype = torch.float32, **arguments: Any
) -> dict[str, Found]:
    """The rows of a pipeline that was saved and loaded again."""
    pipeline.save_pretrained(folder)
    pipe = DiamondMapPipeline.from_pretrained(folder, dtype=dtype)
    return dict(run_checks(Runs(pipe, "a red circle", arguments)))


def verdicts(found: dict[str, Found]) -> dict[str, str]:
    return {name: each.verdict for name, each in found.items()}


@pytest.mark.parametrize("name", NAMES)
def test_all_is_well_with_a_family(tmp_path: Path, name: str) -> None:
    family = family_of(name)
    call = {key: value for key, value in family.call.items() if key != "num_inference_steps"}
    found = found_in(family.build(), tmp_path, **call, num_inference_steps=2)
    assert list(found) == list(CHECKS)
    assert [verdict for verdict in verdicts(found).values()] == ["passed"] * 4 + ["skipped"] + ["measured"] * 4, found
    assert found["stock parity"].figures["gap"] < 1e-4
    shifts = found["pathwise gradient"].figures["shifts"]
    assert len(shifts) == len(found["isotropic gradient"].figures["noise_to_signal"]) == 2 and max(shifts) > 0
    brightness = found["reward rises"].figures
    assert min(brightness["pathwise"], brightness["isotropic"]) > brightness["plain"]
    cost = found["cost, pathwise"].figures
    assert found["cost, pathwise"].told.count(" GB of the process") == 1
    assert cost["seconds_per_step"] > 0 and cost["size"] == f"{family.call['height']}x{family.call['width']}"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", FAMILIES)
def test_all_is_well_in_half_precision(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    found = found_in(family_of(name).build(), tmp_path, dtype, **family_of(name).call)
    assert "failed" not in verdicts(found).values(), found


@pytest.mark.slow
def test_all_is_well_with_latent_consistency_models(tmp_path: Path) -> None:
    found = found_in(build_tiny_latent_consistency(), tmp_path, height=16, width=16)
    assert "failed" not in verdicts(found).values(), found


def with_nan_in_the_decoder(pipeline: DiffusionPipeline) -> None:
    pipeline.vae.decoder.conv_out.weight.data[0] = math.nan


def with_a_large_network(pipeline: DiffusionPipeline) -> None:
    pipeline.transformer.proj_out.weight.data *= 1e5


def with_a_large_decoder(pipeline: DiffusionPipeline) -> None:
    pipeline.vae.decoder.conv_in.weight.data *= 3e4
    pipeline.vae.decoder.conv_in.bias.data *= 3e4


@pytest.mark.parametrize(
    ("breaks", "dtype", "stock", "named"),
    [
        (with_nan_in_the_decoder, torch.float32, "in float32; take its weights anew", "AutoencoderKL in torch.float32"),
        (
            with_a_large_network,
            torch.float16,
            "in float16; take --dtype bfloat16 or",
            "FluxTransformer2DModel in torch",
        ),
        (with_a_large_decoder, torch.float16, "in float16; take --dtype bfloat16 or", "AutoencoderKL in torch.float16"),
    ],
)
def test_a_broken_model_is_told(
    tmp_path: Path, breaks: Callable[[DiffusionPipeline], None], dtype: torch.dtype, stock: str, named: str
) -> None:
    pipeline = build_tiny_flux()
    breaks(pipeline)
    found = found_in(pipeline, tmp_path, dtype, **SMALL, num_inference_steps=1)
    # What needs an image that could not be drawn is not asked again.
    assert list(verdicts(found).values()) == ["failed"] * 4 + ["skipped"] * 4 + [found["plan"].verdict], found
    assert found["stock parity"].told.startswith("the stock pipeline's own image is not finite")
    assert stock in found["stock parity"].told
    for name in ("pathwise gradient", "isotropic gradient", "reward rises"):
        assert named in found[name].told and "\n" not in found[name].told
    assert found["cost, plain"].told == "the plain image could not be drawn, as another row says"


@pytest.fixture
def runs(tiny_pipe: DiamondMapPipeline) -> Runs:
    return Runs(tiny_pipe, "a red circle", {"num_inference_steps": 1, "true_cfg_scale": None})


def test_another_image_than_stock_fails(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    stock = runs.stock()
    monkeypatch.setattr(runs, "stock", lambda: stock + 0.01)
    found = checks.stock_parity(runs)
    assert found.verdict == "failed" and found.figures["gap"] == pytest.approx(0.01, rel=1e-3)
    monkeypatch.setattr(type(runs.pipe.pipeline), "__call__", lambda self, **call: 1 / 0)
    (row, *_) = run_checks(Runs(runs.pipe, "a red circle"))
    assert row == ("stock parity", Found("failed", "ZeroDivisionError: division by zero"))


def test_a_reward_that_falls_fails(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    plain_run = runs.plain()
    monkeypatch.setattr(runs, "guided", lambda gradient: plain_run)
    assert checks.rising_reward(runs).verdict == "failed"
    # Plain sampling has no gradient.
    assert checks.finite_gradient(runs, "pathwise") == Found(
        "failed",
        "the gradient is zero at every level (1)",
        {"shifts": [0.0], "noise_to_signal": [pytest.approx(plain_run.output.trace.steps[0].noise_to_signal)]},
    )


def test_a_gradient_that_is_not_finite_is_told_with_its_level(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    guided = runs.guided("isotropic")
    (step,) = guided.output.trace.steps
    object.__setattr__(step, "gradient_norm", torch.tensor([math.nan]))
    found = checks.finite_gradient(runs, "isotropic")
    assert found.verdict == "failed" and found.told == "the gradient is not finite at the noise-to-signal ratio inf"


def test_a_want_of_memory_is_a_row_and_the_others_follow(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(self: Runs, method: Any, reward: Any = None) -> Timed:
        if method == "none":
            return make(self, method, reward)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.00 GiB.")

    make = Runs._timed
    monkeypatch.setattr(Runs, "_timed", timed)
    found = dict(run_checks(runs))
    told = "CUDA out of memory: Tried to allocate 2.00 GiB; take --offload, --quantize or smaller images"
    assert found["pathwise gradient"] == found["isotropic gradient"] == Found("failed", told)
    assert (found["stock parity"].verdict, found["cost, plain"].verdict) == ("passed", "measured")
    assert found["reward rises"].verdict == found["cost, pathwise"].verdict == "skipped"


def test_a_plan_is_told_and_fails_where_it_does_not_fit(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    found = checks.plan(runs)
    assert found.verdict == "measured" and found.told.startswith("16 particles, pathwise: all rows at once, nothing")
    assert found.figures["num_particles"] == 16 and 0 < found.figures["num_bytes"] < found.figures["free_bytes"]
    chosen = runs.plan(16)
    assert chosen is not None
    monkeypatch.setattr(runs, "plan", lambda count: replace(chosen, free_bytes=0))
    found = checks.plan(runs)
    assert found.verdict == "failed" and "which does not fit; take --offload, --quantize or smaller" in found.told
    monkeypatch.setattr(runs, "plan", lambda count: None)
    assert checks.plan(runs).verdict == "skipped"


def test_a_reward_of_ones_own_is_called_as_users_call_it(tiny_pipe: DiamondMapPipeline) -> None:
    def rows_of(score: Callable[..., Any]) -> Found:
        reward = CallableReward(score, name="mine", reads_prompts=True)
        return checks.own_reward(Runs(tiny_pipe, "a red circle", {"num_inference_steps": 1}, reward))

    found = rows_of(lambda images, prompts: images.mean((1, 2, 3)).detach())
    assert found.verdict == "measured" and found.told.startswith("mine: plain 0.")
    assert type(found.figures["alignment"]).__name__ == "BeamSearch" and ", with beam_search 0." in found.told
    with pytest.raises(ZeroDivisionError):
        rows_of(lambda images, prompts: 1 / 0)


def test_a_report_tells_what_a_maintainer_would_ask(runs: Runs) -> None:
    told = plain(report(runs, dict(run_checks(runs)), {"model": "tiny"}))
    assert (
        told["settings"] | {"model": "tiny", "pipeline": "FluxPipeline", "dtype": "torch.float32"} == told["settings"]
    )
    assert told["settings"]["call"]["true_cfg_scale"] == 2.0 and told["settings"]["call"]["num_inference_steps"] == 1
    assert (
        told["machine"]["device_type"] == "cpu"
        and told["machine"]["versions"]["torch"] == torch.__version__.split("+")[0]
    )
    assert set(told["checks"]) == set(CHECKS) and told["failed"] == []
    assert set(told["checks"]["cost, plain"]) == {"verdict", "told", "figures"}


def test_the_first_step_is_not_timed_where_there_are_others(runs: Runs) -> None:
    output = runs.plain().output
    assert Timed(output, [9.0, 1.0, 2.0, 4.0], None).seconds_per_step == 2.0
    assert Timed(output, [9.0], None).seconds_per_step == 9.0
