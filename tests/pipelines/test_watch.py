"""A held-out reward ends a run that improves the followed one at its expense."""

import pytest
import torch

from diamond_diffusers import (
    SMC,
    BeamSearch,
    BestOfN,
    Guidance,
    NoiseEvolution,
    NoiseOptimization,
    RandomSearch,
    Watch,
    ZeroOrderSearch,
)
from diamond_diffusers.alignment.methods import METHODS
from diamond_diffusers.core.cost import charge
from diamond_diffusers.rewards import CallableReward, Reward, as_reward, staged

from ..conftest import redness

CALL = {"num_inference_steps": 1, "output_type": "pt", "true_cfg_scale": 1.0}
ROUNDS = 10


class Script(Reward):
    """Scores of each check by a script, whatever the images: one list for each image of the call."""

    name = "script"
    reads_prompts = False

    def __init__(self, *scores):
        self.scores, self.seen = scores, []

    def score(self, images, prompts):
        if images.shape[0] == 1 and not self.seen:
            # The trial before the run.
            self.seen.append(images)
            return torch.zeros(1)
        check = len(self.seen) - 1
        self.seen.append(images)
        return torch.tensor([each[check] for each in self.scores])


def drawn(pipe, watch, num_images=1, **options):
    generators = [torch.Generator().manual_seed(seed) for seed in range(num_images)]
    search = RandomSearch(num_candidates=ROUNDS, round_size=1)
    call = {"reward": redness, "alignment": search, "generator": generators, "watch": watch, **CALL, **options}
    return pipe(["a star"] * num_images, **call)


@pytest.mark.parametrize(
    ("scores", "rounds", "chosen", "is_ended"),
    [
        # Below its best for three checks in a row.
        ([1, 2, 1.5, 1.75, 1.875, 9, 9, 9, 9, 9], [0, 1, 2, 3, 4], 1, True),
        # What rises again in between, or stays as it is, is no fall.
        ([1, 0, 0, 1, 0, 0, 2, 1, 1, 1], [*range(10)], 6, False),
        ([1, 1, 1, 1, 1, 1, 1, 1, 1, 1], [*range(10)], 0, False),
        ([3, 2, 2, 2, 2, 2, 2, 2, 2, 2], [0, 1, 2, 3], 0, True),
    ],
)
def test_when_a_run_ends_and_what_it_returns(shared_pipe, scores, rounds, chosen, is_ended):
    reward = Script(scores)
    out = drawn(shared_pipe, Watch(reward, patience=3))
    watched = out.watched
    assert (watched.rounds, watched.chosen, watched.is_ended) == (rounds, [chosen], is_ended)
    assert watched.held_out == [[score] for score in scores[: len(rounds)]]
    assert not out.interrupted and len(out.trace.steps) == len(rounds)
    # The image is that of the check, and its reward that of the image.
    assert torch.equal(out.images, reward.seen[1 + chosen])
    torch.testing.assert_close(out.rewards, redness(out.images, [""]))
    assert out.rewards.item() == pytest.approx(watched.followed[chosen][0], abs=1e-6)
    assert watched.followed == sorted(watched.followed)
    # The trials are two of the followed reward and one of the held-out one.
    assert watched.reward_calls == len(rounds) + 1
    assert out.cost.reward_calls == len(rounds) + 2


def test_each_image_is_taken_where_it_was_best_and_all_have_to_fall(shared_pipe):
    reward = Script([5, 4, 4, 4, 4, 4, 4, 4, 4, 4], [1, 2, 3, 2, 2, 2, 2, 2, 2, 2])
    out = drawn(shared_pipe, Watch(reward, patience=2), num_images=2)
    assert out.watched.rounds == [0, 1, 2, 3, 4] and out.watched.chosen == [0, 2]
    assert torch.equal(out.images, torch.stack([reward.seen[1][0], reward.seen[3][1]]))
    for name, terms in out.reward_terms.items():
        assert name == "redness" and torch.equal(terms, out.rewards)


