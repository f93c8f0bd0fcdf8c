"""Images that are good enough leave the rest of their budget to the others of the call."""

import pytest
import torch

from diamond_diffusers import (
    SMC,
    BeamSearch,
    BestOfN,
    NoiseOptimization,
    RandomSearch,
    SharedBudget,
    Watch,
)
from diamond_diffusers.core.cost import charge
from diamond_diffusers.rewards import CallableReward, Reward, as_reward

from ..conftest import redness

CALL = {"num_inference_steps": 1, "output_type": "pt", "true_cfg_scale": 1.0}
PROMPTS = ["a red star", "a blue ring", "a dog"]


def drawn(pipe, sharing, prompts=PROMPTS, seeds=None, **options):
    count = len(prompts) * options.get("num_images_per_prompt", 1)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds or range(count)]
    search = RandomSearch(num_candidates=3, round_size=1)
    call = {"reward": redness, "alignment": search, "generator": generators, "shared_budget": sharing, **CALL}
    return pipe(prompts, **{**call, **options})


class ByPrompt(Reward):
    """The score of a prompt's n-th look by a script; it has to be paid."""

    name = "script"

    def __init__(self, **scripts):
        self.scripts = {name.replace("_", " "): list(scores) for name, scores in scripts.items()}
        self.is_tried = False

    def score(self, images, prompts):
        if not self.is_tried:
            self.is_tried = True
            return torch.zeros(len(images))
        charge(1, 0.5)
        return torch.tensor([self.scripts[prompt].pop(0) for prompt in prompts])


def test_what_one_image_leaves_goes_to_the_others_and_the_total_is_not_exceeded(shared_pipe):
    """Candidates of the last prompt alone fail, so that it gets what the others have left."""
    rising = iter(range(100))

    def score(images, prompts):
        return torch.tensor([0.0 if prompt == "a dog" else 1.0 for prompt in prompts]) + 1e-3 * next(rising)

    out = drawn(shared_pipe, SharedBudget(0.5), reward=CallableReward(score, "script"))
    shared = out.shared
    assert (shared.has_passed, shared.num_rounds) == ([True, True, False], [1, 1, 7])
    assert [cost.network_evaluations for cost in shared.costs] == [1, 1, 7]
    assert sum(cost.network_evaluations for cost in shared.costs) == out.cost.network_evaluations == 3 * 3
    assert [cost.reward_calls for cost in shared.costs] == [1, 1, 7]
    # With the two on which the reward is tried.
    assert out.cost.reward_calls == 9 + 2
    assert shared.verifier == "script" and shared.reward_calls == 0
    assert shared.scores == out.rewards.tolist()
    assert not out.interrupted and len(out.trace.steps) == 7 and out.alignment.num_candidates == 3


def test_an_image_depends_on_the_others_by_its_rounds_alone(shared_pipe):
    out = drawn(shared_pipe, SharedBudget(10.0))
    assert out.shared.num_rounds == [3, 3, 3] and not any(out.shared.has_passed)
    plain = drawn(shared_pipe, None, particle_batch_size=1)
    assert torch.equal(out.images, plain.images) and plain.shared is None
    alone = drawn(shared_pipe, SharedBudget(10.0), [PROMPTS[2]], [2])
    assert torch.equal(alone.images[0], out.images[2])
    # Of the same rounds, the first is as good as the best by this measure.
    early = drawn(shared_pipe, SharedBudget(-10.0))
    assert early.shared.num_rounds == [1, 1, 1] and all(early.shared.has_passed)
    first = drawn(shared_pipe, None, alignment=RandomSearch(num_candidates=1), particle_batch_size=1)
    assert torch.equal(early.images, first.images) and early.cost.network_evaluations == 3


def test_budgets_of_the_call_are_shared(shared_pipe):
    options = {"alignment": RandomSearch(round_size=1), "max_network_evaluations": 8, "max_reward_calls": 2}
    out = drawn(shared_pipe, SharedBudget(10.0), num_inference_steps=2, **options)
    assert out.shared.num_rounds == [2, 2, 2] and out.alignment.num_candidates == 2
    with pytest.raises(
        ValueError, match="one round of RandomSearch takes 4 of max_network_evaluations, of which an im"
    ):
        drawn(shared_pipe, SharedBudget(10.0), alignment=RandomSearch(round_size=4), max_network_evaluations=2)


def test_several_images_of_a_prompt_count_each(shared_pipe):
    """And are good enough each by itself."""
    scores = drawn(
        shared_pipe, None, PROMPTS[:1], num_images_per_prompt=3, alignment="none", particle_batch_size=1
    ).rewards
    threshold = scores.sort().values[1].item()
    out = drawn(shared_pipe, SharedBudget(threshold), PROMPTS[:1], num_images_per_prompt=3)
    passed_at_once = [rounds == 1 for rounds in out.shared.num_rounds]
    assert passed_at_once == (scores >= threshold).tolist() and sum(out.shared.num_rounds) <= 9


