"""What a method is made of is checked when it is made: its parts, and its counts."""

import pytest

from diamond_diffusers import (
    SMC,
    BestOfN,
    FlowMapPoint,
    GlassPosterior,
    Guidance,
    Guide,
    PosteriorResampling,
    PosteriorSMC,
    RandomSearch,
)

from ..core.mixture_model import LINEAR


@pytest.mark.parametrize("gradient", ["tilted_mean", "hybrid"])
def test_one_look_ahead_is_not_compared(gradient):
    """Whichever method draws it."""
    guidance = Guidance(guide=Guide(gradient))
    with pytest.raises(ValueError, match=f"gradient is '{gradient}', which compares look-aheads, but .* draws 1"):
        guidance.check(LINEAR)
    several = GlassPosterior(num_samples=2)
    for method in (SMC, PosteriorResampling, PosteriorSMC):
        with pytest.raises(ValueError, match="compares look-aheads"):
            method(posterior=GlassPosterior(), guide=Guide(gradient))
        method(posterior=several, guide=Guide(gradient)).check(LINEAR)


@pytest.mark.parametrize(
    ("method", "options", "example"),
    [
        (Guidance, {"posterior": 3}, "posterior is 3; give an object, such as DenoiserPoint()"),
        (SMC, {"posterior": GlassPosterior}, "posterior is the class GlassPosterior; give an instance"),
        (Guidance, {"transition": ()}, r"transition is \(\); give an object, such as AncestralTransition()"),
        (SMC, {"guide": True}, r"guide is True; give an object, such as Guide\(\)"),
        (PosteriorResampling, {"guide": "pathwise"}, "guide is 'pathwise'; give an object"),
        (BestOfN, {"transition": 4}, "transition is 4; give an object"),
        (SMC, {"tempering": 0.5}, "tempering is 0.5; give an object, such as AdaptiveTempering()"),
    ],
)
def test_parts_of_a_method_are_objects(method, options, example):
    with pytest.raises(TypeError, match=example.replace("()", r"\(\)")):
        method(**options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SMC(num_valuations=2.5), r"num_valuations is 2\.5; give a whole number or auto or None"),
        (
            lambda: GlassPosterior(num_inner_steps=2.5),
            r"num_inner_steps is 2\.5; give a whole number",
        ),
        (lambda: GlassPosterior(num_samples=1.5), r"num_samples is 1\.5; give a whole number"),
        (lambda: FlowMapPoint(1.5), r"num_steps is 1\.5; give a whole number"),
        (lambda: RandomSearch(num_candidates=2.5), r"num_candidates is 2\.5; give a whole number"),
        (lambda: BestOfN(num_particles="4"), "num_particles is '4'; give a whole number"),
    ],
)
def test_counts_are_whole_numbers(make, message):
    with pytest.raises(ValueError, match=message):
        make()