def test_latents_are_those_of_the_image_that_is_returned(shared_pipe):
    reward = Script([5, 6, 4, 4, 4, 4, 4, 4, 4, 4], [9, 2, 3, 2, 2, 2, 2, 2, 2, 2])
    out = drawn(shared_pipe, Watch(reward, patience=2), num_images=2, output_type="latent")
    plain = drawn(shared_pipe, None, num_images=2, output_type="latent", alignment="none")
    assert out.watched.chosen == [1, 0] and torch.equal(out.images[1], plain.images[1])
    # What was found last is another one, for the other image as well.
    further = drawn(shared_pipe, None, num_images=2, output_type="latent")
    assert not torch.equal(further.images[1], plain.images[1])


def test_constraints_are_known_of_what_is_returned(shared_pipe):
    reward = as_reward(redness) + (as_reward("brightness") > 0.0)
    out = drawn(shared_pipe, Watch(Script([*range(ROUNDS)])), reward=reward)
    assert out.constraints_met.tolist() == [True]


def test_some_rounds_alone_are_looked_at_and_the_last(shared_pipe):
    out = drawn(shared_pipe, Watch(Script([1, 2, 3, 4, 5]), every=4))
    assert out.watched.rounds == [0, 4, 8, 9] and out.watched.chosen == [3]


def test_a_watch_that_never_ends_changes_nothing(shared_pipe):
    plain, watched = drawn(shared_pipe, None), drawn(shared_pipe, Watch(Script([*range(ROUNDS)])))
    assert torch.equal(plain.images, watched.images) and plain.watched is None
    assert plain.cost.network_evaluations == watched.cost.network_evaluations


def test_optimising_too_far_lowers_what_is_held_out(shared_pipe):
    """The held-out reward is the followed one up to a bound, and falls beyond it."""
    plain = shared_pipe("a star", reward=redness, generator=torch.Generator().manual_seed(0), alignment="none", **CALL)
    bound = plain.rewards.item() + 0.002

    def held_out(images, prompts):
        return bound - (redness(images, prompts) - bound).abs()

    method = NoiseOptimization(num_iterations=12, learning_rate=5.0)
    call = {"reward": redness, "alignment": method, **CALL}
    far = shared_pipe("a star", generator=torch.Generator().manual_seed(0), **call)
    watch = Watch(CallableReward(held_out, "held_out", differentiable=True), patience=2)
    out = shared_pipe("a star", generator=torch.Generator().manual_seed(0), watch=watch, **call)
    assert out.watched.is_ended and len(out.trace.steps) < len(far.trace.steps)
    assert far.rewards > out.rewards > plain.rewards
    assert held_out(out.images, [""]) > held_out(far.images, [""])
    assert held_out(out.images, [""]).item() == pytest.approx(max(score for (score,) in out.watched.held_out))


def test_iterating_ends_too(shared_pipe):
    watch = Watch(Script([3, 2, 2, 2, 2, 2]), patience=2)
    options = {"reward": redness, "alignment": ZeroOrderSearch(num_candidates=6, round_size=1), "watch": watch, **CALL}
    with shared_pipe.iterate("a star", **options) as run:
        assert [progress.index for progress in run] == [0, 1, 2]
    assert run.output().watched.chosen == [0]


@pytest.mark.parametrize(
    "method", [SMC(), BestOfN(), Guidance(), BeamSearch()], ids=lambda method: type(method).__name__
)
def test_methods_without_rounds_refuse_a_watch(shared_pipe, method):
    with pytest.raises(ValueError, match=f"watch is given, but alignment {type(method).__name__} has half-noisy"):
        shared_pipe("a star", reward=redness, alignment=method, watch=Watch("brightness"))


