"""How the command line describes methods: names, files, options and flags."""

import json
import re

import pytest

from diamond_diffusers import (
    SMC,
    BeamSearch,
    BestOfN,
    DenoiserPoint,
    DiamondPosterior,
    FlowMapPoint,
    GlassPosterior,
    Guidance,
    Guide,
    NoAlignment,
    PosteriorSMC,
    RandomSearch,
    WeightedPosterior,
)
from diamond_diffusers.alignment.named import as_method
from diamond_diffusers.cli.generate import check_call
from diamond_diffusers.cli.method import method_request
from diamond_diffusers.core.serial import to_dict
from diamond_diffusers.files.foreign import ForeignFileError


@pytest.mark.parametrize(
    ("name", "flags", "expected"),
    [
        ("none", {}, NoAlignment()),
        ("best_of_n", {"--num-particles": 6}, BestOfN(num_particles=6)),
        ("random_search", {"--num-particles": 2}, RandomSearch(num_particles=2)),
        (
            "smc",
            {"--posterior": "glass", "--num-inner-steps": 3, "--num-lookaheads": 2},
            SMC(posterior=GlassPosterior(num_inner_steps=3, num_samples=2)),
        ),
        ("smc", {"--guidance-strength": 0.5}, SMC(guide=Guide(strength=0.5))),
        (
            "smc",
            {"--posterior": "glass", "--num-lookaheads": 4, "--gradient": "tilted_mean"},
            SMC(
                posterior=GlassPosterior(num_samples=4),
                guide=Guide("tilted_mean"),
            ),
        ),
        ("guidance", {"--posterior": "denoiser"}, Guidance(posterior=DenoiserPoint())),
        (
            "posterior_smc",
            {"--posterior": "diamond", "--num-lookaheads": 2},
            PosteriorSMC(posterior=DiamondPosterior(2)),
        ),
        ("beam_search", {"--posterior": "weighted", "--num-lookaheads": 3}, BeamSearch(posterior=WeightedPosterior(3))),
        ("guidance", {"--posterior": "flow_map"}, Guidance(posterior=FlowMapPoint())),
        (
            "guidance",
            {"--gradient": "pathwise", "--guidance-strength": 2.0},
            Guidance(guide=Guide("pathwise", strength=2.0)),
        ),
    ],
)
def test_flags_describe_a_method(name, flags, expected):
    assert method_request(name, {"--gradient": None, **flags}).build() == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["num_particles=8", "posterior=glass", "posterior.num_samples=4"], SMC(8, GlassPosterior(num_samples=4))),
        (["max_tilt=inf", "num_valuations=none"], SMC(max_tilt=float("inf"), num_valuations=None)),
        (["guide.gradient=pathwise"], SMC(guide=Guide("pathwise"))),
    ],
)
def test_options_describe_a_method(options, expected):
    assert method_request("smc", {}, options).build() == expected


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("best_of_n", {"reward_scale": -1.0}),
        ("zero_order_search", {"reward_scale": 2.0}),
        ("reno", {"reward_scale": 2.0}),
        ("guidance", {"reward_scale": 2.0}),
        ("random_search", {"max_network_evaluations": 60}),
        ("random_search", {"max_reward_calls": 60}),
    ],
)
def test_a_call_has_options_of_its_own(name, call):
    request = method_request(name, {"--num-particles": 2})
    check_call(request.build(), request, {"reward_scale": None, "max_network_evaluations": None, **call})


def test_flags_and_options_go_together():
    request = method_request("smc", {"--posterior": "glass"}, ["posterior.num_samples=4", "num_particles=2"])
    assert request.build() == SMC(2, GlassPosterior(num_samples=4))
    request = method_request("smc", {"--num-lookaheads": 4}, ["posterior=glass"])
    assert request.build() == SMC(posterior=GlassPosterior(num_samples=4))


def test_a_published_method_keeps_what_is_not_given():
    assert method_request("das", {}, ["tempering.effective_sample_size=0.4"]).build().resampling == "ssp"
    assert method_request("fk_steering", {"--num-particles": 6}).build() == as_method(
        {"name": "fk_steering", "num_particles": 6}
    )


