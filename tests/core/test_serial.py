"""Methods and parts as plain values, and back."""

import doctest
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from importlib.metadata import EntryPoint
from typing import Any, Literal

import numpy
import pytest
import yaml

from diamond_diffusers import (
    SMC,
    AdaptiveTempering,
    AncestralTransition,
    BestOfN,
    DenoiserPoint,
    FlowMapPoint,
    GlassPosterior,
    GlassTransition,
    Method,
    PosteriorSMC,
    ScheduledTempering,
)
from diamond_diffusers.alignment.methods import METHODS
from diamond_diffusers.alignment.presets import PRESETS
from diamond_diffusers.alignment.smc_parts.tempering import TEMPERINGS
from diamond_diffusers.core import serial
from diamond_diffusers.core.registry import Registry
from diamond_diffusers.core.serial import UnknownOptionError, from_dict, registry_of, to_dict, with_options
from diamond_diffusers.posteriors import POSTERIORS
from diamond_diffusers.transitions import TRANSITIONS


@dataclass(frozen=True)
class Filling:
    """A record of options that is in no registry."""

    sweetness: float = 0.5
    layers: tuple[int, ...] = (1, 2)
    kind: Literal["cream", "jam"] = "cream"
    limit: float | None = None


class Cake:
    """The base class of the registry of this test."""


CAKES: Registry[type[Cake]] = Registry("cake", "cakes", base=f"{__name__}:Cake")


@CAKES.register("round_cake")
@dataclass(frozen=True)
class RoundCake(Cake):
    radius: int = 3
    is_iced: bool = False
    note: str = ""
    filling: Filling | None = None
    below: Cake | None = None
    weight: float | str = "heavy"
    size: tuple[int, float] = (1, 2.0)
    anything: Any = None
    baker: Callable | None = field(default=None, compare=False)
    slices: list[int] = field(default_factory=list, init=False)


@CAKES.register("slice")
@dataclass(frozen=True)
class Slice(Cake):
    whole: Cake
    cut: Callable | None = None


@dataclass(frozen=True)
class StolenCake(Cake):
    """Not registered."""


@CAKES.register("secret")
@dataclass(frozen=True)
class SecretCake(Cake):
    recipe: str = field(compare=False)


def through_json(form):
    return json.loads(json.dumps(form, allow_nan=False))


# Of transitions and posteriors, those of which an object needs nothing.
PARTS = [
    (registry, name)
    for registry in (METHODS, POSTERIORS, TRANSITIONS, TEMPERINGS)
    for name in registry.names()
    if name not in ("stock", "trajectory", "scheduled")
]


@pytest.mark.parametrize(("registry", "name"), PARTS, ids=lambda value: getattr(value, "plural", value))
def test_every_entry_comes_back_with_its_defaults(registry, name):
    part = registry.get(name)()
    form = to_dict(part)
    assert next(iter(form)) == "name" and form["name"] == name
    assert from_dict(registry, through_json(form)) == part
    assert from_dict(registry, yaml.safe_load(yaml.safe_dump(form))) == part
    assert from_dict(registry, name) == from_dict(registry, {"name": name}) == part


@pytest.mark.parametrize("name", PRESETS.names())
def test_every_preset_comes_back(name):
    method = PRESETS.get(name)(None)
    assert from_dict(METHODS, through_json(to_dict(method))) == method


def swaps(method):
    """A method with each of its parts replaced by each part that it takes."""
    options = {"posterior": POSTERIORS, "transition": TRANSITIONS, "tempering": TEMPERINGS}
    for part, registry in options.items():
        if part not in {each.name for each in fields(method)}:
            continue
        for other in registry.names():
            if (registry, other) not in PARTS:
                continue
            try:
                yield replace(method, **{part: registry.get(other)()})
            except ValueError:
                continue


@pytest.mark.parametrize("name", METHODS.names())
def test_every_method_comes_back_with_every_part(name):
    swapped = list(swaps(METHODS.get(name)()))
    assert swapped
    for method in swapped:
        assert from_dict(METHODS, through_json(to_dict(method))) == method


