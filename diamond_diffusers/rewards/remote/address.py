"""Where a service is, and the key that opens it, which is shown nowhere."""

from __future__ import annotations

import base64
import html
import ipaddress
import json
import os
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, parse_qsl, quote, urlsplit, urlunsplit

from ...core.wording import shown
from ..errors import UnavailableError

KEY = "{api_key}"
"""In a URL or a header, stands for the key."""
SECRET_PARAMETER = re.compile(r"key|token|secret|passw|pwd|sig|auth|credential", re.IGNORECASE)
"""In the name of a URL's parameter whose value is not to be seen."""
HEADER = re.compile(r"[A-Za-z0-9-]+: [\x20-\x7e]*")
MIN_HIDDEN = 4
"""Characters of the shortest part of a secret that is hidden: shorter ones are in any text."""
MAX_DEPTH = 50
"""Of answers whose parts errors show."""
EXCERPT = 200
"""Characters of an answer that an error shows."""


@dataclass(frozen=True)
class Address:
    """A service's URL and the name of the environment variable that holds its key.

    Nothing that this object holds is secret: the key is read where it is sent.

    Args:
        name: of the reward, for errors.
        url: with http or https, without secrets; `{api_key}` within it stands for the key.
        api_key_env: the environment variable; None where the service asks for no key.
        api_key_header: the header that carries the key, unless the URL does.

    Raises:
        ValueError: the URL cannot be used or holds a secret, or has a place for a key and no variable is named.
    """

    name: str
    url: str
    api_key_env: str | None = None
    api_key_header: str = f"Authorization: Bearer {KEY}"

    def __post_init__(self) -> None:
        problem = _problem_of_url(self.url)
        if problem:
            raise ValueError(f"Reward '{self.name}' got {problem}.")
        if self.api_key_env is None and KEY in self.url:
            raise ValueError(
                f"Reward '{self.name}' got a url with {KEY}, but api_key_env=None; name the environment variable that "
                "holds the key."
            )
        if not HEADER.fullmatch(self.api_key_header) or KEY not in self.api_key_header:
            raise ValueError(
                f"Reward '{self.name}' got api_key_header without '{KEY}', or of another form; give the header with "
                f"{KEY} in the key's place, such as 'api-key: {KEY}'."
            )

    def check_key(self) -> None:
        """Raises a `ValueError` where the environment variable holds no key."""
        if self.api_key_env is not None and (problem := _problem_of_key(self.api_key_env)):
            raise ValueError(f"Reward '{self.name}' got {problem}.")

    @property
    def shown(self) -> str:
        """The URL for the user: without the parameters."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine, to which no proxy leads."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def at(self, path: str) -> Address:
        """The address of a path below this one."""
        parts = urlsplit(self.url)
        below = f"{parts.path.rstrip('/')}/{path}" if path else parts.path
        url = urlunsplit((parts.scheme, parts.netloc, below, parts.query, ""))
        return Address(self.name, url, self.api_key_env, self.api_key_header)

    def opened(self) -> tuple[str, dict[str, str]]:
        """The URL and the headers with the key, for the one who sends them.

        Raises:
            UnavailableError: the environment variable is not set any longer.
        """
        parts = urlsplit(self.url)
        user_info, _, host = parts.netloc.rpartition("@")
        url = urlunsplit((parts.scheme, host, parts.path, parts.query, ""))
        headers: dict[str, str] = {}
        if self.api_key_env is None:
            return url, headers
        key = self._key()
        if user_info:
            pair = user_info.replace(KEY, key) if ":" in user_info else f"{user_info.replace(KEY, key)}:"
            headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        elif KEY not in url:
            name, _, value = self.api_key_header.partition(": ")
            headers[name] = value.replace(KEY, key)
        return url.replace(KEY, quote(key, safe="")), headers

    def excerpt(self, text: str) -> str:
        """The beginning of a service's text, for an error, without the key: services echo what they were sent."""
        text = " ".join(self.hidden(text).split())
        return repr(text if len(text) <= EXCERPT else f"{text[:EXCERPT]}...")

    def hidden(self, text: str) -> str:
        """A service's text without the key."""
        for secret in self._secrets():
            text = text.replace(secret, "***")
        return text

    def hidden_in(self, value: Any, depth: int = MAX_DEPTH) -> Any:
        """A value of JSON, of whose texts each is without the key; without what is nested deeper."""
        if depth == 0:
            return None
        if isinstance(value, str):
            return self.hidden(value)
        if isinstance(value, list):
            return [self.hidden_in(each, depth - 1) for each in value]
        if isinstance(value, dict):
            return {self.hidden(key): self.hidden_in(each, depth - 1) for key, each in value.items()}
        return value

    def _key(self) -> str:
        key = os.environ.get(self.api_key_env or "", "").strip()
        if not key:
            raise UnavailableError(
                f"Reward '{self.name}' finds no key: the environment variable {self.api_key_env} is not set any "
                "longer; set it."
            )
        return key

    def _secrets(self) -> list[str]:
        """The key as it may come back, the longest form first."""
        key = os.environ.get(self.api_key_env or "", "").strip()
        if not key:
            return []
        forms = {key, quote(key), quote(key, safe=""), json.dumps(key)[1:-1], html.escape(key), repr(key)[1:-1]}
        forms |= {form.replace("/", "\\/") for form in forms}
        _, headers = self.opened()
        forms |= {value.rpartition(" ")[2] for value in headers.values()}
        return sorted((form for form in forms if len(form) >= MIN_HIDDEN), key=len, reverse=True)


def _problem_of_url(url: str) -> str | None:
    """What is wrong with a URL, and the remedy; a URL that may hold a secret is not shown."""
    if not isinstance(url, str) or not re.fullmatch(r"[\x21-\x7e]+", url):
        given = "a text with blanks or with characters beyond ASCII" if isinstance(url, str) else shown(url)
        return f"url={given}; give one such as 'http://localhost:8000'"
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - it raises
    except ValueError:
        return "a url that cannot be read; give one such as 'http://localhost:8000'"
    if "@" in parts.netloc and KEY not in parts.netloc.rpartition("@")[0]:
        return (
            "a url with a user or a password, which would be seen in records; write "
            f"'https://user:{KEY}@host' and api_key_env='NAME', the environment variable that holds the password"
        )
    secret = _secret_parameter(parts)
    if secret:
        return (
            f"a url with the parameter {secret!r}, which would be seen in records; write {secret}={KEY} and "
            "api_key_env='NAME', the environment variable that holds it"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.fragment:
        return f"url={shown(url)}; give one with http or https and a host, such as 'http://localhost:8000'"
    return None


def _secret_parameter(parts: SplitResult) -> str | None:
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if SECRET_PARAMETER.search(name) and value != KEY:
            return name
    return None


def _problem_of_key(variable: str) -> str | None:
    key = os.environ.get(variable, "").strip() if isinstance(variable, str) and variable.isidentifier() else None
    if key is None:
        # Somebody may have given the key itself.
        return "an api_key_env that is no name of an environment variable; give one such as 'OPENAI_API_KEY'"
    if not key:
        return f"api_key_env={variable!r}, an environment variable that is not set; set it to the service's key"
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        return f"api_key_env={variable!r}, whose value has blanks or characters beyond ASCII; set it to the key alone"
    return None
