"""`--remote-reward` and `serve-reward`."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest
import torch
import yaml
from PIL import Image

from diamond_diffusers.rewards import REWARDS
from diamond_diffusers.rewards.remote import RemoteReward

from ..rewards.services import saying, serving
from .invoking import refusal, succeed


@pytest.fixture(autouse=True)
def own_names():
    """No name of these tests is left; others, which are registered as they are imported, are."""
    yield
    REWARDS._entries.pop("judge", None)


@pytest.fixture
def image(tmp_path):
    Image.new("RGB", (8, 8), (7, 0, 0)).save(tmp_path / "image.png")
    return tmp_path / "image.png"


def test_a_service_is_a_term_of_an_expression(image):
    with serving() as service:
        given = ["--remote-reward", f"judge={service.url}", "score", image, "--prompt", "abc", "--format", "csv"]
        output = succeed(*given, "--reward", "2*judge + brightness")
    header, row = output.splitlines()
    assert header == "image,prompt,judge,brightness,2*judge + brightness" and row.split(",")[2] == "10"


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_a_file_describes_a_judge(image, tmp_path, suffix):
    file = tmp_path / f"judge{suffix}"
    with serving(saying({"choices": [{"message": {"content": "8/10"}}]})) as service:
        options = {
            "url": f"{service.url}/v1",
            "protocol": {"name": "chat", "model": "m", "question": "How good, from 0 to 10?", "reader": "number"},
            "retries": {"attempts": 1},
            "cache_folder": str(tmp_path / "cache"),
        }
        file.write_text((yaml.safe_dump if suffix == ".yaml" else json.dumps)(options))
        output = succeed("--remote-reward", f"judge={file}", "score", image, "--reward", "judge", "--format", "csv")
    assert output.splitlines()[1].split(",")[2] == "8" and list((tmp_path / "cache").rglob("*.json"))


@pytest.mark.slow
def test_generate_asks_it(tmp_path):
    with serving() as service:
        options = ["--alignment", "best_of_n", "-o", "num_particles=2", "--num-inference-steps", "2", "--no-plain"]
        given = ["--remote-reward", f"judge={service.url}", "generate", "a red star", "--reward", "judge"]
        output = succeed(*given, *options, "--output", tmp_path)
        (record,) = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
        cost = record["cost"]["best_of_n"] if "best_of_n" in record["cost"] else next(iter(record["cost"].values()))
        assert cost["reward_requests"] == len(service.asked) == 2
    assert "by 2 requests" in output


def test_rewards_lists_it():
    assert re.search(r"judge\W+no\W", succeed("--remote-reward", "judge=http://localhost:1", "rewards"))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("http://host", "of another form; give NAME=URL"),
        ("my judge=http://host", "of another form"),
        ("judge=ftp://host", "Reward 'judge' got url='ftp://host'"),
        ("judge=http://me:Geheim@host", "Reward 'judge' got a url with a user or a password"),
        ("clip=http://host", "belongs to"),
        ("judge=missing.yaml", "missing.yaml"),
    ],
)
def test_what_describes_no_service_is_refused(given, sentence):
    error = refusal("--remote-reward", given, "rewards")
    assert sentence in error and "Geheim" not in error


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("- 1", "holds no options"),
        ("url: http://host\nprotcol: chat", "has no option 'protcol', did you mean 'protocol'"),
        ("max_requests: 3", "has no 'url'"),
        ("url: http://host\nprotocol: {name: chat, model: m}", "needs the option 'question'"),
        ("url: http://host\nmax_requests: some", "max_requests is 'some'"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path, text, sentence):
    (tmp_path / "judge.yaml").write_text(text)
    assert sentence in refusal("--remote-reward", f"judge={tmp_path / 'judge.yaml'}", "rewards")


@pytest.mark.slow
def test_a_served_reward_ends_with_control_and_c():
    start = "from diamond_diffusers.cli.main import main; main()"
    command = [sys.executable, "-c", start, "serve-reward", "--reward", "brightness", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    try:
        line = process.stdout.readline()
        url = re.fullmatch(r"brightness is served at (http://127\.0\.0\.1:\d+)\n", line)[1]
        assert RemoteReward(url)(torch.ones(1, 3, 8, 8), [""]).item() == pytest.approx(1)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.stdout.close()
