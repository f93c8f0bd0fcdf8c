"""Requests to one service: sent, limited, timed out and repeated."""

from __future__ import annotations

import asyncio
import json
import random
import ssl
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any
from urllib.request import getproxies, proxy_bypass

import httpx2

from ..errors import UnavailableError
from .address import Address
from .answers import MAX_ANSWER_BYTES, Failure, read_answer
from .limits import Retries, Timeouts, Turns
from .usage import Meter, Usage

BRING_UP = "check that the service runs and that url leads to it"
SLOW = "raise timeouts, or lower max_batch_size"


class Session:
    """The connections of one reward in one process; all of it runs on the event loop.

    Args:
        address: of the service.
        timeouts: of a request.
        retries: of a request.
        max_concurrent_requests: the most that are on their way at once.
        max_requests_per_second: None for any number.
        meter: counts what is sent.
    """

    def __init__(
        self,
        address: Address,
        timeouts: Timeouts,
        retries: Retries,
        max_concurrent_requests: int,
        max_requests_per_second: float | None,
        meter: Meter,
    ) -> None:
        self.address, self.timeouts, self.retries, self.meter = address, timeouts, retries, meter
        self._slots = asyncio.Semaphore(max_concurrent_requests)
        self._turns = Turns(max_requests_per_second)
        # Not the global generator, on which a run may depend.
        self._random = random.Random()
        self._client = httpx2.AsyncClient(
            transport=KeyTransport(address, _connections(address, max_concurrent_requests)),
            timeout=httpx2.Timeout(timeouts.read, connect=timeouts.connect),
            follow_redirects=False,
            trust_env=False,
        )
        self._tasks: set[asyncio.Task[Any]] = set()

    async def ask(self, body: Callable[[], bytes], num_images: int, tally: Usage) -> Any:
        """The answer to a request.

        Args:
            body: makes the JSON, in a thread and not before it can be sent: bodies of images are large.
            num_images: in it.
            tally: of the batch.

        Raises:
            LimitError: the reward may send no more.
            OSError: there is no answer, or one that is no JSON; of which kind, see `rewards.errors`.
        """
        task = asyncio.current_task()
        assert task is not None, "the event loop runs tasks"
        self._tasks.add(task)
        body = cache(body)
        try:
            for attempt in range(self.retries.attempts):
                answer = await self._send(body, num_images, tally)
                if not isinstance(answer, Failure):
                    return answer
                delay = max(self.retries.delay(attempt, self._random), answer.wait or 0.0)
                is_last = attempt + 1 == self.retries.attempts
                if not answer.may_pass or is_last or delay > self.retries.max_delay:
                    break
                self.meter.add(tally, retries=1)
                if answer.wait is not None:
                    self._turns.stop_for(delay)
                await asyncio.sleep(delay)
        finally:
            self._tasks.discard(task)
        raise answer.error(self._sentence(answer, attempt + 1))

    async def close(self) -> None:
        """Calls off what is on its way, and closes the connections."""
        for task in [*self._tasks]:
            task.cancel()
        await self._client.aclose()

    def _sentence(self, failure: Failure, attempts: int) -> str:
        times = f" in the last of {attempts} attempts" if attempts > 1 else ""
        remedy = failure.remedy
        if failure.may_pass and failure.wait is not None and failure.wait > self.retries.max_delay:
            remedy = f"it asks to wait {failure.wait:g} s: come back then, or raise max_delay of retries"
        return f"Reward '{self.address.name}': {self.address.shown} {failure.found}{times}; {remedy}."

    async def _send(self, body: Callable[[], bytes], num_images: int, tally: Usage) -> Any | Failure:
        async with self._slots:
            content = await asyncio.to_thread(body)
            await self._turns.wait()
            self.meter.send(num_images, tally)
            answer = await self._timed(content)
            if isinstance(answer, Failure) and not answer.was_sent:
                self.meter.take_back(num_images, tally)
            return answer

    async def _timed(self, body: bytes) -> Any | Failure:
        try:
            # The library's own times begin anew with every byte.
            async with asyncio.timeout(self.timeouts.total):
                return await self._exchange(body)
        except TimeoutError:
            found = f"had not answered as a whole within {self.timeouts.total:g} s"
            return Failure(found, SLOW, may_pass=True, error=UnavailableError)
        except httpx2.ConnectTimeout:
            found = f"was not reached within {self.timeouts.connect:g} s"
            return Failure(found, BRING_UP, may_pass=True, error=UnavailableError, was_sent=False)
        except httpx2.TimeoutException:
            found = f"sent nothing for {self.timeouts.read:g} s"
            return Failure(found, SLOW, may_pass=True, error=UnavailableError)
        except (httpx2.ConnectError, httpx2.ProxyError) as error:
            found = f"was not reached ({self.address.excerpt(str(error))})"
            return Failure(found, BRING_UP, may_pass=True, error=UnavailableError, was_sent=False)
        except httpx2.InvalidURL:
            return Failure("has no host that can be looked up", BRING_UP, error=UnavailableError, was_sent=False)
        except httpx2.TransportError as error:
            found = f"broke off the connection ({self.address.excerpt(str(error) or type(error).__name__)})"
            return Failure(found, "see the service's own log", may_pass=True, error=UnavailableError)

    async def _exchange(self, body: bytes) -> Any | Failure:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity"}
        # Neither the library's log nor its exceptions see more of the address.
        async with self._client.stream("POST", self.address.shown, content=body, headers=headers) as response:
            encoding = response.headers.get("content-encoding", "identity")
            if encoding != "identity":
                return Failure(f"compressed its answer ({encoding})", "let it answer uncompressed, as it was asked to")
            content = bytearray()
            async for part in response.aiter_raw():
                content += part
                if len(content) > MAX_ANSWER_BYTES:
                    megabytes = MAX_ANSWER_BYTES // 2**20
                    return Failure(f"answered more than {megabytes} MiB", "let it answer a score for each image alone")
            return read_answer(self.address, response.status_code, response.headers, bytes(content))


