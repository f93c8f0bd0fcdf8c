"""Look-aheads and transitions of an exact Diamond Map of a Gaussian mixture."""

import math
from itertools import pairwise

import pytest
import torch

from diamond_diffusers import (
    SMC,
    DiamondPosterior,
    DiamondTransition,
    GlassPosterior,
    GlassTransition,
    Guidance,
    Guide,
    NoAlignment,
    WeightedPosterior,
)
from diamond_diffusers.core.flow_map import map_inner_flow
from diamond_diffusers.core.glass import inner_angle, inner_step, inner_time, query
from diamond_diffusers.core.interval import Interval
from diamond_diffusers.core.values import value

from ..alignment.runs import run
from .mixture import coefficients, energy_distance, make_mixture, seeded
from .mixture_model import LINEAR, MixtureModel, at_rows, law_of, unconditional

MIXTURE = make_mixture(3)
SAMPLES = 600


class DiamondMixture(MixtureModel):
    """The mixture with its exact Diamond Map: the inner flow in many small angles, which count as one evaluation."""

    has_diamond_map = True
    max_step = 0.03

    def diamond_map(self, xbar, s, r, x, noise_to_signal, conditions):
        self._count(xbar)
        s, r = float(s), float(r)
        first, last = (inner_angle(time, noise_to_signal).item() for time in (s, r))
        num_steps = math.ceil((first - last) / self.max_step)
        angles = torch.linspace(first, last, num_steps + 1, dtype=torch.float64)
        times = [s, *inner_time(angles[1:-1], noise_to_signal).tolist(), r]
        previous = None
        for time, next_time in pairwise(times):
            statistic, level = query(x, noise_to_signal, xbar, time)
            denoised = self.mixture.denoised(statistic, *coefficients(level)).to(xbar)
            xbar = inner_step("exponential", time, next_time, xbar, denoised, previous, noise_to_signal)
            previous = (time, denoised)
        return xbar


def tilted_law(num_images=1, reward=LINEAR, **options):
    return law_of(DiamondMixture(MIXTURE), unconditional(num_images), [""] * num_images, reward, **options)


@pytest.mark.parametrize("num_map_steps", [1, 3])
@pytest.mark.parametrize("level", [0.5, 2.0, math.inf])
def test_look_aheads_have_the_law_of_the_posterior(level, num_map_steps):
    law = tilted_law()
    x = MIXTURE.observation(level).sample(4, seeded(1)).float()
    noise = torch.randn(4 * SAMPLES, 3, generator=seeded(2))
    posterior = DiamondPosterior(SAMPLES, num_map_steps)
    network = at_rows(law, 4).network
    drawn = posterior.sample(network, x, level, None, noise)
    assert torch.equal(drawn.log_weights, torch.zeros(4, SAMPLES))
    assert law.cost.network_evaluations == 4 * SAMPLES * num_map_steps
    law = MIXTURE.posterior(x, level)
    exact, again = law.sample(SAMPLES, seeded(3)).float(), law.sample(SAMPLES, seeded(4)).float()
    for samples, first, second in zip(drawn.samples, exact, again, strict=True):
        noise_floor = abs(energy_distance(first, second))
        assert abs(energy_distance(samples, first)) < 2 * noise_floor + 0.01


@pytest.mark.parametrize("correlation", ["ddpm", 0.3, 1.0])
@pytest.mark.parametrize(("level", "next_level"), [(2.0, 0.8), (math.inf, 2.0), (0.8, 0.0)])
def test_a_transition_is_the_glass_transition_of_many_steps(level, next_level, correlation):
    law = tilted_law()
    network = at_rows(law, 50).network
    x = MIXTURE.observation(level).sample(50, seeded(1)).float()
    noise = torch.randn(50, 3, generator=seeded(2))
    mapped = DiamondTransition(correlation=correlation).step(network, x, Interval(level, next_level), None, noise)
    glass = GlassTransition(60, correlation, solver="exponential")
    expected = glass.step(network, x, Interval(level, next_level), network.predict(x, level), noise)
    torch.testing.assert_close(mapped, expected, atol=5e-3, rtol=0)
    assert DiamondTransition(correlation=correlation).tilt_gain(Interval(level, next_level)) == glass.tilt_gain(
        Interval(level, next_level)
    )


