"""The examples of remote judges run."""

import runpy
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from diamond_diffusers.rewards import RemoteReward

from .services import saying, serving

EXAMPLES = Path(__file__).parents[2] / "examples" / "remote_judge"


@pytest.fixture
def service():
    """The URL of the example's service."""
    judge = runpy.run_path(str(EXAMPLES / "service.py"))["Judge"]
    judge.log_message = lambda *arguments: None
    with ThreadingHTTPServer(("127.0.0.1", 0), judge) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_the_service_scores(service):
    red, white = torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)
    red[:, 0] = 1
    scores = RemoteReward(service)(torch.cat([red, white]), ["a", "b"])
    torch.testing.assert_close(scores, torch.tensor([255 / 256, 255 / 766]))


@pytest.mark.slow
def test_the_client_draws(service, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / "client.py"))["draw"](service)
    assert (tmp_path / "red_stars.png").exists() and "requests" in capsys.readouterr().out


@pytest.mark.slow
def test_a_model_grades(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokens = [{"token": "4", "logprob": -0.1}]
    with serving(saying({"choices": [{"logprobs": {"content": [{"top_logprobs": tokens}]}}]})) as service:
        runpy.run_path(str(EXAMPLES / "vision_language_model.py"))["draw"](f"{service.url}/v1")
        assert len(service.asked) >= 2
    assert (tmp_path / "star.png").exists()
