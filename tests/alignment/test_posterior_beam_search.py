"""Beam search over posterior samples: against the closed form of one particle, and against beam search of branches."""

import math
from itertools import pairwise

import pytest
import torch

from diamond_diffusers import (
    BeamSearch,
    DiamondMapPipeline,
    DiamondPosterior,
    DiamondTransition,
    GlassPosterior,
    PosteriorBeamSearch,
    WeightedPosterior,
)
from diamond_diffusers.alignment.budget import fit_to_budget

from ..core.mixture import GaussianMixture, make_mixture, standard_error
from ..core.mixture_model import LINEAR, law_of, make_law, unconditional
from ..core.test_diamond import DiamondMixture
from .runs import COARSE_LEVELS, falling_levels, run
from .test_search import mean_maximum

MIXTURE = make_mixture(3)


class CoarseMap(DiamondMixture):
    """A map of few inner steps, which is enough where methods are compared."""

    max_step = 0.4


def beam_law(num_images, mixture=MIXTURE, family=CoarseMap, **options):
    return law_of(family(mixture), unconditional(num_images), [""] * num_images, LINEAR, **options)


@pytest.mark.parametrize("num_samples", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_one_particle_gains_what_each_step_keeps_of_the_best_look_ahead(num_samples):
    """Of `N(0, I)`, `b . z` of the best of K look-aheads is `b . m + |b| s m_K`, with the posterior's `m` and `s`.

    A step to the next level keeps a share of that in the next mean: with correlated noises it is `1 - s'^2 / s^2`.
    """
    identity = torch.eye(3, dtype=torch.float64)
    gaussian = GaussianMixture(torch.zeros(1).double(), torch.zeros(1, 3).double(), identity[None])
    law = beam_law(1500, gaussian, DiamondMixture)
    levels = (math.inf, 1.2, 0.4, 0.0)
    rewards = run(PosteriorBeamSearch(1, DiamondPosterior(num_samples)), law, levels).rewards.double()[:, 0]
    direction = LINEAR.linear[""].norm()

    def expected(count):
        mean = 0.0
        variances = [level**2 / (1 + level**2) if level < math.inf else 1.0 for level in levels]
        for before, after in pairwise(variances):
            best = mean + math.sqrt(before) * mean_maximum(count)
            mean += (1 - after / before) * (best - mean)
        return direction * mean

    error = 4 * standard_error(rewards)
    assert (rewards.mean() - expected(num_samples)).abs() < error
    for other in (num_samples - 1, num_samples + 1):
        assert (rewards.mean() - expected(other)).abs() > error


def test_it_finds_more_than_branches_with_look_aheads_of_their_own():
    """At 60 evaluations in 4 steps; `-s` prints the figures of docs/search.md."""
    found = {}
    for name, method in {
        "posterior_beam_search": PosteriorBeamSearch(),
        "BeamSearch, one look-ahead": BeamSearch(1, 4, DiamondPosterior(1), DiamondTransition()),
        "BeamSearch, two look-aheads": BeamSearch(1, 4, DiamondPosterior(2), DiamondTransition()),
    }.items():
        law = beam_law(60, reward_scale=3.0)
        found[name] = run(fit_to_budget(method, law, falling_levels(4), 60), law, falling_levels(4)).rewards.amax(1)
        print(f"{name}: {found[name].mean():.2f} +- {standard_error(found[name]):.2f}")
    mine, *others = found.values()
    for other in others:
        assert mine.mean() - other.mean() > 1.5 * math.hypot(standard_error(mine), standard_error(other))


def test_a_step_costs_its_look_aheads():
    law = beam_law(2)
    run(PosteriorBeamSearch(3, DiamondPosterior(4)), law)
    steps = len(COARSE_LEVELS) - 1
    assert law.cost.network_evaluations == 2 * 3 * 4 * steps
    assert law.cost.decodes == law.cost.reward_calls == 2 * 3 * (4 * steps + 1)


def test_without_a_tilt_the_first_look_ahead_is_followed_and_none_is_scored():
    first = []
    for method in (PosteriorBeamSearch(1, DiamondPosterior(2)), PosteriorBeamSearch(3, DiamondPosterior(5))):
        law = beam_law(2, reward_scale=0.0, particle_batch_size=1)
        first.append(run(method, law, seed=(1, 2)).latents[:, 0])
        assert law.cost.reward_calls == 2 * method.num_particles
    assert torch.equal(*first)


def test_images_do_not_depend_on_their_batch():
    method = PosteriorBeamSearch(2, DiamondPosterior(3))
    together = run(method, beam_law(3, particle_batch_size=2), seed=(1, 2, 3)).latents
    assert torch.equal(together[[2, 0]], run(method, beam_law(2, particle_batch_size=2), seed=(3, 1)).latents)


def test_what_cannot_be_chosen_from_is_refused():
    for posterior in (DiamondPosterior(1), WeightedPosterior(4)):
        with pytest.raises(ValueError, match="a beam chooses among several look-aheads of equal weight"):
            PosteriorBeamSearch(posterior=posterior)
    with pytest.raises(ValueError, match="correlation is 2"):
        PosteriorBeamSearch(correlation=2)
    with pytest.raises(ValueError, match="Diamond Map"):
        PosteriorBeamSearch().resolve(make_law(MIXTURE, LINEAR).model)
    PosteriorBeamSearch(posterior=GlassPosterior(2, 2)).resolve(make_law(MIXTURE, LINEAR).model)


@pytest.mark.slow
def test_the_pipeline_knows_it_by_name():
    pipe = DiamondMapPipeline.from_pretrained()
    out = pipe("a red star", alignment="posterior_beam_search", max_network_evaluations=40, num_inference_steps=4)
    assert out.alignment.num_particles == 2 and out.cost.network_evaluations == 2 * 4 * 4
