"""What comes back from a service, and what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from ..errors import RefusedError, UnavailableError
from .address import Address
from .limits import retry_after

MAX_ANSWER_BYTES = 8 * 2**20
"""Of an answer: a million scores take no more."""
PASSING = {408, 425, 429, 500, 502, 503, 504}
"""Statuses of what may be over a moment later."""
NOT_ALLOWED = {401, 403}


@dataclass(frozen=True)
class Failure:
    """A request that brought no scores.

    Attributes:
        found: what came, in the words of "The service ...".
        remedy: what the user does about it, in the imperative.
        may_pass: whether the request is repeated.
        error: the exception where it is not.
        wait: how long the service asks to wait, in seconds.
        was_sent: whether it got as far as to a connection.
    """

    found: str
    remedy: str
    may_pass: bool = False
    error: type[OSError] = OSError
    wait: float | None = None
    was_sent: bool = True


def read_answer(address: Address, status: int, headers: Mapping[str, str], content: bytes) -> Any | Failure:
    """What JSON an answer holds, or what is wrong with it."""
    if 200 <= status < 300:
        return _read_json(address, status, headers, content)
    shown = f"answered {_named(status)}"
    if 300 <= status < 400:
        # It would take images, and the key, to where the user did not send them.
        return Failure(
            f"{shown}, a redirect to {address.excerpt(headers.get('location', 'nowhere').partition('?')[0])}",
            "give the URL that it leads to",
            error=UnavailableError,
        )
    if status in NOT_ALLOWED:
        # Its text may hold a part of the key.
        key = "give api_key_env" if address.api_key_env is None else f"check the key in {address.api_key_env}"
        return Failure(shown, f"{key}, and what it allows", error=UnavailableError)
    text = content.decode(errors="replace").strip()
    shown += f" with the text {address.excerpt(text)}" if text else ""
    if status in PASSING:
        return Failure(
            shown,
            "see the service's own log, or lower max_concurrent_requests and max_requests_per_second",
            may_pass=True,
            error=UnavailableError,
            wait=retry_after(headers.get("retry-after")) if status in (429, 503) else None,
        )
    if status in (404, 405):
        return Failure(shown, "check the path of url, and the protocol", error=UnavailableError)
    return Failure(shown, "check that the protocol is what the service takes", error=RefusedError)


def _read_json(address: Address, status: int, headers: Mapping[str, str], content: bytes) -> Any | Failure:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        # Half a text, another encoding, or brackets without end.
        start = content.lstrip()[:1]
    if not content.strip():
        return Failure(f"answered {_named(status)} with nothing", "let it answer JSON")
    text = address.excerpt(content.decode(errors="replace"))
    if start == b"<" or "html" in headers.get("content-type", "").lower():
        return Failure(
            f"answered {_named(status)} with HTML ({text})", "give the URL of the service itself, not that of a page"
        )
    return Failure(f"answered {_named(status)} with what is no whole JSON ({text})", "let it answer JSON, as a whole")


def _named(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"status {status}"