def test_methods_in_rounds_are_those_that_the_watch_names():
    named = {name for name in METHODS.names() if METHODS.get(name).works_in_rounds}
    trees = {"diffusion_tree_sampling", "diffusion_tree_search"}
    assert named == {"noise_optimization", "noise_evolution", "random_search", "zero_order_search", *trees}
    assert all(f"`{name}`" in Watch.__doc__ for name in named)
    assert NoiseEvolution().works_in_rounds


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Watch("brightness", patience=0), ValueError, "patience is 0; give a whole number"),
        (lambda: Watch("brightness", every=1.5), ValueError, r"every is 1\.5; give a whole number"),
        (lambda: Watch(Script), TypeError, r"reward is .*; give an instance, Script\(\)"),
        (lambda: Watch(redness), ValueError, "watch is of 'redness', which the run follows"),
        (lambda: Watch("no_such_reward"), ValueError, "no_such_reward"),
        (lambda: Watch(lambda images, prompts: None), TypeError, "lambda"),
        (lambda: "brightness", TypeError, "watch is 'brightness'; give"),
        (lambda: {}, ValueError, r"watch is \{\}, but Watch needs the option 'reward', which has no default; give it"),
    ],
)
def test_what_cannot_be_watched_is_refused_before_any_work(shared_pipe, make, error, message):
    with pytest.raises(error, match=message):
        shared_pipe.iterate("a star", reward=redness, alignment="random_search", watch=make(), **CALL)


def scripted(name, scores):
    """Scores by a script of one image, for a part of a sum."""
    reward = Script(scores)
    reward.name = name
    return reward


def test_an_image_that_violates_a_followed_constraint_is_not_taken_for_its_held_out_score(shared_pipe):
    # The first two rounds violate it; of the others the second has the highest held-out score.
    followed = CallableReward(redness) + (scripted("followed", [0, 0, *[1] * 8]) > 0.5)
    out = drawn(shared_pipe, Watch(Script([9, 8, 1, 2, *[1] * 6]), patience=9), reward=followed)
    assert out.watched.chosen == [3] and out.constraints_met.tolist() == [True]
    assert not out.watched.is_ended


def test_constraints_of_the_held_out_reward_count(shared_pipe):
    held_out = Script([1, 2, 9, 3, 2, 2, 2, 9, 9, 9]) + (scripted("bounded", [1, 1, 0, *[1] * 7]) > 0.5)
    out = drawn(shared_pipe, Watch(held_out, patience=3))
    # The third, which violates one, is a fall, and no height that the fourth would have to reach.
    assert (out.watched.chosen, out.watched.is_ended, len(out.watched.rounds)) == ([3], True, 7)
    assert out.watched.held_out == [[1], [2], [9], [3], [2], [2], [2]]


def test_what_cannot_be_watched_is_refused_before_anything_is_drawn(shared_pipe):
    class Picky(Script):
        def check_prompts(self, prompts):
            if "a" in prompts:
                raise ValueError("no letter is a text")

    reward = Picky([1] * ROUNDS)
    with pytest.raises(ValueError, match="no letter"):
        shared_pipe(["a star", "a"], reward=redness, alignment="random_search", watch=Watch(reward), **CALL)
    with pytest.raises(ValueError, match="is in stages; give the reward of one"):
        drawn(shared_pipe, Watch(staged(["brightness", ("symmetry", 1)])))
    reward.reads_prompts = True
    with pytest.raises(ValueError, match="reads the prompt, but its text is ''"):
        shared_pipe("", reward=as_reward("brightness"), alignment="random_search", watch=Watch(reward), **CALL)
    assert not reward.seen


class Failing(Script):
    """Fails at its second check, and has to be paid."""

    def score(self, images, prompts):
        charge(1, 0.5)
        scores = super().score(images, prompts)
        if len(self.seen) == 3:
            raise OSError("no answer")
        return scores


def test_a_held_out_reward_that_fails_is_skipped_and_its_price_is_its_own(shared_pipe):
    out = drawn(shared_pipe, Watch(Failing([2, 9, 1, 1, 1, *[1] * 5]), patience=3), on_reward_error="skip")
    # What is skipped is neither a fall nor a height.
    assert out.watched.rounds == [0, 1, 2, 3, 4] and out.watched.chosen == [0] and out.watched.is_ended
    assert [score != score for (score,) in out.watched.held_out] == [False, True, False, False, False]
    assert (out.watched.reward_calls, out.watched.reward_requests, out.watched.reward_price) == (6, 6, 3.0)
    assert (out.cost.reward_calls, out.cost.reward_requests, out.cost.reward_price) == (7, 0, 0.0)


def test_a_held_out_reward_that_fails_leaves_the_best_images(shared_pipe):
    with pytest.raises(OSError, match="no answer") as caught:
        drawn(shared_pipe, Watch(Failing([1] * ROUNDS)))
    assert len(caught.value.best_images) == 1
