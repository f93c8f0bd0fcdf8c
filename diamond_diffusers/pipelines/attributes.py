"""The attributes of a wrapped pipeline: a few are its own, and all others are delegated to the stock pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Self

from diffusers import DiffusionPipeline
from torch import nn

from ..core.conversions import WrongTypeError
from ..core.wording import shown
from ..families.base import Family
from .modules import checked_few_step

_OWN = ("pipeline", "family", "defaults", "_base_defaults", "_named_rewards", "_score_model")

_OF_CALLS: ContextVar[Mapping[int, DiffusionPipeline]] = ContextVar("stock pipelines of calls", default={})  # noqa: B039
"""By the identity of their wrappers, the stock pipelines of the calls whose callbacks run in this thread."""


class StockAttributes:
    """Reads and sets every attribute that is not defined here, or in a subclass, on the stock pipeline.

    Within the callback of a call they are those of that call.

    Args:
        pipeline: the stock pipeline; it cannot be replaced later.
        family: the family that reads the pipeline; it cannot be replaced later.
        defaults: values for arguments of a call that are not given.

    Attributes:
        few_step, score_model, preview_vae: as of `DiamondMapPipeline`; they may be set at any time.
    """

    def __init__(self, pipeline: DiffusionPipeline, family: Family, defaults: Mapping[str, Any]) -> None:
        self.__dict__.update(
            pipeline=pipeline, family=family, defaults=dict(defaults), _base_defaults={}, _named_rewards={}
        )

    def _checked_defaults(self, defaults: Mapping[str, Any]) -> Mapping[str, Any]:
        """Call defaults that a caller has set, checked."""
        return defaults

    def _take_defaults(self, defaults: Mapping[str, Any]) -> None:
        """Takes call defaults as they are."""
        self.__dict__["defaults"] = dict(defaults)

    @property
    def few_step(self) -> bool | tuple[str, ...] | None:
        return self.family.few_step

    @property
    def score_model(self) -> Self | None:
        return self.__dict__["_score_model"]

    @property
    def preview_vae(self) -> nn.Module | None:
        return self.family.preview_vae

    @contextmanager
    def _shows(self, pipeline: DiffusionPipeline) -> Iterator[None]:
        """Context in which the attributes are those of the stock pipeline of a call."""
        token = _OF_CALLS.set({**_OF_CALLS.get(), id(self): pipeline})
        try:
            yield
        finally:
            _OF_CALLS.reset(token)

    @property
    def _shown(self) -> DiffusionPipeline:
        return _OF_CALLS.get().get(id(self), self.pipeline)

    def __getattr__(self, name: str) -> Any:
        if name in _OWN or "pipeline" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self._shown, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("pipeline", "family"):
            raise AttributeError(f"{name!r} is fixed; wrap another pipeline with DiamondMapPipeline.from_pipe(...)")
        if name == "defaults":
            self._take_defaults(self._checked_defaults(value))
        elif name == "few_step":
            self.family.few_step = checked_few_step(self.family, value)
        elif name == "score_model":
            if not isinstance(value, DiffusionPipeline | None):
                raise WrongTypeError(f"score_model is {shown(value)}; give a pipeline, stock or wrapped, or None")
            wrapped = value if value is None or isinstance(value, StockAttributes) else type(self)(value)  # type: ignore[call-arg]
            self.__dict__["_score_model"] = wrapped
            self.family.score_model = wrapped and wrapped.family
        elif name == "preview_vae":
            if value is not None and not isinstance(value, nn.Module):
                raise TypeError(f"preview_vae is {shown(value)}; give a decoder of the same latents, or None")
            self.family.preview_vae = value
        else:
            setattr(self._shown, name, value)

    @property  # type: ignore[misc]
    def __class__(self) -> type[DiffusionPipeline]:
        """The stock pipeline's class, by which `AutoPipelineForText2Image.from_pipe` and its like recognise it.

        So `isinstance` is true of both classes, while `type` returns `DiamondMapPipeline`.
        """
        return type(self.__dict__["pipeline"]) if "pipeline" in self.__dict__ else type(self)

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickle refuses objects whose two classes differ, unless they say how they are made.
        return object.__new__, (type(self),), self.__dict__

    def __dir__(self) -> list[str]:
        return sorted({*dir(type(self)), *vars(self), *dir(self.pipeline)})
