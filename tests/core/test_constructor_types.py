"""Constructors of methods and their parts take values of the types that they are annotated with, and refuse others.

Each field of each registered class is given many wrong values. A value is understood, so that the field holds what its
annotation says and the serial form comes back, or it is refused in one sentence that names the field.
"""

import dataclasses
import datetime
import math
import pathlib
import re

import numpy as np
import pytest
import torch

from diamond_diffusers import (
    SMC,
    AdaptiveTempering,
    AncestralTransition,
    BestOfN,
    GlassPosterior,
    GlassTransition,
    Guidance,
    Guide,
    NoAlignment,
    ODETransition,
    PosteriorSampler,
    ScheduledTempering,
)
from diamond_diffusers.alignment.methods import METHODS
from diamond_diffusers.alignment.presets import PRESETS
from diamond_diffusers.alignment.smc_parts.tempering import TEMPERINGS
from diamond_diffusers.core.conversions import Values, WrongTypeError, field_hints
from diamond_diffusers.core.serial import from_dict, registry_of, to_dict
from diamond_diffusers.posteriors import POSTERIORS
from diamond_diffusers.transitions import TRANSITIONS

from ..robustness.generators import ALL

CLASSES = [
    *(
        registry.get(name)
        for registry in (METHODS, POSTERIORS, TRANSITIONS, TEMPERINGS)
        for name in registry.names()
        if name not in ("stock", "trajectory")
    ),
    Guide,
]
FIELDS = [(cls, field.name) for cls in CLASSES for field in dataclasses.fields(cls) if field.init]
VALUES = {
    # What is wrong within a mapping is told of it, and not of the field.
    **{odd.label: odd.value for odd in ALL if not isinstance(odd.value, dict)},
    "a name": "glass",
    "another name": "adaptive",
    "dotted name": "glass.x",
    "list of others": [1, "a"],
    "set": {1},
    "unknown option": {"no_such_option": 1},
    "form": {"name": "glass", "num_inner_steps": 2},
    "wrong form": {"name": 3},
    "class of a part": GlassPosterior,
    "another kind of part": ODETransition(),
    "method": NoAlignment(),
    "path": pathlib.Path("glass"),
    "date": datetime.date(2026, 1, 1),
    "numpy array of one": np.array([1]),
    "numpy text": np.array("4"),
    "matrix": torch.zeros(2, 3),
    "complex in a tensor": torch.tensor(1j),
}


