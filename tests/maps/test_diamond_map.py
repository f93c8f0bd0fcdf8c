"""A Diamond Map starts as its base, says what it is told, and leaves the base as it was."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from accelerate import cpu_offload
from peft import LoraConfig

from benchmarks.zoo.tiny_models import TINY_MODELS
from diamond_diffusers.core.glass import query
from diamond_diffusers.families.two_time import TwoTimeEmbedder
from diamond_diffusers.maps.diamond_map import ADAPTER, DiamondMap, block_linear_layers

from ..rounding import assert_same_from_a_copy
from .tiny_maps import Inputs, draw_inputs, perturb, tiny_family

UNHEARD = {"stable_diffusion_3": {"transformer_blocks.2.attn.add_q_proj"}}
"""SD3's last block drops what its text tokens attend to."""
MAPS = [*product(TINY_MODELS, (False, True))]
"""Families, without and with `condition_on_observation`."""


@pytest.fixture(scope="module", params=MAPS, ids=str)
def start(request):
    """A fresh map, arguments for it, and the base's weights and denoised sample from before there was a map."""
    family, condition_on_observation = request.param
    family = tiny_family(family)
    weights = {name: weight.clone() for name, weight in family.network_module.state_dict().items()}
    inputs = draw_inputs(family)
    with torch.no_grad():
        base = family.predict(inputs.x, inputs.noise_to_signal, inputs.conditions)
    return DiamondMap(family, 4, condition_on_observation=condition_on_observation), inputs, weights, base


@torch.no_grad()
def test_the_untrained_map_is_the_teacher_without_guidance(start):
    diamond_map, inputs, _, _ = start
    family = diamond_map.family
    statistic, level = query(inputs.x, inputs.noise_to_signal, inputs.xbar, inputs.s)
    unguided = replace(inputs.conditions, negative_features=None, classifier_free_guidance_scale=1.0)
    taught = family.predict(statistic, level, unguided)
    assert (taught - family.predict(statistic, level, inputs.conditions)).abs().max() > 1e-3
    diagonal = replace(inputs, r=inputs.s).denoised(diamond_map)
    # The inner velocity, phi = (xbar - D) / s.
    times = inputs.s.float().reshape(-1, *[1] * (inputs.x.ndim - 1))
    torch.testing.assert_close((inputs.xbar - diagonal) / times, (inputs.xbar - taught) / times, atol=0, rtol=0)


@torch.no_grad()
def test_the_map_goes_along_the_chord(start):
    diamond_map, inputs, _, _ = start
    mapped = diamond_map(inputs.xbar, inputs.s, inputs.r, inputs.x, inputs.noise_to_signal, inputs.conditions)
    denoised = inputs.denoised(diamond_map)
    torch.testing.assert_close(mapped[0], denoised[0])
    torch.testing.assert_close(mapped[1], (inputs.xbar[1] + denoised[1]) / 2)


def test_from_a_time_to_itself_it_is_the_identity_to_the_bit(start):
    diamond_map, inputs, _, _ = start
    for s in (0.3, 1.0, 1 / 3, inputs.s, torch.tensor(0.7, dtype=torch.float64)):
        stayed = diamond_map(inputs.xbar, s, s, inputs.x, inputs.noise_to_signal, inputs.conditions)
        assert torch.equal(stayed, inputs.xbar)


def test_every_trained_parameter_learns_and_the_base_is_restored(start):
    diamond_map, inputs, weights, base = start
    family = diamond_map.family
    perturb(diamond_map)
    for parameter in diamond_map.trained_parameters():
        parameter.requires_grad_(True)
    xbar = inputs.xbar.clone().requires_grad_(True)
    x = inputs.x.clone().requires_grad_(True)
    replace(inputs, xbar=xbar, x=x).denoised(diamond_map).square().sum().backward()
    trained = diamond_map.weights()
    assert ("conditioning.observation.weight" in trained) == diamond_map.condition_on_observation
    # A parameter without gradient would stop distributed training.
    assert all(weight.grad is not None for weight in trained.values())
    dead = {name.partition(".lora_")[0] for name, weight in trained.items() if not weight.grad.any()}
    assert dead == UNHEARD.get(family.name, set())
    assert xbar.grad.any() and x.grad.any()

    # At rest the network is the base, and removing the map restores it.
    with torch.no_grad():
        assert torch.equal(family.predict(inputs.x, inputs.noise_to_signal, inputs.conditions), base)
    diamond_map.remove()
    restored = family.network_module.state_dict()
    assert restored.keys() == weights.keys()
    assert all(torch.equal(weight, weights[name]) for name, weight in restored.items())
    with pytest.raises(RuntimeError, match="load it again"):
        inputs.denoised(diamond_map)


