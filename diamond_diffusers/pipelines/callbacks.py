"""The stock pipeline's callback, called from the loop over particles."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from numbers import Number
from typing import Any

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch import Tensor, nn

from ..alignment.base import Method
from ..alignment.noise_rounds import NoiseRounds
from ..alignment.progress import Progress
from ..core.model import Conditions
from ..core.wording import shown
from ..families.base import Family
from .attributes import StockAttributes

UserCallback = Callable[..., dict[str, Any] | None]


def check_callback_signature(callback: UserCallback | None) -> None:
    """Raises a `TypeError` for what cannot be called as `callback_on_step_end` is."""
    wanted = "give a function of (pipe, step, timestep, tensors)"
    if callback is None:
        return
    if not callable(callback) or isinstance(callback, type):
        raise TypeError(f"callback_on_step_end is {shown(callback)}; {wanted}")
    try:
        # The call of a module passes on whatever it is given.
        signature = inspect.signature(callback.forward if isinstance(callback, nn.Module) else callback)
    except ValueError:
        # Some functions of C do not tell theirs.
        return
    try:
        signature.bind(None, 0, None, {})
    except TypeError:
        raise TypeError(f"callback_on_step_end is {shown(callback)}, which takes {signature}; {wanted}") from None


def check_callback(
    family: Family, alignment: Method, callback: UserCallback | None, names: Sequence[str]
) -> tuple[str, ...]:
    """Checks a callback of the stock `__call__`, and returns the names of the tensors that it is given.

    Args:
        callback: `callback_on_step_end`; those of diffusers name their tensors themselves.
        names: `callback_on_step_end_tensor_inputs`.

    Raises:
        TypeError: the names are no list.
        ValueError: a tensor is not available to callbacks, or the callback counts steps but the method has rounds.
    """
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"callback_on_step_end_tensor_inputs is {shown(names)}; give a list of names")
    if isinstance(callback, PipelineCallback | MultiPipelineCallbacks):
        names = callback.tensor_inputs
        if isinstance(alignment, NoiseRounds):
            raise ValueError(
                f"callback_on_step_end is a {type(callback).__name__}, which counts steps, but "
                f"{type(alignment).__name__} calls back once a round; leave it out, or take another alignment"
            )
    stock = getattr(family.pipeline, "_callback_tensor_inputs", ())
    available = ["latents", *(name for name in family.loop_tensors if name in stock)]
    for name in names:
        if name not in available:
            raise ValueError(
                f"callback_on_step_end_tensor_inputs holds {name!r}, which {type(family.pipeline).__name__} does not "
                f"show to callbacks; choose from {', '.join(available)}"
            )
    return tuple(names)


class StepEnd:
    """Called by a run after each step: moves the progress bar and calls the user's callback as stock loops do.

    A callback may change latents, tensors of the prompts, `_guidance_scale` and the options that the stock loop reads
    at each step. Changes count from the next step on, also if they are made in place; a score model keeps its own
    values. Estimates that were made ahead are made again.

    Args:
        pipe: the `DiamondMapPipeline`, the callback's first argument, which shows it the attributes of this call.
        family: the model of this call.
        alignment: the method that runs.
        levels: noise levels of the run.
        progress_bar: progress bar of the stock pipeline.
        callback: `callback_on_step_end` of the stock `__call__`.
        names: names of the tensors that the callback is given.
    """

    def __init__(
        self,
        pipe: StockAttributes,
        family: Family,
        alignment: Method,
        levels: list[float],
        progress_bar: Any,
        callback: UserCallback | None,
        names: Sequence[str],
    ) -> None:
        self.pipe, self.family, self.alignment = pipe, family, alignment
        self.levels, self.progress_bar = levels, progress_bar
        self.callback, self.names = callback, names
        # Of a run whose callback has turned guidance off, for when it is turned on again.
        self.negative_features: dict[str, Tensor] | None = None

    def __call__(self, progress: Progress) -> None:
        """Calls the callback and applies its changes to the progress."""
        self.progress_bar.update()
        if self.callback is None:
            return
        x, step, conditions = progress.drawn, progress.level_index, progress.law.conditions
        level = self.levels[step + 1]
        latents = self.family.to_stock(x, level)
        timestep = self.family.timestep(self.levels[step]).to(x.device, torch.float32)
        options = self._options(conditions)
        shown = {"latents": latents, **self.family.shown_tensors(conditions)}
        changed = self._changed(progress.index, timestep, shown)
        replaced = changed.pop("latents", None)
        if replaced is not None and replaced.shape != latents.shape:
            raise ValueError(
                f"callback_on_step_end returned latents of shape {list(replaced.shape)}; leave it at "
                f"{list(latents.shape)}"
            )
        now = self._options(conditions)
        set_anew = {name: value for name, value in now.items() if _differs(value, options[name])}
        if changed or set_anew:
            self._check_meaning([*changed, *set_anew])
            conditions = self.family.with_changed(conditions, changed) if changed else conditions
            progress.law = dataclasses.replace(progress.law, conditions=self._with_options(conditions, set_anew))
        elif replaced is None:
            return
        # Estimates that were made ahead are made again.
        progress.replace_particles(x if replaced is None else self.family.from_stock(replaced.to(x), level))

    def _changed(self, index: int, timestep: Tensor, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Calls the user's callback; returns the tensors that it changed in place or returned."""
        assert self.callback is not None, "only a user's callback is shown tensors"
        shown = {name: tensors[name] for name in self.names}
        before = {name: _copied(tensor) for name, tensor in shown.items()}
        try:
            with self.pipe._shows(self.family.pipeline):
                returned = self.callback(self.pipe, index, timestep, dict(shown))
        except StopIteration as error:
            # A loop around the call would take it for its own end.
            raise RuntimeError(
                "callback_on_step_end raised StopIteration; to end a run, let it set pipe._interrupt = True"
            ) from error
        if not isinstance(returned, Mapping | None):
            raise TypeError(
                f"callback_on_step_end returned a {type(returned).__name__}; return a dictionary such as "
                "{'latents': latents}, or None"
            )
        returned = returned or {}
        self._check_returned(returned, tensors)
        after = {name: returned.get(name, shown.get(name)) for name in tensors}
        return {
            name: tensor
            for name, tensor in after.items()
            if tensor is not None and not (name in before and _same(tensor, before[name]))
        }

    def _check_returned(self, returned: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
        for name, value in returned.items():
            if name not in tensors:
                raise ValueError(
                    f"callback_on_step_end returned {name!r}; with {type(self.family.pipeline).__name__} it can return "
                    f"{', '.join(tensors)}"
                )
            if not isinstance(value, Tensor | list | None):
                raise TypeError(f"callback_on_step_end returned {name} as {shown(value)}; return a tensor")
        latents = returned.get("latents")
        if latents is not None and not (isinstance(latents, Tensor) and latents.is_floating_point()):
            raise TypeError(f"callback_on_step_end returned latents as {shown(latents)}; return a floating tensor")

    def _options(self, conditions: Conditions) -> dict[str, Any]:
        """The options that the stock loop reads from its pipeline at each step."""
        # An embedded guidance scale is read once.
        names = {name for name in conditions.shared if name != "guidance_scale"}
        if hasattr(type(self.family.pipeline), "do_classifier_free_guidance"):
            names.add("guidance_scale")
        return {name: getattr(self.family.pipeline, f"_{name}", None) for name in names}

    def _with_options(self, conditions: Conditions, options: Mapping[str, Any]) -> Conditions:
        """The conditions with options that a callback has set.

        Raises:
            ValueError: guidance is turned on in a run that began without it.
        """
        shared = {name: value for name, value in options.items() if name in conditions.shared}
        conditions = dataclasses.replace(conditions, shared={**conditions.shared, **shared})
        self.negative_features = conditions.negative_features or self.negative_features
        if "guidance_scale" not in options:
            return conditions
        scale, guided = options["guidance_scale"], self.family.pipeline.do_classifier_free_guidance
        if guided and self.negative_features is None:
            raise ValueError(
                f"callback_on_step_end set _guidance_scale to {scale} in a run that began without classifier-free "
                "guidance, so that no negative prompt was encoded; begin with a guidance_scale that has it"
            )
        negative_features = self.negative_features if guided else None
        return dataclasses.replace(
            conditions, negative_features=negative_features, classifier_free_guidance_scale=scale
        )

    def _check_meaning(self, names: Sequence[str]) -> None:
        if isinstance(self.alignment, NoiseRounds):
            raise ValueError(
                f"callback_on_step_end changed {names[0]}, but {type(self.alignment).__name__} calls back once a "
                "round, whose samples would no longer be comparable; leave it, or take another alignment"
            )
        if self.alignment.uses_diamond_map(self.family):
            raise ValueError(
                f"callback_on_step_end changed {names[0]}, but the guidance of the Diamond Map is baked in; leave it, "
                "or align with look-aheads of the base (GlassPosterior)"
            )


def _differs(value: Any, before: Any) -> bool:
    return value is not before and not (isinstance(value, Number) and value == before)


def _copied(tensor: Any) -> Any:
    """A copy of a tensor, or of a list of tensors."""
    if isinstance(tensor, list):
        return [part.clone() for part in tensor]
    return None if tensor is None else tensor.clone()


def _same(tensor: Any, other: Any) -> bool:
    if isinstance(tensor, list) and isinstance(other, list):
        return len(tensor) == len(other) and all(map(torch.equal, tensor, other))
    return isinstance(other, Tensor) and torch.equal(tensor, other)
