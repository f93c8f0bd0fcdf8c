"""Constraints against the law that they restrict, in closed form: a Gaussian mixture in a half space."""

import math
from dataclasses import replace

import pytest
import torch

from diamond_diffusers import (
    SMC,
    BestOfN,
    DenoiserPoint,
    GlassPosterior,
    Guidance,
    Guide,
    NoiseEvolution,
    NoiseOptimization,
    PosteriorSMC,
)
from diamond_diffusers.alignment.budget import fit_to_budget
from diamond_diffusers.alignment.evaluation import Evaluation
from diamond_diffusers.alignment.methods.guidance import GuidedCloud
from diamond_diffusers.alignment.noise_rounds import Sample
from diamond_diffusers.alignment.random_source import RandomSource
from diamond_diffusers.core.values import BARRIER, final_values, scaled_rewards
from diamond_diffusers.rewards import Constraint

from ..core.exact_transition import ExactTransition
from ..core.mixture import make_mixture, seeded, standard_error
from ..core.mixture_model import LINEAR, QuadraticReward, make_law
from .runs import COARSE_LEVELS, run

MIXTURE = make_mixture(3)
EXACT = ExactTransition(MIXTURE)
AXIS = (0.0, 0.0, 1.0)
"""Each cluster has a share of both sides."""


def bounded(bound, strength=10.0):
    return Constraint(QuadraticReward({"": AXIS}), ">", bound, strength=strength)


def in_half_space(bound, scale):
    """The tilted law, the probabilities of its clusters where `AXIS . z > bound`, and `log E[exp(r) 1[..]]`."""
    tilted, evidence = LINEAR.tilt(MIXTURE, scale=scale)
    axis = torch.tensor(AXIS, dtype=torch.float64)
    deviations = torch.einsum("i,cij,j->c", axis, tilted.covariances, axis).sqrt()
    joint = tilted.log_weights + torch.special.log_ndtr((tilted.means @ axis - bound) / deviations)
    return tilted, joint.softmax(-1), evidence + joint.logsumexp(-1)


def clusters(law, z):
    """The probability `[..., C]` that a sample belongs to each cluster; its mean is the cluster's, in any region."""
    clusters = torch.distributions.MultivariateNormal(law.means, law.covariances)
    return (clusters.log_prob(z.unsqueeze(-2)) + law.log_weights).softmax(-1)


def restricted(smc, bound, scale, num_images, strength=10.0):
    """Errors `[B, C]` of the clusters' probabilities, `Z / Z_exact [B]`, and whether any particle holds, `[B]`."""
    law = make_law(MIXTURE, LINEAR + bounded(bound, strength), num_images=num_images, reward_scale=scale)
    result = run(smc, law)
    tilted, probabilities, evidence = in_half_space(bound, scale)
    weights = result.log_weights.exp()
    found = torch.einsum("bp,bpc->bc", weights, clusters(tilted, result.latents.double()))
    holds = result.violation == 0
    # Whatever violates the constraint weighs nothing beside what does not.
    assert (weights[~holds & holds.any(1, keepdim=True)] == 0).all()
    return found - probabilities, (result.log_evidence - evidence).exp(), holds.any(1)


@pytest.mark.parametrize("scale", [0.0, 1.0, pytest.param(-0.5, marks=pytest.mark.slow)])
def test_smc_samples_the_law_restricted_to_the_images_that_hold(scale):
    """Also where the reward does not count, or counts against itself: the constraint is not scaled."""
    num_particles = 128
    smc = SMC(num_particles, GlassPosterior(2, 16), EXACT)
    errors, ratio, held = restricted(smc, 0.5, scale, 20)
    assert held.all()
    # The bias of normalised weights is of the order of one over the particles.
    assert (errors.mean(0).abs() < 4 * standard_error(errors) + 1 / num_particles).all()
    assert (ratio.mean() - 1).abs() < 4 * standard_error(ratio) and standard_error(ratio) < 0.1


def test_a_weak_constraint_is_exact_with_the_roughest_look_ahead():
    """One look-ahead, that of the denoiser, which the barrier does not bar: the evidence stays unbiased."""
    errors, ratio, held = restricted(SMC(256, DenoiserPoint(), EXACT), 0.5, 1.0, 24, strength=2.0)
    assert held.all() and standard_error(ratio) < 0.1
    assert (ratio.mean() - 1).abs() < 4 * standard_error(ratio)
    assert (errors.mean(0).abs() < 4 * standard_error(errors) + 1 / 256).all()


