"""A prepared call of a model: its arguments, its encoded prompts and its noise levels."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ..alignment.base import Method
from ..alignment.law import ScoreModel
from ..alignment.random_source import RandomSource
from ..core.model import Conditions
from ..core.tensors import working_dtype
from ..core.wording import shown
from ..families.base import Family
from ..families.compat import alone_with
from .arguments import NEGATIVE_PROMPTS, StockArguments, resolve_arguments
from .modules import frozen, refuse_cache

_SHARED_WITH_SCORE_MODEL = (
    "prompt",
    "negative_prompt",
    "height",
    "width",
    "use_resolution_binning",
    "num_images_per_prompt",
)


def prepare(
    family: Family,
    given: Mapping[str, Any],
    defaults: Mapping[str, Any],
    reward_prompt: str | list[str] | None = None,
) -> Call:
    """Resolves and checks the arguments of a call. `DiamondMapPipeline.prepare` does this for its own model.

    Args:
        family: the model.
        given: keywords of the stock `__call__`; None counts as not given.
        defaults: the model's own values for keywords that are not given; other names in it are ignored.
        reward_prompt: text that the reward reads instead of the prompt.

    Raises:
        TypeError: a keyword is unknown or refused.
        ValueError: an argument is out of range, or the network has a feature cache enabled.
    """
    refuse_cache(family)
    # A clone that is made in inference mode could not be differentiated either.
    with torch.inference_mode(False):
        arguments = resolve_arguments(family, given, defaults)
    return Call(family.for_call(arguments), arguments, tuple(arguments.reward_texts(reward_prompt)))


@dataclass(frozen=True, eq=False)
class Call:
    """A prepared call of a model, as `DiamondMapPipeline.prepare` returns it. Use it in a sampling loop of your own.

    The arguments are checked when the call is prepared. The prompts are encoded once, when `conditions` or `levels`
    first need them, so that wrong arguments are refused before that work.

    Attributes:
        family: the model, with a state of its own for this call.
        arguments: every keyword of the stock `__call__`, resolved.
        texts: texts that the reward reads, one for each of the `B` images; empty if they are not known.
        score_call: the same prompts as a call of the score model; None where the model has none.

    Example:
        >>> from diamond_diffusers import DiamondMapPipeline
        >>> call = DiamondMapPipeline.from_pretrained().prepare("a red circle", num_images_per_prompt=2)
        >>> with call.active():
        ...     levels, conditions = call.levels(num_inference_steps=4), call.conditions
        >>> len(levels), call.num_images, call.texts
        (5, 2, ('a red circle', 'a red circle'))
    """

    family: Family
    arguments: StockArguments
    texts: tuple[str, ...]
    score_call: Call | None = None
    _levels: dict[int, tuple[float, ...]] = field(default_factory=dict, init=False, repr=False)

    @property
    def num_images(self) -> int:
        """The number `B` of images: prompts times `num_images_per_prompt`."""
        return len(self.texts)

    @property
    def num_steps(self) -> int:
        """Steps of the sampler that are asked for: those that are listed, else their number."""
        for name in ("timesteps", "sigmas"):
            if (listed := self.arguments.get(name)) is not None:
                return len(listed)
        return self.arguments.num_inference_steps

    @property
    def modules(self) -> list[nn.Module]:
        """Everything with weights that the call evaluates, but for the reward."""
        scoring = self.family.score_model
        candidates: list[object] = [*self.family.pipeline.components.values(), self.family.preview_vae]
        if scoring is not None:
            candidates += [*scoring.pipeline.components.values(), scoring.preview_vae]
        return [module for module in candidates if isinstance(module, nn.Module)]

    @property
    def device(self) -> torch.device:
        """The device on which the images are made."""
        return self.family.device

    @contextmanager
    def active(self) -> Iterator[None]:
        """Context in which the model is as this call samples and decodes it: with frozen weights, and a float32 VAE
        where its own overflows.

        It may be entered within itself, and by several calls at once. Whatever a call evaluates, it evaluates here: for
        weights that require gradients torch chooses other kernels, which round differently, even under `no_grad`.
        """
        with self.family.calling(), frozen(self.modules):
            yield

    @cached_property
    def conditions(self) -> Conditions:
        """The encoded prompts, a row for each image."""
        with torch.inference_mode(False), torch.no_grad(), self.active(), alone_with(self.family.network_module):
            return self.family.encode(self.arguments)

    def levels(self, num_inference_steps: int | None = None) -> list[float]:
        """Falling noise-to-signal ratios of a run, from first to last, computed once.

        Args:
            num_inference_steps: number of steps of the run; None for that of the call.
        """
        steps = self.arguments.num_inference_steps if num_inference_steps is None else num_inference_steps
        if steps not in self._levels:
            arguments = StockArguments({**self.arguments, "num_inference_steps": steps})
            self._levels[steps] = tuple(self.family.levels(arguments, self.conditions))
        return list(self._levels[steps])

    @property
    def scores(self) -> ScoreModel | None:
        """The score model and its own encoding of the prompts; None where the model has none."""
        call = self.score_call
        return None if call is None else ScoreModel(call.family, call.conditions)

    def with_score_model(self, family: Family, defaults: Mapping[str, Any]) -> Call:
        """This call with a score model, which encodes the same prompts by itself.

        Args:
            family: the score model.
            defaults: the score model's own defaults, as in `prepare`.

        Raises:
            ValueError: the prompts are not given as text.
        """
        if self.arguments.prompt is None:
            raise ValueError("prompt is None, but score_model encodes prompts by itself; give the prompt as text")
        taken = inspect.signature(type(family.pipeline).__call__).parameters
        shared = {name: self.arguments.get(name) for name in _SHARED_WITH_SCORE_MODEL if name in taken}
        given = {name: value for name, value in shared.items() if value is not None}
        return replace(self, score_call=prepare(family, given, defaults))

    def check_baked_guidance(self) -> None:
        """Raises a `ValueError` if the call asks for other guidance than the Diamond Map was distilled with.

        The map was distilled with the empty negative prompt; whether `negative_prompt_embeds` embed it cannot be told.
        """
        remedy = "or align with look-aheads of the base (GlassPosterior)"
        assert self.family.posterior_map is not None, "a method that uses the map was resolved with it"
        for name, baked in self.family.posterior_map.guidance.items():
            if self.arguments.get(name) != baked:
                raise ValueError(
                    f"{name} is {self.arguments.get(name)}, but the Diamond Map was distilled with {baked}, which is "
                    f"baked in; leave it at {baked}, {remedy}"
                )
        for name in NEGATIVE_PROMPTS:
            negative = self.arguments.get(name)
            if negative if negative is None or isinstance(negative, str) else any(negative):
                raise ValueError(
                    f"{name} is {negative!r}, but the Diamond Map was distilled with the empty one, which is baked "
                    f"in; leave it out, {remedy}"
                )


def starting_particles(call: Call, method: Method, level: float, random: RandomSource) -> Tensor:
    """Particles `[B P, ...]` in the bounded coordinate; the first of each image starts where the stock pipeline would.

    Args:
        call: the call; particles are made of its `latents`, if it has any.
        method: the method, which has `P` particles for each image.
        level: first noise level of the run.
        random: source of the noise, if the call has no `latents`.

    Raises:
        TypeError: `latents` is no tensor.
        ValueError: the number or the shape of rows of `latents` does not fit, or all particles of an image would be the
            same.
    """
    family, count, particles = call.family, call.num_images, method.num_particles

    def stock(num_rows: int, generators: Any, latents: Tensor | None = None) -> Tensor:
        return family.prepare_latents(call.arguments, call.conditions, num_rows, generators, latents)

    if call.arguments.latents is not None:
        x = stock(count * particles, None, _given_rows(call, method))
    else:
        x = stock(count, random.generators)
        if particles > 1:
            generators = random.aside.generators
            if isinstance(generators, list):
                generators = [generator for generator in generators for _ in range(particles - 1)]
            more = stock(count * (particles - 1), generators)
            x = torch.cat([x.unflatten(0, (count, 1)), more.unflatten(0, (count, -1))], 1).flatten(0, 1)
    return family.from_stock(x.to(working_dtype(x)), level)


def _given_rows(call: Call, method: Method) -> Tensor:
    """The `latents` of a call, with one row for each particle."""
    latents, count, particles = call.arguments.latents, call.num_images, method.num_particles
    if not isinstance(latents, Tensor):
        raise TypeError(f"latents is {shown(latents)}; give a tensor with a row for each image")
    one = call.family.prepare_latents(call.arguments, call.conditions, 1, torch.Generator())
    if latents.shape[1:] != one.shape[1:]:
        raise ValueError(
            f"latents is of shape {list(latents.shape)}; at this height and width a row is of shape "
            f"{list(one.shape[1:])}"
        )
    if len(latents) not in (count, count * particles):
        raise ValueError(
            f"latents holds {len(latents)} rows for {count} images of {particles} particles; "
            f"give {count} or {count * particles}"
        )
    if len(latents) == count and particles > 1:
        if method.transition is not None and not method.transition.is_stochastic:
            raise ValueError(
                f"latents holds {count} rows, from which all {particles} particles of an image would take the "
                f"same deterministic path; give {count * particles} rows or a stochastic transition"
            )
        latents = latents.repeat_interleave(particles, 0)
    return latents