@pytest.mark.parametrize("level", [0.03, 0.4, 7.0, math.inf])
@pytest.mark.parametrize(
    "transition", [DiamondTransition(), DiamondTransition(2, 1.0), GlassTransition(), GlassTransition(3, 1.0)], ids=str
)
def test_a_transition_to_the_level_and_noise_at_hand_is_the_identity_to_the_bit(transition, level):
    law = tilted_law()
    network = at_rows(law, 5).network
    x, noise = torch.randn(2, 5, 3, generator=seeded(2))
    assert torch.equal(transition.step(network, x, Interval(level, level), torch.zeros_like(x), noise), x)
    assert transition.tilt_gain(Interval(level, level)) == 0 and law.cost.network_evaluations == 0


@pytest.mark.parametrize("level", [0.1, 0.5, 2.0, math.inf])
def test_several_steps_of_an_exact_map_are_one(level):
    """Wherever the steps end: the map of the tests is exact but for its own small ones, first of Euler."""
    network = at_rows(tilted_law(), 4).network
    x = MIXTURE.observation(level).sample(4, seeded(1)).float()
    noise = torch.randn(4 * 50, 3, generator=seeded(2))
    for stop in (0.0, 0.3):
        one = map_inner_flow(network, x, level, noise, 1, stop)
        for num_map_steps in (2, 3, 5):
            several = map_inner_flow(network, x, level, noise, num_map_steps, stop)
            torch.testing.assert_close(several, one, atol=0.02, rtol=0)


def test_a_run_evaluates_nothing_but_the_map():
    """One evaluation a look-ahead, between steps, and one a step: the predicted sample that nobody uses is not made."""
    law = tilted_law(num_images=2)
    alignment = SMC(num_particles=3, posterior=DiamondPosterior(4), transition=DiamondTransition())
    run(alignment, law, levels=(math.inf, 2.0, 0.5, 0.0))
    assert law.model.evaluations == law.cost.network_evaluations == 2 * 3 * (2 * 4 + 3)
    plain = tilted_law()
    run(NoAlignment(DiamondTransition()), plain, levels=(math.inf, 2.0, 0.5, 0.0))
    assert plain.model.evaluations == plain.cost.network_evaluations == 3


def test_guidance_baked_in_is_not_paid_for_again():
    conditions = unconditional()
    guided = type(conditions)(conditions.features, conditions.features, 3.0)
    law = law_of(DiamondMixture(MIXTURE), guided, [""], LINEAR)
    run(NoAlignment(DiamondTransition()), law, levels=(math.inf, 1.0, 0.0))
    assert law.cost.network_evaluations == 2
    run(NoAlignment(GlassTransition()), law, levels=(math.inf, 1.0, 0.0))
    assert law.cost.network_evaluations == 2 + 4


def test_smc_samples_the_tilted_law_and_its_evidence():
    tilted, log_evidence = LINEAR.tilt(MIXTURE)
    law = tilted_law(num_images=40)
    alignment = SMC(num_particles=48, posterior=DiamondPosterior(4), transition=DiamondTransition())
    result = run(alignment, law, levels=(math.inf, 2.0, 0.7, 0.0))
    ratios = (result.log_evidence - log_evidence).exp()
    assert abs(ratios.mean() - 1) < 4 * ratios.std() / len(ratios) ** 0.5 + 0.01
    means = (result.log_weights.exp()[..., None] * result.latents.double()).sum(1)
    error = means.mean(0) - tilted.mean
    assert (error.abs() < 4 * means.std(0) / len(means) ** 0.5 + 0.02).all()


