"""Scores by a service on the network."""

from __future__ import annotations

import asyncio
import io
import os
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import wait
from contextvars import ContextVar
from os import PathLike
from typing import TYPE_CHECKING, Any, Self

from PIL.Image import Image
from torch import Tensor

from ...core.checks import check_counts
from ...core.pending import Pending
from ...core.wording import shown
from ..base import Reward
from ..checks import check_batch
from ..context import check_context
from ..output import RewardOutput
from ..registry import register_reward
from ..returned_scores import read_scores
from .address import KEY, Address
from .batch import Batch
from .cache import ScoreCache, key_of
from .event_loop import event_loop
from .limits import Retries, Timeouts, check_positive
from .protocols import AnswerError, RemoteProtocol, ScoreService, checked_scores
from .usage import Meter, Prices, Usage

if TYPE_CHECKING:
    from .session import Session

CLOSING_SECONDS = 5.0
_asks_anew: ContextVar[bool] = ContextVar("asks_anew", default=False)


@register_reward("remote")
class RemoteReward(Reward):
    """Scores by a service on the network, such as a judge that needs another machine, or a vision-language model.

    A black box. A batch is sent in requests of at most `max_batch_size` images, several at once, and a run decodes its
    next images meanwhile. Requests that fail for the moment are repeated. Several threads may use the reward; a copy in
    another process has connections, counts and limits of its own.

    Args:
        url: of the service, with http or https; that of an OpenAI-compatible one ends in "/v1".
        protocol: how it is spoken to: `ScoreService()`, the default, `ChatCompletions(...)`, or one of your own.
        name: name under which the scores are reported.
        api_key_env: name of the environment variable that holds the service's key. The key is read where it is sent
            and kept nowhere. The URL's `{api_key}`, if it has one, stands for it.
        api_key_header: the header that carries the key otherwise, with `{api_key}` in its place.
        reads_prompts: whether the scores depend on prompts, which are not sent otherwise; by default what the protocol
            says.
        max_batch_size: the largest number of images in one request; None for all at once.
        max_concurrent_requests: the most requests at once.
        max_requests_per_second: the most requests that are begun in a second; None for any number.
        timeouts: how long one request may take.
        retries: how often it is repeated.
        cache_size: how many scores are kept in memory, by the image's pixels and the prompt; 0 for none. An image that
            a batch has twice is scored once.
        cache_folder: folder in which all scores are kept, too, which processes may share.
        prices: of the service, for `usage.price` and `max_cost`.
        max_cost: the most that may be spent; more raises a `LimitError`.
        max_requests: the most requests that may be sent.

    Raises:
        ValueError: an argument is out of range, the URL cannot be used or holds a secret, or the environment variable
            is not set.

    Example:
        >>> from diamond_diffusers.rewards import RemoteReward
        >>> judge = RemoteReward("http://localhost:8000", name="judge", max_requests=1000)
        >>> (0.5 * judge).name, judge.usage.requests
        ('0.5*judge', 0)
    """

    differentiable = False
    is_concurrent = True
    is_dear = True
    licence = "that of the service"
    source = "the service"

    def __init__(
        self,
        url: str,
        protocol: RemoteProtocol | None = None,
        *,
        name: str = "remote",
        api_key_env: str | None = None,
        api_key_header: str = f"Authorization: Bearer {KEY}",
        reads_prompts: bool | None = None,
        max_batch_size: int | None = 8,
        max_concurrent_requests: int = 4,
        max_requests_per_second: float | None = None,
        timeouts: Timeouts | None = None,
        retries: Retries | None = None,
        cache_size: int = 10_000,
        cache_folder: str | PathLike[str] | None = None,
        prices: Prices | None = None,
        max_cost: float | None = None,
        max_requests: int | None = None,
    ) -> None:
        check_counts(
            max_batch_size=max_batch_size, max_concurrent_requests=max_concurrent_requests, max_requests=max_requests
        )
        check_positive(max_requests_per_second=max_requests_per_second, max_cost=max_cost)
        if not isinstance(cache_size, int) or isinstance(cache_size, bool) or cache_size < 0:
            raise ValueError(f"cache_size is {shown(cache_size)}; give a whole number of at least 0")
        _check_kinds(str, name=name, api_key_header=api_key_header)
        _check_kinds(Timeouts, timeouts=timeouts)
        _check_kinds(Retries, retries=retries)
        _check_kinds(Prices, prices=prices)
        self.name = name
        self.protocol = ScoreService() if protocol is None else protocol
        if not isinstance(self.protocol, RemoteProtocol):
            raise ValueError(f"protocol is {shown(protocol)}; give a RemoteProtocol, such as ChatCompletions(...)")
        if max_cost is not None and prices is None:
            raise ValueError(f"max_cost is {max_cost:g}, but prices is None; give prices=Prices(...), too")
        self.reads_prompts = self.protocol.reads_prompts if reads_prompts is None else reads_prompts
        self.address = Address(name, url, api_key_env, api_key_header)
        self.address.check_key()
        self.max_batch_size = max_batch_size
        self.max_concurrent_requests = max_concurrent_requests
        self.max_requests_per_second = max_requests_per_second
        self.timeouts = Timeouts() if timeouts is None else timeouts
        self.retries = Retries() if retries is None else retries
        self.cache_size, self.cache_folder = cache_size, cache_folder
        self.prices = Prices() if prices is None else prices
        self.max_cost, self.max_requests = max_cost, max_requests
        self._start()

    def _start(self) -> None:
        """What a copy has for itself."""
        self._cache = ScoreCache(self.cache_size, self.cache_folder)
        self._meter = Meter(self.name, self.prices, self.max_cost, self.max_requests)
        self._session: tuple[int, Session] | None = None

    @property
    def url(self) -> str:
        """The URL, without its parameters."""
        return self.address.shown

    @property
    def usage(self) -> Usage:
        """What was used until now, by all threads of this process."""
        return self._meter.read()

    def score(self, images: Tensor, prompts: Sequence[str]) -> list[float]:  # type: ignore[override]
        """Scores of images `[B, 3, H, W]` in [0, 1] and `B` prompts.

        Raises:
            OSError: the service has not given them; `rewards.errors` says of which kinds.
        """
        return self._ask(images, prompts).result()

    def begin(self, images: Tensor, prompts: Sequence[str], **context: Tensor | float) -> Pending[RewardOutput]:
        """Sends the requests, whose answers are awaited by `result()`. See `Reward.begin`."""
        check_batch(self.name, images, prompts)
        check_context(self.name, images, context)
        device = images.device

        def output(scores: list[float]) -> RewardOutput:
            read = read_scores(self.name, scores, prompts, device)
            return RewardOutput(read, {self.name: read})

        return self._ask(images, prompts).then(output)

    def probe(self, *arguments: Any, **options: Any) -> int:
        """Scores a random image, whatever is known of it: the service has to be there. See `Reward.probe`."""
        token = _asks_anew.set(True)
        try:
            return super().probe(*arguments, **options)
        finally:
            _asks_anew.reset(token)

    def close(self) -> None:
        """Calls off what is on its way, and closes the connections; a later score opens new ones."""
        opened, self._session = self._session, None
        if opened is not None and opened[0] == os.getpid():
            closing = asyncio.run_coroutine_threadsafe(opened[1].close(), event_loop())
            wait([closing], CLOSING_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        own = ("_cache", "_meter", "_session")
        return {name: value for name, value in vars(self).items() if name not in own}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)
        self._start()

    def _score_in_batches(self, images: Tensor, prompts: Sequence[str], context: Mapping[str, Tensor]) -> Tensor:
        # All requests at once, in place of one after the other.
        return read_scores(self.name, self.score(images, prompts), prompts, images.device)

    def _ask(self, images: Tensor, prompts: Sequence[str]) -> Pending[list[float]]:
        # It takes torchvision, which few rewards need.
        from ..preprocessing import images_to_pil

        texts = list(prompts) if self.reads_prompts else [""] * len(prompts)
        batch = Batch(self.name, self.url)
        batch.start(self._scores(images_to_pil(images), texts, batch.tally, _asks_anew.get()))
        return Pending(batch.result, batch.cancel)

    async def _scores(self, images: Sequence[Image], prompts: Sequence[str], tally: Usage, anew: bool) -> list[float]:
        """The scores of a batch: those that are known, and those that are asked for."""
        identity = f"{self.address.url} {self.protocol.identity}"

        def look_up() -> tuple[list[str], dict[str, float]]:
            keys = [key_of(identity, *pair) for pair in zip(images, prompts, strict=True)]
            found = {} if anew else {key: self._cache.get(key) for key in keys}
            return keys, {key: score for key, score in found.items() if score is not None}

        keys, known = await asyncio.to_thread(look_up)
        first = {key: index for index, key in reversed([*enumerate(keys)])}
        missing = [index for key, index in first.items() if key not in known] if self._keeps else [*range(len(keys))]
        missing.sort()
        self._meter.add(tally, cache_hits=len(keys) - len(missing))
        size = min(self.max_batch_size or len(keys), self.protocol.max_images or len(keys))
        parts = [missing[start : start + size] for start in range(0, len(missing), size)]
        asked = [self._part([images[i] for i in part], [prompts[i] for i in part], tally) for part in parts]
        # All are waited for: they are sent and may have to be paid, so that their scores are kept.
        answers = await asyncio.gather(*asked, return_exceptions=True)
        scores: dict[int, float] = {}
        for part, answer in zip(parts, answers, strict=True):
            if not isinstance(answer, BaseException):
                scores.update(zip(part, answer, strict=True))
        if self._keeps:
            new = {keys[index]: score for index, score in scores.items()}
            await asyncio.to_thread(self._cache.put_all, new)
            known |= new
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return [known[key] for key in keys] if self._keeps else [scores[index] for index in range(len(keys))]

    @property
    def _keeps(self) -> bool:
        return self.cache_size > 0 or self.cache_folder is not None

    async def _part(self, images: Sequence[Image], prompts: Sequence[str], tally: Usage) -> list[float]:
        """The scores of the images of one request."""
        from .session import as_json

        def body() -> bytes:
            return as_json(self.protocol.body([_png(image) for image in images], prompts))

        answer = await self._opened().ask(body, len(images), tally)
        input_tokens, output_tokens = self.protocol.tokens(answer)
        self._meter.add(tally, input_tokens=input_tokens, output_tokens=output_tokens)
        scores = self._read(answer, len(images))
        if isinstance(scores, AnswerError):
            # Of the error that shows a part of the answer, which may hold the key.
            fault = self._read(self.address.hidden_in(answer), len(images))
            found, remedy = (fault.found, fault.remedy) if isinstance(fault, AnswerError) else ("no scores", "mend it")
            raise OSError(f"Reward '{self.name}': {self.url} answered {found}; {remedy}.")
        return scores

    def _read(self, answer: Any, count: int) -> list[float] | AnswerError:
        try:
            return checked_scores(self.protocol.scores(answer, count), count)
        except AnswerError as error:
            return error

    def _opened(self) -> Session:
        """The connections of this process; on the event loop, where nothing comes between."""
        from .session import Session

        if self._session is None or self._session[0] != os.getpid():
            session = Session(
                self.address.at(self.protocol.path),
                self.timeouts,
                self.retries,
                self.max_concurrent_requests,
                self.max_requests_per_second,
                self._meter,
            )
            self._session = (os.getpid(), session)
            weakref.finalize(self, _close_later, session, os.getpid()).atexit = False
        return self._session[1]


def _check_kinds(kind: type, **given: Any) -> None:
    """Raises a `ValueError` for an argument that is neither of a kind nor None, or a text without characters."""
    for name, value in given.items():
        is_missing = value is None and kind is not str
        if not is_missing and (not isinstance(value, kind) or value == ""):
            # The value is not shown: it may be the key.
            words = "a text" if kind is str else f"{kind.__name__}(...), or None"
            raise ValueError(f"{name} is of the type {type(value).__name__}, or empty; give {words}")


def _close_later(session: Session, process: int) -> None:
    """Closes the connections of a reward that is gone."""
    if process == os.getpid():
        asyncio.run_coroutine_threadsafe(session.close(), event_loop())


def _png(image: Image) -> bytes:
    file = io.BytesIO()
    # Half the time of the default, for files that are little larger.
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()
