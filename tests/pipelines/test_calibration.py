"""The unit of each term follows from plain samples, which no run shares its random numbers with."""

import json

import pytest
import torch

from diamond_diffusers import Calibration, NoAlignment, calibrate
from diamond_diffusers.files.foreign import ForeignFileError
from diamond_diffusers.rewards import Reward, as_reward

from ..conftest import redness


class Seen(Reward):
    """Remembers what it has scored."""

    name = "seen"

    def __init__(self):
        self.scores, self.prompts = [], []

    def score(self, images, prompts):
        scores = images.mean((1, 2, 3))
        self.scores += scores.tolist()
        self.prompts += prompts
        return scores


def test_statistics_are_those_of_plain_samples(shared_pipe):
    reward = Seen()
    found = calibrate(shared_pipe, ["a star", "a ring"], reward, 5, batch_size=3, num_inference_steps=2)
    # The first image of each call is the one on which the reward is tried.
    scores = torch.tensor(reward.scores[1:4] + reward.scores[5:]).double()
    assert reward.prompts == ["a star", "a star", "a ring", "a star", "a ring", "a ring", "a star"]
    assert len(set(scores.tolist())) == 5
    assert found.terms["seen"].mean == pytest.approx(scores.mean().item())
    assert found.terms["seen"].standard_deviation == pytest.approx(scores.std().item())
    # Two steps under classifier-free guidance, and a trial in each of two calls.
    assert (found.cost["network_evaluations"], found.cost["reward_calls"]) == (5 * 2 * 2, 5 + 2)
    assert (found.reward, found.num_samples, found.seed) == ("seen", 5, 0)


def test_a_prompt_that_a_later_batch_could_not_be_scored_by_is_refused_at_once(shared_pipe):
    class Picky(Seen):
        def check_prompts(self, prompts):
            if "a ring" in prompts:
                raise ValueError("no ring is known")

    reward = Picky()
    with pytest.raises(ValueError, match="no ring is known"):
        calibrate(shared_pipe, ["a star", "a ring"], reward, 2, batch_size=1, num_inference_steps=1)
    assert not reward.scores


def test_a_run_is_the_same_with_a_calibration_before_it(shared_pipe):
    def drawn():
        # With noise of the global generator, as stock pipelines take it.
        torch.manual_seed(3)
        return shared_pipe("a star", reward=redness, alignment=NoAlignment(), output_type="pt").images

    before, state = drawn(), torch.get_rng_state()
    first = calibrate(shared_pipe, "a star", redness, 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(drawn(), before)
    assert first.terms == calibrate(shared_pipe, "a star", redness, 2).terms
    assert first.terms != calibrate(shared_pipe, "a star", redness, 2, seed=1).terms


def test_a_calibration_is_read_as_it_was_written(tmp_path, shared_pipe):
    reward = as_reward(redness) + as_reward("2*brightness")
    found = calibrate(shared_pipe, "a star", reward, 2, num_inference_steps=1)
    found.save(tmp_path / "calibration.json")
    assert Calibration.load(tmp_path / "calibration.json") == found
    applied = found.apply(reward)
    images = torch.rand(2, 3, 8, 8)
    brightness, red = found.terms["brightness"], found.terms["redness"]
    expected = (redness(images, []) - red.mean) / red.standard_deviation
    expected += 2 * (as_reward("brightness")(images, ["", ""]) - brightness.mean) / brightness.standard_deviation
    torch.testing.assert_close(applied(images, ["", ""]), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"terms": {"redness": {"mean": 0.0}}}, "has no 'standard_deviation'"),
        ({"terms": {"redness": {"mean": 0.0, "standard_deviation": 0.0}}}, "which no samples have"),
        ({"terms": {"redness": {"mean": "nan", "standard_deviation": 1.0}}}, "which no samples have"),
        ({"num_samples": "many"}, "num_samples of"),
    ],
)
def test_files_that_are_no_calibration_are_named(tmp_path, change, message):
    form = {"reward": "redness", "num_samples": 2, "seed": 0, "terms": {}, "cost": {}}
    (tmp_path / "odd.json").write_text(json.dumps(form | change))
    with pytest.raises(ForeignFileError, match=rf"{message}.*take a file that --calibrate") as error:
        Calibration.load(tmp_path / "odd.json")
    assert "odd.json" in str(error.value)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"num_samples": 1}, ValueError, "num_samples is 1; give at least 2"),
        ({"num_samples": 2.5}, ValueError, r"num_samples is 2\.5; give a whole number"),
        ({"batch_size": 0}, ValueError, "batch_size is 0"),
        ({"seed": -1}, ValueError, "seed is -1; give a whole number of at least 0"),
        ({"prompts": []}, TypeError, r"prompts is .*; give a text or several"),
        ({"prompts": ["a", 3]}, TypeError, r"prompts is .*; give a text or several"),
        ({"generator": None}, TypeError, r"generator is given, but calibrate\(...\) sets it itself"),
        ({"reward": None}, ValueError, "reward is None, and the model has no reward of its own"),
        ({"reward": lambda images, prompts: 0 * images.mean((1, 2, 3))}, ValueError, "is 0 for all 2 plain samples"),
    ],
)
def test_wrong_arguments_are_named(shared_pipe, given, error, message):
    arguments = {"prompts": "a star", "reward": redness, "num_samples": 2, "num_inference_steps": 1} | given
    with pytest.raises(error, match=message):
        calibrate(shared_pipe, **arguments)
