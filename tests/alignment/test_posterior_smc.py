"""SMC whose particles move by their own look-aheads, against the tilted law and the evidence in closed form."""

import math
from dataclasses import replace

import pytest
import torch

from diamond_diffusers import (
    SMC,
    AncestralTransition,
    DenoiserPoint,
    DiamondPosterior,
    DiamondTransition,
    GlassPosterior,
    GlassTransition,
    Guide,
    PosteriorSMC,
    WeightedPosterior,
)
from diamond_diffusers.alignment.methods.posterior_resampling import noised_sample
from diamond_diffusers.core.interval import Interval

from ..core.mixture import seeded, standard_error
from ..core.mixture_model import LINEAR, QUADRATIC, at_rows, law_of, make_law, unconditional
from ..core.test_diamond import MIXTURE, DiamondMixture, tilted_law
from ..products import diagonal, one_of_each_kind
from .runs import COARSE_LEVELS, falling_levels, run
from .test_smc import is_exact

LEVELS = (math.inf, 1.5, 0.5, 0.0)
STEPS = len(LEVELS) - 1
GUIDE = Guide("isotropic")


def estimates(smc, reward, num_images):
    """`Z / Z_exact [B]`, and weighted means `[B, d]` of the particles less the exact one."""
    result = run(smc, tilted_law(num_images, reward), LEVELS)
    tilted, evidence = reward.tilt(MIXTURE)
    means = torch.einsum("bp,bpd->bd", result.log_weights.exp(), result.latents.double())
    return torch.exp(result.log_evidence - evidence), means - tilted.mean


EXACT = {
    "one look-ahead": PosteriorSMC(64),
    "four": PosteriorSMC(64, DiamondPosterior(4)),
    "weak correlation": PosteriorSMC(64, transition=GlassTransition(correlation=0.6)),
    "full correlation": PosteriorSMC(64, transition=GlassTransition(correlation=1.0)),
    "guided": PosteriorSMC(64, guide=GUIDE),
    "strongly guided": PosteriorSMC(64, DiamondPosterior(4), guide=Guide("tilted_mean", strength=1.5)),
    "late values": PosteriorSMC(64, resampling_threshold=1.0, max_noise_to_signal=1.5),
}


@pytest.mark.parametrize(("name", "reward"), diagonal([*EXACT], [LINEAR, QUADRATIC]))
def test_evidence_and_tilted_mean_are_exact(name, reward):
    ratio, mean_error = estimates(EXACT[name], reward, 96)
    assert is_exact(ratio, mean_error, 64)
    # An error of a sixth would be seen.
    assert standard_error(ratio) < 0.04


def test_values_belong_to_the_samples_that_particles_move_by():
    """So that the evidence of as many particles varies less, at half the price."""
    errors, costs = [], []
    for smc in (PosteriorSMC(64), SMC(64, DiamondPosterior(1), GlassTransition(16))):
        law = tilted_law(96, LINEAR)
        _, evidence = LINEAR.tilt(MIXTURE)
        errors.append((run(smc, law, LEVELS).log_evidence - evidence).square().mean().sqrt())
        costs.append(law.cost.network_evaluations)
    assert errors[0] < errors[1]
    assert costs[0] == 96 * 64 * STEPS < costs[1] / 2


def test_a_step_costs_its_look_aheads():
    law = tilted_law(2)
    run(PosteriorSMC(3, DiamondPosterior(4)), law, COARSE_LEVELS)
    steps = len(COARSE_LEVELS) - 1
    assert law.cost.network_evaluations == 2 * 3 * 4 * steps
    assert law.cost.decodes == law.cost.reward_calls == 2 * 3 * (4 * steps + 1)
    glass = make_law(MIXTURE, LINEAR)
    run(PosteriorSMC(2, GlassPosterior(4)), glass, COARSE_LEVELS)
    assert glass.cost.network_evaluations == 2 * 4 * steps


def test_look_aheads_without_a_value_are_not_scored():
    late, untilted = tilted_law(2), tilted_law(2, reward_scale=0.0)
    run(PosteriorSMC(3, DiamondPosterior(4), max_noise_to_signal=1.0, guide=GUIDE), late, COARSE_LEVELS)
    run(PosteriorSMC(3, DiamondPosterior(4)), untilted, COARSE_LEVELS)
    with_values = sum(level <= 1.0 for level in COARSE_LEVELS[:-1])
    assert late.cost.decodes == late.cost.reward_calls == 2 * 3 * (4 * with_values + 1)
    assert untilted.cost.decodes == untilted.cost.reward_calls == 2 * 3
    assert late.cost.network_evaluations == untilted.cost.network_evaluations == 2 * 3 * 4 * (len(COARSE_LEVELS) - 1)


