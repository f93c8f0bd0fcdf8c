"""The command `check`."""

import json
import signal

import pytest

from diamond_diffusers.evaluation.check import checks
from diamond_diffusers.evaluation.check.checks import CHECKS, Found
from diamond_diffusers.rewards import REWARDS

from ..conftest import redness
from .invoking import invoke, refusal, succeed


@pytest.fixture
def command(tiny_folder, tmp_path):
    short = ("--num-inference-steps", 1, "--true-cfg-scale", 1)
    return ("check", tiny_folder, *short, "--output", tmp_path / "out" / "check.json")


def report_of(command):
    return json.loads(command[-1].read_text())


def test_a_table_and_a_report(command, redness_reward):
    printed = succeed(*command, "--reward", redness_reward, "--seed", 3)
    told = report_of(command)
    for name, row in told["checks"].items():
        assert name in printed and row["verdict"] in printed and row["told"] in printed
    assert list(told["checks"]) == list(CHECKS) and told["failed"] == []
    assert told["checks"]["own reward"]["told"].startswith("redness: plain ")
    settings = told["settings"]
    assert (settings["seed"], settings["call"]["true_cfg_scale"], settings["offload"]) == (3, 1.0, None)
    assert str(command[-1]) in printed


def test_a_row_that_fails_is_exit_code_1(command, monkeypatch):
    def broken(runs):
        raise RuntimeError("expected scalar type Float but found Half\nand a traceback")

    monkeypatch.setitem(checks.CHECKS, "stock parity", broken)
    monkeypatch.setitem(checks.CHECKS, "reward rises", lambda runs: Found("passed", "[it] rises"))
    result = invoke(*command)
    assert result.exit_code == 1 and "Traceback" not in result.output
    assert "RuntimeError: expected scalar type Float but found Half" in result.output
    assert "and a traceback" not in result.output and "[it] rises" in result.output
    assert report_of(command)["failed"] == ["stock parity"]


def test_wrong_options_are_refused_as_elsewhere(command, tmp_path):
    assert "--offload is 'model', but the device is the CPU" in refusal(*command, "--offload", "model")
    assert "MODEL is '/nowhere', which cannot be loaded" in refusal("check", "/nowhere", *command[2:])
    assert "reward is 'magic'; choose one of" in refusal(*command, "--reward", "magic")
    assert not (tmp_path / "out").exists()
    assert "height is 1, which is less than a token; give" in refusal(*command, "--height", 1)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(("presses", "exit_code"), [(1, 130), (2, 1)])
def test_control_and_c_writes_the_rows_so_far_or_nothing(command, monkeypatch, presses, exit_code):
    calls = []

    def pressed(images, prompts):
        calls.append(len(images))
        for _ in range(presses if len(calls) == 1 else 0):
            signal.raise_signal(signal.SIGINT)
        return redness(images, prompts)

    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setitem(REWARDS._entries, "pressed", pressed)
    result = invoke(*command, "--reward", "pressed")
    assert result.exit_code in (exit_code, 130) and "Traceback" not in result.output
    assert "Interrupted: the rows so far will be written" in result.output
    assert signal.getsignal(signal.SIGINT) is handler
    if presses == 1:
        assert list(report_of(command)["checks"]) == [
            name for name in list(CHECKS) if not name.startswith(("own", "cost", "plan"))
        ]
    else:
        assert not command[-1].exists()
