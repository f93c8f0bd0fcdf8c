"""A reward that is served scores as it does here, and refuses what is no request in a sentence."""

import base64
import io
import json
import socket
import struct
import threading
import urllib.error
import urllib.request
import zlib
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

from diamond_diffusers.rewards import Brightness, Reward, as_reward
from diamond_diffusers.rewards.errors import RefusedError, UnavailableError
from diamond_diffusers.rewards.remote import RemoteReward, Retries, serving
from diamond_diffusers.rewards.remote.serving import MAX_REQUEST_BYTES, RewardServer

from ..cli.invoking import refusal

ONCE = Retries(attempts=1)


@contextmanager
def served(reward, **options):
    with RewardServer(reward, **{"port": 0, **options}) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server, f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def post(url, body, **headers):
    """The status of an answer, and what it holds."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, content, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_scores_are_those_of_the_reward_here():
    reward = as_reward("2*brightness - 0.01*jpeg_size + colour")
    images = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    images = (images * 255).round() / 255
    with served(reward) as (_, url):
        remote = RemoteReward(url, retries=ONCE, max_batch_size=2)
        assert torch.equal(remote(images, [""] * 5), reward(images, [""] * 5))


def test_images_of_several_sizes_and_modes_are_scored_in_order():
    images = [
        Image.new("L", (8, 8), 255),
        Image.new("RGB", (4, 6), 0),
        Image.new("P", (8, 8)),
        Image.new("RGBA", (4, 6)),
    ]
    with served(Brightness()) as (_, url):
        status, answer = post(url, {"images": [png(image) for image in images], "prompts": [""] * 4})
        assert (status, answer["scores"][:2]) == (200, [pytest.approx(1), 0])
        with urllib.request.urlopen(url, timeout=10) as asked:
            assert json.load(asked) == {"reward": "brightness"}


def bomb(size):
    """A PNG file of few bytes and many pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    return base64.b64encode(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    ).decode()


GOOD = {"images": [png(Image.new("RGB", (4, 4)))], "prompts": [""]}
REFUSED = {
    "no JSON": (b"[", 400, "no JSON"),
    "brackets": (b"[" * 100_000, 400, "no JSON"),
    "a list": ([], 400, "the request is not"),
    "no prompts": ({"images": GOOD["images"]}, 400, "the request is not"),
    "too few prompts": ({**GOOD, "prompts": []}, 400, "as many texts in both"),
    "nothing": ({"images": [], "prompts": []}, 400, "the request is not"),
    "a number": ({**GOOD, "images": [3]}, 400, "the request is not"),
    "too many": ({"images": GOOD["images"] * 3, "prompts": [""] * 3}, 413, "3 images; send at most 2"),
    "no base64": ({**GOOD, "images": ["***"]}, 422, "image 0 is no PNG file"),
    "no image": ({**GOOD, "images": ["AAAA"]}, 422, "image 0 is no PNG file"),
    "a JPEG": ({**GOOD, "images": [base64.b64encode(b"\xff\xd8\xff\xe0JFIF").decode()]}, 422, "is no PNG file"),
    "half an image": ({**GOOD, "images": [GOOD["images"][0][:60]]}, 422, "is no PNG file"),
    "many pixels": ({**GOOD, "images": [bomb(6_000)]}, 413, "image 0 has more than 33554432 pixels"),
    "a bomb": ({**GOOD, "images": [bomb(100_000)]}, 413, "image 0 has more than 33554432 pixels"),
    "16 bits": ({**GOOD, "images": [png(Image.fromarray(np.zeros((4, 4), np.uint16)))]}, 422, "more than 8 bits"),
}


def test_what_is_no_request_is_refused_in_a_sentence():
    with served(Brightness(), max_batch_size=2) as (_, url):
        for name, (body, expected, sentence) in REFUSED.items():
            status, answer = post(url, body)
            assert status == expected and sentence in answer["error"], name
        assert post(url, GOOD, **{"Content-Type": "text/plain"})[0] == 415
        assert post(url, GOOD, **{"Content-Length": str(MAX_REQUEST_BYTES + 1)})[0] == 413
        # The service goes on.
        assert post(url, GOOD)[0] == 200


