"""Judging sets of images: what is kept, what is judged again, and the figures of the tables."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from diamond_diffusers.evaluation.benchmark.prompts import Prompt
from diamond_diffusers.evaluation.judging import judges as judges_module
from diamond_diffusers.evaluation.judging.images import ImageSet, JudgedImage
from diamond_diffusers.evaluation.judging.judges import (
    ImageJudge,
    JudgeOfReward,
    JudgeOfSuite,
    check_judges,
    load_suite,
)
from diamond_diffusers.evaluation.judging.report import Evaluation, text_of, write_evaluation
from diamond_diffusers.evaluation.judging.run import CheckedImages, Share, judge_images, verdicts_of
from diamond_diffusers.evaluation.judging.summary import summarise
from diamond_diffusers.evaluation.judging.verdicts import VERDICTS, StoredVerdict, VerdictFolder, VerdictKey
from diamond_diffusers.evaluation.scoring.statistics import Estimate
from diamond_diffusers.evaluation.suites.base import SuiteJudge, Verdict
from diamond_diffusers.rewards import as_reward


class Redness(ImageJudge):
    """Scores an image by its red, and keeps what it was shown."""

    name, identity, is_share, overall = "suite geneval", "0", True, "prompts"

    def __init__(self, fails_at=None):
        self.seen, self.fails_at = [], fails_at

    def judge(self, images, prompts):
        self.seen += [prompt.text for prompt in prompts]
        if self.fails_at is not None and len(self.seen) >= self.fails_at:
            raise KeyboardInterrupt
        return [
            Verdict(red, "too red" if red > 0.5 else "", {"red": red}) for red in images[:, 0].mean((1, 2)).tolist()
        ]

    def parts(self, prompt, verdict):
        return {"parts": [verdict.score, 0.0][: 1 + prompt.index % 2]}

    def release(self):
        pass


def drawn_set(folder, name, reds, size=8, categories=("a", "a", "b")):
    """A set of images, of which each has a red of its own; two images of each prompt."""
    images = []
    for row, red in enumerate(reds):
        index = row // 2
        path = folder / name / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (size + row % 2, 8), (red, 0, 0)).save(path)
        prompt = Prompt(index, f"prompt {index}", categories[index % len(categories)], {"tag": "x"})
        images.append(JudgedImage(path, path.name, prompt, {"reward": float(red)}))
    return ImageSet(name, tuple(images))


REDS = [255, 0, 51, 102, 204, 153]


@pytest.fixture
def sets(tmp_path):
    return [drawn_set(tmp_path, "one", REDS), drawn_set(tmp_path, "two", REDS[::-1])]


def judged(sets, folder, judge=None, batch_size=2, share=None, is_finished=True):
    """The verdicts of a whole run, and what was judged in it."""
    judge, checked = judge or Redness(), CheckedImages(sets)
    kept = VerdictFolder(folder, "0-of-1" if share is None else f"{share.index}-of-{share.count}")
    judge_images(checked, judge, kept, batch_size, share)
    verdicts = verdicts_of(checked, [judge], kept) if is_finished else []
    if is_finished:
        kept.finish(verdicts)
    return verdicts, judge.seen


def test_a_run_that_was_ended_goes_on_and_ends_with_the_same_bytes(sets, tmp_path):
    _, seen = judged(sets, tmp_path / "whole")
    expected = (tmp_path / "whole" / VERDICTS).read_bytes()
    assert len(seen) == 12 and [path.name for path in (tmp_path / "whole").iterdir()] == [VERDICTS]
    first = Redness(fails_at=5)
    with pytest.raises(KeyboardInterrupt):
        judged(sets, tmp_path / "ended", first)
    part = tmp_path / "ended" / "verdicts.0-of-1.part.jsonl"
    assert len(part.read_text().splitlines()) == 3 and not (tmp_path / "ended" / VERDICTS).exists()
    with part.open("a") as opened:
        # What a killed process leaves.
        opened.write('{"image_set": "one", "jud')
    with pytest.raises(KeyboardInterrupt):
        judged(sets, tmp_path / "ended", Redness(fails_at=3))
    assert len(part.read_text().splitlines()) == 5
    _, seen = judged(sets, tmp_path / "ended")
    assert len(seen) == 7
    assert (tmp_path / "ended" / VERDICTS).read_bytes() == expected
    assert judged(sets, tmp_path / "ended")[1] == []
    assert (tmp_path / "ended" / VERDICTS).read_bytes() == expected


@pytest.mark.parametrize("count", [2, 5])
def test_shares_make_up_the_whole(sets, tmp_path, count):
    judged(sets, tmp_path / "whole")
    seen = []
    for index in range(count):
        seen += judged(sets, tmp_path / "shares", share=Share(index, count), is_finished=False)[1]
        if index + 1 < count:
            with pytest.raises(ValueError, match="has no verdict of suite geneval yet; run all shares"):
                verdicts_of(CheckedImages(sets), [Redness()], VerdictFolder(tmp_path / "shares"))
    assert len(seen) == 12
    assert judged(sets, tmp_path / "shares")[1] == []
    assert (tmp_path / "shares" / VERDICTS).read_bytes() == (tmp_path / "whole" / VERDICTS).read_bytes()


def test_what_has_changed_is_judged_again(sets, tmp_path):
    judged(sets, tmp_path / "out")
    Image.new("RGB", (8, 8), (1, 2, 3)).save(sets[0].images[2].path)
    assert judged(sets, tmp_path / "out")[1] == ["prompt 1"]
    renamed = [ImageSet("one", tuple(
        JudgedImage(image.path, image.name, Prompt(image.prompt.index, image.prompt.text, "", {"tag": "y"}))
        for image in sets[0].images
    )), sets[1]]  # fmt: skip
    assert len(judged(renamed, tmp_path / "out")[1]) == 6
    other = Redness()
    other.identity = "1"
    assert len(judged(renamed, tmp_path / "out", other)[1]) == 12


def test_verdicts_of_other_sets_are_kept(sets, tmp_path):
    judged(sets, tmp_path / "out")
    judged(sets[:1], tmp_path / "out")
    assert judged(sets, tmp_path / "out")[1] == []


def test_damaged_verdicts_are_refused(tmp_path):
    (tmp_path / VERDICTS).write_text('{"image_set": 1}\n')
    with pytest.raises(ValueError, match=r"line 1 of '.*verdicts.jsonl' .*; delete the file to have its images judged"):
        VerdictFolder(tmp_path)


def test_unreadable_images_are_refused_before_judges_see_any(sets):
    sets[1].images[3].path.write_bytes(sets[1].images[3].path.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"3\.png', which cannot be read"):
        CheckedImages(sets)


def test_a_score_has_to_be_a_number(sets, tmp_path):
    verdict = Verdict(math.nan)

    class Broken(Redness):
        def judge(self, images, prompts):
            return [verdict] * len(prompts)

    with pytest.raises(ValueError, match=r"suite geneval gives '.*0\.png' the score nan; mend the judge"):
        judged(sets, tmp_path / "out", Broken())
    verdict = Verdict(0.5, "", {"reds": math.inf})
    with pytest.raises(ValueError, match=r"gives '.*0\.png' the figure 'reds', which is inf; mend the judge"):
        judged(sets, tmp_path / "out", Broken())
    assert not list((tmp_path / "out").glob("*"))


def stored(name, score, prompt, category):
    return StoredVerdict(name, Redness.name, f"{prompt}-{score}", "0", prompt, category, score, "", {})


def image_set(name, verdicts):
    images = [JudgedImage(None, verdict.image, Prompt(0, verdict.prompt, verdict.category)) for verdict in verdicts]
    return ImageSet(name, tuple(images))


def test_figures_of_sets():
    first = [stored("one", score, *of) for score, of in ((1.0, "pa"), (0.0, "pa"), (1.0, "qa"), (0.0, "rb"))]
    second = [stored("two", score, *of) for score, of in ((1.0, "pa"), (1.0, "rb"), (1.0, "sb"))]
    sets = [image_set("one", first), image_set("two", second)]
    one, two = summarise(sets, [Redness()], first + second)
    assert (one.num_prompts, one.num_images, one.difference) == (3, 4, None)
    # Means over prompts: (1/2 + 1 + 0) / 3, where that over images is 1/2.
    assert one.score.mean == pytest.approx(0.5) and one.categories["a"].mean == 0.75
    assert (two.score.mean, two.num_shared) == (1.0, 2)
    # Over the prompts p and r that both have.
    assert two.difference.mean == pytest.approx(((1 - 0.5) + (1 - 0)) / 2)
    # One image of each prompt: Wilson's interval of three successes of three.
    z2 = 1.959963984540054**2
    assert two.score.lower == pytest.approx(3 / (3 + z2))
    # Noughts of a reward are no outcomes of which some may be one.
    judge = Redness()
    judge.is_share = False
    two = summarise([sets[1]], [judge], [replace(verdict, score=0.0) for verdict in second])[0]
    assert two.score == Estimate(0, 0, 0)
    judge = Redness()
    judge.overall = "categories"
    one, two = summarise(sets, [judge], first + second)
    assert one.score.mean == pytest.approx((0.75 + 0) / 2)
    assert two.difference.mean == pytest.approx(((1 - 0.5) + (1 - 0)) / 2)


def test_parts_are_means_of_all_scores(sets, tmp_path):
    verdicts, _ = judged(sets, tmp_path)
    one, _ = summarise(sets, [Redness()], verdicts)
    # The second prompt gives a 0 beside each of its scores.
    assert one.parts["parts"].mean == pytest.approx(sum(REDS) / 255 / 8)
    assert one.figures == {"reward": pytest.approx(sum(REDS) / 6)}


def evaluation(sets, tmp_path):
    judge = Redness()
    verdicts, _ = judged(sets, tmp_path / "out", judge)
    return Evaluation({"suites": ["geneval"]}, sets, [judge], verdicts, summarise(sets, [judge], verdicts))


def test_tables_and_files(sets, tmp_path):
    found = evaluation(sets, tmp_path)
    write_evaluation(found, tmp_path / "out")
    scores, differences, by_category, parts = found.tables()
    assert scores.header == ["images of", "prompts", "images", "reward", "suite geneval"]
    assert scores.rows[0][:4] == ["one", "3", "6", "127.5"] and scores.rows[0][4].startswith("50.0 [")
    assert differences.title.startswith("Minus one") and differences.rows[0][:2] == ["two", "3"]
    assert by_category.header == ["images of", "a", "b"] and parts.header == ["images of", "parts"]
    assert (tmp_path / "out" / "table.md").read_text().count("| two |") == 4
    assert len((tmp_path / "out" / "results.csv").read_text().splitlines()) == 3
    assert json.loads(text_of(found, "json")) == json.loads((tmp_path / "out" / "results.json").read_text())
    alone = evaluation(sets[:1], tmp_path)
    assert "Minus" not in text_of(alone, "markdown")


def test_genevals_results(sets, tmp_path):
    write_evaluation(evaluation(sets, tmp_path), tmp_path / "out")
    lines = (tmp_path / "out" / "geneval" / "one" / "results.jsonl").read_text().splitlines()
    assert len(lines) == 6
    assert json.loads(lines[0]) == {
        "filename": "0.png",
        "tag": "a",
        "prompt": "prompt 0",
        "correct": True,
        "reason": "too red",
        "metadata": '{"tag": "x"}',
        "details": '{"red": 1.0}',
    }


class Suite(SuiteJudge):
    """Takes a model and an option."""

    name, source, licence = "mine", "here", "MIT"

    def __init__(self, vlm="default", *, device=None):
        self.vlm, self.device = vlm, device

    def judge(self, images, prompts):
        return [Verdict(image.getpixel((0, 0))[0] / 255) for image in images]


@pytest.fixture
def mine(monkeypatch):
    monkeypatch.setitem(judges_module.SUITES._entries, "mine", Suite)
    return "mine"


def test_suites_get_the_options_that_they_take(mine, sets, tmp_path):
    judge = load_suite(mine, {"vlm": "x", "detector": None, "clip": None}, "cpu", None)
    assert judge.identity != load_suite(mine, {"vlm": None}, "cpu", None).identity
    assert judge.identity == JudgeOfSuite(Suite("x", device="elsewhere")).identity
    checked, folder = CheckedImages(sets), VerdictFolder(tmp_path)
    judge_images(checked, judge, folder, 8)
    key = VerdictKey("one", "suite mine", "2.png")
    assert folder.get(key, checked.inputs(sets[0].images[2], judge)).score == pytest.approx(51 / 255)
    judge.release()
    assert judge.parts(Prompt(0, ""), Verdict(1.0)) == {}


@pytest.mark.parametrize("hold", [lambda each: each, lambda each: [each], lambda each: {"a": (each,)}, SimpleNamespace])
def test_other_weights_are_another_judge(hold):
    identities = set()
    for value in (1.0, 2.0):
        network = torch.nn.Linear(1, 1)
        torch.nn.init.constant_(network.weight, value)
        torch.nn.init.zeros_(network.bias)
        suite = Suite()
        suite.held = hold(network) if hold is not SimpleNamespace else SimpleNamespace(inner=SimpleNamespace(x=network))
        identities.add(JudgeOfSuite(suite).identity)
    assert len(identities) == 2


def test_rewards_judge_with_their_terms(sets, tmp_path):
    judge = JudgeOfReward(as_reward("2*brightness - sharpness"), "cpu")
    assert judge.identity != JudgeOfReward(as_reward("brightness"), "cpu").identity
    checked, folder = CheckedImages(sets), VerdictFolder(tmp_path)
    judge_images(checked, judge, folder, 8)
    (verdict, *_) = verdicts_of(checked, [judge], folder)
    assert verdict.details.keys() == {"brightness", "sharpness"}
    assert verdict.score == pytest.approx(2 * verdict.details["brightness"] - verdict.details["sharpness"])
    judge.release()


@pytest.mark.parametrize(
    ("suites", "rewards", "options", "message"),
    [
        ([], [], {}, "--suite and --reward are not given; name a suite"),
        (["magic"], [], {}, "--suite is 'magic'; choose one of .*dpg_bench, dsg"),
        (["dsg", "dsg"], [], {}, "--suite is 'dsg' twice"),
        ([], ["magic"], {}, "magic"),
        ([], ["brightness", "brightness"], {}, "--reward is 'brightness' twice"),
        ([], ["hpsv2.1 + clip", "1*hps-v2.1+clip"], {}, r"which is 'hpsv2.1 \+ clip' again; name each once"),
        (["dsg"], [], {"detector": "x"}, "--detector is 'x', but no --suite takes it; leave it out"),
        ([], ["brightness"], {"vlm": "x"}, "--vlm is 'x', but no --suite takes it"),
    ],
)
def test_judges_are_checked_before_they_are_loaded(suites, rewards, options, message):
    with pytest.raises(ValueError, match=message):
        check_judges(suites, rewards, options)
