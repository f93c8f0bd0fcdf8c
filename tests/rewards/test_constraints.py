"""Thresholds on rewards: what holds, how far others are from it, and how constraints combine with rewards."""

import math

import pytest
import torch

from diamond_diffusers.rewards import Brightness, CallableReward, Colour, Constraint, PlacedReward, as_reward
from diamond_diffusers.rewards.threshold import Threshold
from diamond_diffusers.rewards.transformed import StandardisedReward

GREYS = torch.tensor([0.1, 0.5, 0.9])[:, None, None, None].expand(-1, 3, 4, 4)
PROMPTS = ["a star"] * 3


@pytest.mark.parametrize(
    ("comparison", "bound", "lost"),
    [
        # Ten nats for each unit, which is the size of the bound.
        ("<", 0.2, [0.0, 15.0, 35.0]),
        ("<=", 0.5, [0.0, 0.0, 8.0]),
        (">", 0.8, [8.75, 3.75, 0.0]),
        (">=", 0.5, [8.0, 0.0, 0.0]),
        # The size of a bound of 0 is 1.
        ("<=", 0.0, [1.0, 5.0, 9.0]),
        (">", -1.0, [0.0, 0.0, 0.0]),
    ],
)
def test_the_violation_is_the_excess_in_units_of_the_bound(comparison, bound, lost):
    scores = torch.tensor([0.1, 0.5, 0.9])
    torch.testing.assert_close(Threshold(comparison, bound).violation(scores), torch.tensor(lost))


def test_a_score_on_a_strict_bound_violates_it():
    scores = torch.tensor([0.5])
    for comparison, is_allowed in {"<": False, "<=": True, ">": False, ">=": True}.items():
        assert (Threshold(comparison, 0.5).violation(scores) == 0).item() is is_allowed


def test_strength_and_unit_are_the_caller_s():
    scores = torch.tensor([0.6])
    assert Threshold("<", 0.5, strength=3.0, unit=0.01).violation(scores).item() == pytest.approx(30)
    reward = Constraint(Brightness(), "<", 0.5, strength=3.0, unit=0.01)
    assert reward.evaluate(torch.full((1, 3, 4, 4), 0.6), ["a"]).violation.item() == pytest.approx(30, rel=1e-4)
    for wrong in ({"strength": 0.0}, {"unit": -1.0}, {"strength": math.nan}):
        with pytest.raises(ValueError, match="give a finite, positive number"):
            Constraint(Brightness(), "<", 0.5, **wrong)
    with pytest.raises(ValueError, match="comparison is '=='; give one of <, <=, >, >="):
        Constraint(Brightness(), "==", 0.5)
    with pytest.raises(ValueError, match="the threshold is nan"):
        Brightness() < math.nan  # noqa: B015 - it is the comparison that is refused


def test_comparing_a_reward_bounds_it_and_adding_that_restricts_others():
    reward = 2 * Colour() + (Brightness() < 0.3) + (Brightness() - Colour() >= 0.05)
    assert reward.name == "2*colour, brightness < 0.3, brightness - colour >= 0.05"
    assert reward.is_constrained and not Colour().is_constrained
    output = reward.evaluate(GREYS, PROMPTS)
    assert list(output.terms) == reward.term_names == ["colour", "brightness", "brightness_2", "colour_2"]
    torch.testing.assert_close(output.total, 2 * output.terms["colour"])
    assert (output.violation == 0).tolist() == [True, False, False]
    again = as_reward(reward.name)
    assert again.name == reward.name
    torch.testing.assert_close(again.evaluate(GREYS, PROMPTS).violation, output.violation)
    # A number may stand on the left, and factors leave constraints as they are.
    assert (0.3 > Brightness()).name == "brightness < 0.3"  # noqa: SIM300
    assert (3 * reward).name == "6*colour, brightness < 0.3, brightness - colour >= 0.05"


def test_a_reward_that_is_summed_and_bounded_is_asked_once_and_reported_once():
    calls = []

    def score(images, prompts):
        calls.append(len(images))
        return images.mean((1, 2, 3))

    mean = CallableReward(score, "mean", differentiable=True)
    reward = mean + (mean > 0.2) + (mean < 0.7)
    output = reward.evaluate(GREYS, PROMPTS)
    assert calls == [3]
    assert list(output.terms) == reward.term_names == ["mean"]
    assert (output.violation == 0).tolist() == [False, True, False]
    both = (mean > 0.2) + (mean < 0.7)
    assert both.term_names == list(both.evaluate(GREYS, PROMPTS).terms) == ["mean"]
    named = as_reward("brightness, brightness < 0.7")
    assert named.rewards[0] is named.rewards[1].rewards[0] and named.term_names == ["brightness"]


