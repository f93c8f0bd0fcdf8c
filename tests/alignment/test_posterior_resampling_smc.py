"""SMC whose particles move by chosen look-aheads, against the tilted law and the evidence in closed form."""

import math

import pytest
import torch

from diamond_diffusers import (
    DiamondPosterior,
    GlassPosterior,
    GlassTransition,
    Guide,
    PosteriorResamplingSMC,
    PosteriorSMC,
    WeightedPosterior,
)
from diamond_diffusers.alignment.methods.posterior_resampling import noised_sample
from diamond_diffusers.alignment.methods.posterior_resampling_smc import log_kernels
from diamond_diffusers.alignment.smc_parts.tempering import ScheduledTempering
from diamond_diffusers.core.glass import EarlyStop
from diamond_diffusers.core.interval import Interval

from ..core.mixture import seeded, standard_error
from ..core.mixture_model import LINEAR, QUADRATIC, make_law
from ..core.test_diamond import MIXTURE, tilted_law
from ..products import one_of_each_kind
from .runs import COARSE_LEVELS, run
from .test_posterior_smc import GUIDE, estimates, evidence_errors
from .test_smc import is_exact

EXACT = {
    "four": PosteriorResamplingSMC(32),
    "two": PosteriorResamplingSMC(32, DiamondPosterior(2)),
    "strong choice": PosteriorResamplingSMC(32, choice_strength=1.5),
    "weak choice": PosteriorResamplingSMC(32, choice_strength=0.5),
    "guided": PosteriorResamplingSMC(32, guide=GUIDE),
    "strongly guided": PosteriorResamplingSMC(32, guide=Guide("tilted_mean", strength=1.5)),
    "full correlation": PosteriorResamplingSMC(64, DiamondPosterior(2), GlassTransition(correlation=1.0)),
    "late values": PosteriorResamplingSMC(32, resampling_threshold=1.0, max_noise_to_signal=1.5),
    "never valued": PosteriorResamplingSMC(32, num_valuations=0),
    "tempered": PosteriorResamplingSMC(32, tempering=ScheduledTempering(0.5), num_valuations=None),
}
REWARDS = {"linear": LINEAR, "quadratic": QUADRATIC}


@pytest.mark.parametrize("reward", ["linear", pytest.param("quadratic", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", one_of_each_kind(EXACT, ["guided"]))
def test_evidence_and_tilted_mean_are_exact(name, reward):
    ratio, mean_error = estimates(EXACT[name], REWARDS[reward], 64)
    assert is_exact(ratio, mean_error, 32)
    # An error of a sixth would be seen.
    assert standard_error(ratio) < 0.04


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "figures"),
    [
        (PosteriorResamplingSMC(16, DiamondPosterior(4)), (0.40, 0.49)),
        (PosteriorSMC(64, DiamondPosterior(1)), (0.55, 0.48)),
        (PosteriorSMC(16, DiamondPosterior(4)), (0.79, 0.79)),
    ],
    ids=["chosen", "one", "any of four"],
)
def test_the_errors_of_the_evidence_are_those_that_are_documented(method, figures):
    """Of 64 look-aheads a step each; without the choice those of as many particles are twice as large."""
    for num_steps, figure in zip((5, 12), figures, strict=True):
        error = evidence_errors(method, num_steps).square().mean().sqrt()
        # The root mean square of 128 has a relative error of a tenth, as their tails are heavier than normal ones.
        assert error == pytest.approx(figure, rel=0.3)


def test_the_best_look_ahead_leads_to_higher_rewards_and_bounds_the_evidence():
    results = {}
    for strength in (1.0, math.inf):
        method = PosteriorResamplingSMC(4, choice_strength=strength)
        results[strength] = run(method, tilted_law(48), seed=range(48))
    gain = (results[math.inf].rewards - results[1.0].rewards).mean(1)
    assert gain.mean() > 4 * standard_error(gain)
    ratio = (results[math.inf].log_evidence - LINEAR.tilt(MIXTURE)[1]).exp()
    assert ratio.mean() < 1 - 4 * standard_error(ratio)


@pytest.mark.parametrize("mean", [None, 0.3])
def test_kernels_are_the_densities_of_the_noise_that_leads_to_the_state(mean):
    interval, correlation = Interval(2.0, 0.7), 0.35
    x, noise, mu = torch.randn(3, 5, 3, generator=seeded(1), dtype=torch.float64)
    mu = None if mean is None else mean * mu
    samples = torch.randn(5, 4, 3, generator=seeded(2), dtype=torch.float64)
    chosen = torch.tensor([0, 3, 1, 2, 0])
    state = noised_sample(x, samples[torch.arange(5), chosen], noise, interval, correlation)
    stop = EarlyStop(interval, correlation).stop
    plain, proposed = log_kernels(samples, chosen, noise, mu, stop)

    def density(k, mean):
        """By the noise that solves for the state, of which `noised_sample` is affine."""
        at_zero = noised_sample(x, samples[:, k], torch.zeros_like(x), interval, correlation)
        slope = noised_sample(x, samples[:, k], torch.ones_like(x), interval, correlation) - at_zero
        return -((state - at_zero) / slope - mean).square().sum(1) / 2

    for found, shift in ((plain, 0.0), (proposed, 0.0 if mu is None else mu)):
        expected = torch.stack([density(k, shift) for k in range(4)], 1) + noise.square().sum(1, keepdim=True) / 2
        torch.testing.assert_close(found, expected)


def test_a_step_costs_its_look_aheads():
    law = tilted_law(2)
    run(PosteriorResamplingSMC(3, GlassPosterior(2, 4)), law, COARSE_LEVELS)
    steps = len(COARSE_LEVELS) - 1
    assert law.cost.network_evaluations == 2 * 3 * (1 + 4) * steps
    assert law.cost.decodes == law.cost.reward_calls == 2 * 3 * (4 * steps + 1)


def test_without_a_tilt_it_is_posterior_smc():
    methods = [
        PosteriorSMC(4, DiamondPosterior(4)),
        PosteriorResamplingSMC(4, guide=GUIDE, choice_strength=math.inf),
    ]
    plain, other = (run(method, tilted_law(3, reward_scale=0.0), seed=(1, 2, 3)) for method in methods)
    assert torch.equal(plain.latents, other.latents)
    assert torch.equal(plain.log_evidence, torch.zeros(3, dtype=torch.float64))


def test_images_do_not_depend_on_their_batch():
    method = PosteriorResamplingSMC(4, guide=GUIDE)
    together = run(method, tilted_law(3), seed=(1, 2, 3)).latents
    assert torch.equal(together[[2, 0]], run(method, tilted_law(2), seed=(3, 1)).latents)


@pytest.mark.slow
def test_glass_look_aheads_move_particles_without_a_map():
    """GLASS look-aheads of many inner steps are as good as a map's."""
    ratio = []
    law = make_law(MIXTURE, LINEAR, num_images=24)
    result = run(PosteriorResamplingSMC(16, GlassPosterior(8, 4)), law)
    ratio = (result.log_evidence - LINEAR.tilt(MIXTURE)[1]).exp()
    assert (ratio.mean() - 1).abs() < 4 * standard_error(ratio) and standard_error(ratio) < 0.06


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"posterior": WeightedPosterior(4)}, "differ in weight"),
        ({"posterior": DiamondPosterior(1)}, "nothing to choose"),
        ({"choice_strength": 0.0}, "choice_strength is 0.0"),
        ({"choice_strength": math.nan}, "choice_strength is nan"),
    ],
)
def test_what_cannot_choose_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PosteriorResamplingSMC(**options)
