"""A guide says the same in every method that takes one: no option of it is ignored."""

from dataclasses import fields

import pytest
import torch

from diamond_diffusers import SMC, GlassPosterior, Guidance, Guide, PosteriorResampling, PosteriorSMC
from diamond_diffusers.alignment.presets import PRESETS

from ..core.mixture import make_mixture
from ..core.mixture_model import LINEAR, make_law
from .runs import COARSE_LEVELS, run

MIXTURE = make_mixture(3)
METHODS = (Guidance, SMC, PosteriorSMC, PosteriorResampling)
LOOK_AHEADS = GlassPosterior(2, 2)
OTHERS = {
    "gradient": "pathwise",
    "strength": 0.1,
    "max_shift": 0.01,
    "scaling": "norm",
    "max_coefficient": 0.1,
    "max_noise_to_signal": 0.6,
    "min_noise_to_signal": 2.0,
}


def drawn(method, guide):
    return run(method(posterior=LOOK_AHEADS, guide=guide), make_law(MIXTURE, LINEAR), COARSE_LEVELS).latents


def test_every_option_is_told():
    assert set(OTHERS) == {field.name for field in fields(Guide)}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("option", OTHERS)
def test_every_option_counts(method, option):
    plain = {"max_shift": None}
    assert not torch.equal(drawn(method, Guide(**plain)), drawn(method, Guide(**(plain | {option: OTHERS[option]}))))


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_no_guide(method):
    with pytest.raises(TypeError, match=r"guide is Guidance\(.*\); give an object, such as Guide\(\)"):
        method(posterior=LOOK_AHEADS, guide=Guidance())


@pytest.mark.parametrize("method", METHODS)
def test_a_gradient_that_compares_look_aheads_needs_several(method):
    with pytest.raises(ValueError, match="gradient is 'tilted_mean', which compares look-aheads, but the posterior"):
        method(posterior=GlassPosterior(2, 1), guide=Guide("tilted_mean")).check(LINEAR)


@pytest.mark.parametrize("name", ["dps", "fmtt", "fmrg", "posterior_diamond_map", "weighted_diamond_map"])
def test_published_guides_propose_in_smc(name):
    guide = PRESETS.get(name)().guide
    assert SMC(guide=guide).guide == guide
