"""Later stages of a reward order the best of the stage before anew; the expected orders are those by hand."""

import math
from dataclasses import replace

import pytest
import torch

from diamond_diffusers import SMC, BestOfN, Guidance, RandomSearch
from diamond_diffusers.alignment.law import Law
from diamond_diffusers.alignment.random_source import RandomSource
from diamond_diffusers.alignment.result import AlignmentResult
from diamond_diffusers.alignment.reward_errors import RewardErrors
from diamond_diffusers.alignment.stages import judged
from diamond_diffusers.alignment.trace import Trace
from diamond_diffusers.core.pending import Pending
from diamond_diffusers.evaluation.benchmark.plan import plan_methods
from diamond_diffusers.evaluation.benchmark.recipes import Recipe
from diamond_diffusers.rewards import REWARDS, CallableReward, Reward, as_reward, register_reward, staged
from diamond_diffusers.rewards.stages import stages_of

from ..conftest import redness


class Channel(Reward):
    """The mean of a channel, which says how often it was asked."""

    def __init__(self, name, channel, fails_at=()):
        self.name, self.channel, self.fails_at = name, channel, fails_at
        self.num_images, self.largest, self.prompts = 0, 0, []

    def score(self, images, prompts):
        self.num_images += len(images)
        self.largest = max(self.largest, len(images))
        self.prompts += prompts
        scores = images[:, self.channel].mean((1, 2))
        if any(round(score.item(), 2) in self.fails_at for score in scores):
            raise OSError("unreachable")
        return scores


class Awaited(Channel):
    """A service, which counts the most batches that wait for it at once."""

    is_concurrent = True
    differentiable = False

    def __init__(self):
        super().__init__("awaited", 1)
        self.waiting = self.most = 0

    def begin(self, images, prompts, **context):
        self.waiting += 1
        self.most = max(self.most, self.waiting)

        def result():
            self.waiting -= 1
            return self.evaluate(images, prompts, **context)

        return Pending(result)


FIRST = [[0.9, 0.7, 0.8, 0.1, 0.5], [0.1, 0.2, 0.3, 0.4, 0.5]]
SECOND = [[0.2, 0.4, 0.3, 0.99, 0.98], [0.9, 0.5, 0.5, 0.5, 0.4]]
THIRD = [[0.99, 0.1, 0.7, 0.95, 0.96], [0.9, 0.9, 0.2, 0.6, 0.9]]


def result_of(law):
    images = torch.tensor([FIRST, SECOND, THIRD]).permute(1, 2, 0)[..., None, None].expand(-1, -1, -1, 4, 4)
    rewards = torch.tensor(FIRST)
    weights = torch.zeros(2, 5)
    return AlignmentResult(images, weights, rewards, {"first": rewards}, images, None, Trace(), torch.ones(2))


def law_of(reward, **options):
    return Law(None, None, ["a star", "a ring"], reward, **options)


def stages(*counts, **options):
    channels = [Channel(name, number, **options) for number, name in enumerate(("first", "second", "third"))]
    return staged([channels[0], *zip(channels[1:], counts, strict=False)])


def test_the_order_of_three_stages_by_hand():
    reward = stages(3, 2)
    law = law_of(reward)
    result, calls = judged(law, result_of(law))
    # By the first: 0 2 1 | 4 3, and 4 3 2 | 1 0. By the second of the best three: 1 2 | 0, and, of equals the one
    # that stood first, 3 2 | 4. By the third of the best two: 2 1, and 3 2.
    assert result.places.argsort(1).tolist() == [[2, 1, 0, 4, 3], [3, 2, 4, 1, 0]]
    assert result.select("best", RandomSource(None, 2)).tolist() == [[2], [3]]
    nan = math.nan
    expected = {
        "first": FIRST,
        "second": [[0.2, 0.4, 0.3, nan, nan], [nan, nan, 0.5, 0.5, 0.4]],
        "third": [[nan, 0.1, 0.7, nan, nan], [nan, nan, 0.2, 0.6, nan]],
    }
    assert list(result.reward_terms) == list(expected)
    for name, terms in expected.items():
        torch.testing.assert_close(result.reward_terms[name], torch.tensor(terms), equal_nan=True)
    assert calls == {"first": 10, "second": 6, "third": 4} and law.cost.reward_calls == 10
    second, third = reward.rewards[1:]
    assert (second.num_images, third.num_images) == (6, 4)
    assert second.prompts == ["a star"] * 3 + ["a ring"] * 3 and third.prompts == ["a star"] * 2 + ["a ring"] * 2


