"""A reward as a service, which a `RemoteReward` on another machine, or in another environment, asks."""

from __future__ import annotations

import base64
import hmac
import io
import json
import logging
import os
import socket
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from PIL import Image

from ..base import Reward
from ..errors import first_line

logger = logging.getLogger(__name__)

MAX_REQUEST_BYTES = 256 * 2**20
MAX_PIXELS = 2**25
"""Of an image: 5,792 by 5,792."""
MAX_PIXELS_OF_REQUEST = 2**28
"""Of all images of a request, which take 15 bytes a pixel; their files may be small."""
MAX_DIGITS = 12
"""Of a request's length."""
SECONDS_OF_SILENCE = 60.0
"""After which a connection is closed."""


class _RefusalError(Exception):
    """A request that is not answered with scores: its status, and a sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class RewardServer(ThreadingHTTPServer):
    """Scores images by a reward, in the form that `ScoreService` describes; one request after the other.

    It answers who asks from this machine, unless it is given another host, and then whoever reaches it, unless it is
    given a key.

    Args:
        reward: on its device. One that needs latents cannot be served.
        host: name or address of the interface that it listens at; "0.0.0.0" for all of them.
        port: 0 for any free one; `server_port` tells which.
        max_batch_size: the most images of a request.
        device: of the images.
        api_key_env: name of the environment variable that holds the key by which requests have to come; None for none.

    Raises:
        ValueError: the reward needs more than images and prompts, or the environment variable is not set.
        OSError: nothing can listen there, such as where somebody else does.

    Example:
        >>> from diamond_diffusers.rewards import Brightness
        >>> with RewardServer(Brightness(), port=0) as server:
        ...     server.reward.name
        'brightness'
    """

    daemon_threads = True

    def __init__(
        self,
        reward: Reward,
        host: str = "127.0.0.1",
        port: int = 8000,
        max_batch_size: int = 64,
        device: torch.device | str = "cpu",
        api_key_env: str | None = None,
    ) -> None:
        if reward.wanted_context.get("latents"):
            raise ValueError(f"Reward '{reward.name}' needs latents, which no request brings; serve another one.")
        check_key_of_service(api_key_env)
        self.reward, self.device, self.max_batch_size, self.api_key_env = reward, device, max_batch_size, api_key_env
        # Rewards on a GPU hold the memory of one call.
        self.scoring = threading.Lock()
        self.address_family = _family_of(host)
        with _explained(host, port):
            super().__init__((host, port), _Handler)

    def scores(self, request: Any) -> list[float]:
        """The scores of a request, as it was read from JSON."""
        images, prompts = _read_request(request, self.max_batch_size)
        scores: dict[int, float] = {}
        with self.scoring, torch.no_grad():
            # It takes torchvision, which few rewards need.
            from ..preprocessing import images_from_pil

            for rows in _rows_of_one_size(images):
                batch = images_from_pil([images[row] for row in rows]).to(self.device)
                found = self.reward(batch, [prompts[row] for row in rows]).tolist()
                scores.update(zip(rows, found, strict=True))
        return [scores[row] for row in range(len(images))]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who asks may go at any time, which is no error here."""
        logger.info("A connection broke off.", exc_info=True)


def check_key_of_service(api_key_env: str | None) -> None:
    """Raises a `ValueError` where the environment variable that is to hold the key of a service is not set."""
    if api_key_env is not None and not os.environ.get(api_key_env, "").strip():
        raise ValueError(f"api_key_env is {api_key_env!r}, which is not set; set it to the key of the service")


def check_place(host: str, port: int) -> None:
    """Raises an `OSError` where nothing can listen at a port; asked before a reward is loaded."""
    with _explained(host, port), socket.socket(_family_of(host), socket.SOCK_STREAM) as place:
        # As the server does: a port that was left a moment ago is free.
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind((host, port))


