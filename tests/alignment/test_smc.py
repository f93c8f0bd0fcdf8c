"""Sequential Monte Carlo against the tilted law and the evidence in closed form."""

import math
from dataclasses import replace

import pytest
import torch

from diamond_diffusers import (
    SMC,
    AdaptiveTempering,
    AncestralTransition,
    DenoiserPoint,
    GlassPosterior,
    GlassTransition,
    Guide,
    NoAlignment,
)
from diamond_diffusers.alignment.look_ahead import LookAhead
from diamond_diffusers.alignment.methods.smc import valuations
from diamond_diffusers.alignment.random_source import RandomSource
from diamond_diffusers.alignment.smc_parts.resampling import RESAMPLING_SCHEMES
from diamond_diffusers.core.interval import Interval

from ..core.exact_transition import ExactTransition
from ..core.mixture import make_mixture, seeded, standard_error
from ..core.mixture_model import LINEAR, QUADRATIC, at_rows, make_law
from .runs import COARSE_LEVELS, falling_levels, run

MIXTURE = make_mixture(3)
EXACT = ExactTransition(MIXTURE)
LOOK_AHEADS = GlassPosterior(num_inner_steps=2, num_samples=16)
SCALE = 1.5


def estimates(smc, reward, num_images, family="rectified_flow", scale=SCALE, **options):
    """`Z / Z_exact [B]`, weighted means `[B, d]` of the particles less the exact one, and the result."""
    law = make_law(MIXTURE, reward, family, num_images, reward_scale=scale)
    result = run(smc, law, **options)
    tilted, evidence = reward.tilt(MIXTURE, scale=scale)
    means = torch.einsum("bp,bpd->bd", result.log_weights.exp(), result.latents.double())
    return torch.exp(result.log_evidence - evidence), means - tilted.mean, result


def is_exact(ratio, mean_error, num_particles):
    """Unbiased evidence and a consistent mean, within four standard errors (and 1 / P for the mean)."""
    evidence_holds = (ratio.mean() - 1).abs() < 4 * standard_error(ratio)
    mean_holds = (mean_error.mean(0).abs() < 4 * standard_error(mean_error) + 1 / num_particles).all()
    return bool(evidence_holds and mean_holds)


@pytest.mark.parametrize("reward", [LINEAR, QUADRATIC], ids=["linear", "quadratic"])
@pytest.mark.parametrize("num_samples", [None, 1, 4, 16])
def test_evidence_and_tilted_mean_converge_with_the_number_of_particles(reward, num_samples):
    """For 1, 4 and 16 look-aheads and for the denoiser point: inexact values only cost variance."""
    posterior = DenoiserPoint() if num_samples is None else GlassPosterior(2, num_samples)
    errors = {}
    for num_particles, num_images in [(16, 512), (256, 48)]:
        smc = SMC(num_particles, posterior, EXACT, resampling_threshold=0.9)
        ratio, mean_error, result = estimates(smc, reward, num_images)
        assert is_exact(ratio, mean_error, num_particles)
        errors[num_particles] = ratio.log().square().mean().sqrt(), mean_error.square().mean().sqrt()
    # One look-ahead makes noisy values.
    assert standard_error(ratio) < (0.1 if num_samples == 1 else 0.05)
    assert any(step.resampled.any() for step in result.trace.steps[:-1])
    # 16 times the particles: a quarter of the error, give or take four relative errors of a root mean square of 48.
    for many, few in zip(errors[256], errors[16], strict=True):
        assert 2 < few / many < 8


@pytest.mark.parametrize("family", ["rectified_flow", "v_prediction", "trigonometric", "sample"])
def test_every_family_starts_at_pure_noise(family):
    ratio, mean_error, _ = estimates(SMC(128, GlassPosterior(2, 4), EXACT), LINEAR, 96, family)
    assert is_exact(ratio, mean_error, 128)


def test_an_epsilon_network_starts_below_pure_noise():
    """From the exact law at its highest level, with a first weight that is not constant."""
    num_images, num_particles = 96, 128
    levels = (1.5, *COARSE_LEVELS[2:])
    x = MIXTURE.observation(levels[0]).sample(num_images * num_particles, seeded(1)).float()
    smc = SMC(num_particles, DenoiserPoint(), EXACT)
    ratio, mean_error, _ = estimates(smc, LINEAR, num_images, "epsilon", levels=levels, x=x)
    assert is_exact(ratio, mean_error, num_particles)


@pytest.mark.parametrize("resampling", RESAMPLING_SCHEMES.names())
def test_every_resampling_scheme_gives_the_same_limits(resampling):
    smc = SMC(64, GlassPosterior(2, 1), EXACT, resampling=resampling, resampling_threshold=1.0)
    ratio, mean_error, result = estimates(smc, LINEAR, 128)
    assert is_exact(ratio, mean_error, 64)
    assert all(step.resampled.all() for step in result.trace.steps[:-1])