def test_a_reward_that_is_summed_and_bounded_is_tried_once():
    calls = []

    def mean(images, prompts):
        calls.append(images.requires_grad)
        return images.mean((1, 2, 3))

    reward = CallableReward(mean, differentiable=True)
    assert (2 * reward + (reward < 1) + (reward > 0)).probe(needs_gradient=True) == 1
    assert calls == [True]


def test_a_name_is_one_model_in_several_expressions():
    known = {}
    first, second = as_reward("brightness, colour < 0.7", known), as_reward("2*brightness + colour", known)
    assert list(known) == ["brightness", "colour"]
    assert first.rewards[0] is second.rewards[0] is as_reward("brightness", known)
    assert first.rewards[1].rewards[0] is second.rewards[1]
    assert as_reward("brightness") is not known["brightness"]


def test_what_a_constraint_cannot_mean_is_refused():
    bright = Brightness() < 0.2
    for wrong in (lambda: -bright, lambda: 0 * bright, lambda: Colour() - bright):
        with pytest.raises(ValueError, match=r"'brightness < 0.2' got the weight .* turn its comparison round"):
            wrong()
    with pytest.raises(ValueError, match=r"holds a constraint and is compared with 0\.5"):
        (Colour() + bright) > 0.5  # noqa: B015
    # The second half alone would be left of these.
    for chained in (lambda: 0.1 < Brightness() < 0.5, lambda: bright and bright):
        with pytest.raises(TypeError, match=r"neither true nor false; add constraints .* \(reward > 0.1\) \+"):
            chained()
    with pytest.raises(TypeError, match="not supported"):
        Brightness() < "0.5"  # noqa: B015


def test_rewards_around_others_pass_violations_on():
    inner = Colour() + (Brightness() < 0.3)
    expected = inner.evaluate(GREYS, PROMPTS).violation
    for outer in (StandardisedReward(inner, 0.0, 2.0), PlacedReward(inner, "cpu"), PlacedReward(inner, "cpu", "cpu")):
        assert outer.is_constrained
        for reward in (outer, Brightness() + outer):
            torch.testing.assert_close(reward.evaluate(GREYS, PROMPTS).violation, expected)


@pytest.mark.parametrize("rest", [None, "cpu"])
def test_gradients_reach_the_pixels_through_the_violation(rest):
    images = GREYS.clone().requires_grad_()
    reward = PlacedReward(Constraint(Brightness(), "<", 0.3, unit=1.0, strength=1.0), "cpu", rest)
    output = reward.evaluate(images, PROMPTS)
    (gradient,) = torch.autograd.grad(output.violation.sum(), images)
    (slope,) = torch.autograd.grad(Brightness()(images, PROMPTS).sum(), images)
    # The hinge's: none where it holds.
    torch.testing.assert_close(gradient, slope * torch.tensor([0.0, 1.0, 1.0])[:, None, None, None])


def test_a_sum_is_as_differentiable_as_what_it_maximises():
    black_box = as_reward("jpeg_size")
    assert (Brightness() + (black_box < 1)).differentiable
    assert not (black_box + (Brightness() < 1)).differentiable
    assert ((Brightness() < 1) + (black_box < 1)).differentiable
    assert not (black_box < 1).differentiable
    assert (Brightness() + (black_box < 1)).probe(needs_gradient=True) == 1
    for without in (black_box < 1, (black_box < 1) + (black_box > 0), black_box + (Brightness() < 1)):
        with pytest.raises(ValueError, match="gives no gradients to the pixels"):
            without.probe(needs_gradient=True)


def test_a_constraint_that_is_placed_restricts_as_it_does_without():
    scaled = CallableReward(lambda images, prompts: images.mean((1, 2, 3)), "scaled", differentiable=True)
    scaled.default_reward_scale = 10.0
    placed = PlacedReward(as_reward("jpeg_size") < 1, "cpu")
    assert placed.is_constraint and (placed + placed).is_constraint and not (scaled + placed).is_constraint
    assert not PlacedReward(scaled + placed, "cpu").is_constraint
    # It neither takes the sum's gradient, nor hides its scale.
    reward = 2 * scaled + placed
    assert reward.differentiable and reward.probe(needs_gradient=True) == 1
    assert reward.default_reward_scale == 5.0
    assert reward.name == "2*scaled, jpeg_size < 1" and (3 * placed + scaled).weights == [1.0, 1.0]
    with pytest.raises(ValueError, match="the weight -1"):
        -1 * placed