STRENGTHS = {1.0: (0.25, 0.50), 3.0: (0.50, 0.70), 10.0: (0.90, 1.0), 30.0: (0.95, 1.0), 100.0: (0.95, 1.0)}
"""For how large a share of the images a constraint is met that 1.8 % of samples hold, at least and at most."""


@pytest.mark.slow
@pytest.mark.parametrize("strength", STRENGTHS)
def test_what_a_strength_finds_and_distorts(strength):
    """With 32 particles and the roughest look-ahead; `-s` prints the table of `docs/judges/constraints.md`."""
    smc = SMC(32, DenoiserPoint(), EXACT)
    _, _, rare = restricted(smc, 1.5, 1.0, 256, strength)
    errors, _, frequent = restricted(smc, 1.0, 1.0, 256, strength)
    share, distortion = rare.double().mean().item(), errors.mean(0).abs().max().item()
    print(f"| {strength:g} | {share:.0%} | {distortion:.2f} |")
    lowest, highest = STRENGTHS[strength]
    assert lowest <= share <= highest and frequent.double().mean() > 0.95
    assert distortion < (0.04 if strength <= 3 else 0.12)


def test_without_particles_that_hold_the_nearest_are_heaviest_and_the_evidence_is_none():
    law = make_law(MIXTURE, LINEAR + bounded(50.0), num_images=3)
    result = run(SMC(8, DenoiserPoint(), EXACT), law)
    assert (result.violation > 0).all() and torch.isneginf(result.log_evidence).all()
    # Weights of the end are those of paths, of which only the last factor has a barrier.
    best = result.select("best", None).flatten()
    assert best.tolist() == result.violation.argmin(1).tolist()
    assert result.log_weights.exp().sum(1).allclose(torch.ones(3, dtype=torch.float64))
    assert all(torch.isfinite(step.mean_value).all() for step in result.trace.steps if step.mean_value is not None)
    assert torch.isneginf(result.trace.steps[-1].log_evidence).all()


def test_particles_move_towards_a_set_that_none_of_them_is_in():
    """A bound four deviations off is met by one in thirty thousand plain samples."""
    bound = 2.0
    law = make_law(MIXTURE, bounded(bound), num_images=32)
    plain = run(BestOfN(num_particles=64), law)
    steered = run(SMC(64, DenoiserPoint(), EXACT, num_valuations=None), law)
    assert steered.violation.amin(1).mean() < 0.3 * plain.violation.amin(1).mean()


@pytest.mark.parametrize("scale", [1.0, 0.0, -1.0, 1e30])
def test_an_image_that_holds_beats_one_that_does_not(scale):
    generator = seeded(3)
    rewards = 1e6 * torch.randn(1000, generator=generator)
    rewards[:4] = torch.tensor([-3e8, 3e8, math.nan, 0.0])
    violations = torch.rand(1000, generator=generator) * (torch.rand(1000, generator=generator) < 0.5)
    violations[:4] = torch.tensor([0.0, 1e-6, 0.0, 100.0])
    values, holds = final_values(rewards, torch.tensor(scale), violations), violations == 0
    assert torch.isneginf(values[2])
    values, rewards, violations, holds = (
        rows[torch.arange(1000) != 2] for rows in (values, rewards, violations, holds)
    )
    assert values[holds].min() > values[~holds].max()
    # To the resolution of numbers of the barrier's size.
    order = violations[~holds].argsort()
    assert (values[~holds][order].diff() <= 0).all() and values[~holds].unique().numel() > 5
    within = holds & (scale * rewards > -BARRIER)
    torch.testing.assert_close(values[within], scale * rewards[within], rtol=0, atol=0)


def test_without_constraints_nothing_is_changed():
    rewards = torch.tensor([1.0, -3e7, math.nan])
    assert final_values(rewards, torch.tensor(2.0)).equal(scaled_rewards(rewards, torch.tensor(2.0)))