def test_a_reward_that_fails_is_told_to_who_asks():
    def fail(images, prompts):
        raise RuntimeError("no weights here")

    with served(as_reward(fail)) as (_, url), pytest.raises(UnavailableError, match=r"500 .*no weights here"):
        RemoteReward(url, retries=ONCE)(torch.zeros(1, 3, 8, 8), [""])
    with served(Brightness(), max_batch_size=1) as (_, url), pytest.raises(RefusedError, match="send at most 1"):
        RemoteReward(url, retries=ONCE)(torch.arange(2.0)[:, None, None, None].expand(2, 3, 8, 8), ["", ""])


def test_a_key_opens_it(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "sk-right")
    monkeypatch.setenv("OTHER_KEY", "sk-wrong")
    images = torch.ones(1, 3, 8, 8)
    with served(Brightness(), api_key_env="JUDGE_KEY") as (_, url):
        assert RemoteReward(url, api_key_env="JUDGE_KEY", retries=ONCE)(images, [""]).item() == pytest.approx(1)
        for wrong in ("OTHER_KEY", None):
            with pytest.raises(UnavailableError, match="401 Unauthorized"):
                RemoteReward(url, api_key_env=wrong, retries=ONCE)(images, [""])


def test_it_listens_at_addresses_of_both_kinds():
    if not has_ipv6():
        pytest.skip("no IPv6 here")
    with served(Brightness(), host="::1") as (server, _):
        remote = RemoteReward(f"http://[::1]:{server.server_port}", retries=ONCE)
        assert remote(torch.ones(1, 3, 8, 8), [""]).tolist() == [1]


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as tried:
            tried.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_who_leaves_is_no_fault_of_the_reward(caplog, capfd):
    caplog.set_level("INFO")
    head = b"POST / HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: "
    with served(Brightness()) as (server, url):
        for sent in (head + b"9\r\n\r\n{", head[:20], head + b"9\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", server.server_port)) as connection:
                connection.sendall(sent)
                # The connection is reset, and not ended.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with socket.create_connection(("127.0.0.1", server.server_port)) as connection:
            connection.sendall(head + b"9" * 5000 + b"\r\n\r\n{")
            assert b" 413 " in connection.recv(100)
        assert post(url, GOOD)[0] == 200
    assert "failed" not in caplog.text and "Traceback" not in capfd.readouterr().err


def test_small_files_of_many_pixels_are_refused_together(monkeypatch):
    monkeypatch.setattr(serving, "MAX_PIXELS_OF_REQUEST", 31)
    with served(Brightness()) as (_, url):
        assert post(url, GOOD)[0] == 200
        status, answer = post(url, {"images": GOOD["images"] * 2, "prompts": ["", ""]})
    assert (status, answer["error"]) == (413, "the request has more than 31 pixels; send fewer images")


def test_a_key_that_is_gone_opens_nothing(monkeypatch):
    monkeypatch.setenv("SERVICE_KEY", "sesame")
    with served(Brightness(), api_key_env="SERVICE_KEY") as (server, _):
        monkeypatch.delenv("SERVICE_KEY")
        head = b"POST / HTTP/1.1\r\nAuthorization: Bearer \r\nContent-Length: 0\r\n\r\n"
        with socket.create_connection(("127.0.0.1", server.server_port)) as connection:
            connection.sendall(head)
            assert b" 401 " in connection.recv(100)


def test_the_command_finds_its_place_before_it_loads_a_reward(monkeypatch):
    monkeypatch.setattr("diamond_diffusers.rewards.as_reward", lambda reward: pytest.fail("a reward is loaded"))
    with RewardServer(Brightness(), port=0) as server:
        taken = refusal("serve-reward", "--reward", "clip", "--port", server.server_port)
        assert f"host is '127.0.0.1' and port is {server.server_port}, where nothing can listen (Address" in taken
        assert "or another port" in taken
    assert "host is 'no.such.host.invalid'" in refusal(
        "serve-reward", "--reward", "clip", "--host", "no.such.host.invalid"
    )
    assert "NO_SUCH_KEY" in refusal("serve-reward", "--reward", "clip", "--api-key-env", "NO_SUCH_KEY")


def test_what_cannot_be_served_is_refused():
    class OfLatents(Reward):
        def score(self, images, prompts, latents):
            return latents

    with pytest.raises(ValueError, match="'OfLatents' needs latents, which no request brings"):
        RewardServer(OfLatents(), port=0)
    with pytest.raises(ValueError, match="api_key_env is 'NO_SUCH_KEY', which is not set"):
        RewardServer(Brightness(), port=0, api_key_env="NO_SUCH_KEY")
    with RewardServer(Brightness(), port=0) as server:
        assert server.server_address[0] == "127.0.0.1"