def _family_of(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


@contextmanager
def _explained(host: str, port: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(
            f"host is {host!r} and port is {port}, where nothing can listen ({reason}); give an address of this "
            "machine, or another port"
        ) from error


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = SECONDS_OF_SILENCE
    server: RewardServer

    def do_GET(self) -> None:
        self._answer(200, {"reward": self.server.reward.name})

    def do_POST(self) -> None:
        try:
            self._answer(200, {"scores": self.server.scores(self._request())})
        except _RefusalError as refusal:
            # What is left of the request is not read.
            self.close_connection = True
            self._answer(refusal.status, {"error": str(refusal)})
        except Exception as error:
            logger.exception("The reward '%s' failed.", self.server.reward.name)
            self._answer(500, {"error": first_line(error)})

    def _request(self) -> Any:
        key = os.environ.get(self.server.api_key_env or "", "").strip()
        given = self.headers.get("Authorization", "")
        is_open = self.server.api_key_env is None
        if not is_open and not (key and hmac.compare_digest(given.encode(), f"Bearer {key}".encode())):
            raise _RefusalError(401, "the request has no key, or another one")
        # Of a page in a browser on this machine, which may send anything else without being asked.
        if self.headers.get_content_type() != "application/json":
            raise _RefusalError(415, "the request is not of the type application/json")
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise _RefusalError(411, "the request does not say its length")
        # Nor are numbers read that have thousands of digits.
        if len(length) > MAX_DIGITS or int(length) > MAX_REQUEST_BYTES:
            raise _RefusalError(413, f"the request is longer than {MAX_REQUEST_BYTES // 2**20} MiB; send fewer images")
        try:
            return json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            raise _RefusalError(400, "the request is no JSON") from None
        except OSError:
            # Half of it, and then nothing for a minute, or the end of the connection.
            raise _RefusalError(408, "the request has not come as a whole") from None

    def _answer(self, status: int, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        try:
            self.end_headers()
            self.wfile.write(content)
        except OSError:
            # Who has asked is gone.
            self.close_connection = True

    def log_message(self, form: str, *arguments: Any) -> None:
        logger.info(form, *arguments)


def _read_request(request: Any, max_batch_size: int) -> tuple[list[Image.Image], list[str]]:
    """The images and prompts of a request."""
    files, prompts = _texts(request, "images"), _texts(request, "prompts")
    if len(files) != len(prompts) or not files:
        raise _RefusalError(400, 'the request is not {"images": [...], "prompts": [...]} with as many texts in both')
    if len(files) > max_batch_size:
        raise _RefusalError(413, f"the request has {len(files)} images; send at most {max_batch_size}")
    opened = [_opened_image(file, index) for index, file in enumerate(files)]
    if sum(image.width * image.height for image in opened) > MAX_PIXELS_OF_REQUEST:
        raise _RefusalError(413, f"the request has more than {MAX_PIXELS_OF_REQUEST} pixels; send fewer images")
    return [_decoded_image(image, index) for index, image in enumerate(opened)], prompts


def _texts(request: Any, key: str) -> list[str]:
    """The texts under a key; none where there is anything else."""
    values = request.get(key) if isinstance(request, Mapping) else None
    return values if isinstance(values, list) and all(isinstance(value, str) for value in values) else []


def _opened_image(file: str, index: int) -> Image.Image:
    """An image whose size is known, and whose pixels are not there yet."""
    too_large = _RefusalError(413, f"image {index} has more than {MAX_PIXELS} pixels; send a smaller one")
    try:
        image = Image.open(io.BytesIO(base64.b64decode(file, validate=True)), formats=["PNG"])
        if image.width * image.height > MAX_PIXELS:
            raise too_large
        if image.mode.startswith(("I", "F")):
            raise _RefusalError(422, f"image {index} has more than 8 bits a channel; send 8")
        return image
    except Image.DecompressionBombError:
        raise too_large from None
    except (ValueError, OSError, SyntaxError):
        raise _no_image(index) from None


def _decoded_image(image: Image.Image, index: int) -> Image.Image:
    try:
        return image.convert("RGB")
    except (ValueError, OSError, SyntaxError):
        raise _no_image(index) from None


def _no_image(index: int) -> _RefusalError:
    return _RefusalError(422, f"image {index} is no PNG file in base64")


def _rows_of_one_size(images: Sequence[Image.Image]) -> list[list[int]]:
    rows: dict[tuple[int, int], list[int]] = defaultdict(list)
    for row, image in enumerate(images):
        rows[image.size].append(row)
    return list(rows.values())