@pytest.mark.parametrize(
    "options",
    [
        {"resampling_threshold": 0.0},
        {"resampling": "none"},
        {"max_noise_to_signal": 1.0},
        {"transition": GlassTransition(16, correlation=0.3)},
        {"transition": GlassTransition(16, correlation=0.95, solver="exponential")},
        {"transition": GlassTransition(16, correlation=1.0)},
    ],
    ids=[
        "never resampled",
        "no resampling",
        "late values",
        "weak correlation",
        "strong correlation",
        "full correlation",
    ],
)
def test_limits_do_not_depend_on_how_they_are_reached(options):
    smc = SMC(**{"num_particles": 128, "posterior": GlassPosterior(2, 4), "transition": EXACT} | options)
    ratio, mean_error, _ = estimates(smc, LINEAR, 96)
    assert is_exact(ratio, mean_error, 128)


def test_gaussian_steps_reach_the_limits_as_they_shrink():
    smc = SMC(128, DenoiserPoint(), AncestralTransition())
    ratios = [estimates(smc, LINEAR, 96, levels=falling_levels(count))[0] for count in (6, 60)]
    coarse, fine = ((ratio.mean() - 1).abs() for ratio in ratios)
    # A tenth of the step: at most a quarter of the error, up to its noise.
    assert coarse > 20 * standard_error(ratios[0])
    assert fine < coarse / 4 + 4 * standard_error(ratios[1])


def test_inner_steps_bring_few_steps_to_the_model_s_own_law():
    """Whose evidence Gaussian steps miss by a factor of two or more, however many particles there are."""
    errors = []
    for num_inner_steps in (1, 8):
        smc = SMC(256, DenoiserPoint(), GlassTransition(num_inner_steps))
        ratio, _, _ = estimates(smc, LINEAR, 24, levels=falling_levels(5), scale=3.0)
        errors.append(ratio.log())
    gaussian, exact = errors
    assert gaussian.mean() < -1.0 and standard_error(gaussian) < 0.1
    assert exact.mean().abs() < 0.25 and standard_error(exact) < 0.1


GUIDED = {
    "few valuations": SMC(64, LOOK_AHEADS, EXACT, guide=Guide("tilted_mean"), num_valuations=1),
    "tilted mean": SMC(64, LOOK_AHEADS, EXACT, guide=Guide("tilted_mean")),
    "pathwise": SMC(64, GlassPosterior(2, 4), EXACT, guide=Guide("pathwise")),
    "denoiser point": SMC(64, DenoiserPoint(), EXACT, guide=Guide("pathwise", max_shift=None)),
    "strong": SMC(64, LOOK_AHEADS, EXACT, guide=Guide("tilted_mean", strength=1.5), max_tilt=1.0),
}


@pytest.mark.parametrize("name", GUIDED)
def test_guided_proposals_have_the_limits_of_unguided_ones(name):
    ratio, mean_error, _ = estimates(GUIDED[name], LINEAR, 192)
    assert is_exact(ratio, mean_error, 64)


@pytest.mark.parametrize("name", GUIDED)
def test_guided_proposals_without_their_weights_do_not(name, monkeypatch):
    """The same tolerances find the missing density ratio, so they would find a wrong one."""
    propose = SMC._propose
    monkeypatch.setattr(SMC, "_propose", lambda *arguments: (propose(*arguments)[0], None))
    ratio, mean_error, _ = estimates(GUIDED[name], LINEAR, 192)
    assert not is_exact(ratio, mean_error, 64)
    assert ratio.mean() > 1 + 20 * standard_error(ratio)


def test_guidance_lowers_the_variance_of_the_evidence():
    unguided = SMC(64, LOOK_AHEADS, EXACT)
    guided = SMC(64, LOOK_AHEADS, EXACT, guide=Guide("tilted_mean"))
    without, _, _ = estimates(unguided, LINEAR, 192)
    with_guidance, _, _ = estimates(guided, LINEAR, 192)
    assert with_guidance.log().std() < 0.9 * without.log().std()


class NoNoise:
    """A source of zeros, for a normal source."""

    def __init__(self, rows, dimension):
        self.zeros = torch.zeros(rows, dimension)

    def normal(self, rows_per_image, shape):
        return self.zeros