@pytest.fixture
def flux():
    family = tiny_family("flux")
    return family, draw_inputs(family)


@torch.no_grad()
def test_it_hears_the_inner_state_and_all_three_times(flux):
    family, inputs = flux
    diamond_map = DiamondMap(family, rank=4)
    perturb(diamond_map)
    before = inputs.denoised(diamond_map)
    # At s = 1 the statistic is x alone: what moves the first row is the conditioning.
    changed = [
        replace(inputs, xbar=inputs.xbar.flip(0)),
        replace(inputs, r=torch.tensor([0.5, 0.1], dtype=torch.float64)),
    ]
    for other in changed:
        assert ((other.denoised(diamond_map) - before).flatten(1).abs().amax(1) > 1e-3).all()
    embedding = diamond_map.conditioning.times
    times = torch.tensor([[0.5, 1.0, 0.0]]).repeat(4, 1) + torch.cat([torch.zeros(1, 3), -0.2 * torch.eye(3)])
    moved = (embedding(times)[1:] - embedding(times)[0]).norm(dim=1)
    assert (moved > 1e-2).all()


@pytest.mark.parametrize("name_of_family", TINY_MODELS)
@torch.no_grad()
def test_the_observation_enters_as_the_inner_state_does(name_of_family):
    """At s = 1, where the statistic is `x` whatever `xbar` is, through equal weights."""
    denoised = {}
    for name in ("inner_state", "observation"):
        family = tiny_family(name_of_family)
        inputs = draw_inputs(family)
        diamond_map = DiamondMap(family, rank=2, condition_on_observation=True)
        xbar = inputs.xbar if name == "observation" else inputs.x
        inputs = replace(inputs, xbar=xbar, s=torch.ones(2, dtype=torch.float64))
        untrained = inputs.denoised(diamond_map)
        torch.manual_seed(7)
        for parameter in diamond_map.conditioning.get_submodule(name).parameters():
            parameter += torch.randn_like(parameter)
        denoised[name] = inputs.denoised(diamond_map)
        assert ((denoised[name] - untrained).flatten(1).abs().amax(1) > 1e-3).all()
    torch.testing.assert_close(denoised["observation"], denoised["inner_state"])


def add_style(family, name="style"):
    torch.manual_seed(1)
    config = LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    family.pipeline.transformer.add_adapter(config, adapter_name=name)


def trained(family) -> DiamondMap:
    torch.manual_seed(2)
    diamond_map = DiamondMap(family, rank=4)
    perturb(diamond_map)
    return diamond_map


@torch.no_grad()
def test_it_composes_with_other_loras_in_either_order(flux):
    """The style acts at rest and inside the map, whichever was there first."""
    results = {}
    for order in ("style first", "map first"):
        family = tiny_family("flux")
        inputs: Inputs = flux[1]
        if order == "style first":
            add_style(family)
        diamond_map = trained(family)
        if order == "map first":
            add_style(family)
        rest = family.predict(inputs.x, inputs.noise_to_signal, inputs.conditions)
        inside = inputs.denoised(diamond_map)
        after = family.predict(inputs.x, inputs.noise_to_signal, inputs.conditions)
        assert torch.equal(rest, after)
        family.pipeline.disable_lora()
        plain = inputs.denoised(diamond_map)
        assert (plain - inside).abs().max() > 1e-3
        bare = family.predict(inputs.x, inputs.noise_to_signal, inputs.conditions)
        assert_same_from_a_copy(bare, flux[0].predict(inputs.x, inputs.noise_to_signal, inputs.conditions))
        results[order] = torch.stack([rest, inside, plain])
    torch.testing.assert_close(results["style first"], results["map first"])


def test_layers_that_carry_adapters_are_adapted_like_others(flux):
    family, _ = flux
    names = block_linear_layers(family.network_module)
    assert len(names) > 10
    add_style(family)
    assert block_linear_layers(family.network_module) == names


def test_only_the_named_layers_are_adapted(flux):
    diamond_map = DiamondMap(flux[0], rank=2, lora_alpha=4, lora_layers=["to_k"])
    assert {name.partition(".lora_")[0].rsplit(".", 1)[1] for name in diamond_map.lora_parameters} == {"to_k"}
    assert (diamond_map.rank, diamond_map.lora_alpha) == (2, 4)