def test_a_move_by_the_denoised_sample_is_the_gaussian_ancestral_step():
    """So that with `DenoiserPoint` this is FK steering."""
    network = at_rows(make_law(MIXTURE, LINEAR), 5).network
    x, noise = torch.randn(2, 5, 3, generator=seeded(1))
    for kappa, kappa_next in [(math.inf, 2.0), (2.0, 0.7), (0.7, 0.0)]:
        predicted = network.predict(x, kappa)
        moved = noised_sample(x, predicted, noise, Interval(kappa, kappa_next), kappa_next / kappa)
        step = GlassTransition().step(network, x, Interval(kappa, kappa_next), predicted, noise)
        torch.testing.assert_close(moved, step)


class CoarseDiamondMixture(DiamondMixture):
    """Its map in fewer steps, which are as good as exact."""

    max_step = 0.1


MORE_STEPS = {
    "posterior_smc": PosteriorSMC(16),
    "smc by the map alone": SMC(16, DiamondPosterior(1), DiamondTransition()),
    "smc with several look-aheads": SMC(16, DiamondPosterior(4), DiamondTransition()),
    "smc with points": SMC(16, DenoiserPoint(), DiamondTransition()),
}


def evidence_errors(smc, num_steps, num_images=128):
    """Errors of `log Z`, `[B]`, under a tilt that few particles of 16 survive."""
    scale = 2.5
    law = law_of(
        CoarseDiamondMixture(MIXTURE), unconditional(num_images), [""] * num_images, LINEAR, reward_scale=scale
    )
    _, evidence = LINEAR.tilt(MIXTURE, scale=scale)
    return run(smc, law, falling_levels(num_steps)).log_evidence - evidence


@pytest.mark.parametrize("name", one_of_each_kind(MORE_STEPS, ["posterior_smc", "smc with points"]))
def test_more_steps_do_not_make_the_evidence_worse(name):
    """Fresh look-ahead noise in the weights after every step would: by 1 with 12 steps, and by 5 with 40."""
    few, more, many = (evidence_errors(MORE_STEPS[name], num_steps) for num_steps in (5, 12, 40))
    for errors in (more, many):
        tolerance = 3 * (standard_error(errors) ** 2 + standard_error(few) ** 2).sqrt()
        assert errors.mean() > few.mean() - tolerance and tolerance < 0.6


def test_values_after_every_step_cost_lineages():
    """The same steps, of which noise chooses at each: what the default keeps from."""
    assert evidence_errors(replace(MORE_STEPS["posterior_smc"], num_valuations=None), 40).mean() < -3


def test_without_a_tilt_look_aheads_alone_move_the_particles():
    """Whatever the method's options are, and none is ever preferred."""
    methods = [PosteriorSMC(4), PosteriorSMC(4, guide=GUIDE, potential="max")]
    plain, other = (run(method, tilted_law(3, reward_scale=0.0), seed=(1, 2, 3)) for method in methods)
    assert torch.equal(plain.latents, other.latents)
    assert torch.equal(plain.log_evidence, torch.zeros(3, dtype=torch.float64))


def test_images_do_not_depend_on_their_batch():
    method = PosteriorSMC(4, guide=GUIDE)
    together = run(method, tilted_law(3), seed=(1, 2, 3)).latents
    assert torch.equal(together[[2, 0]], run(method, tilted_law(2), seed=(3, 1)).latents)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"posterior": WeightedPosterior(4)}, "differ in weight"),
        ({"transition": GlassTransition(num_inner_steps=2)}, "look-aheads move the particles"),
        ({"transition": AncestralTransition()}, "look-aheads move the particles"),
        ({"posterior": DenoiserPoint(), "transition": GlassTransition(correlation=1.0)}, "draws no noise"),
        ({"guide": Guide("tilted_mean")}, "draws 1; take GlassPosterior"),
    ],
)
def test_what_cannot_move_particles_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PosteriorSMC(**options)


def test_no_transition_is_the_default_one():
    model = tilted_law().model
    assert PosteriorSMC(transition=None).resolve(model) == PosteriorSMC().resolve(model)
    assert PosteriorSMC(transition=None).resolve(model).transition == PosteriorSMC().transition


def test_a_denoiser_is_not_needed():
    """Look-aheads of the map move the particles: a model without a posterior mean has all that it takes."""

    class MapAlone(DiamondMixture):
        has_denoiser = False
        predicts_mean = False

    law = law_of(MapAlone(MIXTURE), unconditional(2), [""] * 2, LINEAR)
    assert torch.equal(run(PosteriorSMC(4), law).latents, run(PosteriorSMC(4), tilted_law(2)).latents)


def test_a_diamond_map_is_needed():
    with pytest.raises(ValueError, match="Diamond Map"):
        PosteriorSMC().resolve(make_law(MIXTURE, LINEAR).model)