@pytest.mark.parametrize("dimension", [2, 128])
def test_the_limit_of_a_tilt_is_the_same_for_each_dimension(dimension):
    """As large as the noise, so that its norm grows with the latents and leaves no guidance out that fits them."""
    smc = SMC(4, transition=GlassTransition(), guide=Guide(max_shift=None))
    cloud = smc.start(make_law(MIXTURE, LINEAR), torch.zeros(4, dimension), 5)
    gradient = torch.tensor([0.01, 0.1, 10.0, 1000.0])[:, None].expand(4, dimension)
    cloud = replace(cloud, ahead=LookAhead(None, torch.zeros(4), gradient[:, None], torch.ones(4)))
    tilt, log_ratio = smc._propose(cloud, Interval(2.0, 1.0), NoNoise(4, dimension))
    gain = GlassTransition().tilt_gain(Interval(2.0, 1.0))
    sizes = torch.tensor([0.01 * gain, 0.1 * gain, 1.0, 1.0])
    torch.testing.assert_close(tilt.square().mean(1).sqrt(), sizes)
    torch.testing.assert_close(log_ratio, -(sizes.double() ** 2) * dimension / 2, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("count", "num_steps", "expected"),
    [
        (4, 100, {20, 40, 60, 80}),
        (4, 12, {3, 5, 8, 10}),
        (4, 3, {1, 2}),
        (4, 1, set()),
        (0, 9, set()),
        (1, 9, {5}),
        (None, 4, {1, 2, 3}),
    ],
)
def test_particles_are_valued_at_even_shares_of_the_steps(count, num_steps, expected):
    """And never at the start or the end, which is weighed by itself."""
    assert valuations(count, num_steps) == expected
    result = run(SMC(2, num_valuations=count), make_law(MIXTURE, LINEAR), falling_levels(num_steps))
    weighed = [moves for moves, step in enumerate(result.trace.steps, 1) if step.effective_sample_size is not None]
    assert weighed == sorted(expected | {num_steps})


def test_weights_telescope_to_the_reward_where_nothing_is_resampled():
    """However wrong the values: `w = exp(r(z))`, and the evidence is the mean weight."""
    law = make_law(MIXTURE, QUADRATIC, num_images=3, reward_scale=2.0)
    result = run(SMC(8, GlassPosterior(2, 2), GlassTransition(2), resampling_threshold=0.0), law)
    tilts = 2.0 * result.rewards.double()
    torch.testing.assert_close(result.log_weights, torch.log_softmax(tilts, 1), atol=1e-5, rtol=0)
    torch.testing.assert_close(result.log_evidence, torch.logsumexp(tilts, 1) - math.log(8), atol=1e-5, rtol=0)


def test_estimates_travel_with_their_particles(monkeypatch):
    """Values and predicted samples are drawn once, and copied with the particles that are resampled."""
    clouds, step = [], SMC.step
    monkeypatch.setattr(SMC, "step", lambda *arguments: clouds.append(step(*arguments)) or clouds[-1])
    law = make_law(MIXTURE, LINEAR, num_images=3, reward_scale=3.0)
    result = run(SMC(16, GlassPosterior(2, 2), GlassTransition(2), resampling_threshold=1.0), law)
    for cloud, level, before in zip(clouds[:-1], COARSE_LEVELS[1:], result.trace.steps, strict=False):
        assert before.resampled.all() and len(cloud.x.unique(dim=0)) < len(cloud.x)
        predicted = at_rows(law, 16).network.predict(cloud.x, level)
        torch.testing.assert_close(cloud.ahead.predicted, predicted)
        torch.testing.assert_close(cloud.path_values[..., -1].flatten(), cloud.ahead.values.double())
        # Copies have one value, and none is another's.
        assert len(torch.cat([cloud.x, cloud.ahead.values[:, None]], 1).unique(dim=0)) == len(cloud.x.unique(dim=0))


@pytest.mark.parametrize("final_selection", ["sample", "heaviest", "best", "all"])
def test_selected_particles(final_selection):
    num_images = 2000
    law = make_law(MIXTURE, LINEAR, num_images=num_images)
    result = run(SMC(4, transition=GlassTransition(1), resampling_threshold=0.0), law)
    chosen = result.select(final_selection, RandomSource(seeded(9), num_images))
    if final_selection == "all":
        assert torch.equal(chosen, torch.arange(4).expand(num_images, 4))
    elif final_selection == "heaviest":
        assert torch.equal(result.log_weights.gather(1, chosen)[:, 0], result.log_weights.amax(1))
    elif final_selection == "best":
        assert torch.equal(result.rewards.gather(1, chosen)[:, 0], result.rewards.amax(1))
    else:
        # Each index is drawn with the particle's weight.
        surprise = torch.nn.functional.one_hot(chosen[:, 0], 4).double() - result.log_weights.exp()
        weighted = surprise * result.rewards
        assert (surprise.mean(0).abs() < 4 * standard_error(surprise)).all()
        assert (weighted.mean(0).abs() < 4 * standard_error(weighted)).all()