@torch.no_grad()
def test_it_says_why_it_cannot_be_used(flux):
    family, inputs = flux
    diamond_map = trained(family)
    with pytest.raises(ValueError, match="has a Diamond Map already"):
        DiamondMap(family)
    add_style(family)
    family.pipeline.fuse_lora()
    with pytest.raises(RuntimeError, match="unfuse"):
        inputs.denoised(diamond_map)
    family.pipeline.unfuse_lora()
    inputs.denoised(diamond_map)
    family.pipeline.unload_lora_weights()
    with pytest.raises(RuntimeError, match="load it again"):
        inputs.denoised(diamond_map)
    diamond_map.remove()
    inputs.denoised(trained(family))
    family.name = "lumina2"
    with pytest.raises(ValueError, match="lumina2 model has no Diamond Map"):
        DiamondMap(family)


def fuse_a_style(family):
    add_style(family)
    family.pipeline.fuse_lora()


def tell_two_times(family):
    family.network_module.time_text_embed = TwoTimeEmbedder(family.network_module.time_text_embed)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (fuse_a_style, "unfuse_lora"),
        (tell_two_times, "flow-map LoRA of two times"),
        (lambda family: cpu_offload(family.network_module, "cpu"), "load the Diamond Map first, then offload"),
        (lambda family: DiamondMap(family, rank=2), "has a Diamond Map already"),
    ],
)
def test_networks_that_would_spoil_it_are_refused(flux, spoil, message):
    spoil(flux[0])
    names = flux[0].network_module.state_dict().keys()
    with pytest.raises(ValueError, match=message):
        DiamondMap(flux[0], rank=2)
    assert flux[0].network_module.state_dict().keys() == names


def test_what_is_trained_in_the_network_stays_so(flux):
    family, _ = flux
    family.network_module.requires_grad_(False)
    add_style(family)
    before = {name: weight.requires_grad for name, weight in family.network_module.named_parameters()}
    assert len(set(before.values())) == 2
    diamond_map = DiamondMap(family, rank=2)
    assert not any(weight.requires_grad for weight in diamond_map.trained_parameters())
    flags = [weight.requires_grad for name, weight in family.network_module.named_parameters() if ADAPTER not in name]
    assert flags == list(before.values())
    diamond_map.remove()
    assert {name: weight.requires_grad for name, weight in family.network_module.named_parameters()} == before


@torch.no_grad()
@pytest.mark.parametrize("family", [family for family in TINY_MODELS if family != "pixart_sigma"])
def test_what_scales_loras_in_a_call_does_not_scale_it(family):
    family = tiny_family(family)
    inputs = draw_inputs(family)
    diamond_map = trained(family)
    denoised = inputs.denoised(diamond_map)
    name = next(name for name in inputs.conditions.shared if name.endswith("attention_kwargs"))
    shared = {**inputs.conditions.shared, name: {"scale": 0.0}}
    scaled = replace(inputs, conditions=replace(inputs.conditions, shared=shared))
    for _ in range(2):
        assert torch.equal(scaled.denoised(diamond_map), denoised)


@torch.no_grad()
def test_what_makes_the_base_a_few_step_model_is_not_active_in_it(flux):
    family, inputs = flux
    diamond_map = trained(family)
    denoised = inputs.denoised(diamond_map)
    add_style(family, "turbo")
    assert not torch.equal(inputs.denoised(diamond_map), denoised)
    family.few_step = ("turbo",)
    torch.testing.assert_close(inputs.denoised(diamond_map), denoised)


@torch.no_grad()
def test_pure_noise_is_not_heard(flux):
    family, inputs = flux
    diamond_map = DiamondMap(family, rank=2, condition_on_observation=True)
    perturb(diamond_map)
    level, s = (torch.tensor(values, dtype=torch.float64) for values in ([torch.inf, 0.7], [0.6, 0.6]))
    inputs = replace(inputs, noise_to_signal=level, s=s)
    moved = replace(inputs, x=inputs.x + 1).denoised(diamond_map) - inputs.denoised(diamond_map)
    assert moved[0].abs().max() < 1e-5 and moved[1].abs().max() > 1e-3


@pytest.mark.slow
@torch.no_grad()
def test_it_is_the_same_around_a_compiled_network(flux):
    family, inputs = flux
    diamond_map = trained(family)
    denoised, weights = inputs.denoised(diamond_map), diamond_map.weights()
    family.pipeline.transformer = torch.compile(family.network_module, backend="eager")
    changed = replace(inputs, xbar=inputs.xbar.flip(0))
    for _ in range(2):
        torch.testing.assert_close(inputs.denoised(diamond_map), denoised)
        # What was compiled does not keep the inner state that it was compiled with.
        assert ((changed.denoised(diamond_map) - denoised).flatten(1).abs().amax(1) > 1e-3).all()
    assert diamond_map.weights().keys() == weights.keys()