def test_a_verifier_of_its_own_decides_and_is_counted_apart(shared_pipe):
    verifier = ByPrompt(a_red_star=[0.2, 0.9], a_blue_ring=[0.9], a_dog=[0.1] * 9)
    rising = iter(range(1, 100))

    def better_each_time(images, prompts):
        return torch.tensor([float(next(rising)) for _ in prompts])

    sharing, reward = SharedBudget(0.5, verifier), CallableReward(better_each_time, "rising")
    out = drawn(shared_pipe, sharing, reward=reward)
    shared = out.shared
    assert (shared.has_passed, shared.num_rounds) == ([True, True, False], [2, 1, 6])
    assert shared.scores == pytest.approx([0.9, 0.9, 0.1]) and shared.verifier == "script"
    assert (shared.reward_calls, shared.reward_requests, shared.reward_price) == (10, 9, 4.5)
    assert out.cost.reward_requests == 0 and out.cost.reward_calls == 9 + 2


def test_what_is_no_better_than_before_is_not_verified_again(shared_pipe):
    verifier = ByPrompt(a_dog=[0.1])
    flat = CallableReward(lambda images, prompts: torch.zeros(len(images)), "flat")
    out = drawn(shared_pipe, SharedBudget(0.5, verifier), ["a dog"], reward=flat)
    assert out.shared.num_rounds == [3] and out.shared.reward_calls == 1 + 1


def test_constraints_decide_without_a_threshold(shared_pipe):
    verifier = as_reward(ByPrompt(a_red_star=[1] * 6, a_blue_ring=[3], a_dog=[1, 3])) > 2
    rising = iter(range(1, 100))
    reward = CallableReward(lambda images, prompts: torch.tensor([float(next(rising)) for _ in prompts]), "rising")
    out = drawn(shared_pipe, SharedBudget(verifier=verifier), reward=reward)
    assert (out.shared.has_passed, out.shared.num_rounds) == ([False, True, True], [6, 1, 2])


def test_constraints_of_the_followed_reward_count(shared_pipe):
    reward = as_reward(redness) + (as_reward("brightness") > 2.0)
    out = drawn(shared_pipe, SharedBudget(-10.0), reward=reward)
    assert not any(out.shared.has_passed) and out.shared.num_rounds == [3, 3, 3]
    assert not out.constraints_met.any()


def test_a_negative_scale_turns_the_threshold_round(shared_pipe):
    out = drawn(shared_pipe, SharedBudget(-10.0), reward_scale=-1.0)
    assert not any(out.shared.has_passed)
    assert all(drawn(shared_pipe, SharedBudget(10.0), reward_scale=-1.0).shared.has_passed)


def test_it_can_be_stepped_and_interrupted(shared_pipe):
    with shared_pipe.iterate(
        PROMPTS,
        reward=redness,
        alignment=RandomSearch(num_candidates=4, round_size=1),
        shared_budget=SharedBudget(10.0),
        **CALL,
    ) as run:
        next(run)
        run.interrupt()
        assert not list(run)
    out = run.output()
    assert out.interrupted and out.shared.num_rounds == [1, 1, 1] and len(out.images) == 3


@pytest.mark.slow
def test_noise_optimisation_shares_too(shared_pipe):
    method = NoiseOptimization(num_iterations=3)
    plain = drawn(shared_pipe, None, alignment=method, particle_batch_size=1)
    threshold = plain.rewards.max().item()
    out = drawn(shared_pipe, SharedBudget(threshold), alignment=method)
    assert out.cost.equivalent_evaluations <= plain.cost.equivalent_evaluations
    assert out.rewards.max() >= threshold - 1e-6


@pytest.mark.parametrize("method", [SMC(), BestOfN(), BeamSearch()], ids=lambda method: type(method).__name__)
def test_methods_without_rounds_refuse_it(shared_pipe, method):
    with pytest.raises(
        ValueError, match=f"shared_budget is SharedBudget.*, but alignment {type(method).__name__} does not draw"
    ):
        shared_pipe("a star", reward=redness, alignment=method, shared_budget=SharedBudget(0.5))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: SharedBudget(), ValueError, "shared_budget has no threshold, and 'redness' has no constraint; give"),
        (lambda: SharedBudget(float("nan")), ValueError, "threshold is nan"),
        (lambda: SharedBudget(0.5, ByPrompt), TypeError, r"verifier is .*; give an instance, ByPrompt\(\)"),
        (lambda: SharedBudget(0.5, "no_such_reward"), ValueError, "no_such_reward"),
        (lambda: SharedBudget(0.5, "staged(brightness, symmetry)"), ValueError, "staged"),
        (lambda: 0.5, TypeError, r"shared_budget is 0\.5; give"),
    ],
)
def test_what_cannot_be_shared_is_refused_before_any_work(shared_pipe, make, error, message):
    with pytest.raises(error, match=message):
        shared_pipe.iterate("a star", reward=redness, alignment="random_search", shared_budget=make(), **CALL)


def test_a_watch_and_a_shared_budget_exclude_each_other(shared_pipe):
    with pytest.raises(ValueError, match="which both say when an image is at its end"):
        drawn(shared_pipe, SharedBudget(0.5), watch=Watch("brightness"))
