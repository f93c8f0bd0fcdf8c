"""Methods and parts of a user's own that return something else than they have to: one sentence names the part."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from diamond_diffusers import SMC, GlassPosterior, NoAlignment, ODETransition, PosteriorSampler
from diamond_diffusers.alignment.named import as_method
from diamond_diffusers.alignment.presets import PRESETS
from diamond_diffusers.posteriors.base import PosteriorSamples, equally_weighted

from ..core.mixture import make_mixture
from ..core.mixture_model import LINEAR, make_law
from .runs import run

MIXTURE = make_mixture(3)


@dataclass(frozen=True)
class OwnPosterior(PosteriorSampler):
    returned: Any = None

    num_samples = 2

    def sample(self, network, x, noise_to_signal, predicted, noise):
        return self.returned(x)


@dataclass(frozen=True)
class OwnTransition(ODETransition):
    returned: Any = None

    def step(self, network, x, interval, predicted, noise):
        return self.returned(x)


@dataclass(frozen=True)
class OwnMethod(NoAlignment):
    returned: Any = None

    def step(self, law, cloud, interval, random):
        return self.returned(cloud)


@dataclass(frozen=True)
class Wandering(NoAlignment):
    def default_transition(self, model):
        return "ode"


class Bare(NoAlignment):
    strength: float = 1.0


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (SMC(2, OwnPosterior(lambda x: x)), "the sample of OwnPosterior returned a Tensor of shape"),
        (SMC(2, OwnPosterior(lambda x: None)), "the sample of OwnPosterior returned None; return equally_weighted"),
        (SMC(2, OwnPosterior(lambda x: equally_weighted(x, 1))), "the sample of OwnPosterior returned samples"),
        (
            SMC(2, OwnPosterior(lambda x: PosteriorSamples(torch.stack([x, x], 1), torch.zeros(2)))),
            "the sample of OwnPosterior returned log_weights",
        ),
        (NoAlignment(OwnTransition(lambda x: None)), "the step of OwnTransition returned None; return particles"),
        (NoAlignment(OwnTransition(lambda x: x[..., :1])), "the step of OwnTransition returned a Tensor of shape"),
        (OwnMethod(returned=lambda cloud: cloud.x), "the step of OwnMethod returned a Tensor of shape .* a Cloud"),
        (OwnMethod(returned=lambda cloud: replace(cloud, x=None)), "the step of OwnMethod returned a cloud with None"),
        (Wandering(), "default_transition of Wandering returned 'ode'; return a transition"),
    ],
)
def test_what_a_part_returns_is_checked(method, message):
    with pytest.raises(TypeError, match=message):
        run(method, make_law(MIXTURE, LINEAR))


def test_a_method_is_a_dataclass():
    with pytest.raises(TypeError, match=r"alignment is .*, whose class is no dataclass; decorate it with @dataclass"):
        as_method(Bare())
    # One that only replaces a method of its base needs no decorator.
    assert as_method(type("Quiet", (NoAlignment,), {})()) is not None


def test_a_preset_takes_the_model(monkeypatch):
    monkeypatch.setitem(PRESETS._entries, "mine", lambda: SMC())
    with pytest.raises(TypeError, match=r"the preset 'mine' takes \(\); let it take the model"):
        as_method("mine")
    monkeypatch.setitem(PRESETS._entries, "mine", lambda model: GlassPosterior())
    with pytest.raises(TypeError, match="the preset 'mine' returned GlassPosterior"):
        as_method("mine")