def test_a_negative_scale_turns_every_stage_round_and_none_keeps_the_first():
    law = law_of(stages(3, 2), reward_scale=-2.0)
    # By the first: 3 4 1 | 2 0, and 0 1 2 | 3 4; then 1 4 | 3, and 1 2 | 0; then 1 4, and 2 1.
    assert judged(law, result_of(law))[0].places.argsort(1).tolist() == [[1, 4, 3, 2, 0], [2, 1, 0, 3, 4]]
    law = law_of(stages(3, 2), reward_scale=0.0)
    assert judged(law, result_of(law))[0].places.tolist() == [[0, 1, 2, 3, 4]] * 2


def test_images_that_hold_a_constraint_of_a_stage_come_first():
    first, second, third = (Channel(name, number) for number, name in enumerate(("first", "second", "third")))
    reward = staged([first, (second + (third < 0.5), 3)])
    assert not reward.is_constrained and reward.default_reward_scale is None
    law = law_of(reward)
    # Of 0 2 1 the third of 1 alone is below 0.5, and of 4 3 2 that of 2.
    assert judged(law, result_of(law))[0].places.argsort(1).tolist() == [[1, 2, 0, 4, 3], [2, 3, 4, 1, 0]]


def test_more_than_there_are_is_all_of_them():
    law = law_of(stages(100))
    result, calls = judged(law, result_of(law))
    assert result.places.argsort(1).tolist() == [[3, 4, 1, 2, 0], [0, 3, 2, 1, 4]]
    assert calls == {"first": 10, "second": 10}


def test_what_a_judge_fails_on_is_the_last_that_it_was_asked_about():
    law = law_of(stages(3, fails_at=(0.4,)), reward_errors=RewardErrors("skip"))
    result, _ = judged(law, result_of(law))
    assert result.places.argsort(1).tolist() == [[2, 0, 1, 4, 3], [3, 2, 4, 1, 0]]


def test_what_is_blacked_out_since_is_not_the_best():
    law = law_of(stages(3, 2))
    result, _ = judged(law, result_of(law))
    rewards = result.rewards.clone()
    rewards[0, 2] = rewards[1] = math.nan
    assert replace(result, rewards=rewards).select("best", RandomSource(None, 2))[0].tolist() == [1]


def test_without_stages_nothing_changes():
    law = law_of(Channel("first", 0))
    before = result_of(law)
    assert judged(law, before) == (before, {}) and law.cost.reward_calls == 0


@pytest.mark.parametrize("options", [{}, {"particle_batch_size": 2}], ids=str)
def test_the_pipeline_hands_its_particles_to_the_stages(shared_pipe, options):
    reward = stages(3, 1)
    call = {"num_inference_steps": 2, "output_type": "pt", "final_selection": "all", **options}

    def drawn(prompts, seeds, **options):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return shared_pipe(
            prompts, reward=reward, alignment=BestOfN(num_particles=4), generator=generators, **(call | options)
        )

    out = drawn(["a star", "a ring"], [0, 1])
    assert out.stage_calls == {"first": 8, "second": 6, "third": 2}
    # With the image on which every stage is tried.
    assert out.cost.reward_calls == 8 + 6 + 2 + 1
    assert [reward.rewards[stage].num_images for stage in range(3)] == [9, 7, 3]
    assert all(judge.largest <= options.get("particle_batch_size", 8) for judge in reward.rewards)
    torch.testing.assert_close(out.rewards, out.images[:, 0].mean((1, 2)))
    best = drawn(["a star", "a ring"], [0, 1], final_selection=None)
    for image in range(2):
        red, green, _ = out.images[4 * image : 4 * image + 4].mean((2, 3)).unbind(1)
        kept = red.topk(3).indices
        expected = kept[green[kept].argmax()]
        torch.testing.assert_close(best.images[image], out.images[4 * image + expected])
        assert torch.isfinite(best.reward_terms["third"][image])
    # Whatever else is in the batch.
    alone = drawn(["a ring"], [1], final_selection=None)
    torch.testing.assert_close(alone.images[0], best.images[1])


def test_chunks_of_a_stage_that_is_awaited_are_begun_before_the_first_is_there(shared_pipe):
    judge = Awaited()
    call = {"num_inference_steps": 1, "alignment": BestOfN(num_particles=2), "particle_batch_size": 2}
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    out = shared_pipe(["a star", "a ring"], reward=staged(["brightness", (judge, 2)]), generator=generators, **call)
    assert out.reward_terms["awaited"].isfinite().all() and out.cost.reward_calls == 4 + 4 + 1
    assert judge.most == 2


