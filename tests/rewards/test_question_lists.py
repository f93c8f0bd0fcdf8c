"""Rules of TIFA, DSG and Soft-TIFA. Values of the official codes are what these print for the same answers."""

import doctest
import json
from functools import partial

import pytest
import torch

from diamond_diffusers.rewards import Question, QuestionListReward, RubricReward, VisionLanguageJudge
from diamond_diffusers.rewards.vision_language.answers import surface_forms
from diamond_diffusers.rewards.vision_language.question_lists import soft_minimum


class KnowingJudge:
    """Knows the probability of each answer to each question, times the brightness of the image."""

    differentiable = True

    def __init__(self, known):
        self.known = known
        self.asked = []

    def probabilities(self, images, questions, answers, rows=None):
        self.asked += zip(questions, answers, rows, strict=True)
        brightness = images.mean((1, 2, 3))[rows]
        pairs = zip(questions, answers, strict=True)
        return torch.tensor([self.known[question][answer[0]] for question, answer in pairs]) * brightness


IMAGE = torch.ones(1, 3, 8, 8)


def asking(questions, known, **options):
    """The score of one image, from what is known of the questions as they are put."""
    return QuestionListReward({"it": questions}, KnowingJudge(known), **options)


YES_NO = ("yes", "no")
DSG = [
    # The answers, the parents of each question from 1, and what `calc_vqa_score` of j-min/DSG gives with and without.
    ("yyny", [[], [1], [1], [3]], 0.5, 0.75),
    ("nyy", [[], [1], [2]], 1 / 3, 2 / 3),
    ("ynyyy", [[], [], [1, 2], [1], [3]], 0.6, 0.8),
    ("nn", [[], [1]], 0.0, 0.0),
    ("yyy", [[], [1], [1, 2]], 1.0, 1.0),
]


@pytest.mark.parametrize(("answers", "parents", "with_parents", "without"), DSG, ids=[case[0] for case in DSG])
def test_dependencies_are_those_of_dsg(answers, parents, with_parents, without):
    """A question counts as answered no where a parent is, whatever the parent's own parents are."""
    chain = [
        Question(f"q{place}?", choices=YES_NO, parents=tuple(parent - 1 for parent in own))
        for place, own in enumerate(parents)
    ]
    known = {
        f"q{place}? Answer with one of: yes, no.": {"yes": 0.3, "no": 0.1} if answer == "y" else {"yes": 0.1, "no": 0.2}
        for place, answer in enumerate(answers)
    }
    assert asking(chain, known, soft=False)(IMAGE, ["it"]).item() == pytest.approx(with_parents)
    free = [Question(question.text, choices=YES_NO) for question in chain]
    assert asking(free, known, soft=False)(IMAGE, ["it"]).item() == pytest.approx(without)
    # Probabilities of right answers among the choices, where DSG has 1.
    assert asking(chain, known)(IMAGE, ["it"]).item() == pytest.approx(
        sum(
            (0.75 if answer == "y" else 1 / 3) * all(answers[parent - 1] == "y" for parent in own)
            for answer, own in zip(answers, parents, strict=True)
        )
        / len(answers)
    )


SOFT_TIFA = [
    # Probabilities, their `scipy.stats.gmean` (Soft-TIFA GM of facebookresearch/GenEval2) and mean (AM).
    ([0.9, 0.5, 0.25], 0.4827446923028149, 0.55),
    ([0.9, 0.0, 0.25], 0.0, 0.38333333333),
    ([0.99, 1e-4, 0.7, 0.3], 0.06752484910069184, 0.497525),
    ([1.0, 1.0], 1.0, 1.0),
]


@pytest.mark.parametrize(("scores", "geometric", "arithmetic"), SOFT_TIFA)
def test_means_are_those_of_soft_tifa(scores, geometric, arithmetic):
    questions = [[f"q{place}?", "Yes"] for place in range(len(scores))]
    known = {f"q{place}? Answer in one word.": {"Yes": score} for place, score in enumerate(scores)}
    found = asking(questions, known, aggregate="geometric_mean")(IMAGE, ["it"]).item()
    assert found == pytest.approx(geometric, rel=1e-6)
    assert asking(questions, known)(IMAGE, ["it"]).item() == pytest.approx(arithmetic)


def test_tifa_counts_the_likeliest_choices():
    """As `tifa_score_single`: 1 where the choice that is made is the answer, and their mean."""
    colours = Question("What colour?", "red", ("red", "blue", "green"))
    count = Question("How many?", "2", ("1", "2", "3"))
    known = {
        "What colour? Answer with one of: red, blue, green.": {"red": 0.04, "blue": 0.03, "green": 0.03},
        "How many? Answer with one of: 1, 2, 3.": {"1": 0.5, "2": 0.4, "3": 0.1},
    }
    assert asking([colours, count], known, soft=False)(IMAGE, ["it"]).item() == 0.5
    assert asking([colours, count], known)(IMAGE, ["it"]).item() == pytest.approx((0.4 + 0.4) / 2)


