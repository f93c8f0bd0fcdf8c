"""The cost of guided steps is measured on models of the published sizes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from benchmarks.cost import Workload, app, measure, print_table
from benchmarks.counting import GraphMemory
from benchmarks.zoo.published import PUBLISHED_MODELS
from diamond_diffusers.evaluation import memory

from ..products import one_of_each_kind

# Of the network and of the autoencoder, from the published weights.
PUBLISHED_PARAMETERS = {
    "sana_sprint": (593_501_216, 312_250_275),
    "flux": (11_901_408_320, 83_819_683),
    "stable_diffusion_3": (2_028_328_000, 83_819_683),
    "sdxl": (2_567_463_684, 83_653_863),
    "stable_diffusion": (859_520_964, 83_653_863),
    "sana": (1_604_462_752, 312_250_275),
    "pixart_sigma": (610_856_096, 83_653_863),
    "stable_diffusion_3.5": (2_243_171_520, 83_819_683),
    "z_image": (6_154_908_736, 83_819_683),
    "qwen_image": (20_430_401_088, 126_892_531),
    "lumina2": (2_609_769_152, 83_819_683),
}


CLASSIFIER_FREE = (
    "stable_diffusion_3",
    "stable_diffusion_3.5",
    "sdxl",
    "stable_diffusion",
    "sana",
    "pixart_sigma",
    "lumina2",
)
"""Those whose stock call evaluates the network for the negative prompt too."""


@pytest.mark.parametrize("family", PUBLISHED_MODELS)
def test_full_models_have_the_published_sizes(family: str) -> None:
    pipeline = PUBLISHED_MODELS[family].build("full", "meta", torch.bfloat16)
    components = [pipeline.components[name] for name in PUBLISHED_MODELS[family].modules]
    sizes = tuple(sum(weight.numel() for weight in component.parameters()) for component in components)
    assert sizes == PUBLISHED_PARAMETERS[family]
    assert {weight.dtype for component in components for weight in component.parameters()} == {torch.bfloat16}
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("family", one_of_each_kind(PUBLISHED_MODELS, ["flux"]))
def test_a_particle_costs_one_of_each(family: str) -> None:
    workload = Workload(family, pixels=32, particle_batch_size=1)
    one, two = measure(workload, [2, 1])
    for cost, particles in ((one, 1), (two, 2)):
        assert cost.num_particles == particles
        assert cost.decodes == particles
        assert cost.forwards == cost.backwards == particles * (2 if family in CLASSIFIER_FREE else 1)
        assert cost.seconds > 0
        assert cost.peak_bytes > 2**20
    # One chunk's, give or take the two numbers that particles differ by.
    assert 0 < one.graph_bytes <= two.graph_bytes < 1.01 * one.graph_bytes


def test_cheaper_gradients_are_seen() -> None:
    pathwise = Workload("flux", pixels=32)
    (full,) = measure(pathwise, [1])
    (isotropic,) = measure(replace(pathwise, gradient="isotropic"), [1])
    (checkpointed,) = measure(replace(pathwise, gradient_checkpointing=True), [1])
    assert (isotropic.forwards, isotropic.backwards) == (1, 0)
    assert (checkpointed.forwards, checkpointed.backwards) == (2, 1)
    assert max(isotropic.graph_bytes, checkpointed.graph_bytes) < full.graph_bytes


def test_graph_memory_counts_each_storage_once() -> None:
    weight = torch.ones(10, 10, requires_grad=True)
    x = torch.ones(10, 10, requires_grad=True)
    with GraphMemory([weight]).watched() as memory:
        # The product keeps x for the weight, and the weight for x; exp keeps its result, which the square keeps again.
        y = (x @ weight).exp().square()
        assert memory.live == 2 * 400
        y.sum().backward()
        assert memory.live == 0
    assert memory.peak == 2 * 400


def test_the_command_prints_a_table_and_json() -> None:
    call = ["--family", "flux", "--pixels", "32", "--particles", "1", "--device", "cpu"]
    table = CliRunner().invoke(app, call)
    assert table.exit_code == 0, table.output
    for header in ("particles", "forwards", "backwards", "decodes", "seconds"):
        assert header in table.output
    printed = json.loads(CliRunner().invoke(app, [*call, "--json"]).output)
    assert printed["dtype"] == "float32"
    (step,) = printed["steps"]
    assert (step["forwards"], step["backwards"], step["decodes"]) == (1, 1, 1)


def test_memory_is_left_out_where_the_system_does_not_tell(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(memory, "_FORGET", tmp_path / "missing" / "clear_refs")
    (cost,) = measure(Workload("flux", pixels=32), [1])
    assert cost.peak_bytes is None
    print_table([cost], on_gpu=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--family", "fluxx"], "family is 'fluxx'"),
        (["--family", "flux", "--size", "huge"], "size is 'huge'"),
        (["--family", "flux", "--particles", "1,none"], "--particles is '1,none'"),
        (["--family", "flux", "--particles", "0"], "--particles is '0'"),
        (["--family", "flux", "--dtype", "int8"], "--dtype is 'int8'"),
        (["--family", "flux", "--gradient", "steep"], "gradient is 'steep'"),
        (["--family", "flux", "--pixels", "7"], "height is 7, which is less than a token; give at least 16"),
    ],
)
def test_bad_options_are_one_sentence(options: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["--device", "cpu", *options])
    assert result.exit_code == 2
    assert message in result.output