def test_guidance_follows_the_hinge_of_the_violation():
    """The gradient of a value is that of the scaled reward less the violation, which ends where all hold."""
    bound, strength = 1.0, 3.0
    reward = bounded(bound, strength)
    z = torch.tensor([[0.0, 0.0, 0.2], [0.0, 0.0, 1.3]], requires_grad=True)
    law = make_law(MIXTURE, reward, num_images=2, reward_scale=-2.0)
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(law.rows(z).tilt(z).sum(), z)
    # By hand: the unit is the size of the bound, 1.
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 0.0, strength], [0.0, 0.0, 0.0]]), rtol=1e-4, atol=1e-4)
    law = make_law(MIXTURE, reward, num_images=64)
    plain = run(BestOfN(num_particles=1), law)
    guide = Guide("isotropic", max_shift=None)
    guided = run(Guidance(DenoiserPoint(), guide), law)
    assert guided.violation.mean() < plain.violation.mean() / 2


@pytest.mark.parametrize("method", [NoiseEvolution(num_iterations=8), NoiseOptimization(num_iterations=8)])
def test_noises_climb_against_the_violation(method):
    """Of a constraint alone, whose total is 0 throughout."""
    law = make_law(MIXTURE, bounded(1.5), num_images=32)
    first = run(replace(method, num_iterations=1), law)
    last = run(method, law)
    assert last.violation.mean() < first.violation.mean() / 2


def test_a_later_sample_that_holds_takes_the_place_of_one_that_does_not():
    reward, violation = torch.tensor([9.0, 1.0, 1.0, 2.0]), torch.tensor([1e-3, 0.0, 2.0, 0.0])
    images = torch.zeros(4, 3, 1, 1)
    before = Sample(reward, Evaluation(reward, {"r": reward}, images, violation))
    other = torch.tensor([1, 0, 0, 1])
    law = make_law(MIXTURE, bounded(1.0), num_images=4)
    after = before.improved_by(Sample(reward[other], before.evaluation.rows(other)), law)
    assert after.latents.tolist() == after.evaluation.terms["r"].tolist() == [1.0, 1.0, 9.0, 2.0]
    torch.testing.assert_close(after.evaluation.violation, torch.tensor([0.0, 0.0, 1e-3, 0.0]))


def test_the_best_look_ahead_is_one_that_holds(monkeypatch):
    """Also under a constraint that is weak on the way, beside a reward that asks for more."""
    law = make_law(MIXTURE, LINEAR + bounded(1.5, strength=0.1), num_images=32, reward_scale=3.0)
    method = Guidance(GlassPosterior(2, 8), Guide("tilted_mean"), keeps_best=True)
    looked_at, seen = [], GuidedCloud.seen

    def holds(z):
        return z[..., 2] > 1.5

    def recorded(cloud, samples, values):
        looked_at.append(samples)
        return seen(cloud, samples, values)

    monkeypatch.setattr(GuidedCloud, "seen", recorded)
    result = run(method, law)
    had_one = holds(torch.cat(looked_at, 1)).any(1) | holds(result.latents[:, 0])
    assert 0 < had_one.sum() < 32 and torch.equal((result.violation == 0)[:, 0], had_one)
    # And in what a run that is ended on its way returns.
    x, random = torch.randn(64, 3, generator=seeded(0)), RandomSource(seeded(1), 32)
    progress = next(PosteriorSMC(2, GlassPosterior(2, 8), num_valuations=None).iterate(law, x, COARSE_LEVELS, random))
    held = holds(progress.cloud.ahead.samples)
    assert (held.any(1) & ~held.all(1)).any() and torch.equal(holds(progress.clean), held.any(1))


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_a_budget_counts_what_a_constrained_run_evaluates(scale):
    law = make_law(MIXTURE, LINEAR + bounded(0.5), reward_scale=scale)
    smc = SMC(4, GlassPosterior(2, 2)).resolve(law.model)
    fitted = fit_to_budget(smc, law, COARSE_LEVELS, 200)
    run(fitted, law)
    more = make_law(MIXTURE, LINEAR + bounded(0.5), reward_scale=scale)
    run(SMC(fitted.num_particles + 1, GlassPosterior(2, 2)), more)
    assert law.cost.network_evaluations <= 200 < more.cost.network_evaluations