def test_other_aggregates():
    questions, known = ["a?", "b?"], {"a? Answer in one word.": {"yes": 0.5}, "b? Answer in one word.": {"yes": 0.8}}
    score = partial(asking, questions, known)
    assert score(aggregate="product")(IMAGE, ["it"]).item() == pytest.approx(0.4)
    # -0.1 log((exp(-5) + exp(-8)) / 2) = 0.5 + 0.1 log 2 - 0.1 log(1 + exp(-3))
    assert score(aggregate="soft_minimum")(IMAGE, ["it"]).item() == pytest.approx(0.5644560)
    colder = partial(soft_minimum, temperature=1e-3)
    assert score(aggregate=colder)(IMAGE, ["it"]).item() == pytest.approx(0.5007, abs=1e-4)
    assert score(aggregate=torch.amax)(IMAGE, ["it"]).item() == pytest.approx(0.8)


def test_gradients_are_finite_where_an_answer_is_impossible():
    known = {"a? Answer in one word.": {"yes": 0.0}, "b? Answer in one word.": {"yes": 0.8}}
    for aggregate in ("mean", "product", "geometric_mean", "soft_minimum"):
        image = IMAGE.clone().requires_grad_()
        score = asking(["a?", "b?"], known, aggregate=aggregate)(image, ["it"])
        assert torch.autograd.grad(score.sum(), image)[0].isfinite().all()
    assert not asking(["a?"], known, soft=False).differentiable


def test_each_prompt_has_its_own_questions(tmp_path):
    """From a mapping, a file and a function alike; a question that is put alike is so everywhere."""
    lists = {
        "a cat": ["Is it a cat?"],
        "two dogs": [["How many dogs?", "two"], {"question": "Are they big?", "answer": "no", "parents": [0]}],
    }
    file = tmp_path / "questions.json"
    file.write_text(json.dumps(lists))
    known = {
        "Is it a cat? Answer in one word.": {"yes": 0.9},
        "How many dogs? Answer in one word.": {"two": 0.6},
        "Are they big? Answer in one word.": {"no": 0.2},
    }
    calls = []
    for given in (lists, file, str(file), lambda prompt: calls.append(prompt) or lists[prompt]):
        judge = KnowingJudge(known)
        reward = QuestionListReward(given, judge)
        images = torch.stack([IMAGE[0], 0.5 * IMAGE[0], IMAGE[0]])
        found = reward.question_scores(images, ["two dogs", "two dogs", "a cat"])
        expected = [[0.6, 0.2], [0.3, 0.0], [0.9]]
        torch.testing.assert_close(found, [torch.tensor(scores) for scores in expected])
        assert [row for _, _, row in judge.asked] == [0, 0, 1, 1, 2]
        torch.testing.assert_close(reward(images[:2], ["two dogs"] * 2), torch.tensor([0.4, 0.15]))
    assert calls == ["two dogs", "a cat"]
    assert QuestionListReward(lists, judge).probe() == 1