def test_a_run_follows_the_first_stage_alone(shared_pipe):
    first = CallableReward(redness, "first")
    call = {"alignment": SMC(3), "num_inference_steps": 3, "output_type": "pt", "final_selection": "all"}

    def drawn(reward):
        return shared_pipe("a star", reward=reward, generator=torch.Generator().manual_seed(0), **call)

    out, alone = drawn(staged([first, (Channel("second", 1), 2)])), drawn(first)
    for name in ("images", "rewards", "log_weights", "log_evidence"):
        assert torch.equal(getattr(out, name), getattr(alone, name))
    assert alone.stage_calls is None and out.reward_terms["second"].isnan().sum() == 1


def test_stages_count_in_budgets(shared_pipe):
    reward = stages(3, 1)
    out = shared_pipe("a star", reward=reward, alignment="best_of_n", max_reward_calls=9, num_inference_steps=1)
    # Five by the first, three and one by the others, and one on which they are tried.
    assert out.alignment.num_particles == 5 and out.cost.reward_calls == 9 + 1
    recipes = {"best_of_n": Recipe(BestOfN()), "guidance_of_one": Recipe(Guidance(), grows=())}
    plan = plan_methods(list(recipes), [24], shared_pipe, reward, recipes=recipes, max_reward_calls=8)
    assert [entry.method.alignment.num_particles for entry in plan.entries] == [4]
    assert [left.name for left in plan.left_out] == ["guidance_of_one"] and "ends with 1" in plan.left_out[0].reason


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alignment": Guidance()}, "reward has stages, .* but alignment Guidance ends with 1; give num_particles"),
        ({"max_network_evaluations": 2, "num_inference_steps": 1}, "ends with 1; raise the budget until it pays for 2"),
        ({"alignment": RandomSearch()}, "RandomSearch ends with 1"),
        ({"alignment": RandomSearch(), "max_network_evaluations": 100}, "ends with 1; give num_particles"),
        ({"final_selection": "sample"}, "final_selection is 'sample', but the stages of the reward choose the best"),
        ({"reward": 2 * stages(2)}, "is made of one in stages"),
        ({"reward": stages(2) + as_reward("brightness")}, "is made of one in stages"),
        ({"reward": staged([stages(2), ("brightness", 2)])}, "is made of one in stages"),
    ],
)
def test_what_stages_cannot_do_is_refused_before_any_work(shared_pipe, options, message):
    with pytest.raises(ValueError, match=message):
        shared_pipe.iterate("a star", **{"reward": stages(2), "alignment": BestOfN(num_particles=4), **options})


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (["brightness"], ValueError, "stages are 'brightness' alone; give a second one"),
        ([], TypeError, r"stages is .*; give a list"),
        ("brightness", TypeError, "stages is 'brightness'; give a list"),
        (["brightness", "colour"], TypeError, r"stages\[1\] is 'colour'; give a pair"),
        ([("brightness", 3), ("colour", 2)], TypeError, r"stages\[0\] is .*; give a reward alone"),
        (["brightness", ("colour", 0)], ValueError, r"stages\[1\]\[1\] is 0; give a whole number"),
        (
            ["brightness", ("colour", 2), ("symmetry", 3)],
            ValueError,
            "'symmetry' keeps 3, but the one before it hands on 2",
        ),
    ],
)
def test_wrong_stages_are_named(given, error, message):
    with pytest.raises(error, match=message):
        staged(given)


def test_stages_are_registered_under_a_name(monkeypatch):
    monkeypatch.setattr(REWARDS, "_entries", dict(REWARDS._entries))
    register_reward("judged")(staged(["brightness", ("colour", 2)], name="judged"))
    assert as_reward("judged").name == "judged" and stages_of(as_reward("judged")).later[0].keep == 2


def test_only_the_first_stage_is_differentiated(shared_pipe):
    reward = staged([CallableReward(redness), ("jpeg_size", 1)])
    assert reward.differentiable and not staged(["jpeg_size", (redness, 1)]).differentiable
    out = shared_pipe("a star", reward=reward, alignment=Guidance(num_particles=2), num_inference_steps=2)
    assert set(out.reward_terms) == {"redness", "jpeg_size"}
