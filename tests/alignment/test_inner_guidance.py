"""Guidance as a part of SMC and of posterior resampling: what it says is heeded or refused."""

from dataclasses import fields, replace

import pytest

from diamond_diffusers import (
    SMC,
    AncestralTransition,
    DiamondPosterior,
    FlowMapPoint,
    GlassPosterior,
    GlassTransition,
    Guidance,
    PosteriorResampling,
    PosteriorSMC,
)
from diamond_diffusers.alignment.inner_guidance import COURSE
from diamond_diffusers.alignment.presets import PRESETS
from diamond_diffusers.alignment.presets.fmtt import fmtt

OWNERS = (SMC, PosteriorSMC, PosteriorResampling)
HEEDED = {
    "gradient": "pathwise",
    "guidance_strength": 2.0,
    "max_shift": None,
    "scaling": "norm",
    "max_coefficient": 2.0,
    "max_noise_to_signal": 3.0,
    "min_noise_to_signal": 0.5,
}
REFUSED = {
    "num_particles": 2,
    "num_corrections": 2,
    "num_guided_steps": 0.5,
    "num_jump_steps": 1,
    "num_warm_up_steps": 3,
    "keeps_best": True,
}


def test_every_option_is_told():
    assert set(REFUSED) == set(COURSE)
    told = {*HEEDED, *REFUSED, "posterior", "transition"}
    assert told == {field.name for field in fields(Guidance)}


@pytest.mark.parametrize("owner", OWNERS)
@pytest.mark.parametrize("option", REFUSED)
def test_a_course_of_its_own_is_refused(owner, option):
    value = REFUSED[option]
    default = getattr(Guidance(), option)
    sentence = f"guidance has {option}={value}, but {owner.__name__} .* would ignore it; leave it at {default}"
    with pytest.raises(ValueError, match=sentence):
        owner(guidance=Guidance(**{option: value}))


@pytest.mark.parametrize("owner", OWNERS)
def test_other_look_aheads_and_transitions_are_refused(owner):
    with pytest.raises(ValueError, match=f"guidance has posterior=.*, but look-aheads are those of {owner.__name__}"):
        owner(guidance=Guidance(GlassPosterior(num_inner_steps=7)))
    with pytest.raises(ValueError, match=f"guidance has transition=.*, but particles move by that of {owner.__name__}"):
        owner(guidance=Guidance(transition=AncestralTransition()))


@pytest.mark.parametrize("owner", OWNERS)
@pytest.mark.parametrize("option", HEEDED)
def test_what_is_heeded_is_taken(owner, option):
    assert getattr(owner(guidance=Guidance(**{option: HEEDED[option]})).guidance, option) == HEEDED[option]


def test_what_is_said_twice_alike_is_taken():
    """As `tilted_mean` asks for, which is refused without several look-aheads, whoever draws them."""
    several = GlassPosterior(num_samples=4)
    for owner in OWNERS:
        assert owner(posterior=several, guidance=Guidance(several, "tilted_mean")).guidance.posterior == several
    smc = SMC(posterior=several, transition=GlassTransition(4), guidance=Guidance(transition=GlassTransition(4)))
    assert replace(smc, num_particles=9).guidance.transition == smc.transition
    assert SMC(posterior=FlowMapPoint(4), guidance=fmtt(posterior=FlowMapPoint(4), transition=None))


def test_published_guidance_with_a_course_is_no_part_of_another_method():
    for name in ("fmrg", "posterior_diamond_map", "weighted_diamond_map"):
        with pytest.raises(ValueError, match="guidance has num_"):
            SMC(posterior=DiamondPosterior(1), guidance=PRESETS.get(name)(num_guided_steps=3))
