"""The commands `benchmark` and `redraw`."""

import json
import re
from importlib import resources

import numpy as np
import pytest
from PIL import Image

from diamond_diffusers.cli import benchmark as cli_benchmark
from diamond_diffusers.evaluation.benchmark.recipes import all_recipes

from .invoking import invoke, succeed


@pytest.fixture
def command(tiny_folder, redness_reward, tmp_path):
    return ("benchmark", "--model", tiny_folder, "--reward", redness_reward, "--output", tmp_path / "out")


def test_it_prints_saves_and_resumes(command, tmp_path):
    out = tmp_path / "out"
    command += ("--num-prompts", 3, "--batch-size", 2, "--budgets", "5,6", "--held-out-reward", "brightness")
    printed = succeed(*command, "--methods", "plain, best_of_n")
    for words in ("plain", "best_of_n", "counting", "brightness", "decodes", "peak", "Left out", "takes at least 6"):
        assert words in printed
    results = json.loads((out / "results.json").read_text())
    rows = {(row["budget"], row["method"]["name"]): row for row in results["methods"]}
    # Two evaluations a step: at budget 5 best-of-N takes two steps, and plain sampling would take its three.
    assert set(rows) == {(5, "best_of_n"), (6, "best_of_n"), (6, "plain")}
    assert [(entry["budget"], entry["name"]) for entry in results["left_out"]] == [(5, "plain")]
    assert [rows[budget, "best_of_n"]["cost"]["equivalent_evaluations"] for budget in (5, 6)] == [4, 6]
    assert rows[6, "best_of_n"]["held_out_rewards"].keys() == {"brightness"}
    assert results["settings"]["budgets"] == [5, 6]
    assert (out / "report.html").exists() and (out / "plots" / "reward_against_cost.png").exists()
    drawn = {path: path.stat().st_mtime_ns for path in out.rglob("images/*/*.png")}
    assert len(drawn) == 9
    succeed(*command, "--methods", "best_of_n,plain")
    assert drawn == {path: path.stat().st_mtime_ns for path in out.rglob("images/*/*.png")}
    result = invoke(*command, "--methods", "plain", "--seed", 1)
    assert result.exit_code == 2
    assert "seed is 1, but" in result.output


def test_shards_are_reported_when_all_are_drawn(command, tmp_path):
    out = tmp_path / "out"
    command += ("--num-prompts", 2, "--hard-share", 0.5, "--methods", "plain", "--budgets", 6)
    assert f"Shard 1/2 is in {out}" in succeed(*command, "--shard", "1/2")
    assert not (out / "table.md").exists() and len(list(out.rglob("images/*/*.png"))) == 1
    assert "where of plain 1 of 2 images are drawn" in invoke(*command, "--report-only").output
    succeed(*command, "--shard", "2/2")
    assert "hard" in succeed(*command, "--report-only")
    results = json.loads((out / "results.json").read_text())
    assert (results["settings"]["hard_share"], results["methods"][0]["num_images"]) == (0.5, 2)
    assert results["methods"][0]["hard_scores"].keys() == {"hard", "other"}


def test_budgets_of_seconds(command, tmp_path):
    # What does not grow is bought by any budget that is large enough.
    printed = succeed(*command, "--num-prompts", 1, "--methods", "plain", "--budgets-seconds", "0.000001,600")
    assert "by seconds an image" in printed and "raise --budgets-seconds" in " ".join(printed.split())
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    (row,) = results["methods"]
    assert (row["budget"], row["unit"], row["cost"]["equivalent_evaluations"]) == (600, "seconds", 6)
    timed = json.loads((tmp_path / "out" / "seconds.json").read_text())["seconds"]
    assert results["settings"]["seconds_of_an_evaluation"] == {"plain": timed["plain_6"]}


@pytest.mark.slow
def test_under_constraints_the_share_of_images_that_hold_is_a_figure(command, tmp_path):
    command += ("--num-prompts", 2, "--methods", "plain, best_of_n", "--budgets", 12)
    printed = succeed(*command, "--reward", "redness, brightness < 0.5")
    assert "constraints" in printed
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    shares = {row["method"]["name"]: row["held_out_rewards"]["constraints met"]["mean"] for row in results["methods"]}
    assert 0 <= shares["plain"] <= shares["best_of_n"] <= 1
    record = json.loads((tmp_path / "out" / "images" / "best_of_n_12" / "0000_0.json").read_text())["record"]
    assert record["held_out_rewards"]["constraints met"] == float(record["reward_terms"]["brightness"] < 0.5)


