"""Chosen posterior samples move particles through the tilted law."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch

from diamond_diffusers import (
    DenoiserPoint,
    DiamondMapPipeline,
    DiamondPosterior,
    GlassPosterior,
    Guide,
    NoAlignment,
    PosteriorResampling,
    WeightedPosterior,
)
from diamond_diffusers.alignment.methods.posterior_resampling import choose
from diamond_diffusers.alignment.random_source import RandomSource
from diamond_diffusers.miniature.grammar import held_out_captions

from ..core.mixture import GaussianMixture, energy_distance, make_mixture, seeded, standard_error
from ..core.mixture_model import LINEAR, QUADRATIC, QuadraticReward, law_of, make_law, unconditional
from ..core.test_diamond import DiamondMixture, tilted_law
from .runs import COARSE_LEVELS, falling_levels, run

MIXTURE = make_mixture(3)


@pytest.mark.parametrize("reward", [LINEAR, QUADRATIC])
@pytest.mark.parametrize("correlation", ["ddpm", 0.4])
def test_many_look_aheads_give_the_tilted_law(reward, correlation):
    tilted, _ = reward.tilt(MIXTURE)
    law = tilted_law(1000, reward=reward)
    method = PosteriorResampling(posterior=DiamondPosterior(32), correlation=correlation)
    drawn = run(method, law, levels=(math.inf, 1.2, 0.4, 0.0)).latents[:, 0].double()
    exact = tilted.sample(1000, seeded(5))
    # Two exact sets of this size are 0.006 apart at most in 50 trials; the plain law is over 0.2 away.
    assert energy_distance(drawn, exact) < 0.012
    assert energy_distance(MIXTURE.sample(1000, seeded(6)), exact) > 0.1


@pytest.mark.parametrize("num_steps", [4, 6, 12])
def test_the_defaults_reach_a_higher_reward_than_plain_sampling(num_steps):
    """And keep the spread of the tilted law, which too few inner steps lose."""
    scale = 1.5
    law, plain_model = (make_law(MIXTURE, LINEAR, num_images=400, reward_scale=scale) for _ in range(2))
    tilted, plain = (
        run(method, on, falling_levels(num_steps))
        for method, on in ((PosteriorResampling(), law), (NoAlignment(), plain_model))
    )
    gain = (tilted.rewards - plain.rewards)[:, 0]
    assert gain.mean() > 0.5 and standard_error(gain) < 0.1
    law, _ = LINEAR.tilt(MIXTURE, scale=scale)
    spread = tilted.latents[:, 0].double().var(0).sum() / law.covariance.diagonal().sum()
    assert spread > 0.7


@pytest.mark.slow
@pytest.mark.parametrize("num_steps", [4, 6, 12])
def test_the_defaults_reach_a_higher_reward_on_the_embedded_model(num_steps):
    """Where two inner steps of a look-ahead had a lower one."""
    pipe = DiamondMapPipeline.from_pretrained()
    pipe.set_progress_bar_config(disable=True)
    captions = [caption.text for caption in random.Random(0).sample(held_out_captions(), 24)]
    plain, tilted = (
        pipe(
            captions,
            alignment=alignment,
            num_inference_steps=num_steps,
            generator=[seeded(seed) for seed in range(len(captions))],
            output_type="latent",
        ).rewards
        for alignment in (NoAlignment(num_particles=1), PosteriorResampling())
    )
    assert (tilted - plain).mean() > 0


def test_guidance_moves_what_is_chosen():
    """From one look-ahead a step; exact for a Gaussian of unit variance and a linear reward, whose tilt is a shift."""
    gaussian = GaussianMixture(
        torch.zeros(1, dtype=torch.float64),
        torch.zeros(1, 3, dtype=torch.float64),
        torch.eye(3, dtype=torch.float64)[None],
    )
    law = law_of(DiamondMixture(gaussian), unconditional(1000), [""] * 1000, LINEAR)
    guide = Guide("isotropic", max_shift=None)
    drawn = run(PosteriorResampling(1, DiamondPosterior(1), guide=guide), law, levels=(math.inf, 1.2, 0.4, 0.0))
    drawn = drawn.latents[:, 0].double()
    tilted, _ = LINEAR.tilt(gaussian)
    assert ((drawn.mean(0) - tilted.mean).abs() < 4 / math.sqrt(1000)).all()
    assert ((drawn.var(0) - 1).abs() < 4 * math.sqrt(2 / 1000)).all()
    assert law.cost.backward_passes == 0


def test_a_step_costs_its_look_aheads():
    law = tilted_law(2)
    run(PosteriorResampling(3, DiamondPosterior(4)), law)
    steps = len(COARSE_LEVELS) - 1
    assert law.cost.network_evaluations == 2 * 3 * 4 * steps
    assert law.cost.decodes == law.cost.reward_calls == 2 * 3 * (4 * steps + 1)
    assert law.cost.backward_passes == 0
    glass = make_law(MIXTURE, LINEAR)
    run(PosteriorResampling(1, GlassPosterior(2, 4)), glass)
    assert glass.cost.network_evaluations == (1 + 4) * steps


def test_guidance_has_its_levels_and_tells_the_terms_of_its_gradient_apart():
    """Beyond its levels nothing is differentiated; `norm` differentiates the velocity at weighted look-aheads too."""
    levels = (1.2, 0.4, 0.0)
    costs = {}
    for scaling in ("exact", "norm"):
        law = make_law(MIXTURE, LINEAR)
        guide = Guide("pathwise", scaling=scaling, max_coefficient=2.0, min_noise_to_signal=1.0)
        posterior = WeightedPosterior(3, num_map_steps=2)
        run(PosteriorResampling(posterior=posterior, guide=guide), law, levels, x=torch.ones(1, 3))
        costs[scaling] = law.cost
    # The map has two steps of the ODE, of which the first gives the scores too.
    assert [costs[scaling].backward_passes for scaling in costs] == [3 * 2, 3 * 2 + 3]
    assert costs["norm"].decodes == costs["exact"].decodes == 2 * 3 + 1


def test_without_a_tilt_the_first_look_ahead_moves_the_particle():
    """So the others, which are drawn aside, change nothing."""
    draws = [
        run(PosteriorResampling(1, DiamondPosterior(count)), tilted_law(3, reward_scale=0.0), seed=(1, 2, 3)).latents
        for count in (2, 5)
    ]
    assert torch.equal(*draws)


@pytest.mark.parametrize("guide", [None, Guide("pathwise")], ids=["unguided", "guided"])
def test_without_a_tilt_no_look_ahead_is_scored(guide):
    law = tilted_law(2, reward_scale=0.0)
    run(PosteriorResampling(3, DiamondPosterior(4), guide=guide), law)
    assert law.cost.decodes == law.cost.reward_calls == 2 * 3
    assert law.cost.backward_passes == 0


def test_images_do_not_depend_on_their_batch():
    method = PosteriorResampling(2, DiamondPosterior(4))
    together = run(method, tilted_law(3), seed=(1, 2, 3)).latents
    assert torch.equal(together[[2, 0]], run(method, tilted_law(2), seed=(3, 1)).latents)


def test_the_choice_has_the_law_of_the_weights():
    """And is the first wherever weights are equal."""
    weights = torch.tensor([0.1, 0.6, 0.05, 0.25], dtype=torch.float64)
    count = 20_000
    # The first is any of the samples, in no order.
    order = torch.stack([torch.randperm(4, generator=seeded(number)) for number in range(count)])
    index = choose(weights.log()[order], RandomSource(seeded(0), count))
    chosen = order[torch.arange(count), index]
    frequency = torch.bincount(chosen, minlength=4) / count
    assert ((frequency - weights).abs() < 4 * (weights * (1 - weights) / count).sqrt()).all()
    assert not choose(torch.zeros(50, 4), RandomSource(seeded(0), 50)).any()


def test_look_aheads_of_which_none_is_possible_are_all_alike():
    """A scaled score below all floats is `-inf`: the particle moves as without a reward."""
    law = make_law(MIXTURE, QuadraticReward({"": (0.0, 0.0, 0.0)}), num_images=3, reward_scale=10.0)
    law.reward.score = lambda images, prompts: torch.full((len(images),), torch.finfo(torch.float32).min)
    moved, plain = (run(PosteriorResampling(2), each) for each in (law, replace(law, reward_scale=0.0)))
    assert torch.equal(moved.latents, plain.latents)


def test_what_cannot_be_chosen_from_is_refused():
    with pytest.raises(ValueError, match=r"posterior is .*, of whose single look-ahead there is nothing to choose"):
        PosteriorResampling(posterior=DenoiserPoint())
    with pytest.raises(ValueError, match="correlation is 2"):
        PosteriorResampling(correlation=2)
    with pytest.raises(ValueError, match="Diamond Map"):
        PosteriorResampling(posterior=DiamondPosterior(4)).resolve(make_law(MIXTURE, LINEAR).model)
