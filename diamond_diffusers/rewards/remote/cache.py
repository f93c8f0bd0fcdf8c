"""Scores that are known already, by image and prompt."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Mapping
from os import PathLike
from pathlib import Path

from PIL.Image import Image

from .protocols import LARGEST

logger = logging.getLogger(__name__)

MAX_BYTES = 256
"""Of a file with a score; a larger one is none."""


def key_of(identity: str, image: Image, prompt: str) -> str:
    """What stands for an image and a prompt, of a judge: the same where the pixels are, whatever the file.

    Args:
        identity: all else on which the score depends.
        image: 8-bit RGB.
        prompt: its text.
    """
    digest = hashlib.sha256()
    for part in (identity.encode(), repr(image.size).encode(), image.tobytes(), prompt.encode(errors="surrogatepass")):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


class ScoreCache:
    """Scores in memory, and in a folder where one is given, which several processes may share.

    A file holds one score, and is there as a whole or not at all. One that is damaged counts as missing.

    Args:
        size: how many scores are kept in memory, of which the longest unused one goes first; 0 for none.
        folder: None for memory alone.

    Example:
        >>> cache = ScoreCache(1)
        >>> cache.put("a", 0.5); cache.put("b", 0.7); cache.get("a"), cache.get("b")
        (None, 0.7)
    """

    def __init__(self, size: int, folder: str | PathLike[str] | None = None) -> None:
        self.size = size
        self.folder = None if folder is None else Path(folder)
        self._scores: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()
        self._has_warned = False

    def get(self, key: str) -> float | None:
        """The score of a key; None where it is not known."""
        with self._lock:
            if key in self._scores:
                self._scores.move_to_end(key)
                return self._scores[key]
        score = None if self.folder is None else _read(self._file(key))
        if score is not None:
            self._keep(key, score)
        return score

    def put(self, key: str, score: float) -> None:
        """Keeps a score. A folder that cannot be written to is no reason to lose it: a warning says so once."""
        self._keep(key, score)
        if self.folder is None:
            return
        try:
            _write(self._file(key), score)
        except OSError as error:
            if not self._has_warned:
                self._has_warned = True
                logger.warning(
                    "Scores cannot be kept in the cache_folder '%s' (%s); make room, or name another one. This is said "
                    "once.",
                    *(self.folder, error.strerror or error),
                )

    def put_all(self, scores: Mapping[str, float]) -> None:
        """Keeps several."""
        for key, score in scores.items():
            self.put(key, score)

    def _keep(self, key: str, score: float) -> None:
        with self._lock:
            self._scores[key] = score
            self._scores.move_to_end(key)
            while len(self._scores) > self.size:
                self._scores.popitem(last=False)

    def _file(self, key: str) -> Path:
        assert self.folder is not None, "the caller has looked"
        return self.folder / key[:2] / f"{key}.json"


def _read(file: Path) -> float | None:
    try:
        with file.open("rb") as opened:
            content = json.loads(opened.read(MAX_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    score = content.get("score") if isinstance(content, dict) else None
    is_score = isinstance(score, float) and abs(score) <= LARGEST
    return score if is_score else None


def _write(file: Path, score: float) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, partial = tempfile.mkstemp(dir=file.parent, prefix=".", suffix=".partial")
    try:
        with os.fdopen(descriptor, "w") as opened:
            json.dump({"score": score}, opened)
        os.replace(partial, file)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise
