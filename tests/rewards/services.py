"""A real service on the loopback, which answers as it is told to."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

Behaviour = Callable[["Handler", dict[str, Any]], None]


@dataclass
class Service:
    """What a service has been asked, and how it answers.

    Attributes:
        behaviours: of the first requests, in their order; later ones are answered by `default`.
        default: answers scores.
        asked: path, headers and body of each request.
        most_at_once: the most requests that were being answered together.
        megabytes: that `huge` answers have sent.
        is_over: set where the service ends.
    """

    url: str = ""
    behaviours: list[Behaviour] = field(default_factory=list)
    default: Behaviour = lambda handler, request: handler.answer(scores_of(request))
    asked: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    most_at_once: int = 0
    megabytes: int = 0
    is_over: threading.Event = field(default_factory=threading.Event)
    _now: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def sizes(self) -> list[int]:
        """The number of images of each request."""
        return [len(body["images"]) for _, _, body in self.asked]

    @property
    def prompts(self) -> list[str]:
        return [prompt for _, _, body in self.asked for prompt in body["prompts"]]

    @contextmanager
    def answering(self, handler: Handler, body: dict[str, Any]) -> Iterator[Behaviour]:
        with self._lock:
            self.asked.append((handler.path, {key.lower(): value for key, value in handler.headers.items()}, body))
            self.times.append(time.monotonic())
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
            behaviour = self.behaviours.pop(0) if self.behaviours else self.default
        try:
            yield behaviour
        finally:
            with self._lock:
                self._now -= 1


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    service: Service

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.service.answering(self, body) as behaviour:
            try:
                behaviour(self, body)
            except OSError:
                # Who asked has gone.
                self.close_connection = True

    def answer(self, value: Any, status: int = 200, **headers: str) -> None:
        """Sends a value as JSON, or a text as it is."""
        text = value if isinstance(value, str) else json.dumps(value)
        self.send_response(status)
        for name, content in headers.items():
            self.send_header(name.replace("_", "-"), content)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *arguments: Any) -> None:
        pass


def scores_of(request: dict[str, Any]) -> list[float]:
    """Red of the first pixel, from 0 to 255, and the length of the prompt."""
    images = [Image.open(io.BytesIO(base64.b64decode(image))) for image in request["images"]]
    pairs = zip(images, request["prompts"], strict=True)
    return [float(image.convert("RGB").getpixel((0, 0))[0] + len(prompt)) for image, prompt in pairs]


@contextmanager
def serving(default: Behaviour | None = None, *behaviours: Behaviour) -> Iterator[Service]:
    """A service, as long as the context is open."""
    service = Service(behaviours=list(behaviours))
    if default is not None:
        service.default = default
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"service": service}))
    server.daemon_threads = True
    service.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        service.is_over.set()
        server.shutdown()
        server.server_close()
        thread.join()


def status(code: int, text: str = "", **headers: str) -> Behaviour:
    return lambda handler, request: handler.answer(text, code, **headers)


def saying(value: Any, **headers: str) -> Behaviour:
    return lambda handler, request: handler.answer(value, **headers)


def late(seconds: float, then: Behaviour = lambda handler, request: handler.answer(scores_of(request))) -> Behaviour:
    def behaviour(handler: Handler, request: dict[str, Any]) -> None:
        time.sleep(seconds)
        then(handler, request)

    return behaviour


def silent(handler: Handler, request: dict[str, Any]) -> None:
    """No answer as long as the service is there: who goes on before has not waited for one."""
    handler.service.is_over.wait()


def drop(handler: Handler, request: dict[str, Any]) -> None:
    """Closes the connection without an answer."""
    handler.close_connection = True


def half(handler: Handler, request: dict[str, Any]) -> None:
    """Closes the connection in the midst of an answer."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100")
    handler.end_headers()
    handler.wfile.write(b"[0.5, ")
    handler.close_connection = True


def closing(handler: Handler, request: dict[str, Any]) -> None:
    """Answers, and closes a connection that the other side takes for kept."""
    handler.answer(scores_of(request))
    handler.close_connection = True


def dripping(part: str) -> Behaviour:
    """Sends a byte of an answer's head or body now and then, without end."""

    def behaviour(handler: Handler, request: dict[str, Any]) -> None:
        if part == "body":
            handler.send_response(200)
            handler.send_header("Content-Length", "100000")
            handler.end_headers()
        else:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
        handler.close_connection = True
        while True:
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.01)

    return behaviour


def huge(handler: Handler, request: dict[str, Any]) -> None:
    """An answer of which there is no end."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.close_connection = True
    piece = b" " * 2**20
    while True:
        handler.service.megabytes += 1
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