class KeyTransport(httpx2.AsyncBaseTransport):
    """Adds the key, and the URL's parameters, on the last step, below all that logs, redirects or raises."""

    def __init__(self, address: Address, transport: httpx2.AsyncBaseTransport) -> None:
        self._address, self._transport = address, transport

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Sends a request."""
        url, headers = self._address.opened()
        opened = httpx2.Request(
            request.method,
            url,
            headers={**request.headers, **headers},
            stream=request.stream,
            extensions=request.extensions,
        )
        return await self._transport.handle_async_request(opened)

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._transport.aclose()


def _connections(address: Address, max_concurrent_requests: int) -> httpx2.AsyncHTTPTransport:
    """Raises an `UnavailableError` where the proxy that the environment names cannot be used."""
    with suppress(ValueError, ImportError, httpx2.InvalidURL):
        return httpx2.AsyncHTTPTransport(
            # Certificates take a while to load, and redirects are not followed to where they would be needed.
            verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if address.url.startswith("http:") else True,
            # None waits for a connection, which would take of its time.
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=max_concurrent_requests),
            proxy=_proxy(address),
        )
    # It may hold a password, as may the library's error, which therefore does not come with this one.
    raise UnavailableError(
        f"Reward '{address.name}': the environment names a proxy for {address.shown} that cannot be used; give it as "
        "http://host:port (one of SOCKS takes the package socksio), or add the host to NO_PROXY."
    )


def as_json(body: Any) -> bytes:
    """The body of a request."""
    return json.dumps(body, allow_nan=False).encode()


def _proxy(address: Address) -> str | None:
    """The proxy that the environment names."""
    if address.is_local or proxy_bypass(address.host):
        return None
    proxies = getproxies()
    proxy = proxies.get(address.shown.partition(":")[0]) or proxies.get("all")
    return proxy if proxy is None or "://" in proxy else f"http://{proxy}"