def test_parts_that_need_something_come_back():
    for transition in (TRANSITIONS.get("stock")(GlassTransition(3)), TRANSITIONS.get("das")(0.3)):
        assert from_dict(TRANSITIONS, to_dict(transition)) == transition
    assert from_dict(TEMPERINGS, to_dict(ScheduledTempering(0.2))) == ScheduledTempering(0.2)


def test_the_form_is_plain():
    smc = SMC(posterior=GlassPosterior(num_samples=2), max_tilt=math.inf, tempering=AdaptiveTempering())
    form = to_dict(smc)
    assert form["posterior"] == {"name": "glass", "num_inner_steps": 4, "num_samples": 2, "solver": "exponential"}
    assert (form["max_tilt"], form["transition"], form["tempering"]["name"]) == ("inf", None, "adaptive")
    assert list(form)[:2] == ["name", "num_particles"]


def test_records_without_a_registry_have_no_name():
    cake = RoundCake(filling=Filling(limit=-math.inf), below=Slice(RoundCake()), baker=print)
    form = to_dict(cake)
    assert form["filling"] == {"sweetness": 0.5, "layers": [1, 2], "kind": "cream", "limit": "-inf"}
    assert form["below"]["whole"]["name"] == "round_cake"
    # What is not compared or not an argument is no option.
    assert "baker" not in form and "slices" not in form
    assert from_dict(CAKES, through_json(form)) == cake
    assert from_dict(CAKES, {"name": "round_cake", "filling": {"kind": "jam"}}) == RoundCake(
        filling=Filling(kind="jam")
    )


def test_numbers_of_numpy_become_plain():
    form = to_dict(RoundCake(radius=numpy.int64(3), weight=numpy.float32(0.5)))
    assert (type(form["radius"]), type(form["weight"])) == (int, float)


def test_a_class_that_is_not_registered_is_shown_but_not_read():
    form = to_dict(StolenCake())
    assert form == {"name": f"{__name__}.StolenCake"}
    with pytest.raises(
        ValueError, match=r"a class that is not registered; decorate it with @CAKES.register\(\"...\"\)"
    ):
        from_dict(CAKES, form)
    assert isinstance(to_dict(Slice(RoundCake(), print))["cut"], str)


def test_a_class_of_an_entry_point_has_its_name():
    cakes = Registry("cake", "cakes_of_others", base=f"{__name__}:Nothing")
    cakes.__dict__["_entry_points"] = {"stolen": EntryPoint("stolen", f"{__name__}:StolenCake", cakes.group)}
    assert cakes.name_of(StolenCake) == "stolen"


def test_the_registry_of_a_class_is_found():
    assert registry_of(SMC) is METHODS and registry_of(Method) is METHODS
    assert registry_of(DenoiserPoint) is POSTERIORS and registry_of(GlassTransition) is TRANSITIONS
    assert registry_of(Filling) is registry_of(int) is None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, SMC()),
        ({"num_particles": "8"}, SMC(num_particles=8)),
        ({"num_particles": 8, "max_tilt": "inf"}, SMC(num_particles=8, max_tilt=math.inf)),
        ({"max_tilt": "2.5", "resampling": "none"}, SMC(max_tilt=2.5, resampling="none")),
        ({"max_tilt": 2}, SMC(max_tilt=2.0)),
        ({"num_valuations": "none"}, SMC(num_valuations=None)),
        ({"num_valuations": "NULL"}, SMC(num_valuations=None)),
        ({"num_valuations": None}, SMC(num_valuations=None)),
        ({"posterior": "glass"}, SMC(posterior=GlassPosterior())),
        ({"posterior": GlassPosterior(2)}, SMC(posterior=GlassPosterior(2))),
        ({"posterior": "glass", "posterior.num_samples": "4"}, SMC(posterior=GlassPosterior(num_samples=4))),
        ({"posterior.num_samples": "4", "posterior": "glass"}, SMC(posterior=GlassPosterior(num_samples=4))),
        ({"posterior": {"name": "glass", "num_samples": 4}}, SMC(posterior=GlassPosterior(num_samples=4))),
        ({"posterior.name": "glass", "posterior": {"num_samples": "4"}}, SMC(posterior=GlassPosterior(num_samples=4))),
        ({"transition": "glass", "transition.correlation": "0.5"}, SMC(transition=GlassTransition(correlation=0.5))),
        ({"transition": {"name": "glass", "correlation": "ddpm"}}, SMC(transition=GlassTransition())),
        ({"tempering": "adaptive", "num_valuations": "none"}, SMC(tempering=AdaptiveTempering(), num_valuations=None)),
    ],
)
def test_options_are_values_or_texts(options, expected):
    assert with_options(SMC(), options) == expected


