import runpy
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from diamond_diffusers.rewards import Criterion, RubricReward, VisionLanguageJudge, as_reward

FAIR, SHARP = "How fair is it? 1: not. 5: very.", 'How sharp is "{}"? 1: not. 5: very.'


class GradingJudge:
    """Gives each grade the probability that stands for it, on images of one brightness, and notes what it is asked."""

    differentiable = True

    def __init__(self, laws):
        self.laws = laws
        self.calls = []

    def probabilities(self, images, questions, answers, rows=None):
        self.calls.append((list(questions), list(answers), list(rows)))
        brightness = images.mean((1, 2, 3))[rows]
        known = [
            next(law for start, law in self.laws.items() if question.startswith(start)).get(answer[0], 0.0)
            for question, answer in zip(questions, answers, strict=True)
        ]
        return torch.tensor(known) * brightness


def images(*levels):
    return torch.tensor(levels)[:, None, None, None].expand(-1, 3, 8, 8).clone()


def test_the_score_is_the_mean_of_the_distribution_of_grades():
    """By hand: 1, 4 and 5 are as likely as 0.1 : 0.2 : 0.5, whatever else the model might reply."""
    reward = RubricReward(FAIR, GradingJudge({"How fair": {"1": 0.1, "4": 0.2, "5": 0.5}}))
    found = reward.evaluate(images(1.0, 0.5), ["a cat"] * 2)
    torch.testing.assert_close(found.total, torch.full((2,), (0.1 + 0.8 + 2.5) / 0.8))
    assert list(found.terms) == reward.term_names == ["rubric"]
    assert not reward.reads_prompts
    ((questions, answers, rows),) = reward.judge.calls
    assert set(questions) == {f"{FAIR} Answer with 1, 2, 3, 4 or 5 alone."} and rows == [0] * 5 + [1] * 5
    assert answers[:2] == [("1", "one", "One", " 1", " one", " One"), ("2", "two", "Two", " 2", " two", " Two")]


def test_normalised_scores_and_grades_in_words():
    judge = GradingJudge({"How fair": {"poor": 0.25, "good": 0.75}})
    grades = {"poor": -2, "fair": 0, "good": 2}
    assert RubricReward(FAIR, judge, grades=grades)(images(1.0), [""]).item() == 1.0
    assert RubricReward(FAIR, judge, grades=grades, normalised=True)(images(1.0), [""]).item() == 0.75


def test_each_criterion_is_a_term():
    """And all are asked in one call; the sum of rewards reports them, too."""
    judge = GradingJudge({"How fair": {"2": 1.0}, 'How sharp is "a cat"': {"5": 1.0}, "How sharp": {"1": 1.0}})
    reward = RubricReward({"fair": FAIR, "sharp": Criterion(SHARP, weight=3)}, judge, name="mine")
    found = reward.evaluate(images(1.0, 1.0), ["a cat", "a dog"])
    torch.testing.assert_close(found.total, torch.tensor([(2 + 15) / 4, (2 + 3) / 4]))
    expected = {"mine": found.total, "mine.fair": torch.tensor([2.0, 2.0]), "mine.sharp": torch.tensor([5.0, 1.0])}
    torch.testing.assert_close(found.terms, expected)
    assert list(found.terms) == reward.term_names and reward.reads_prompts
    assert len(judge.calls) == 1
    both = 2 * reward + as_reward("brightness")
    assert list(both.evaluate(images(1.0), ["a cat"]).terms) == both.term_names == [*reward.term_names, "brightness"]


def test_a_judge_of_one_s_own_may_tell_that_grades_are_alike():
    class CarefulJudge(GradingJudge):
        def check_exclusive(self, answers):
            raise ValueError(f"{len(answers)} grades that begin alike")

    with pytest.raises(ValueError, match="3 grades that begin alike"):
        RubricReward(FAIR, CarefulJudge({}), grades=(1, 10, 100))


def test_of_a_model(qwen_folder):
    """Tokens of grades, gradients to the pixels, and grades that cannot be told apart by their first tokens."""
    judge = VisionLanguageJudge(qwen_folder)
    reward = RubricReward({"fair": "Is it", "sharp": "Is it a {}"}, judge)
    pictures = torch.rand(2, 3, 56, 56, generator=torch.Generator().manual_seed(0)).requires_grad_()
    scores = reward(pictures, ["cat", "red dog"])
    (gradient,) = torch.autograd.grad(scores.sum(), pictures)
    assert gradient.isfinite().all() and (gradient.abs().amax((1, 2, 3)) > 0).all()
    law = judge.next_token_probabilities(pictures, [reward.question(Criterion("Is it"), "")] * 2)
    ids = judge.processor.tokenizer.convert_tokens_to_ids
    # "three", "four" and "five" are no words of this model, "one" and "two" are.
    grades = torch.stack([law[:, [ids(word) for word in words]].sum(1) for words in GRADES], 1)
    expected = grades @ torch.arange(1.0, 6.0) / grades.sum(1)
    torch.testing.assert_close(reward.evaluate(pictures, ["cat", "red dog"]).terms["rubric.fair"], expected.detach())
    with pytest.raises(ValueError, match=r"'red', .* and .*'red cat', .* of which the first begins the second"):
        RubricReward("Is it", judge, grades={"red": 1, "red cat": 2})


GRADES = [["1", "one"], ["2", "two"], ["3"], ["4"], ["5"]]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"criteria": {}}, "criteria is {}; give at least one rubric"),
        ({"criteria": " "}, "rubric is ' '; give a text that says what each grade means"),
        ({"grades": (1,)}, "grades is (1,); give at least two different whole numbers"),
        ({"grades": (1, 1)}, "grades is (1, 1)"),
        ({"grades": (-1, 1)}, "grades is (-1, 1)"),
        ({"grades": 5}, "grades is 5; give at least two"),
        ({"grades": {"a": 1, "b": float("nan")}}, "grades is {'a': 1, 'b': nan}"),
    ],
)
def test_bad_input(arguments, sentence):
    with pytest.raises(ValueError) as error:
        RubricReward(**{"judge": GradingJudge({}), **arguments})
    assert sentence in str(error.value)


def test_bad_weights_options_and_replies():
    with pytest.raises(ValueError, match="weight is 0; give a positive number"):
        Criterion("Is it", 0)
    with pytest.raises(TypeError, match="got a judge and dtype; give these where the judge is made"):
        RubricReward(FAIR, GradingJudge({}), dtype=torch.float16)
    with pytest.raises(ValueError, match="gives none of the grades 1, 2, 3, 4, 5 any probability"):
        RubricReward(FAIR, GradingJudge({"How": {}}))(images(1.0), [""])


@pytest.mark.slow
def test_the_example_runs(qwen_folder, tmp_path, monkeypatch, capsys):
    """On the embedded model, with a tiny judge."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["vlm_rubric.py", str(qwen_folder)])
    runpy.run_path(str(Path(__file__).parents[2] / "examples" / "vlm_rubric.py"))
    with Image.open(tmp_path / "graded_stars.png") as image:
        assert image.size == (64, 64)
    assert "'rubric.content'" in capsys.readouterr().out
