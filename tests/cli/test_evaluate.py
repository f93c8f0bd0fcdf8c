"""The command `evaluate`, end to end."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from importlib import resources
from itertools import islice
from typing import ClassVar

import pytest
import torch
from accelerate import PartialState
from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image

from diamond_diffusers.evaluation.judging import judges
from diamond_diffusers.evaluation.judging.verdicts import VERDICTS
from diamond_diffusers.evaluation.suites import SUITES
from diamond_diffusers.evaluation.suites.base import SuiteJudge, Verdict
from diamond_diffusers.evaluation.suites.geneval import GenEvalJudge
from diamond_diffusers.miniature.grammar import held_out_captions
from diamond_diffusers.miniature.render import render, sample_scene
from diamond_diffusers.rewards.detection.segmenters import Instances

from ..evaluation.test_image_sets import benchmark_run, table_folder
from ..rewards.test_vqascore import save_tiny_model
from ..training.processes import in_two_processes
from .invoking import invoke, refusal, succeed


def world(folder, count=6, is_right=True):
    """Images of captions of the miniature world, or of their neighbours' captions."""
    folder.mkdir(parents=True)
    captions = list(islice(held_out_captions(), 0, None, len(held_out_captions()) // count))[:count]
    lines, source = [], random.Random(0)
    for number, caption in enumerate(captions):
        drawn = caption if is_right else captions[number - 1]
        to_pil_image(render([sample_scene(drawn, source)])[0]).save(folder / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "prompt": caption.text, "category": caption.category}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def scores(output):
    """The mean scores by judge and set."""
    rows = json.loads((output / "results.json").read_text())["scores"]
    return {(row["judge"], row["image_set"]): row["score"]["mean"] for row in rows}


def test_folders_side_by_side(tmp_path):
    out, right, wrong = tmp_path / "out", world(tmp_path / "right"), world(tmp_path / "wrong", is_right=False)
    call = (
        "evaluate",
        right,
        wrong,
        "--suite",
        "miniature",
        "--reward",
        "sharpness",
        "--output",
        out,
        "--device",
        "cpu",
    )
    printed = succeed(*call, "--batch-size", 4)
    for words in ("Scores, of suites in %", "Minus right", "suite miniature, by category", f"tables are in {out}"):
        assert words in printed
    found = scores(out)
    assert found["suite miniature", "right"] == 1 and found["suite miniature", "wrong"] == 0
    (row,) = [
        row for row in json.loads((out / "results.json").read_text())["scores"]
        if (row["judge"], row["image_set"]) == ("suite miniature", "wrong")
    ]  # fmt: skip
    assert row["difference"]["mean"] == -1 and row["difference"]["upper"] == -1 and row["num_shared"] == 6
    verdicts = (out / VERDICTS).read_bytes()
    assert len(verdicts.splitlines()) == 24
    # A second time nothing is judged.
    printed = {form: invoke(*call, "--format", form).stdout for form in ("csv", "json", "markdown")}
    assert (out / VERDICTS).read_bytes() == verdicts
    assert printed["csv"] == (out / "results.csv").read_text()
    assert json.loads(printed["json"]) == json.loads((out / "results.json").read_text())
    assert printed["markdown"] == (out / "table.md").read_text()


def test_a_run_of_the_benchmark_keeps_its_methods_apart(tmp_path):
    printed = succeed(
        "evaluate", benchmark_run(tmp_path / "run"), "--reward", "brightness", "--output", tmp_path / "out"
    )
    assert "plain_6" in printed and "best_of_n_12" in printed
    lines = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert lines[2] == "| images of | prompts | images | reward | budget used | reward brightness |"
    assert lines[4].startswith("| plain_6 | 2 | 4 | 1 | 6 |") and lines[5].startswith(
        "| best_of_n_12 | 2 | 4 | 2 | 12 |"
    )


def test_a_vision_language_model_answers_questions(tmp_path):
    folder = table_folder(tmp_path / "images")
    save_tiny_model("qwen3_vl", tmp_path / "vlm")
    questions = tmp_path / "dsg.csv"
    questions.write_text(
        "item_id,text,proposition_id,dependency,tuple,question_natural_language\n"
        "vrd_1,two cats,1,0,entity - whole (cat),Does this show a cat?\n"
        "vrd_1,two cats,2,1,attribute - color (cat),Does this show red?\n"
        "vrd_2,a red dog,1,0,entity - whole (dog),Please answer yes or no\n"
    )
    call = ("evaluate", folder, "--vlm", tmp_path / "vlm", "--output", tmp_path / "out", "--device", "cpu")
    succeed(*call, "--suite", "dsg", "--prompts", questions)
    (row,) = json.loads((tmp_path / "out" / "results.json").read_text())["scores"]
    assert row["judge"] == "suite dsg" and row["num_images"] == 2
    assert row["parts"].keys() == {"collection: relation", "entity", "entity - whole", "attribute", "attribute - color"}
    (verdict, _) = map(json.loads, (tmp_path / "out" / VERDICTS).read_text().splitlines())
    assert verdict["details"].keys() == {"1", "2"} and set(verdict["details"].values()) <= {0.0, 1.0}


class OneCat:
    """Finds a cat in every image."""

    def segment(self, image):
        mask = torch.ones(1, image.height, image.width, dtype=torch.bool)
        return Instances(torch.tensor([15]), torch.tensor([0.95]), torch.tensor([[0.0, 0.0, 8.0, 8.0]]), mask)


class GenEvalOfOneCat(GenEvalJudge):
    """GenEval's rules on what `OneCat` finds."""

    def __init__(self, detector=None, clip=None, *, device=None):
        super().__init__(OneCat(), clip, device=device)


def test_geneval_in_its_own_layout(tmp_path, monkeypatch):
    monkeypatch.setitem(SUITES._entries, "geneval", GenEvalOfOneCat)
    entries = [
        {"tag": "counting", "include": [{"class": "cat", "count": 2}], "prompt": "two cats"},
        {"tag": "single_object", "include": [{"class": "cat", "count": 1}], "prompt": "a cat"},
        {"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a dog"},
    ]
    for number, entry in enumerate(entries):
        inner = tmp_path / "model" / f"{number:05d}"
        (inner / "samples").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(inner / "samples" / "0000.png")
        (inner / "metadata.jsonl").write_text(json.dumps(entry))
    clip = resources.files("diamond_diffusers.miniature") / "weights" / "clip"
    out = tmp_path / "out"
    call = ("evaluate", tmp_path / "model", "--suite", "geneval", "--clip", clip, "--output", out, "--device", "cpu")
    assert "suite geneval, by category, %" in succeed(*call)
    (row,) = json.loads((out / "results.json").read_text())["scores"]
    # GenEval's score is the mean of its tasks, not of its images.
    assert row["score"]["mean"] == pytest.approx((0 + 1 / 2) / 2)
    assert {name: found["mean"] for name, found in row["categories"].items()} == {"counting": 0, "single_object": 0.5}
    lines = [json.loads(line) for line in (out / "geneval" / "model" / "results.jsonl").read_text().splitlines()]
    assert [line["correct"] for line in lines] == [False, True, False]
    assert lines[0]["filename"] == "00000/samples/0000.png" and lines[0]["reason"] == "expected cat>=2, found 1"
    assert [json.loads(line["metadata"]) for line in lines] == entries
    # Of folders with one name, results lie within the output, too; signs of markup in its name are nothing else.
    twin, out = tmp_path / "twin" / "model", tmp_path / "out [/b]"
    shutil.copytree(tmp_path / "model", twin)
    printed = succeed(*call[:2], twin, *call[2:-3], out, *call[-2:])
    assert f"Verdicts and tables are in {out}" in printed
    found = sorted(file.relative_to(out / "geneval").as_posix() for file in out.glob("geneval/**/results.jsonl"))
    assert found == sorted([f"{tmp_path.name}/model/results.jsonl", "twin/model/results.jsonl"])
    assert not list(twin.glob("results.jsonl"))


@pytest.fixture
def nothing_is_loaded(monkeypatch):
    def load(*arguments):
        raise AssertionError("a judge is loaded")

    monkeypatch.setattr(judges, "load_suite", load)
    monkeypatch.setattr(judges, "load_reward", load)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "--suite and --reward are not given; name a suite"),
        (("--suite", "magic"), "--suite is 'magic'; choose one of compbench_spatial, dpg_bench"),
        (("--suite", "dsg"), "has no 'item_id' in its metadata, which suite 'dsg' needs; give --prompts dsg"),
        (("--suite", "miniature"), "'two cats'"),
        (("--reward", "2*"), "2*"),
        (("--reward", "hpsv2.1", "--reward", " hps-v2.1"), "--reward is ' hps-v2.1', which is 'hpsv2.1' again"),
        (("--reward", "brightness", "--detector", "x"), "--detector is 'x', but no --suite takes it"),
        (("--reward", "brightness", "--format", "xml"), "--format is 'xml'; choose one of table, csv, json, markdown"),
        (("--reward", "brightness", "--shard", "4/4"), "--shard is '4/4'; give INDEX/COUNT, such as 0/4"),
        (("--reward", "brightness", "--dtype", "int"), "--dtype is 'int'; choose auto"),
        (("--reward", "brightness", "--device", "x"), "--device is 'x', which is not usable here"),
        (("--reward", "brightness", "--prompts", "nowhere.txt"), "--prompts is 'nowhere.txt', which does not exist"),
        (("--reward", "brightness", "--output", "/dev/null/x"), "where nothing can be written"),
    ],
)
def test_bad_input_is_one_sentence_before_any_model(tmp_path, nothing_is_loaded, arguments, sentence):
    out = tmp_path / "out"
    given = ("evaluate", table_folder(tmp_path / "images"), "--output", out, *arguments)
    assert sentence in refusal(*given)
    assert not out.exists() or not list(out.iterdir())