@pytest.mark.parametrize(("cls", "name"), FIELDS, ids=lambda value: getattr(value, "__name__", value))
def test_a_value_is_understood_or_refused_by_the_field_s_name(cls, name):
    for description, value in VALUES.items():
        try:
            part = cls(**{name: value})
        except (TypeError, ValueError) as error:
            text = str(error)
            assert re.search(rf"\b{name}\b|no_such_option", text, re.IGNORECASE), f"{description}: {text}"
            assert "\n" not in text and len(text) < 500, f"{description}: {text}"
        else:
            held = getattr(part, name)
            hint = field_hints(cls)[name]
            if dataclasses.is_dataclass(held):
                assert not isinstance(held, type), description
            else:
                assert type(held) in (int, float, bool, str, type(None)), description
                assert Values().fitted(held, hint, name) is held, description
                assert held is None or not isinstance(held, float) or not math.isnan(held), description
            registry = registry_of(cls)
            assert registry is None or from_dict(registry, to_dict(part)) == part, description
            assert hash(part) is not None


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_an_unknown_field_is_refused(cls):
    with pytest.raises(TypeError, match="no_such_field"):
        cls(no_such_field=1)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (lambda: SMC(posterior="glass"), SMC(posterior=GlassPosterior())),
        (lambda: SMC(posterior={"name": "glass", "num_samples": "4"}), SMC(posterior=GlassPosterior(num_samples=4))),
        (lambda: SMC(transition="ancestral"), SMC(transition=AncestralTransition())),
        (
            lambda: SMC(tempering="adaptive", num_valuations=None),
            SMC(tempering=AdaptiveTempering(), num_valuations=None),
        ),
        (lambda: SMC(guide={"gradient": "pathwise"}), SMC(guide=Guide("pathwise"))),
        (lambda: Guidance("glass", {"strength": 2}), Guidance(GlassPosterior(), Guide(strength=2))),
        (lambda: NoAlignment("ode"), NoAlignment(ODETransition())),
        (lambda: BestOfN(num_particles=np.int32(3)), BestOfN(num_particles=3)),
        (lambda: GlassTransition(correlation=torch.tensor(0.5)), GlassTransition(correlation=0.5)),
    ],
)
def test_names_forms_and_numbers_of_other_libraries_are_understood(given, meant):
    assert given() == meant


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SMC(num_particles="4"), "num_particles is '4'; give a whole number"),
        (lambda: SMC(num_particles=1.5), "num_particles is 1.5; give a whole number"),
        (lambda: SMC(num_particles=True), "num_particles is True; give a whole number"),
        (lambda: SMC(num_particles=2**63), "give one below 2**63"),
        (lambda: SMC(max_tilt=math.nan), "max_tilt is nan; give a number"),
        (
            lambda: SMC(posterior=GlassPosterior),
            "posterior is the class GlassPosterior; give an instance, GlassPosterior()",
        ),
        (lambda: SMC(transition="ode"), "transition is ODETransition(), which draws no noise"),
        (
            lambda: SMC(posterior="glas"),
            "posterior is 'glas'; choose one of denoiser, diamond, flow_map, glass, weighted",
        ),
        (lambda: SMC(posterior="glass.num_samples"), "give the name 'glass' and 'num_samples' as an option of its own"),
        (
            lambda: SMC(posterior=ODETransition()),
            "posterior is ODETransition(); give an object, such as DenoiserPoint()",
        ),
        (lambda: SMC(max_noise_to_signal=-1.0), "max_noise_to_signal is -1.0; give at least 0"),
        (lambda: ScheduledTempering(gamma="fast"), "gamma is 'fast'; give a number"),
    ],
)
def test_what_is_not_understood_gets_one_sentence(make, message):
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        make()


def test_a_wrong_type_is_caught_as_either_error():
    for kind in (TypeError, ValueError, WrongTypeError):
        with pytest.raises(kind):
            SMC(num_particles="4")


@pytest.mark.parametrize("name", PRESETS.names())
def test_presets_take_options_as_constructors_do(name):
    with pytest.raises(ValueError, match="no_such_option"):
        PRESETS.get(name)(None, no_such_option=1)
    with pytest.raises(ValueError, match="num_particles is 'many'; give a whole number"):
        PRESETS.get(name)(None, num_particles="many")


@dataclasses.dataclass(frozen=True)
class OwnPosterior(PosteriorSampler):
    """A part of a user's own, whose check needs fields of the right types, and does not call that of its base."""

    width: float = 1.0
    shape: tuple[int, ...] = (1,)
    guide: Guide | float = 2.0
    hidden: "NoSuchType" = None  # noqa: F821 - as of an import for type checkers
    calls: list = dataclasses.field(default_factory=list, compare=False)

    num_samples = 1

    def __post_init__(self) -> None:
        assert type(self.width) in (int, float)
        self.calls.append("checked")

    def sample(self, network, x, noise_to_signal, predicted, noise): ...


def test_parts_of_a_user_s_own_are_checked_alike():
    part = OwnPosterior(width=np.float32(0.5), shape=[2, 3], hidden=object())
    assert (part.width, part.shape, part.calls) == (0.5, (2, 3), ["checked"])
    assert OwnPosterior(guide=3.0).guide == 3.0 and OwnPosterior(guide=Guide()).guide == Guide()
    with pytest.raises(TypeError, match="width is 'wide'; give a number"):
        OwnPosterior(width="wide")
    with pytest.raises(TypeError, match="shape is 3; give a list, each of which is a whole number"):
        OwnPosterior(shape=3)
    assert dataclasses.replace(part, width=2).width == 2
