"""Memory is counted without being taken: as on real tensors, and as it was measured."""

import json

import pytest
import torch
from torch.nn import functional
from typer.testing import CliRunner

from benchmarks import memory_recipes
from benchmarks.fused_attention import fused_attention
from benchmarks.memory import app
from benchmarks.memory_counts import ParticleMemory, _of_reward, particle_memory, weights_of
from benchmarks.memory_recipes import CARDS, LOADINGS, recipes, resident_bytes
from benchmarks.zoo.published import PUBLISHED_MODELS
from diamond_diffusers.alignment.memory_plan import RowUse
from diamond_diffusers.core.memory_use import memory_use

GB = 10**9
COUNTED = ("flux",)


@pytest.fixture(autouse=True)
def small_reward(monkeypatch):
    """The reward is the same for all, and large."""
    monkeypatch.setattr("benchmarks.memory_counts._of_reward", lambda *given: RowUse.as_a_whole(GB // 5, GB // 10))


@pytest.mark.parametrize(
    "name", [name if name in COUNTED else pytest.param(name, marks=pytest.mark.slow) for name in PUBLISHED_MODELS]
)
def test_the_meta_device_counts_as_the_cpu_does(name):
    """Whose attention is a fused kernel too, but where there is a mask that is no number."""
    meta, cpu = (particle_memory(name, 64, torch.float32, "tiny", device) for device in ("meta", "cpu"))
    for part in ("network", "decoder"):
        counted, real = getattr(meta, part), getattr(cpu, part)
        assert counted.graph == pytest.approx(real.graph, rel=0.02), part
        assert counted.checkpointed + counted.again == pytest.approx(real.checkpointed + real.again, rel=0.1), part
        assert real.checkpointed + real.again < real.graph


def test_the_reward_is_counted_on_the_meta_device():
    """CLIP ViT-L, whose images are resized in float64 on the device, as they are on CUDA."""
    with fused_attention():
        counted = _of_reward.__wrapped__(512, torch.bfloat16, "meta")
    assert counted.graph == pytest.approx(0.19 * GB, rel=0.05)


def test_attention_holds_no_scores():
    query = torch.empty(1, 2, 64, 8, device="meta", requires_grad=True)
    plain = memory_use(lambda query: functional.scaled_dot_product_attention(query, query, query), query).graph
    with fused_attention():
        fused = memory_use(lambda query: functional.scaled_dot_product_attention(query, query, query), query).graph
    # The result, and a float32 for each query; the arguments are there anyway.
    assert fused == 2 * 64 * (8 + 1) * 4
    assert plain > 2 * 64 * 64 * 4


@pytest.mark.slow
def test_sana_sprint_takes_what_it_was_measured_to_take():
    """18.8 GB a particle on an H200, with the decoder's weights, of which a graph holds half the autoencoder's."""
    counted = particle_memory("sana_sprint", 1024, torch.bfloat16)
    graphs = counted.network.graph + counted.decoder.graph
    assert graphs + weights_of("sana_sprint").decoder == pytest.approx(18.8 * GB, rel=0.02)


def test_weights_are_those_of_the_published_checkpoints():
    weights = weights_of("stable_diffusion")
    assert (weights.network, weights.text_encoders) == (859_520_964, 123_060_557)
    whole, quartered, offloaded, *_ = (
        resident_bytes("flux", loading)
        for loading in LOADINGS
        if loading.name in ("bfloat16", "NF4", "model offloading")
    )
    # The network and T5-XXL take 24 and 10 GB; one at a time is the network and the reward.
    assert whole == pytest.approx(34.7 * GB, rel=0.02)
    assert quartered == pytest.approx(10.4 * GB, rel=0.05)
    assert offloaded == pytest.approx(24.7 * GB, rel=0.02)
    assert resident_bytes("flux", LOADINGS[-1]) < 4 * GB


def test_smaller_cards_have_other_recipes(monkeypatch):
    use = RowUse(3 * GB, GB // 10, 0, GB // 2)
    monkeypatch.setattr(memory_recipes, "particle_memory", lambda *given: ParticleMemory(use, use, use))
    found = list(recipes("stable_diffusion_3.5"))
    assert [recipe.card for recipe in found] == list(CARDS)
    order = [LOADINGS.index(recipe.loading) for recipe in found]
    assert order == sorted(order, reverse=True) and order[0] > order[-1] == 0
    for recipe in found:
        assert recipe.plan.fits and recipe.weights + recipe.plan.num_bytes < recipe.card * GB


def test_the_command_prints_tables_and_json(monkeypatch):
    tiny = particle_memory("stable_diffusion", 64, torch.float32, "tiny")
    monkeypatch.setattr("benchmarks.memory.particle_memory", lambda model, pixels, dtype: tiny)
    call = ["--models", "stable_diffusion", "--pixels", "64", "--dtypes", "float32"]
    printed = CliRunner().invoke(app, call)
    assert printed.exit_code == 0, printed.output
    assert "stable_diffusion" in printed.output and "decoder checkpointed" in printed.output
    (row,) = json.loads(CliRunner().invoke(app, [*call, "--json"]).output)
    assert row["weights"]["network"] == 4 * 859_520_964
    decoder = row["particle"]["decoder"]
    assert 0 <= decoder["checkpointed_graph"] < decoder["checkpointed_peak"] < decoder["graph"] < decoder["peak"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--models", "fluxx"], "--models is 'fluxx'; choose one of"),
        (["--pixels", "0"], "--pixels is '0'"),
        (["--models", "flux", "--dtypes", "int8"], "--dtype is 'int8'"),
    ],
)
def test_bad_options_are_one_sentence(options, message):
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 2
    assert message in result.output
