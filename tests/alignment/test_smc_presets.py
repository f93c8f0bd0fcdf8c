"""Published methods of SMC against runs of their authors' code; see tests/fixtures/presets/smc/README.md."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diamond_diffusers import (
    SMC,
    AdaptiveTempering,
    AncestralTransition,
    DiamondPosterior,
    GlassTransition,
    PosteriorSampler,
    ScheduledTempering,
)
from diamond_diffusers.alignment.presets.das import DASTransition, das
from diamond_diffusers.alignment.presets.fk_steering import fk_steering
from diamond_diffusers.alignment.presets.glass_fk import glass_fk
from diamond_diffusers.alignment.presets.posterior_diamond_map_smc import posterior_diamond_map_smc
from diamond_diffusers.alignment.random_source import RandomSource, driving_noise
from diamond_diffusers.alignment.smc_parts import resampling
from diamond_diffusers.alignment.smc_parts.resampling import RESAMPLING_SCHEMES
from diamond_diffusers.core.interval import Interval
from diamond_diffusers.posteriors.base import PosteriorSamples

from ..core.mixture import make_mixture, seeded
from ..core.mixture_model import QuadraticReward, at_rows, make_law, make_map_law
from .runs import falling_levels, run

MIXTURE = make_mixture(3)
GOLDEN = json.loads((Path(__file__).parents[1] / "fixtures" / "presets" / "smc" / "runs.json").read_text())


def tensor(rows):
    return torch.tensor(rows, dtype=torch.float64)


def law_of_preset(golden, factor=1.0):
    reward = QuadraticReward({"": [factor * weight for weight in (0.9, -0.7, 0.6)]})
    return make_law(MIXTURE, reward, "epsilon", reward_scale=golden["reward_scale"])


class Replayed:
    """A source of one recorded draw."""

    def __init__(self, noise):
        self.noise = noise

    def normal(self, rows_per_image, shape):
        return self.noise


def replay(monkeypatch, smc, golden, noises, ancestors, law):
    """Runs a method with recorded noises and ancestors.

    Returns:
        Log-weights of every weighing, the weights of every resampling, the states after every step, and the result.
    """
    weighed, resampled, states = [], [], []
    noises, ancestors = iter(noises), iter(ancestors)
    propose, recorded = SMC._propose, SMC._recorded

    def watched(self, cloud):
        weighed.append(cloud.log_weights[0])
        return recorded(self, cloud)

    def scheme(weights, generator):
        resampled.append(weights)
        return torch.tensor(next(ancestors))

    monkeypatch.setattr(SMC, "_propose", lambda *given: propose(*given[:-1], Replayed(next(noises))))
    monkeypatch.setattr(SMC, "_recorded", watched)
    monkeypatch.setitem(RESAMPLING_SCHEMES._entries, smc.resampling, scheme)
    start = tensor(golden["start"])
    result = run(smc, law, golden["levels"], x=start, on_step=lambda index, x: states.append(x.clone()))
    return weighed, resampled, states, result


def test_das_is_that_of_its_authors_where_nothing_is_resampled(monkeypatch):
    """States, weights, temperatures and the particle that is returned, over a whole run."""
    golden = GOLDEN["das"][0]
    smc = das(transition=DASTransition(), tempering=ScheduledTempering(golden["gamma"]), resampling_threshold=0.0)
    noises = tensor(golden["noises"])
    weighed, _, states, result = replay(monkeypatch, smc, golden, noises, [], law_of_preset(golden))
    for after, (own, theirs) in enumerate(zip(states, tensor(golden["states"])[1:], strict=False)):
        torch.testing.assert_close(own, theirs, atol=1e-4, rtol=0, msg=f"states after step {after}")
    for own, theirs in zip(weighed, tensor(golden["log_weights"])[1:], strict=True):
        torch.testing.assert_close(own.log_softmax(0), theirs.log_softmax(0), atol=2e-3, rtol=0)
    temperatures = torch.stack([step.inverse_temperature for step in result.trace.steps])[:, 0]
    torch.testing.assert_close(temperatures, tensor(golden["inverse_temperatures"])[1:], atol=1e-6, rtol=0)
    (heaviest,) = result.select(smc.default_selection, None)[0]
    torch.testing.assert_close(result.latents[0, heaviest], tensor(golden["returned"]), atol=1e-4, rtol=0)


def test_das_resamples_when_and_by_what_its_authors_do(monkeypatch):
    """Up to their first resampling, beyond which their particles have the gradients of others."""
    golden = GOLDEN["das"][1]
    identity = list(range(4))
    first = next(level for level, ancestors in enumerate(golden["ancestors"]) if ancestors != identity)
    smc = das(transition=DASTransition(), tempering=ScheduledTempering(golden["gamma"]))
    assert smc.resampling_threshold == golden["ess_threshold"]
    ancestors = [golden["ancestors"][first], *[identity] * 9]
    run_through = replay(monkeypatch, smc, golden, tensor(golden["noises"]), ancestors, law_of_preset(golden))
    weighed, resampled, states, result = run_through
    steps = result.trace.steps
    assert [bool(step.resampled) for step in steps[:first]] == [False] * (first - 1) + [True]
    theirs = tensor(golden["log_weights"])
    for level in range(1, first + 1):
        own = weighed[level - 1].log_softmax(0)
        torch.testing.assert_close(own, theirs[level].log_softmax(0), atol=2e-3, rtol=0)
    torch.testing.assert_close(resampled[0], theirs[first].softmax(0), atol=2e-3, rtol=0)
    torch.testing.assert_close(states[first - 1], tensor(golden["states"])[first], atol=1e-4, rtol=0)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_das_tilts_by_the_whole_gradient(scale):
    """By the variance of the step times the gradient, at any scale: here of a linear reward in the denoised sample."""
    plain, tilted = [], []
    levels = falling_levels(8, 3.0)
    smc = das(transition=DASTransition(), tempering=ScheduledTempering(math.sqrt(2) - 1), resampling="none")
    for states, guided in ((plain, replace(smc, guide=replace(smc.guide, strength=0.0))), (tilted, smc)):
        law = make_law(MIXTURE, QuadraticReward({"": (0.9, -0.7, 0.6)}), reward_scale=scale)
        x = torch.ones(4, 3, dtype=torch.float64)
        run(guided, law, levels, x=x, on_step=lambda index, x, states=states: states.append(x))
    x, alpha = torch.ones(4, 3, dtype=torch.float64, requires_grad=True), 1 / math.hypot(1, levels[0])
    end = at_rows(make_law(MIXTURE), 4).network.predict(x, levels[0])
    (gradient,) = torch.autograd.grad((end @ tensor([0.9, -0.7, 0.6])).sum(), x)
    next_alpha = 1 / math.hypot(1, levels[1])
    variance = next_alpha**2 * levels[1] ** 2 * (1 - (levels[1] / levels[0]) ** 2)
    shift = tilted[0] - plain[0]
    assert alpha < next_alpha
    torch.testing.assert_close(shift, (math.sqrt(2) - 1) * scale * variance * gradient, rtol=1e-4, atol=1e-6)


def test_fk_steering_is_that_of_its_authors(monkeypatch):
    """Where it resamples, by what weights, and the states of a whole run.

    Copies of a particle share the noise of a step in their code, so that here the noises are permuted alike.
    """
    golden = GOLDEN["fk_steering"]
    noises, ancestors = (
        tensor(golden["noises"]),
        dict(zip(golden["resampled_after_steps"], golden["ancestors"], strict=True)),
    )
    permuted = [noise[ancestors[step]] if step in ancestors else noise for step, noise in enumerate(noises)]
    smc = fk_steering()
    replayed = replay(
        monkeypatch, smc, golden, permuted, golden["ancestors"], law_of_preset(golden, golden["reward_factor"])
    )
    _, resampled, states, result = replayed
    moves = [index + 1 for index, step in enumerate(result.trace.steps[:-1]) if step.resampled is not None]
    assert moves == golden["resampled_after_steps"]
    for own, theirs in zip(resampled, tensor(golden["weights"]), strict=True):
        torch.testing.assert_close(own, theirs / theirs.sum(), atol=1e-4, rtol=0)
    for step, (own, theirs) in enumerate(zip(states, tensor(golden["states"]), strict=True)):
        # Theirs are resampled one step later.
        theirs = theirs[ancestors[step + 1]] if step + 1 in ancestors else theirs
        torch.testing.assert_close(own, theirs, atol=1e-4, rtol=0)
    assert smc.default_selection == "best"


def test_the_maximum_of_fk_steering_starts_at_zero():
    """With rewards below 0 throughout, its potentials are 1 until the end, as theirs are."""
    reward = QuadraticReward({"": (0.0, 0.0, 0.0)}, 1.0)
    law = make_law(MIXTURE, reward, num_images=3, reward_scale=10.0)
    result = run(fk_steering(), law, falling_levels(10))
    valued = [step for step in result.trace.steps[:-1] if step.resampled is not None]
    assert len(valued) == 4 and all((step.best_value < 0).all() for step in valued)
    assert all((step.effective_sample_size == 4).all() and not step.resampled.any() for step in valued)


class Told(PosteriorSampler):
    """One look-ahead whose first number is the value to be."""

    num_samples = 1

    def __init__(self, values):
        self.values = iter(values)

    def sample(self, network, x, noise_to_signal, predicted, noise):
        z = torch.zeros_like(x)
        z[:, 0] = next(self.values)
        return PosteriorSamples(z[:, None], torch.zeros(len(x), 1))


def test_posterior_diamond_smc_weighs_and_resamples_as_its_authors_do(monkeypatch):
    """Weights, effective sample sizes and, from their uniforms, ancestors."""
    golden = GOLDEN["posterior_diamond_map_smc"]
    valuations = golden["valuations"]
    uniforms = iter(valuation["uniform"] for valuation in valuations)
    monkeypatch.setattr(resampling, "uniform", lambda count, generator: tensor([next(uniforms)]))
    ancestors, systematic = [], RESAMPLING_SCHEMES.get("systematic")
    monkeypatch.setitem(
        RESAMPLING_SCHEMES._entries, "systematic", lambda *given: ancestors.append(systematic(*given)) or ancestors[-1]
    )
    smc = posterior_diamond_map_smc(posterior=Told([tensor(valuation["values"]) for valuation in valuations]))
    assert smc.num_particles == golden["num_particles"]
    law = make_law(MIXTURE, QuadraticReward({"": (1.0, 0.0, 0.0)}), reward_scale=1 / golden["temperature"])
    result = run(smc, law, falling_levels(len(valuations) + 1))
    assert [drawn.tolist() for drawn in ancestors] == [valuation["ancestors"] for valuation in valuations]
    for step, valuation in zip(result.trace.steps[:-1], valuations, strict=True):
        size = tensor([valuation["effective_sample_size"]])
        torch.testing.assert_close(step.effective_sample_size, size, atol=1e-3, rtol=0)


def test_settings_are_those_that_are_published():
    assert posterior_diamond_map_smc().posterior == DiamondPosterior(1)
    assert posterior_diamond_map_smc().transition == GlassTransition(8, solver="euler")
    assert glass_fk().transition == GlassTransition(4, correlation=0.4)
    assert das().max_tilt == math.inf and das().guide.max_shift is None and das().resampling == "ssp"
    assert das().default_selection == "heaviest" and das().num_valuations is None


def test_settings_of_das_follow_the_model():
    few_step, ordinary = make_map_law(MIXTURE).model, make_law(MIXTURE).model
    assert das(few_step).tempering == ScheduledTempering(0.1) and das(few_step).transition == DASTransition(0.5)
    assert das(ordinary).tempering == das().tempering == AdaptiveTempering()
    assert das(ordinary).transition == das().transition == DASTransition(0.5)
    ordinary.name = "sdxl"
    assert das(ordinary).tempering == ScheduledTempering(0.008) and das(ordinary).transition == DASTransition(1.0)


def test_das_steps_as_ddpm_does():
    """Its transition differs in the tilt alone, and in that less and less as steps shrink."""
    network = at_rows(make_law(MIXTURE), 5).network
    x, noise = torch.randn(2, 5, 3, generator=seeded(1))
    predicted = network.predict(x, 2.0)
    for eta in (0.5, 1.0):
        own, plain = DASTransition(eta), AncestralTransition(eta)
        step = (network, x, Interval(2.0, 1.0), predicted, noise)
        assert torch.equal(own.step(*step), plain.step(*step))
    assert DASTransition().tilt_gain(Interval(2.0, 1.0)) < 0.9 * AncestralTransition().tilt_gain(Interval(2.0, 1.0))
    ratio = DASTransition().tilt_gain(Interval(2.0, 1.999)) / AncestralTransition().tilt_gain(Interval(2.0, 1.999))
    assert abs(ratio - 1) < 0.01


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_das_draws_its_noise_at_pure_noise_too(eta):
    """There is no gradient to tilt by, but the step keeps its spread: the next state has the variance 1."""
    transition, interval = DASTransition(eta), Interval(math.inf, 2.0)
    assert transition.tilt_gain(interval) == 0
    x = torch.randn(4000, 3, generator=seeded(1))
    noise = driving_noise(RandomSource(seeded(2), 1), transition, x, len(x), interval)
    moved = transition.step(None, x, interval, torch.zeros_like(x), noise)
    sigma = 2.0 / math.sqrt(5.0)
    # The relative error of a deviation of 12000 numbers is 0.65 %.
    assert abs(moved.std().item() / sigma - 1) < 0.026
