"""The rules of published benchmarks, on made-up answers, against what their own programs make of the same answers.

`fixtures/suites/official.json` holds these answers and the results of the official programs.
"""

import json
from itertools import chain
from pathlib import Path

import pytest
import torch
from PIL import Image

from diamond_diffusers.evaluation.benchmark.prompts import Prompt, prompts_in
from diamond_diffusers.evaluation.suites import SUITES
from diamond_diffusers.evaluation.suites.answering import answer_probabilities, yes_probabilities
from diamond_diffusers.evaluation.suites.base import SuiteJudge
from diamond_diffusers.evaluation.suites.blip import BLIPJudge, prepared_question
from diamond_diffusers.evaluation.suites.dpg_bench import DPGBenchJudge
from diamond_diffusers.evaluation.suites.dsg import DSGJudge
from diamond_diffusers.evaluation.suites.geneval2 import ARITHMETIC_MEAN, GenEval2Judge
from diamond_diffusers.evaluation.suites.miniature import MiniatureJudge
from diamond_diffusers.evaluation.suites.t2i_compbench import T2ICompBenchJudge, kind_of, three_in_one
from diamond_diffusers.evaluation.suites.tifa import TIFAJudge
from diamond_diffusers.rewards.preprocessing import images_from_pil
from diamond_diffusers.rewards.vision_language.answers import surface_forms

from ..rewards.test_vqascore import save_tiny_model
from .tiny_blip import pictures, save_tiny_blip

FIXTURES = Path(__file__).parents[1] / "fixtures" / "suites"
OFFICIAL = json.loads((FIXTURES / "official.json").read_text())
PICTURE = Image.new("RGB", (32, 32), (200, 30, 40))


class Scripted:
    """A judge that gives the probabilities that it is told, and keeps what it was asked."""

    differentiable = False

    def __init__(self, probabilities):
        self.remaining, self.asked, self.num_shown = list(probabilities), [], 0

    def probabilities(self, images, questions, answers, rows):
        assert len(questions) == len(answers) == len(rows) and set(rows) == set(range(len(images)))
        self.num_shown += len(images)
        self.asked += zip(questions, (forms[0] for forms in answers), strict=True)
        return torch.tensor([self.remaining.pop(0) for _ in questions], dtype=torch.float64)


def yes_or_no(answers):
    """The probabilities of yes and of no for each answer, which others share."""
    return [value for answer in answers for value in ([0.3, 0.1] if answer == "yes" else [0.2, 0.6])]


