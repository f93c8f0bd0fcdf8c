"""Terms are measured in the deviations of given scores."""

import pytest
import torch

from diamond_diffusers.rewards import Brightness, ClippedReward, PlacedReward, ScoreStatistics, Symmetry, calibrated
from diamond_diffusers.rewards.calibration import TermScores
from diamond_diffusers.rewards.parts import terms_of

IMAGES = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
PROMPTS = ["a star"] * 3


def test_statistics_by_hand():
    assert ScoreStatistics.of("any", torch.tensor([1.0, 3.0, 5.0, 7.0])) == ScoreStatistics(4.0, (20 / 3) ** 0.5)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([1.0], "reward 'any' has 1 scores to be calibrated by; give at least 2"),
        ([0.5, 0.5, 0.5], "reward 'any' is 0.5 for all 3 plain samples, so that it has no deviation"),
        ([0.0, 0.0], "reward 'any' is 0 for all 2 plain samples"),
        ([21.0, 21.000002], "reward 'any' is 21 for all 2 plain samples"),
        ([1.0, float("nan")], "reward 'any' has scores that are not finite"),
    ],
)
def test_terms_without_a_unit_are_refused(scores, message):
    with pytest.raises(ValueError, match=message):
        ScoreStatistics.of("any", torch.tensor(scores))


def test_weights_are_in_deviations():
    statistics = {"brightness": ScoreStatistics(0.5, 0.1), "symmetry": ScoreStatistics(-0.3, 0.02)}
    reward = calibrated(2 * Brightness() - Symmetry(), statistics)
    brightness, symmetry = Brightness()(IMAGES, PROMPTS), Symmetry()(IMAGES, PROMPTS)
    output = reward.evaluate(IMAGES, PROMPTS)
    torch.testing.assert_close(output.total, 2 * (brightness - 0.5) / 0.1 - (symmetry + 0.3) / 0.02)
    assert torch.equal(output.terms["brightness"], brightness) and torch.equal(output.terms["symmetry"], symmetry)
    assert reward.differentiable and reward.is_free


def test_constraints_stay_as_they_are():
    reward = 2 * Brightness() + (Symmetry() < -0.25)
    assert list(TermScores(reward).evaluate(IMAGES, PROMPTS).terms) == ["brightness"]
    measured = calibrated(reward, {"brightness": ScoreStatistics(0.5, 0.1)}).evaluate(IMAGES, PROMPTS)
    torch.testing.assert_close(measured.total, 2 * (Brightness()(IMAGES, PROMPTS) - 0.5) / 0.1)
    assert torch.equal(measured.violation, reward.evaluate(IMAGES, PROMPTS).violation)
    with pytest.raises(ValueError, match=r"reward 'symmetry < -0\.25' has constraints alone"):
        TermScores(Symmetry() < -0.25)


def test_a_term_that_holds_a_constraint_is_measured_by_what_it_adds():
    restricted = Brightness() + (Symmetry() < -0.25)
    for term in (ClippedReward(restricted, highest=0.5), PlacedReward(restricted, "cpu")):
        reward, brightness = term + Symmetry(), term(IMAGES, PROMPTS)
        scores = TermScores(reward)
        output = scores.evaluate(IMAGES, PROMPTS)
        assert list(output.terms) == [term.name, "symmetry"] and torch.equal(output.terms[term.name], brightness)
        assert not scores.is_constrained and output.violation is None
        measured = calibrated(reward, {term.name: ScoreStatistics(0.5, 0.1), "symmetry": ScoreStatistics(0.0, 1.0)})
        assert torch.equal(measured.evaluate(IMAGES, PROMPTS).violation, restricted.evaluate(IMAGES, PROMPTS).violation)


def test_a_reward_that_is_no_sum_is_its_only_term():
    reward = calibrated("brightness", {"brightness": ScoreStatistics(0.5, 0.1)})
    torch.testing.assert_close(reward(IMAGES, PROMPTS), (Brightness()(IMAGES, PROMPTS) - 0.5) / 0.1)
    assert calibrated(-Brightness(), {"brightness": ScoreStatistics(0.5, 0.1)}).name == "-standardised(brightness)"


@pytest.mark.parametrize("names", [("brightness",), ("brightness", "symmetry", "colour"), ("brightness", "colour"), ()])
def test_statistics_of_other_terms_are_refused(names):
    with pytest.raises(ValueError, match="but the terms of the reward are brightness, symmetry; give those of just"):
        calibrated("brightness + symmetry", {name: ScoreStatistics(0.0, 1.0) for name in names})


@pytest.mark.parametrize(("mean", "deviation"), [(float("nan"), 1.0), (0.0, 0.0), (0.0, -1.0), (0.0, float("inf"))])
def test_statistics_that_are_none_are_refused(mean, deviation):
    with pytest.raises(ValueError, match="of reward 'brightness' is not"):
        calibrated("brightness", {"brightness": ScoreStatistics(mean, deviation)})


def test_what_counts_in_a_term_is_reported():
    clipped = ClippedReward(Brightness(), highest=0.5)
    scores = TermScores(3 * clipped + Brightness() + Brightness()).evaluate(IMAGES, PROMPTS)
    brightness = Brightness()(IMAGES, PROMPTS)
    assert list(scores.terms) == ["clipped(brightness)", "brightness", "brightness_2"]
    assert torch.equal(scores.terms["clipped(brightness)"], brightness.clamp(max=0.5))
    torch.testing.assert_close(scores.total, 3 * brightness.clamp(max=0.5) + 2 * brightness)
    assert [weight for weight, _ in terms_of(3 * clipped + Brightness()).values()] == [3.0, 1.0]