def test_broken_images_are_one_sentence_before_any_model(tmp_path, nothing_is_loaded):
    folder = table_folder(tmp_path / "images")
    (folder / "a.png").write_bytes(b"no image")
    sentence = refusal("evaluate", folder, "--reward", "brightness", "--output", tmp_path / "out")
    assert "a.png', which cannot be read (it is no image of a known format)" in sentence
    assert not (tmp_path / "out").exists()


class Counting(SuiteJudge):
    """Keeps how many images it was shown."""

    name, source, licence = "counting", "here", "MIT"
    shown: ClassVar = []

    def judge(self, images, prompts):
        self.shown.append(len(images))
        return [Verdict(image.getpixel((0, 0))[0] / 255) for image in images]


def test_shares_and_processes_make_up_the_whole(tmp_path, monkeypatch):
    monkeypatch.setitem(SUITES._entries, "counting", Counting)
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(7):
        Image.new("RGB", (8, 8), (30 * number, 0, 0)).save(folder / f"{number}.png")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"prompt {number}" for number in range(7)))
    call = ("evaluate", folder, "--suite", "counting", "--prompts", prompts, "--batch-size", 2, "--device", "cpu")
    succeed(*call, "--output", tmp_path / "whole")
    expected = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert sum(Counting.shown) == 7 and expected.keys() == {VERDICTS, "results.json", "results.csv", "table.md"}
    Counting.shown.clear()
    assert "Share 1 of 3 is judged; give the command without --shard" in succeed(
        *call, "--output", tmp_path / "shared", "--shard", "1/3"
    )
    assert Counting.shown == [2] and not (tmp_path / "shared" / "table.md").exists()

    def child():
        Counting.shown.clear()
        assert invoke(*call, "--output", tmp_path / "shared").exit_code == 0
        # Of the batches of two images, the second is judged already.
        assert sum(Counting.shown) == (4, 1)[PartialState().process_index]

    in_two_processes(child)
    assert {path.name: path.read_bytes() for path in (tmp_path / "shared").iterdir()} == expected