@pytest.mark.parametrize("scale", [-1.0, 0.5, 2.0])
def test_the_reward_scale_is_the_inverse_temperature_of_the_law(scale):
    smc = SMC(128, GlassPosterior(2, 4), EXACT)
    ratio, mean_error, _ = estimates(smc, LINEAR, 96, scale=scale)
    assert is_exact(ratio, mean_error, 128)
    # The law of another scale is far outside.
    tilted, evidence = (LINEAR.tilt(MIXTURE, scale=scale)[index] for index in (0, 1))
    other, other_evidence = LINEAR.tilt(MIXTURE, scale=scale + 0.5)
    shift = torch.exp(evidence - other_evidence)
    assert not is_exact(ratio * shift, mean_error + tilted.mean - other.mean, 128)


PLAIN_METHODS = {
    "points": SMC(5, resampling_threshold=1.0, transition=GlassTransition(2)),
    "look-aheads": SMC(5, LOOK_AHEADS, GlassTransition(2), "multinomial", 1.0, potential="sum"),
    "guided": SMC(5, LOOK_AHEADS, GlassTransition(2), guide=Guide("pathwise")),
    "tempered": SMC(5, transition=AncestralTransition(), tempering=AdaptiveTempering(0.9), resampling_threshold=1.0),
}


@pytest.mark.parametrize("name", PLAIN_METHODS)
def test_without_a_reward_scale_the_plain_samples_are_reproduced_bit_for_bit(name):
    """Those of no alignment with the same transition and number of particles, and the same one is selected."""
    smc = PLAIN_METHODS[name]
    seeds = [3, 4]
    unscaled = run(smc, make_law(MIXTURE, LINEAR, num_images=2, reward_scale=0.0), seed=seeds)
    plain = run(NoAlignment(smc.transition, 5), make_law(MIXTURE, LINEAR, num_images=2), seed=seeds)
    assert torch.equal(unscaled.latents, plain.latents)
    assert torch.equal(unscaled.rewards, plain.rewards)
    assert torch.equal(unscaled.log_weights, plain.log_weights)
    assert torch.equal(unscaled.log_evidence, torch.zeros(2, dtype=torch.float64))
    chosen = [result.select("sample", RandomSource([seeded(1), seeded(2)], 2)) for result in (unscaled, plain)]
    assert torch.equal(*chosen)
    scaled = run(smc, make_law(MIXTURE, LINEAR, num_images=2, reward_scale=3.0), seed=seeds)
    assert not torch.equal(scaled.latents, plain.latents)


class PermutedSource(RandomSource):
    """The draws of every image in another order of its rows."""

    def __init__(self, order, *arguments):
        super().__init__(*arguments)
        self.order = order

    def normal(self, rows_per_image, shape):
        rows = super().normal(rows_per_image, shape).unflatten(0, (self.num_images, -1))
        copies = rows_per_image // len(self.order)
        return rows.unflatten(1, (-1, copies))[:, self.order].flatten(0, 2)


@pytest.mark.parametrize("guide", [None, Guide("tilted_mean")], ids=["plain", "guided"])
def test_permuting_the_particles_permutes_the_results(guide):
    order = torch.tensor([2, 0, 3, 1])
    smc = SMC(4, LOOK_AHEADS, GlassTransition(2), "none", guide=guide, tempering=AdaptiveTempering(0.9))
    law = make_law(MIXTURE, LINEAR, num_images=3, reward_scale=2.0)
    results = []
    for permutation in (torch.arange(4), order):
        random = PermutedSource(permutation, seeded(1), 3)
        results.append(smc.run(law, random.normal(4, (3,)), COARSE_LEVELS, random))
    plain, permuted = results
    for name in ("latents", "log_weights", "rewards", "images"):
        torch.testing.assert_close(getattr(permuted, name), getattr(plain, name)[:, order])
    torch.testing.assert_close(permuted.log_evidence, plain.log_evidence)


def test_no_resampling_carries_the_weights_to_the_end():
    result = run(SMC(8, resampling="none", resampling_threshold=1.0), make_law(MIXTURE, LINEAR, reward_scale=5.0))
    assert not any(step.resampled.any() for step in result.trace.steps[:-1])
    expected = torch.log_softmax(5 * result.rewards.double(), 1)
    torch.testing.assert_close(result.log_weights, expected, atol=1e-5, rtol=0)


def test_the_trace_records_weights_and_evidence_of_every_level():
    result = run(SMC(8, tempering=AdaptiveTempering()), make_law(MIXTURE, LINEAR, num_images=2))
    names = ["mean_value", "best_value", "effective_sample_size", "log_evidence", "inverse_temperature"]
    assert result.trace.figures() == names
    for step in result.trace.steps:
        assert all(getattr(step, name).shape == (2,) for name in names)
    last = result.trace.steps[-1]
    torch.testing.assert_close(last.log_evidence, result.log_evidence)
    torch.testing.assert_close(last.effective_sample_size, 1 / result.log_weights.exp().square().sum(1))
