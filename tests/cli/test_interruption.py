"""Control and C while images are drawn."""

import json
import signal

import pytest

from diamond_diffusers.rewards import REWARDS

from ..conftest import redness
from .invoking import invoke


@pytest.fixture
def arguments(tiny_folder, tmp_path):
    output = ["--reward", "pressed", "--output", tmp_path, "--num-inference-steps", 20]
    return ["generate", "a red circle", "--model", tiny_folder, "--alignment", "smc", *output]


def press(monkeypatch, calls):
    """Registers a reward in whose calls of these numbers control and C are pressed."""
    count = []

    def pressed(images, prompts):
        count.append(len(images))
        if len(count) in calls:
            signal.raise_signal(signal.SIGINT)
        return redness(images, prompts)

    monkeypatch.setitem(REWARDS._entries, "pressed", pressed)


def test_the_best_images_so_far_are_written(monkeypatch, arguments, tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    press(monkeypatch, {4})
    result = invoke(*arguments)
    assert result.exit_code == 130 and "Interrupted" in result.output
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["interrupted"] == ["aligned"]
    assert len(record["trace"]["aligned"]) < 20 == len(record["trace"]["plain"])
    assert (tmp_path / "aligned_000.png").exists() and (tmp_path / "plain_000.png").exists()
    assert signal.getsignal(signal.SIGINT) is handler


def test_pressed_twice_nothing_is_written(monkeypatch, arguments, tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    press(monkeypatch, {4, 5})
    result = invoke(*arguments)
    assert result.exit_code in (1, 130) and "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGINT) is handler