@pytest.mark.parametrize("gradient", ["pathwise", "tilted_mean"])
def test_guidance_reaches_a_map_through_its_noise(gradient):
    tilted, _ = LINEAR.tilt(MIXTURE)
    levels = (math.inf, *torch.logspace(1, -1.5, 24).tolist(), 0.0)
    law = tilted_law(num_images=200)
    law.model.max_step = 0.1
    guidance = Guidance(DiamondPosterior(8), Guide(gradient, max_shift=None), transition=DiamondTransition())
    guided = run(guidance, law, levels=levels).latents[:, 0].double()
    plain_gap = (tilted.mean - MIXTURE.mean).norm()
    assert (guided.mean(0) - tilted.mean).norm() < plain_gap / 4
    assert (law.cost.backward_passes > 0) == (gradient == "pathwise")


@pytest.mark.parametrize(
    ("level", "next_level"),
    [
        (math.inf, 0.0),
        (2.0, 0.5),
        pytest.param(3.0, 0.0, marks=pytest.mark.slow),
        pytest.param(math.inf, 1.0, marks=pytest.mark.slow),
    ],
)
def test_the_map_contains_the_flow_map(level, next_level):
    """Given pure noise, the inner flow is the model's own probability-flow ODE."""
    law = tilted_law()
    law.model.max_step = 0.005
    network = at_rows(law, 50).network
    x = MIXTURE.observation(level).sample(50, seeded(1)).float()
    mapped = network.flow_map(x, level, next_level)
    assert law.cost.network_evaluations == 50
    expected = MIXTURE.flow(x.double(), level, next_level, 400)
    torch.testing.assert_close(mapped.double(), expected, atol=5e-3, rtol=0)


def test_weighted_look_aheads_along_the_flow_map_estimate_the_value():
    """One evaluation of the map a look-ahead, and scores of the base under its guidance."""
    conditions = unconditional()
    guided = type(conditions)(conditions.features, conditions.features, 3.0)
    law = law_of(DiamondMixture(MIXTURE), guided, [""], LINEAR)
    network = at_rows(law, 8).network
    x = MIXTURE.observation(1.0).sample(8, seeded(1)).float()
    noise = torch.randn(8 * SAMPLES, 3, generator=seeded(2))
    predicted = network.predict(x, 1.0)
    before = law.cost.network_evaluations
    drawn = WeightedPosterior(SAMPLES).sample(network, x, 1.0, predicted, noise)
    # The map once a sample; the base, which pays twice for guidance, once a sample and once for all.
    assert law.cost.network_evaluations - before == 8 * (SAMPLES + 2 * (SAMPLES + 1))
    rewards = at_rows(law, 8).tilt(drawn.samples.flatten(0, 1)).unflatten(0, (8, -1))
    _, exact = LINEAR.tilt(MIXTURE.posterior(x, 1.0))
    assert (value(rewards, drawn.log_weights) - exact).square().mean().sqrt() < 0.1


def test_what_lacks_a_map_or_cannot_be_guided_is_refused():
    plain = MixtureModel(MIXTURE)
    for alignment in (NoAlignment(DiamondTransition()), SMC(posterior=DiamondPosterior())):
        with pytest.raises(ValueError, match=r"needs a Diamond Map.*load_diamond_map"):
            alignment.resolve(plain)
    with pytest.raises(ValueError, match="num_map_steps is 0"):
        DiamondPosterior(num_map_steps=0)
    with pytest.raises(ValueError, match="num_samples is 0"):
        DiamondPosterior(0)
    with pytest.raises(ValueError, match="correlation is 2"):
        DiamondTransition(correlation=2)
    with pytest.raises(ValueError, match=r"num_jump_steps is 1, but this .* model has no flow map"):
        Guidance(num_jump_steps=1).resolve(plain)


def test_posteriors_of_glass_and_of_the_map_agree_sample_by_sample():
    law = tilted_law()
    network = at_rows(law, 3).network
    x = MIXTURE.observation(1.0).sample(3, seeded(1)).float()
    noise = torch.randn(3 * 5, 3, generator=seeded(2))
    mapped = DiamondPosterior(5).sample(network, x, 1.0, None, noise).samples
    glass = GlassPosterior(60, 5).sample(network, x, 1.0, network.predict(x, 1.0), noise).samples
    torch.testing.assert_close(mapped, glass, atol=5e-3, rtol=0)
