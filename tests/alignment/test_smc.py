"""Sequential Monte Carlo against the tilted law and the evidence in closed form."""

import math

import pytest
import torch

from diamond_diffusers.alignment import SMC, Guidance
from diamond_diffusers.alignment.random_source import RandomSource
from diamond_diffusers.alignment.resampling import RESAMPLING_SCHEMES
from diamond_diffusers.posteriors import DenoiserPoint, GlassPosterior
from diamond_diffusers.transitions import AncestralTransition, GlassTransition

from ..core.mixture import make_mixture, seeded, standard_error
from ..core.mixture_model import LINEAR, QUADRATIC, make_model
from .runs import COARSE_LEVELS, falling_levels, run

MIXTURE = make_mixture(3)
EXACT = GlassTransition(num_inner_steps=16)
LOOK_AHEADS = GlassPosterior(num_inner_steps=2, num_samples=16)
SCALE = 1.5


def estimates(smc, reward, num_images, family="rectified_flow", scale=SCALE, **options):
    """`Z / Z_exact [B]`, weighted means `[B, d]` of the particles less the exact one, and the result."""
    model = make_model(MIXTURE, reward, family, num_images, reward_scale=scale)
    result = run(smc, model, **options)
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
    assert standard_error(ratio) < 0.05
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


@pytest.mark.parametrize("resampling", RESAMPLING_SCHEMES)
def test_every_resampling_scheme_gives_the_same_limits(resampling):
    smc = SMC(64, GlassPosterior(2, 1), EXACT, resampling=resampling, resampling_threshold=1.0)
    ratio, mean_error, result = estimates(smc, LINEAR, 128)
    assert is_exact(ratio, mean_error, 64)
    assert all(step.resampled.all() for step in result.trace.steps[:-1])


@pytest.mark.parametrize(
    "options",
    [
        {"resampling_threshold": 0.0},
        {"max_noise_to_signal": 1.0},
        {"transition": GlassTransition(16, correlation=0.3)},
        {"transition": GlassTransition(16, correlation=0.95, solver="exponential")},
        {"transition": GlassTransition(16, correlation=1.0)},
    ],
    ids=["never resampled", "late values", "weak correlation", "strong correlation", "full correlation"],
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


GUIDED = {
    "tilted mean": SMC(64, LOOK_AHEADS, EXACT, guidance=Guidance(LOOK_AHEADS, "tilted_mean")),
    "pathwise": SMC(64, GlassPosterior(2, 4), EXACT, guidance=Guidance(gradient="pathwise")),
    "denoiser point": SMC(64, DenoiserPoint(), EXACT, guidance=Guidance(gradient="pathwise", max_shift=None)),
    "strong": SMC(64, LOOK_AHEADS, EXACT, guidance=Guidance(LOOK_AHEADS, "tilted_mean", 1.5), max_tilt=1.0),
}


@pytest.mark.parametrize("name", GUIDED)
def test_guided_proposals_have_the_limits_of_unguided_ones(name):
    ratio, mean_error, _ = estimates(GUIDED[name], LINEAR, 192)
    assert is_exact(ratio, mean_error, 64)


@pytest.mark.parametrize("name", GUIDED)
def test_guided_proposals_without_their_weights_do_not(name, monkeypatch):
    """The same tolerances find the missing density ratio, so they would find a wrong one."""
    propose = SMC._propose
    monkeypatch.setattr(SMC, "_propose", lambda *arguments: (propose(*arguments)[0], 0.0))
    ratio, mean_error, _ = estimates(GUIDED[name], LINEAR, 192)
    assert not is_exact(ratio, mean_error, 64)
    assert ratio.mean() > 1 + 20 * standard_error(ratio)


def test_guidance_lowers_the_variance_of_the_evidence():
    unguided = SMC(64, LOOK_AHEADS, EXACT)
    guided = SMC(64, LOOK_AHEADS, EXACT, guidance=Guidance(LOOK_AHEADS, "tilted_mean"))
    without, _, _ = estimates(unguided, LINEAR, 192)
    with_guidance, _, _ = estimates(guided, LINEAR, 192)
    assert with_guidance.log().std() < 0.9 * without.log().std()


def test_weights_telescope_to_the_reward_where_nothing_is_resampled():
    """However wrong the values: `w = exp(r(z))`, and the evidence is the mean weight."""
    model = make_model(MIXTURE, QUADRATIC, num_images=3, reward_scale=2.0)
    result = run(SMC(8, GlassPosterior(2, 2), GlassTransition(2), resampling_threshold=0.0), model)
    tilts = 2.0 * result.rewards.double()
    torch.testing.assert_close(result.log_weights, torch.log_softmax(tilts, 1), atol=1e-5, rtol=0)
    torch.testing.assert_close(result.log_evidence, torch.logsumexp(tilts, 1) - math.log(8), atol=1e-5, rtol=0)


@pytest.mark.parametrize("final_selection", ["sample", "best", "all"])
def test_selected_particles(final_selection):
    num_images = 2000
    model = make_model(MIXTURE, LINEAR, num_images=num_images)
    result = run(SMC(4, transition=GlassTransition(1), resampling_threshold=0.0), model)
    chosen = result.select(final_selection, RandomSource(seeded(9), num_images))
    if final_selection == "all":
        assert torch.equal(chosen, torch.arange(4).expand(num_images, 4))
    elif final_selection == "best":
        assert torch.equal(result.rewards.gather(1, chosen)[:, 0], result.rewards.amax(1))
    else:
        # Each index is drawn with the particle's weight.
        surprise = torch.nn.functional.one_hot(chosen[:, 0], 4).double() - result.log_weights.exp()
        weighted = surprise * result.rewards
        assert (surprise.mean(0).abs() < 4 * standard_error(surprise)).all()
        assert (weighted.mean(0).abs() < 4 * standard_error(weighted)).all()