def test_a_prompts_file_is_exported_and_redrawn(command, tmp_path):
    out, prompts = tmp_path / "out", tmp_path / "evaluation_metadata.jsonl"
    entries = [{"tag": "counting", "include": [], "prompt": text} for text in ("two cats", "three dogs")]
    prompts.write_text("\n".join(map(json.dumps, entries)))
    call = (*command, "--prompts", prompts, "--methods", "best_of_n", "--budgets", 8, "--num-inference-steps", 2)
    printed = succeed(*call, "--num-images-per-prompt", 2, "--export", "geneval", "--export", "unigenbench",
                      "--diversity-clip", clip_folder())  # fmt: skip
    assert "Mean reward" in printed and "diversity" in printed
    (row,) = json.loads((out / "results.json").read_text())["methods"]
    assert (row["method"]["num_inference_steps"], row["num_images"], row["score"]) == (2, 4, None)
    assert row["diversity"]["mean"] > 0
    metadata = json.loads((out / "exports/geneval/best_of_n_8/00001/metadata.jsonl").read_text())
    assert metadata == entries[1]
    exported = np.asarray(Image.open(out / "exports/unigenbench/best_of_n_8/1_1.png"))
    record = out / "images" / "best_of_n_8" / "0001_1.json"
    printed = succeed("redraw", record, "--output", tmp_path / "again.png", "--device", "cpu")
    assert "has the pixels of the record, bit for bit" in printed
    assert (np.asarray(Image.open(tmp_path / "again.png")) == exported).all()
    changed = json.loads(record.read_text())
    other = tmp_path / "other.json"
    for name, value in (("model", "/nowhere"), ("reward", "magic")):
        other.write_text(json.dumps({**changed, "settings": {**changed["settings"], name: value}}))
        result = invoke("redraw", other, "--output", tmp_path / "again.png")
        assert result.exit_code == 2
        assert f"Error: settings.{name} of '{other}'" in " ".join(result.output.split())
    changed["record"]["batch"]["seeds"] = [seed + 1 for seed in changed["record"]["batch"]["seeds"]]
    record.write_text(json.dumps(changed))
    result = invoke("redraw", record, "--output", tmp_path / "again.png", "--device", "cpu")
    assert result.exit_code == 1
    assert "differs from the record (on the same device and libraries)" in result.output


def clip_folder():
    return resources.files("diamond_diffusers.miniature") / "weights" / "clip"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--methods", "plain,magic"), f"methods names 'magic'; choose among {', '.join(all_recipes())}"),
        (("--num-prompts", 301), "num_prompts is 301; give a number from 1 to 300"),
        (("--methods", "plain", "--budgets", 2), "budget is 2, but method 'plain' takes at least 6"),
        (("--budgets", "50,many"), "--budgets is '50,many'; give positive numbers such as 50,100,200,400"),
        (("--budgets", "1" + "0" * 30), "give positive numbers such as 50,100,200,400, up to 1000000000"),
        (("--export", "coco"), "export is 'coco'; choose one of geneval, unigenbench"),
        (("--prompts", "nowhere.txt"), "does not exist"),
        (("--methods", "plain", "--height", 3), "height is 3, which is less than a token"),
        (("--held-out-reward", "redness"), "held_out_rewards holds 'redness', which alignment follows"),
    ],
)
def test_bad_input_is_one_sentence(command, arguments, sentence):
    result = invoke(*command, *arguments)
    assert result.exit_code == 2
    assert sentence in re.sub(r"\s+", " ", result.output)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--methods", "plain,magic"), "methods names 'magic'"),
        (("--budgets", "0"), "--budgets is '0'"),
        (("--budgets", "50,50"), "budgets is [50, 50]"),
        (("--budgets-seconds", "1,x"), "--budgets-seconds is '1,x'; give positive numbers such as 0.5,1,2"),
        (("--budgets-seconds", "1", "--budgets", "9"), "--budgets and --budgets-seconds are both given"),
        (("--shard", "2"), "--shard is '2'; give which part of how many, such as 2/4"),
        (("--shard", "3/2"), "shard is 3/2; give one from 1/2 to 2/2"),
        (("--shard", "1/2", "--report-only"), "--shard is 1/2, but --report-only draws nothing"),
        (("--budgets-seconds", "1", "--report-only"), "where no method is timed yet, which --report-only does not do"),
        (("--hard-share", "0.5"), "hard_share is 0.5, but num_prompts is not given"),
        (("--seed", 1000), "seed is 1000"),
        (("--held-out-reward", "redness"), "held_out_rewards holds 'redness'"),
    ],
)
def test_requests_are_checked_before_the_model_is_loaded(command, monkeypatch, arguments, sentence):
    def load(*arguments):
        raise AssertionError("the model is loaded")

    monkeypatch.setattr(cli_benchmark, "load_model", load)
    result = invoke(*command, *arguments)
    assert (result.exit_code, sentence in re.sub(r"\s+", " ", result.output)) == (2, True)


