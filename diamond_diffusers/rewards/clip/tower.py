"""A CLIP's two towers behind one interface, loaded once for all rewards that use the same checkpoint."""

from __future__ import annotations

import copy
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Self
from weakref import WeakSet, WeakValueDictionary

import torch
from torch import Tensor, nn

from ...core.tensors import at_least_float32
from ..preprocessing import ImagePreprocessing
from .prompt_cache import PromptCache

logger = logging.getLogger(__name__)

PROMPTS_REMEMBERED = 1024

Preprocessing = Callable[[Tensor], Tensor]


class CLIPTower(ABC):
    """A frozen CLIP. Each subclass runs the models of one library.

    Args:
        model: the library's model, with a parameter `logit_scale`.
        preprocessing: maps images to the pixels that the model was trained on.
        tokenizer: the library's tokenizer.
        max_tokens: largest number of tokens of a text.
        checkpoint: name of the checkpoint, for messages.

    Attributes:
        logit_scale: factor of cosines with which the model was trained.
        users: the rewards that hold this tower.
    """

    _key: TowerKey | None = None

    def __init__(
        self, model: Any, preprocessing: ImagePreprocessing, tokenizer: Any, max_tokens: int, checkpoint: str
    ) -> None:
        self.model: Any = model.eval().requires_grad_(False)
        self.preprocessing = preprocessing
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.checkpoint = checkpoint
        # Read before the model is cast: bfloat16 would move it by 2 %.
        self.logit_scale = model.logit_scale.float().exp().item()
        self.users: WeakSet[Any] = WeakSet()
        self._has_warned_of_truncation = False
        self._text_features = PromptCache(PROMPTS_REMEMBERED)

    @abstractmethod
    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Image embeddings `[B, D]` of pixels `[B, 3, h, w]` in the model's dtype."""

    @abstractmethod
    def encode_texts(self, texts: list[str]) -> Tensor:
        """Text embeddings `[N, D]`; longer texts are cut to `max_tokens`."""

    @abstractmethod
    def count_tokens(self, texts: list[str]) -> list[int]:
        """The number of tokens of each text before it is cut."""

    @property
    @abstractmethod
    def image_module(self) -> nn.Module:
        """The part of the model that sees the pixels."""

    @abstractmethod
    def checkpoint_layers(self) -> None:
        """Makes every layer recompute its activations in the backward pass."""

    @property
    def device(self) -> torch.device:
        """Of the model."""
        return self.model.logit_scale.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the model."""
        return self.model.logit_scale.dtype

    def image_features(self, images: Tensor, preprocessing: Preprocessing) -> Tensor:
        """Unit features `[B, D]` of images `[B, 3, H, W]` in [0, 1], on the model's device, with their graph."""
        pixels = preprocessing(at_least_float32(images.to(self.device)))
        return nn.functional.normalize(at_least_float32(self.encode_pixels(pixels.to(self.dtype))), dim=-1)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Unit features `[B, D]` of `B` texts, on the model's device, without a graph; cached."""
        return self._text_features(texts, self._encode_texts)

    def on(self, device: torch.device | str | None, dtype: torch.dtype | None) -> CLIPTower:
        """The tower on a device and in a dtype: this one, moved, if it is not shared; else another one, or a copy."""
        # `shared_tower`, which makes all towers, has placed it.
        assert self._key is not None
        source, device, dtype = self._key[0], device or self.device, dtype or self.dtype
        if dtype != self.dtype and at_least_float32(self.model.logit_scale).dtype != self.dtype:
            # Weights that were rounded once are no longer those of the checkpoint.
            source = source, self.dtype
        key = _key(source, device, dtype)
        if key == self._key:
            return self
        if key in _towers:
            return _towers[key]
        tower = self if len(self.users) <= 1 else self._copy()
        return tower._move(key)

    def _move(self, key: TowerKey) -> Self:
        _, device, dtype = key
        changes_dtype = dtype != self.dtype
        self.model.to(device=device, dtype=dtype)
        if changes_dtype:
            self._text_features.clear()
        else:
            self._text_features.to(device)
        if self._key is not None and _towers.get(self._key) is self:
            del _towers[self._key]
        self._key = key
        _towers[key] = self
        return self

    def __getstate__(self) -> dict[str, Any]:
        # A set of weak references cannot be pickled.
        return {**self.__dict__, "users": list(self.users)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, users=WeakSet(state["users"]))

    def _copy(self) -> Self:
        copied = copy.copy(self)
        copied.model = copy.deepcopy(self.model)
        copied.users = WeakSet()
        copied._text_features = PromptCache(PROMPTS_REMEMBERED)
        return copied

    def _encode_texts(self, texts: list[str]) -> Tensor:
        self._warn_of_truncation(texts)
        return nn.functional.normalize(at_least_float32(self.encode_texts(texts)), dim=-1)

    def _warn_of_truncation(self, texts: list[str]) -> None:
        if self._has_warned_of_truncation:
            return
        for text, count in zip(texts, self.count_tokens(texts), strict=True):
            if count > self.max_tokens:
                cut = f"reads only {self.max_tokens} of the {count} tokens of {text!r}"
                logger.warning("The CLIP '%s' %s; longer prompts are cut.", self.checkpoint, cut)
                self._has_warned_of_truncation = True
                return


TowerKey = tuple[Hashable, torch.device, torch.dtype]
_towers: WeakValueDictionary[TowerKey, CLIPTower] = WeakValueDictionary()


def shared_tower(
    source: Hashable, load: Callable[[], CLIPTower], device: torch.device | str, dtype: torch.dtype
) -> CLIPTower:
    """The tower of a source, device and dtype: one that is in use, or else a new one.

    Args:
        source: everything that the weights depend on.
        load: makes a new tower.
        device: device of the model.
        dtype: dtype of the model.
    """
    key = _key(source, device, dtype)
    return _towers[key] if key in _towers else load()._move(key)


def files_of(checkpoint: str | PathLike[str]) -> Hashable:
    """A checkpoint's name and the times of its files on disk: a checkpoint that was written again counts as new."""
    path = Path(checkpoint)
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
    return str(checkpoint), *((file.name, file.stat().st_mtime_ns) for file in files)


def _key(source: Hashable, device: torch.device | str, dtype: torch.dtype) -> TowerKey:
    # An empty tensor knows the number of the current device where "cuda" alone does not.
    return source, torch.empty(0, device=device).device, dtype