def test_options_of_a_part_keep_the_rest_of_it():
    smc = SMC(posterior=GlassPosterior(2, 3), transition=AncestralTransition(0.3))
    assert with_options(smc, {"posterior.num_samples": 5}).posterior == GlassPosterior(2, 5)
    # One that is named starts from its defaults, whatever was there.
    assert with_options(smc, {"posterior": "glass"}).posterior == GlassPosterior()
    assert with_options(smc, {"transition": "none"}).transition is None
    assert with_options(PosteriorSMC(), {"posterior.num_samples": 2}).posterior.num_samples == 2


def test_options_of_a_part_that_is_not_there_create_it():
    cake = with_options(RoundCake(), {"filling.sweetness": "1", "filling.layers": "3, 4", "filling.limit": "0.5"})
    assert cake == RoundCake(filling=Filling(1.0, (3, 4), limit=0.5))
    assert with_options(cake, {"filling": "none"}) == RoundCake()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"is_iced": "true"}, RoundCake(is_iced=True)),
        ({"is_iced": False}, RoundCake()),
        ({"note": "true"}, RoundCake(note="true")),
        ({"weight": "2"}, RoundCake(weight=2.0)),
        ({"weight": "light"}, RoundCake(weight="light")),
        ({"size": "3,4.5"}, RoundCake(size=(3, 4.5))),
        ({"size": [3, 4]}, RoundCake(size=(3, 4.0))),
        ({"anything": {"a": 1}}, RoundCake(anything={"a": 1})),
        ({"below": "round_cake", "below.below": "round_cake"}, RoundCake(below=RoundCake(below=RoundCake()))),
        ({"filling": {"kind": "jam"}}, RoundCake(filling=Filling(kind="jam"))),
    ],
)
def test_texts_are_read_as_the_types_say(options, expected):
    assert with_options(RoundCake(), options) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"num_particle": 4},
            "alignment 'smc' has no option 'num_particle', did you mean 'num_particles'; choose one "
            "of num_particles, posterior, transition",
        ),
        (
            {"posterior": "glass", "posterior.num_sampels": 4},
            "posterior 'glass' has no option 'num_sampels', did you mean 'num_samples'",
        ),
        ({"posterior.num_samples": 4}, "posterior 'denoiser' has no option 'num_samples'; it has none"),
        ({"": 4}, "alignment 'smc' has no option ''; choose one of"),
        ({"posterior": "glas"}, "posterior is 'glas'; choose one of denoiser, diamond, flow_map, glass, weighted"),
        ({"posterior": "glass.x"}, "posterior is 'glass.x'; give the name 'glass' and 'x' as an option of its own"),
        ({"guide": "maybe"}, "guide is 'maybe'; give options, such as guide.gradient=isotropic, or none"),
        ({"max_tilt": "nan"}, "max_tilt is 'nan'; give a number"),
        ({"transition": {}}, "transition is {}, which names none; name one first"),
        ({"posterior": 3}, "posterior is 3; give one of denoiser, diamond"),
        ({"posterior": "none"}, "posterior is 'none'; choose one of denoiser"),
        ({"posterior": None}, "posterior is None; give one of denoiser"),
        ({"posterior": {"name": 3}}, "posterior is 3; choose one of denoiser"),
        ({"posterior": ["glass"]}, "posterior is ['glass']; give one of denoiser"),
        ({"transition.eta": 0.5}, "transition is none, which has no option 'eta'; name one first: ancestral, das"),
        ({"num_particles": "many"}, "num_particles is 'many'; give a whole number"),
        ({"num_particles": 2.0}, "num_particles is 2.0; give a whole number"),
        ({"num_particles": True}, "num_particles is True; give a whole number"),
        ({"num_particles": None}, "num_particles is None; give a whole number"),
        ({"num_particles.x": 1}, "num_particles is {'x': 1}; give a whole number"),
        ({"num_valuations": "few"}, "num_valuations is 'few'; give a whole number or auto or none"),
        ({"max_tilt": "high"}, "max_tilt is 'high'; give a number"),
        ({"max_tilt": 10**400}, "give a number"),
        ({"max_tilt": True}, "max_tilt is True; give a number"),
        ({"resampling": 3}, "resampling is 3; give a text"),
        ({"resampling": "magic"}, "resampling is 'magic'; choose one of multinomial"),
        ({"posterior": "glass", "posterior.num_samples": "0"}, "num_samples is 0"),
        (
            {"transition": "glass", "transition.correlation": []},
            "transition.correlation is []; give a number or a text",
        ),
        ({"transition": "stock"}, "transition 'stock' needs the option 'transition', which has no default; give it"),
        ({"transition": "trajectory"}, "transition 'trajectory' needs the option 'table', which has no default; make"),
    ],
)
def test_wrong_options_get_one_sentence(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        with_options(SMC(), options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"is_iced": "yes"}, "is_iced is 'yes'; give true or false"),
        ({"is_iced": 1}, "is_iced is 1; give true or false"),
        ({"filling.kind": "stone"}, "filling.kind is 'stone'; give cream or jam"),
        ({"filling.layers": "1,x"}, "filling.layers is '1,x'; give a whole number each, separated by commas"),
        ({"filling.layers": 3}, "filling.layers is 3; give a whole number each"),
        ({"filling": "cream"}, "filling is 'cream'; give options"),
        ({"filling.taste": 1}, "filling takes Filling, which has no option 'taste'; choose one of sweetness, layers"),
        ({"size": "1"}, "size is '1'; give"),
        ({"baker": "Ann"}, "cake 'round_cake' has no option 'baker'"),
        ({"slices": []}, "cake 'round_cake' has no option 'slices'"),
        ({"below": "slice"}, "cake 'slice' needs the option 'whole', which has no default; give it"),
        ({"below": "secret"}, "cake 'secret' needs the option 'recipe', which has no default; make the object in"),
        (
            {"below": {"name": "slice", "whole": "round_cake", "cut": "print"}},
            "below.cut is 'print'; give an object of",
        ),
    ],
)
def test_wrong_options_of_other_types_get_one_sentence(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        with_options(RoundCake(), options)


def test_an_unknown_option_tells_its_path_and_owner():
    with pytest.raises(UnknownOptionError) as refusal:
        with_options(SMC(), {"posterior": "flow_map", "posterior.num_inner_steps": 2})
    assert (refusal.value.path, refusal.value.owner) == ("posterior.num_inner_steps", "posterior 'flow_map'")


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("magic", "alignment is 'magic'; choose one of beam_search, best_of_n"),
        ({"name": "magic"}, "alignment is 'magic'; choose one of beam_search, best_of_n"),
        (
            {"num_particles": 3},
            "alignment is {'num_particles': 3}; give a name, or a mapping with a 'name' and options",
        ),
        (3, "alignment is 3; give a name, or a mapping with a 'name' and options"),
        ({"name": ["smc"]}, "alignment is ['smc']; choose one of beam_search"),
        ({"name": "best_of_n", "luck": 1}, "alignment 'best_of_n' has no option 'luck'; choose one of"),
        ({"name": "best_of_n", "num_particles": -3}, "num_particles is -3"),
        ({"name": "best_of_n", "transition": "best_of_n"}, "transition is 'best_of_n'; choose one of ancestral"),
    ],
)
def test_wrong_forms_get_one_sentence(form, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        from_dict(METHODS, form)
    with pytest.raises(ValueError, match=r"^settings is 'magic'; choose one of"):
        from_dict(METHODS, "magic", "settings")


def test_options_that_are_left_out_are_those_of_the_default_part():
    assert from_dict(METHODS, {"name": "posterior_smc", "posterior": {"num_samples": 2}}).posterior.num_samples == 2
    assert from_dict(METHODS, {"name": "best_of_n", "num_particles": 6}) == BestOfN(num_particles=6)
    assert from_dict(POSTERIORS, {"name": "flow_map", "num_steps": 3}) == FlowMapPoint(3)


def test_the_examples_run():
    assert doctest.testmod(serial).failed == 0