@pytest.mark.parametrize(
    ("questions", "sentence"),
    [
        (
            {},
            "questions is {}; give a list of questions by prompt, a JSON file of such, or a function",
        ),
        ({"it": []}, "the questions of the prompt 'it' are malformed: they are []; give a list of at least one"),
        ({"it": "Is it?"}, "they are 'Is it?'; give a list"),
        ({"it": [3]}, "one is 3; give a question, or a question with its answer"),
        ({"it": [["Is it?", ""]]}, "answer is ''; give a text, or a tuple of the forms that count"),
        (
            {"it": [{"question": "Is it?", "choices": ["no", "so"]}]},
            "choices is ('no', 'so') with the answer",
        ),
        ({"it": [{"question": "Is it?", "parents": [0]}]}, "question 0 has the parents [0]; give places of others"),
        ({"it": [{"question": "Is it?", "parents": [1]}]}, "question 0 has the parents [1]"),
        ({"it": [{"question": "Is it?", "weight": 1}]}, "one has the fields ['question', 'weight']; give question"),
        ({"it": [{"answer": "yes"}]}, "one has the fields ['answer']; give question, answer, choices and parents"),
        ({"it": [{"question": "Is it?", "choices": "yes, no"}]}, "choices is 'yes, no'; give a list of texts"),
        ({"it": [{"question": "Is it?", "choices": ["yes", 2]}]}, "choices is ('yes', 2); give a list of texts"),
        ({"it": ["Is it?", {"question": "So?", "parents": 0}]}, "parents is 0; give a list of places in the list"),
        ({"it": ["Is it?", {"question": "So?", "parents": [False]}]}, "parents is (False,); give a list of places"),
        ({"it": [["Is it?", " "]]}, "answer is ' '; give a text"),
    ],
)
def test_bad_questions(questions, sentence):
    with pytest.raises(ValueError) as error:
        QuestionListReward(questions, KnowingJudge({}))
    assert sentence in str(error.value)


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="aggregate is 'median'; choose one of mean, product"):
        asking(["Is it?"], {}, aggregate="median")
    with pytest.raises(ValueError, match=r"question_format is 'Say it'; put \{\} in the question's place"):
        asking(["Is it?"], {}, question_format="Say it")
    with pytest.raises(ValueError, match="no questions for the prompt 'a cat', but for 1 others; add a list"):
        asking(["Is it?"], {})(IMAGE, ["a cat"])
    with pytest.raises(ValueError, match="the questions of the prompt 'a cat' are malformed: they are None"):
        QuestionListReward(lambda prompt: None, KnowingJudge({}))(IMAGE, ["a cat"])
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"broken\.json', which is no JSON"):
        QuestionListReward(tmp_path / "broken.json", KnowingJudge({}))
    with pytest.raises(OSError, match=r"none\.json', which cannot be read \(No such file"):
        QuestionListReward(tmp_path / "none.json", KnowingJudge({}))
    (tmp_path / "twice.json").write_text('{"a cat": ["Is it?"], "a cat": ["Is it so?"]}')
    with pytest.raises(ValueError, match=r"twice\.json', which is no JSON \(it has 'a cat' twice\); give an object"):
        QuestionListReward(tmp_path / "twice.json", KnowingJudge({}))
    (tmp_path / "marked.json").write_text('{"a cat": ["Is it?"]}', encoding="utf-8-sig")
    assert QuestionListReward(tmp_path / "marked.json", KnowingJudge({})).questions_of("a cat") == (Question("Is it?"),)
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"list\.json', which holds \[1\]; give an object with a list"):
        QuestionListReward(tmp_path / "list.json", KnowingJudge({}))
    choice = Question("Is it?", "yes", YES_NO)
    silent = {"Is it? Answer with one of: yes, no.": {"yes": 0.0, "no": 0.0}}
    with pytest.raises(ValueError, match=r"no choice of \('yes', 'no'\) any probability; word the question 'Is it\?'"):
        asking([choice], silent)(IMAGE, ["it"])


def test_of_a_model(qwen_folder):
    """Questions of a batch share the images, whose every choice is one token of one distribution."""
    judge = VisionLanguageJudge(qwen_folder)
    lists = {"a cat": ["Is it a cat", Question("How many cats", "2", ("1", "2"))], "a dog": [["Is it", "a dog"]]}
    reward = QuestionListReward(lists, judge, aggregate="geometric_mean")
    pictures = torch.rand(2, 3, 56, 56, generator=torch.Generator().manual_seed(0)).requires_grad_()
    cat, dog = reward.question_scores(pictures, ["a cat", "a dog"])
    law = judge.next_token_probabilities(pictures, [reward.wording(reward.questions["a cat"][1])], [0])[0]
    one, two, digit_one, digit_two = (
        law[judge.processor.tokenizer.convert_tokens_to_ids(word)] for word in ("one", "two", "1", "2")
    )
    torch.testing.assert_close(cat[1], (two + digit_two) / (one + digit_one + two + digit_two), rtol=1e-4, atol=0)
    torch.testing.assert_close(dog, judge.probabilities(pictures[1:], [reward.wording(Question("Is it"))], ["a dog"]))
    (gradient,) = torch.autograd.grad(reward(pictures, ["a cat", "a dog"]).sum(), pictures)
    assert gradient.isfinite().all() and (gradient.abs().amax((1, 2, 3)) > 0).all()
    with pytest.raises(ValueError, match="of which the first begins the second in this model's tokens"):
        QuestionListReward({"it": [Question("Is it", "a cat", ("a cat", "a"))]}, judge)


@pytest.mark.parametrize("documented", [QuestionListReward, RubricReward, surface_forms])
def test_examples_of_docstrings(documented):
    names = {"torch": torch, documented.__name__: documented}
    example = doctest.DocTestParser().get_doctest(documented.__doc__, names, documented.__name__, None, 0)
    assert example.examples
    report = []
    doctest.DocTestRunner(verbose=False).run(example, out=report.append)
    assert not report, "".join(report)