def test_look_aheads_of_a_file_are_named(tmp_path):
    path = tmp_path / "method.yaml"
    path.write_text("name: smc\nposterior: flow_map\n")
    assert method_request(str(path), {}).build().posterior == FlowMapPoint()


@pytest.mark.parametrize("suffix", [".json", ".yaml", ".yml"])
def test_a_file_holds_the_serial_form(tmp_path, suffix):
    method = SMC(num_particles=8, posterior=GlassPosterior(num_samples=2), max_tilt=float("inf"))
    path = tmp_path / f"method{suffix}"
    # JSON is YAML.
    path.write_text(json.dumps(to_dict(method)))
    assert method_request(str(path), {}).build() == method
    changed = method_request(str(path), {"--num-particles": 2}, ["posterior=denoiser"]).build()
    assert changed == SMC(num_particles=2, max_tilt=float("inf"))


def test_a_file_may_change_a_published_method(tmp_path):
    path = tmp_path / "method.yaml"
    path.write_text("name: das\nnum_particles: 8\ntempering:\n  effective_sample_size: 0.4\nmax_tilt: inf\n")
    request = method_request(str(path), {})
    assert (request.name, request.build().num_particles, request.build().resampling) == ("das", 8, "ssp")


@pytest.mark.parametrize(
    ("suffix", "text", "message"),
    [
        (".json", "{", "is no JSON"),
        (".yaml", "a: [", "is no YAML (while parsing"),
        (".yaml", "num_particles: 8", "which names no method; give a file with the 'name' of a method and its options"),
        (".yaml", "- smc", "which names no method"),
        (".yaml", "name: 3", "which names no method"),
        (".yaml", "name: smc\nposterior: &a [*a]", "has the alias *a; write its value out"),
        (".yaml", "name: smc\nname: best_of_n", "has the key 'name' twice; give it once"),
        (".yaml", "name: smc\nposterior: {name: glass, name: denoiser}", "has the key 'name' twice; give it once"),
        (".yaml", "[" * 100, "is nested deeper than 64 levels"),
        (".yaml", "name: !!python/object/apply:os.getcwd []", "is no YAML (could not determine a constructor"),
    ],
)
def test_files_of_no_method_get_one_sentence(tmp_path, suffix, text, message):
    path = tmp_path / f"method{suffix}"
    path.write_text(text)
    with pytest.raises(ForeignFileError, match=re.escape(message)) as refusal:
        method_request(str(path), {})
    assert str(path) in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "flags", "options", "message"),
    [
        ("smc", {}, ["num_particles"], "--option is 'num_particles'; give NAME=VALUE, such as num_particles=8 or"),
        ("smc", {}, ["=8"], "--option is '=8'; give NAME=VALUE"),
        ("smc", {}, ["max_tilt=1", "max_tilt=2"], "--option gives 'max_tilt' twice; give it once"),
        ("smc", {"--num-particles": 4}, ["num_particles=8"], "--num-particles is 4, which -o num_particles=8 would"),
        ("smc", {}, ["num_particle=8"], "alignment 'smc' has no option 'num_particle', did you mean 'num_particles'"),
        ("smc", {}, ["posterior.x=8"], "posterior 'denoiser' has no option 'x'; it has none"),
        (
            "smc",
            {},
            ["posterior=flow_map", "posterior.x=8"],
            "posterior 'flow_map' has no option 'x'; choose one of",
        ),
        ("smc", {}, ["posterior=glas"], "posterior is 'glas'; choose one of denoiser, diamond, flow_map, glass"),
        ("smc", {}, ["num_particles=many"], "num_particles is 'many'; give a whole number"),
        ("smc", {}, ["num_particles=-1"], "num_particles is -1"),
        ("nowhere.yaml", {}, [], "'nowhere.yaml' cannot be read"),
        (
            "smc",
            {"--posterior": "glass", "--num-lookaheads": 2, "--num-inner-steps": 0},
            [],
            "num_inner_steps is 0",
        ),
    ],
)
def test_wrong_descriptions_get_one_sentence(name, flags, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        method_request(name, flags, options).build()
