"""The distance of a tilted law from the plain one, against closed forms."""

import torch

from diamond_diffusers import SMC
from diamond_diffusers.evaluation.scoring.divergence import divergence_from_plain

from ..alignment.runs import run
from ..core.exact_transition import ExactTransition
from ..core.mixture import make_gaussian, make_mixture, standard_error
from ..core.mixture_model import LINEAR, make_law

SCALE = 1.5


def estimated(mixture):
    """The estimates of 96 runs of 64 particles, whose transitions sample the law itself."""
    law = make_law(mixture, LINEAR, num_images=96, reward_scale=SCALE)
    result = run(SMC(64, transition=ExactTransition(mixture), num_valuations=2), law)
    return divergence_from_plain(law.scales(), result.rewards, result.log_weights, result.log_evidence)


def assert_near(found, expected):
    # Self-normalised weights are biased by 1 / P.
    assert (found.mean() - expected).abs() < 4 * standard_error(found) + expected / 64


def test_a_normal_law_that_is_tilted_linearly_is_shifted():
    """By `scale * covariance @ linear`, at half the squared length of that in units of the deviation."""
    linear, normal = LINEAR.linear[""], make_gaussian()
    assert_near(estimated(normal), SCALE**2 * linear @ normal.covariances[0] @ linear / 2)


def test_a_tilted_mixture_is_as_far_as_its_mean_and_evidence_say():
    mixture = make_mixture(3)
    tilted, log_evidence = LINEAR.tilt(mixture, scale=SCALE)
    assert_near(estimated(mixture), SCALE * LINEAR.linear[""] @ tilted.mean - log_evidence)


def test_equal_rewards_are_no_distance():
    rewards, log_weights = torch.full((2, 4), 3.0), torch.full((2, 4), 0.25).log()
    assert divergence_from_plain(2.0, rewards, log_weights, torch.full((2,), 6.0)).tolist() == [0.0, 0.0]