OWN_SUITE = """
from diamond_diffusers.evaluation.suites import register_suite
from diamond_diffusers.evaluation.suites.base import SuiteJudge, Verdict

@register_suite("night_of_a_test")
class Night(SuiteJudge):
    name, source, licence = "night_of_a_test", "my own", "Apache-2.0"

    def judge(self, images, prompts):
        return [Verdict(float(max(image.getpixel((0, 0))) < 64)) for image in images]
"""


def test_a_suite_of_ones_own_is_one_file(tmp_path):
    (tmp_path / "my_suite.py").write_text(OWN_SUITE)
    call = ("evaluate", table_folder(tmp_path / "images"), "--suite", "night_of_a_test", "--output", tmp_path / "out")
    succeed("--import", tmp_path / "my_suite.py", *call)
    assert scores(tmp_path / "out") == {("suite night_of_a_test", "images"): 1.0}


SLOW_SUITE = """
import time
from diamond_diffusers.evaluation.suites import register_suite
from diamond_diffusers.evaluation.suites.base import SuiteJudge, Verdict
from diamond_diffusers.evaluation.suites.geneval import GenEvalJudge

@register_suite("slow")
class Slow(SuiteJudge):
    name, source, licence = "slow", "here", "MIT"

    def judge(self, images, prompts):
        time.sleep(0.1)
        with open({log!r}, "a") as log:
            log.write("".join(prompt.text + "\\n" for prompt in prompts))
        return [Verdict(image.getpixel((0, 0))[0] / 255) for image in images]
"""


@pytest.mark.slow
def test_a_killed_command_goes_on_and_ends_with_the_same_bytes(tmp_path):
    folder, log = tmp_path / "images", tmp_path / "log.txt"
    folder.mkdir()
    for number in range(30):
        Image.new("RGB", (8, 8), (8 * number, 0, 0)).save(folder / f"{number}.png")
    (tmp_path / "prompts.txt").write_text("\n".join(f"prompt {number}" for number in range(30)))
    (tmp_path / "slow.py").write_text(SLOW_SUITE.format(log=str(log)))
    call = [sys.executable, "-m", "diamond_diffusers", "--import", tmp_path / "slow.py", "evaluate", folder]
    call += [
        "--suite",
        "slow",
        "--prompts",
        tmp_path / "prompts.txt",
        "--batch-size",
        "1",
        "--device",
        "cpu",
        "--output",
    ]
    subprocess.run([*call, tmp_path / "whole"], check=True, capture_output=True)
    assert len(log.read_text().splitlines()) == 30
    log.unlink()
    for kills in (1, 2):
        with subprocess.Popen(
            [*call, tmp_path / "killed"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as run:
            while not log.exists() or len(log.read_text().splitlines()) < 7 * kills:
                assert run.poll() is None
                time.sleep(0.01)
            run.send_signal(signal.SIGKILL)
    subprocess.run([*call, tmp_path / "killed"], check=True, capture_output=True)
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert {path.name for path in (tmp_path / "killed").iterdir()} == names
    for name in names:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    # A kill may come between a verdict and its record.
    assert len(log.read_text().splitlines()) <= 32
