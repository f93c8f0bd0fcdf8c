"""The page about rewards says what the code does."""

import base64
import io
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from PIL import Image

from diamond_diffusers.rewards import REWARDS, as_reward, available_rewards, registered_reward

PAGE = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")


@pytest.fixture
def namespace(monkeypatch):
    """What the page's examples define, run from top to bottom."""
    monkeypatch.setattr(REWARDS, "_entries", dict(REWARDS._entries))
    defined = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, defined)
    return defined


def test_the_table_lists_every_reward_with_its_declarations():
    rows = re.findall(r"^\| `(\w+)` \| .* \| (yes|no) \| (.*?) \| (.*?) \| (.*?) \| (.*?) \|$", PAGE, re.MULTILINE)
    assert sorted(row[0] for row in rows) == available_rewards()
    for name, gradient, *cells in rows:
        reward = registered_reward(name)
        assert gradient == ("yes" if reward.differentiable else "no")
        assert cells == [reward.licence, reward.size, reward.source, f"{reward.default_reward_scale or 1:g}"]


def test_the_examples_run(namespace):
    images = torch.rand(2, 3, 64, 64)
    assert {"warmth", "linear_probe"} <= set(available_rewards())
    for name in ("warmth", "linear_probe"):
        as_reward(name).probe(needs_gradient=True)
    scores = as_reward("warmth - 0.5*symmetry")(images, ["", ""])
    expected = namespace["warmth"](images, []) + 0.5 * (images - images.flip(-1)).abs().mean((1, 2, 3))
    torch.testing.assert_close(scores, expected)


def test_a_remote_reward_asks_its_service(namespace):
    class Scorer(BaseHTTPRequestHandler):
        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            images = [Image.open(io.BytesIO(base64.b64decode(image))) for image in request["images"]]
            scores = [
                image.getpixel((0, 0))[0] + len(prompt)
                for image, prompt in zip(images, request["prompts"], strict=True)
            ]
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(scores).encode())

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("localhost", 0), Scorer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        reward = namespace["RemoteReward"](f"http://localhost:{server.server_port}", name="remote")
        levels = torch.tensor([0.0, 1.0])[:, None, None, None].expand(2, 3, 8, 8)
        torch.testing.assert_close(reward(levels, ["a", "abc"]), torch.tensor([1.0, 258.0]))
        with pytest.raises(ValueError, match="'remote' gives no gradients"):
            reward.probe(needs_gradient=True)
    finally:
        server.shutdown()
        server.server_close()