def test_guidance_of_the_model_is_part_of_the_settings(command, tmp_path):
    succeed(*command, "--methods", "plain", "--num-prompts", 1, "--true-cfg-scale", 3, "--negative-prompt", "a ring")
    settings = json.loads((tmp_path / "out" / "results.json").read_text())["settings"]
    assert settings["arguments"] == {"true_cfg_scale": 3.0, "negative_prompt": "a ring"}


def test_a_reward_is_needed(tiny_folder, tmp_path):
    result = invoke("benchmark", "--model", tiny_folder, "--output", tmp_path)
    assert result.exit_code == 2
    assert "--reward is not given" in result.output


def test_only_records_are_redrawn(tmp_path):
    path = tmp_path / "record.json"
    path.write_text("{}")
    huge, binary = tmp_path / "huge.json", tmp_path / "binary.json"
    huge.write_text("[" * 100_000)
    binary.write_bytes(b"\xff\x00\x01")
    for arguments, sentence in (
        ((path,), "has no 'settings'; name a .json file beside an image of `diamond-diffusers benchmark`"),
        ((huge,), "is nested deeper than 64 levels"),
        ((binary,), "line 1 of"),
        ((tmp_path / "nowhere.json",), "does not exist"),
        ((path, "--output", tmp_path), "which is a folder"),
        ((path, "--output", tmp_path / "again"), "whose suffix names no format of colour images"),
    ):
        result = invoke("redraw", *arguments)
        assert result.exit_code == 2
        assert sentence in re.sub(r"[│\s]+", " ", result.output)


@pytest.mark.slow
def test_a_calibrated_run_resumes_and_is_redrawn(command, tmp_path):
    out = tmp_path / "out"
    call = (*command, "--num-prompts", 1, "--budgets", 8, "--methods", "best_of_n", "--num-inference-steps", 1)
    call += ("--calibrate", 2, "--max-reward-calls", 2)
    succeed(*call)
    results = json.loads((out / "results.json").read_text())
    assert results["settings"]["reward"] == "redness" and results["settings"]["max_reward_calls"] == 2
    (term,) = results["settings"]["calibration"].values()
    (row,) = results["methods"]
    # Two particles are all the scores, and further steps all the evaluations that there are.
    assert (row["method"]["alignment"]["num_particles"], row["method"]["num_inference_steps"]) == (2, 2)
    record = json.loads((out / "images/best_of_n_8/" / next(out.glob("images/*/*.json")).name).read_text())["record"]
    raw = record["reward_terms"]["redness"]
    assert record["reward"] == pytest.approx((raw - term["mean"]) / term["standard_deviation"], abs=1e-3)
    # A calibration that is there is not drawn again: with other figures in it, the results do not go together.
    calibration = json.loads((out / "calibration.json").read_text())
    calibration["terms"]["redness"]["mean"] += 1
    (out / "calibration.json").write_text(json.dumps(calibration))
    assert "calibration is" in invoke(*call).output
    refused = invoke(*call, "--calibrate", 3)
    printed = succeed("redraw", next(out.glob("images/*/*.json")), "--output", tmp_path / "again.png")
    assert "bit for bit" in printed and refused.exit_code == 2
    assert "holds a calibration of 'redness' by 2 samples of seed 0" in " ".join(refused.output.split())