def written(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    return prompts_in(path)


def pooled(judge, prompts, verdicts):
    """The further figures of a suite."""
    gathered = {}
    for prompt, verdict in zip(prompts, verdicts, strict=True):
        for name, scores in judge.parts(prompt, verdict).items():
            gathered.setdefault(name, []).extend(scores)
    return {name: sum(scores) / len(scores) for name, scores in gathered.items()}


def test_geneval2(tmp_path):
    official = OFFICIAL["geneval2"]
    prompts = written(tmp_path, "geneval2.jsonl", "\n".join(map(json.dumps, official["prompts"])))
    vlm = Scripted(asked["probability"] for asked in official["asked"])
    judge = GenEval2Judge(vlm)
    verdicts = judge.judge([PICTURE] * len(prompts), prompts)
    assert [question for question, _ in vlm.asked] == [asked["question"] for asked in official["asked"]]
    for (_, answer), asked in zip(vlm.asked, official["asked"], strict=True):
        assert set(surface_forms(answer)) == set(asked["answers"])
    # Each image once, for all of its questions.
    assert vlm.num_shown == len(prompts)
    assert [verdict.score for verdict in verdicts] == pytest.approx(official["gm"])
    figures = pooled(judge, prompts, verdicts)
    assert 100 * figures.pop(ARITHMETIC_MEAN) == pytest.approx(official["score_am"])
    assert {name: 100 * share for name, share in figures.items()} == pytest.approx(official["skills"])
    by_atoms = {}
    for prompt, verdict in zip(prompts, verdicts, strict=True):
        by_atoms.setdefault(prompt.category, []).append(verdict.score)
    means = {name: 100 * sum(scores) / len(scores) for name, scores in by_atoms.items()}
    assert means == pytest.approx(official["atomicity"])
    impossible = judge.__class__(Scripted([0.0] * 10)).judge([PICTURE], prompts[:1])
    assert impossible[0].score == 0 and impossible[0].reason.startswith(prompts[0].metadata["vqa_list"][0][0])


def dsg_table(items):
    """The rows of items as a table."""
    columns = list(items[0][0])
    lines = [",".join(columns)]
    lines += [",".join(f'"{row[column]}"' for column in columns) for rows in items for row in rows]
    return "\n".join(lines)


def test_dsg(tmp_path):
    official = OFFICIAL["dsg"]
    prompts = written(tmp_path, "dsg.csv", dsg_table(official["items"]))
    answers = [list(each.values()) for each in official["answers"]]
    vlm = Scripted(yes_or_no(chain(*answers)))
    judge = DSGJudge(vlm)
    verdicts = judge.judge([PICTURE] * len(prompts), prompts)
    assert [verdict.score for verdict in verdicts] == pytest.approx(official["scores"])
    asked = [row["question_natural_language"] for rows in official["items"] for row in rows]
    assert vlm.asked == [(question, answer) for question in asked for answer in ("yes", "no")]
    for prompt, verdict, collection in zip(prompts, verdicts, official["collections"], strict=True):
        expected = {"defying": "defying"}.get(collection, collection)
        assert judge.parts(prompt, verdict)[f"collection: {expected}"] == [verdict.score]
    assert prompts[0].category == "whoops"


def test_dpg_bench(tmp_path):
    official = OFFICIAL["dpg_bench"]
    kept = [number for number in range(len(OFFICIAL["dsg"]["items"])) if number != official["left_out"]]
    prompts = written(tmp_path, "dpg.csv", dsg_table([OFFICIAL["dsg"]["items"][number] for number in kept]))
    answers = [list(OFFICIAL["dsg"]["answers"][number].values()) for number in kept]
    judge = DPGBenchJudge(Scripted(yes_or_no(chain(*answers))))
    verdicts = judge.judge([PICTURE] * len(prompts), prompts)
    scores = [verdict.score for verdict in verdicts]
    assert scores == pytest.approx(official["scores"])
    assert sum(scores) / len(scores) == pytest.approx(official["score"])
    assert pooled(judge, prompts, verdicts) == pytest.approx(official["kinds"])
    # The two rules differ on these cases.
    assert scores != [OFFICIAL["dsg"]["scores"][number] for number in kept]


def test_tifa(tmp_path):
    official = OFFICIAL["tifa"]
    prompts = written(tmp_path, "tifa.json", json.dumps(official["entries"]))
    chosen = [
        entry["choices"].index(choice) for entry, choice in zip(official["entries"], official["chosen"], strict=True)
    ]
    vlm = Scripted(
        float(position == index)
        for entry, index in zip(official["entries"], chosen, strict=True)
        for position in range(len(entry["choices"]))
    )
    judge = TIFAJudge(vlm)
    verdicts = judge.judge([PICTURE] * len(prompts), prompts)
    found = {prompt.metadata["item_id"]: verdict.score for prompt, verdict in zip(prompts, verdicts, strict=True)}
    assert found == pytest.approx(official["scores"])
    assert sum(found.values()) / len(found) == pytest.approx(official["score"])
    assert pooled(judge, prompts, verdicts) == pytest.approx(official["types"])
    count = len(official["entries"][0]["choices"])
    question, letters = vlm.asked[0][0], [letter for _, letter in vlm.asked[:count]]
    assert letters == ["A", "B", "C", "D"][:count]
    assert f"\nA. {official['entries'][0]['choices'][0]}\n" in question


class Grammar:
    """Splits at " and ", and takes "red" for an adjective."""

    def noun_phrases(self, text):
        return text.split(" and ")

    def without_adjectives(self, text):
        return " ".join(word for word in text.split() if word != "red")


def test_t2i_compbench_attributes():
    official = OFFICIAL["t2i_compbench"]
    prompts = [
        Prompt(index, "unused", "color_val", {"noun_phrases": [f"a thing {k}" for k in range(len(row))]})
        for index, row in enumerate(official["probabilities"])
    ]
    # Probabilities of yes and no that the decoder shares with other answers.
    vlm = Scripted(share for row in official["probabilities"] for yes in row for share in (0.5 * yes, 0.5 * (1 - yes)))
    verdicts = T2ICompBenchJudge(vlm).judge([PICTURE] * len(prompts), prompts)
    # The published program rounds to four digits.
    assert [verdict.score for verdict in verdicts] == pytest.approx(official["product"], abs=1e-4)
    assert vlm.asked[:2] == [("a thing 0?", "yes"), ("a thing 0?", "no")]
    vlm = Scripted([0.5] * 4 + [0.2, 0.1] * 8)
    judge = T2ICompBenchJudge(vlm, parser=Grammar())
    (pair, many) = judge.judge(
        [PICTURE, PICTURE],
        [Prompt(0, "a red cup and a vase", "texture"), Prompt(1, " and ".join("abcdefghij"), "shape_val_seen")],
    )
    assert [question for question, _ in vlm.asked[:4:2]] == ["a red cup?", "a vase?"]
    assert pair.score == pytest.approx(0.25) and many.score == pytest.approx((2 / 3) ** 8) and len(vlm.asked) == 20


def test_t2i_compbench_three_in_one():
    for case in OFFICIAL["t2i_compbench"]["three_in_one"]:
        expected = case.pop("score")
        assert three_in_one(**case) == pytest.approx(expected)
    read = []

    class Cosine(T2ICompBenchJudge):
        def _cosine(self, image, text):
            read.append(text)
            return 0.3

    judge = Cosine(Scripted([0.5] * 6), parser=Grammar(), spatial=lambda image, text: 0.9)
    kinds = ["complex_val_spatial", "complex_val_action", "complex_val_spatialaction", "spatial_val", "non_spatial_val"]
    prompts = [Prompt(index, "the red cup", kind) for index, kind in enumerate(kinds)]
    scores = [verdict.score for verdict in judge.judge([PICTURE] * 5, prompts)]
    assert scores == pytest.approx([(0.5 + 0.9) / 2, (0.5 + 0.3) / 2, (0.5 + 0.9 + 0.3) / 3, 0.9, 0.3])
    assert read == ["the cup", "the cup", "the red cup"]
    assert kind_of(prompts[2]) == "complex_spatialaction"
    with pytest.raises(ValueError, match="'numeracy_val', but suite 't2i_compbench' judges color_val"):
        judge.judge([PICTURE], [Prompt(0, "two boys", "numeracy_val")])
    with pytest.raises(ValueError, match="'spatial_val', but suite"):
        T2ICompBenchJudge.check([prompts[3]])


def test_t2i_compbench_needs_a_parser_before_models(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "spacy", None)
    T2ICompBenchJudge.check([Prompt(0, "a cup", "color_val", {"noun_phrases": ["a cup"]})])
    with pytest.raises(ImportError, match=r"splits prompts with spaCy .*pip install diamond-diffusers"):
        T2ICompBenchJudge.check([Prompt(0, "a cup", "color_val")])


def test_the_miniature_suite_is_its_judge():
    prompt = Prompt(0, "a red star", "single_object")
    assert MiniatureJudge().judge([PICTURE], [prompt])[0].score == 0
    with pytest.raises(ValueError):
        MiniatureJudge.check([Prompt(0, "a photo of a dog")])


@pytest.mark.parametrize("name", ["dpg_bench", "dsg", "geneval2", "tifa"])
def test_prompts_without_metadata_are_refused_with_the_suites_own(name):
    kind = SUITES.get(name)
    assert issubclass(kind, SuiteJudge) and kind.name == name and kind.source and kind.licence
    with pytest.raises(ValueError, match=f"'a cat' has no .* suite '{name}' needs; give --prompts {kind.prompts}"):
        kind.check([Prompt(0, "a cat")])


def test_questions_without_choices_are_not_tifas():
    prompt = Prompt(0, "a cat", "", {"item_id": "x", "questions": [{"question": "is it?"}]})
    with pytest.raises(ValueError, match="without choices, which suite 'tifa' needs"):
        TIFAJudge.check([prompt])


def test_one_prompt_for_each_image():
    with pytest.raises(ValueError, match="there are 2 images and 1 prompts"):
        MiniatureJudge().judge([PICTURE] * 2, [Prompt(0, "a red star")])


def test_an_answer_that_is_neither_yes_nor_no():
    assert yes_probabilities(Scripted([0.0, 0.0, 0.2, 0.6]), [PICTURE] * 2, ["?"] * 2) == [0.0, pytest.approx(0.25)]


def test_pictures_of_several_sizes_are_asked_about_in_their_order(tmp_path):
    save_tiny_model("qwen3_vl", tmp_path)
    vlm = DSGJudge(tmp_path, device="cpu").vlm
    pictures = [PICTURE, Image.new("RGB", (40, 24), (0, 90, 200)), PICTURE]
    questions = ["Does this show a cat ?", "red", "Please answer yes or no"]
    together = answer_probabilities(vlm, pictures, questions, ["yes", "no", "cat"])
    for picture, question, answer, found in zip(pictures, questions, ["yes", "no", "cat"], together, strict=True):
        forms = [surface_forms(answer)]
        assert found == pytest.approx(vlm.probabilities(images_from_pil([picture]), [question], forms).item(), abs=1e-5)


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blip")
    save_tiny_blip(folder)
    return BLIPJudge(folder)


def test_blip_is_the_official_one(blip):
    """`vqa_prob` of T2I-CompBench's own BLIP, with the same weights, tokens and pixels."""
    official = json.loads((FIXTURES / "blip.json").read_text())
    for picture, expected in zip(pictures(), official["probabilities"], strict=True):
        found = yes_probabilities(blip, [picture] * len(expected), official["questions"])
        assert found == pytest.approx(expected, abs=2e-6)


def test_questions_of_other_lengths_do_not_change_blips_answers(blip):
    shown = images_from_pil(pictures())
    together = blip.probabilities(shown, ["bench", "a green bench?", "bench"], ["yes", "no", ("yes", "no")], [0, 1, 2])
    one_by_one = [
        blip.probabilities(shown[:1], ["bench"], ["yes"]),
        blip.probabilities(shown[1:2], ["a green bench?"], ["no"]),
        sum(blip.probabilities(shown[2:], ["bench"], [word]) for word in ("yes", "no")),
    ]
    assert together.tolist() == pytest.approx([each.item() for each in one_by_one], rel=1e-5)


def test_what_is_no_blip_is_refused():
    with pytest.raises(OSError, match="vlm is '/no/such', which cannot be loaded"):
        BLIPJudge("/no/such")


def test_questions_as_blip_prepares_them():
    assert prepared_question('A "Red" Cup (left); top. ') == "a red cup left top"
    assert len(prepared_question("word " * 80).split(" ")) == 50


QUESTION = {"id": 1, "question": "Is it?", "tuple": "entity", "parents": []}
CHOICES = {"question": "Is it?", "choices": ["yes"], "answer": "yes", "element_type": "other"}


@pytest.mark.parametrize(
    ("suite", "metadata", "sentence"),
    [
        (DSGJudge, {"item_id": "x", "questions": []}, "has no 'questions' in its metadata, which suite 'dsg' needs"),
        (DSGJudge, {"item_id": "x", "questions": "Is it?"}, "questions of the metadata .* in place of a list"),
        (
            DSGJudge,
            {"item_id": "x", "questions": [QUESTION | {"id": "1"}]},
            r"questions\[0\].id of the metadata of the",
        ),
        (
            DSGJudge,
            {"item_id": "x", "questions": [QUESTION | {"parents": 0}]},
            r"questions\[0\].parents of the metadata",
        ),
        (TIFAJudge, {"item_id": "x", "questions": [CHOICES | {"choices": "yes"}]}, r"questions\[0\].choices of the"),
        (TIFAJudge, {"item_id": "x", "questions": [CHOICES | {"choices": []}]}, "has a question without choices"),
        (GenEval2Judge, {"vqa_list": [["Is it?"]], "skills": ["a"]}, "give pairs of a question and its answer"),
        (GenEval2Judge, {"vqa_list": [["Is it?", "yes"]], "skills": ["a", "b"]}, "has 1 questions for 2 skills"),
        (GenEval2Judge, {"vqa_list": "Is it?", "skills": ["a"]}, "vqa_list of the metadata .* in place of a list"),
        # A text is no list of its letters.
        (T2ICompBenchJudge, {"noun_phrases": "a green bench"}, "noun_phrases of the metadata .* in place of a list"),
    ],
)
def test_metadata_of_another_form_are_refused(suite, metadata, sentence):
    with pytest.raises(ValueError, match=sentence):
        suite.check([Prompt(0, "a green bench", "color_val", metadata)])
