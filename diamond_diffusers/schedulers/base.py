"""What the GLASS schedulers share: a stock sampling loop that calls them runs GLASS transitions without knowing it."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch
from diffusers import ConfigMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ..core.glass import EarlyStop, inner_step, inner_times, query_level
from ..core.glass import query as fused
from ..core.interval import intervals
from ..core.levels import GaussianPath, Level
from ..transitions.glass import GlassTransition

Generators = torch.Generator | Sequence[torch.Generator] | None
_Initializer = TypeVar("_Initializer", bound=Callable[..., None])


@dataclass
class GlassSchedulerOutput(BaseOutput):
    """What a step returns.

    Attributes:
        prev_sample: the network's next input, `[B, ...]`; after the last step the particle at the final level.
        pred_original_sample: the clean sample that the network predicts at its last input, `[B, ...]`.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor


@dataclass(frozen=True)
class _Query:
    """One evaluation: of the inner flow `early_stop`, at `s`, on the way to `s_next`."""

    early_stop: EarlyStop
    s: float
    s_next: float

    @property
    def level(self) -> float:
        return query_level(self.early_stop.interval.start, self.s)


@dataclass
class _InnerFlow:
    """The particles `x` of one transition and their inner states, in the bounded coordinate, and the last `(s, D)`."""

    x: Tensor
    xbar: Tensor
    previous: tuple[float, Tensor] | None = None


def extends_options_of(base: type[ConfigMixin]) -> Callable[[_Initializer], _Initializer]:
    """Adds the options of a base class to the signature of an `__init__`, from which diffusers reads a configuration.

    All of them become keywords; those that `__init__` names itself keep its own default.
    """

    def extend(init: _Initializer) -> _Initializer:
        own = [p for p in inspect.signature(init).parameters.values() if p.kind is not p.VAR_KEYWORD]
        inherited = [
            parameter.replace(kind=parameter.KEYWORD_ONLY)
            for name, parameter in inspect.signature(base.__init__).parameters.items()
            if name not in {p.name for p in own}
        ]
        # inspect reads it, though the type of callables does not have it.
        init.__signature__ = inspect.Signature([*own, *inherited])  # type: ignore[attr-defined]
        return init

    return extend


def draw_noise(x: Tensor, generator: Generators) -> Tensor:
    """Standard normals of the shape of `x`, `[B, ...]`, in float32.

    Raises:
        ValueError: the generators are neither one nor one for each image.
    """
    if isinstance(generator, Sequence):
        generator = list(generator)
        if len(generator) not in (1, len(x)):
            raise ValueError(
                f"generator holds {len(generator)} generators for {len(x)} images; give one, or one for each image"
            )
    return randn_tensor(x.shape, generator=generator, device=x.device, dtype=torch.float32)


class GlassSchedulerMixin(ABC):
    """GLASS transitions (arXiv 2509.25170) for a loop that alternates network evaluations and calls of `step`.

    A transition between two *outer* levels takes `num_inner_steps` evaluations, each of which only asks for the
    denoised sample at some noise level. So outer times inner steps look like a plain list of timesteps: `step` returns
    the next query as the next sample, and keeps the particle and its inner state here, in float32.

    Between two queries of one transition the latents of the loop are a query and not a particle: a change made to them
    there would be lost, and is refused.
    """

    init_noise_sigma = 1.0
    sigmas: Tensor
    timesteps: Tensor
    _path: GaussianPath

    def _set_glass_options(self, num_inner_steps: int, correlation: float | str, solver: str) -> None:
        self.transition = GlassTransition(num_inner_steps, correlation, solver)
        self._generator: Generators = None
        self._queries: list[_Query] = []
        self._counted_by_caller = False
        self._restart()

    def _restart(self) -> None:
        self._step_index: int | None = None
        self._begin_index: int | None = None
        self._flow: _InnerFlow | None = None
        # What `step` returned last, in float32, and the dtype in which it did.
        self._returned: tuple[Tensor, torch.dtype] | None = None

    @abstractmethod
    def _network_timesteps(self, levels: Tensor) -> Tensor:
        """The network's timesteps of noise-to-signal ratios `[Q]`."""

    def _path_scale(self, level: float) -> float:
        """What an observation in the bounded coordinate is multiplied by to have the family's scale."""
        return torch.hypot(*self._path.coefficients(self._path.time(level))).item()

    def _input_scale(self, level: float) -> float:
        """The same, to make the network's input."""
        return self._path_scale(level)

    def _denoised(self, sample: Tensor, model_output: Tensor, level: float) -> Tensor:
        """The clean sample that the network's output at an input of this level stands for."""
        return self._path.denoised(sample, model_output, self._path.time(level))

    @property
    def order(self) -> int:
        """Timesteps of one outer step: the number of inner steps."""
        return self.transition.num_inner_steps

    @property
    def step_index(self) -> int | None:
        """Position in `timesteps`; None before the first step."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Position in `timesteps` at which a run begins; None if the pipeline did not say."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begins the run at a position in `timesteps`, as image-to-image pipelines do.

        Raises:
            ValueError: the position is not the start of an outer step, or is not the one that the pipeline meant.
        """
        if begin_index > 0 and self.order > 1 and self._counted_by_caller:
            # Pipelines that pass levels take the length of the expanded list for the number of outer steps.
            raise ValueError(
                f"begin_index is {begin_index}, but this pipeline passes levels and then counts inner steps as outer "
                "ones, so that its strength would mean another level; give it strength=1.0 and sigmas that begin at "
                "the level wanted"
            )
        if not 0 <= begin_index < len(self.timesteps) or begin_index % self.order:
            raise ValueError(
                f"begin_index is {begin_index}; give a multiple of the {self.order} inner steps, "
                f"below {len(self.timesteps)}"
            )
        self._begin_index = begin_index

    def set_generator(self, generator: Generators) -> None:
        """Names what later steps draw from, for pipelines that call `step` without a generator.

        Args:
            generator: one, or one for each image, or None for torch's global state; kept until it is replaced.
        """
        self._generator = generator

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """The sample itself."""
        return sample

    def _expand(self, levels: list[float], device: str | torch.device | None, counted_by_caller: bool) -> None:
        """Turns falling outer levels, the final one included, into the timesteps of all queries."""
        if len(levels) < 2 or any(not after < before for before, after in pairwise(levels)):
            raise ValueError(f"the outer noise-to-signal ratios are {levels}; let them fall, in at least one step")
        self._queries = [
            _Query(early_stop, s, s_next)
            for early_stop in (
                EarlyStop(interval, interval.correlation(self.transition.correlation)) for interval in intervals(levels)
            )
            for s, s_next in pairwise(inner_times(self.order, early_stop.interval.start, early_stop.stop).tolist())
        ]
        query_levels = torch.tensor([query.level for query in self._queries], dtype=torch.float64)
        self.timesteps = self._network_timesteps(query_levels).to(device, torch.float32)
        self._counted_by_caller = counted_by_caller
        self._restart()

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> GlassSchedulerOutput | tuple[Tensor, Tensor]:
        """Takes the network's output at one timestep and returns its next input.

        Args:
            model_output: `[B, ...]`, at the sample returned last, or at the initial latents.
            timestep: not read; the position in `timesteps` is counted.
            sample: the latents of the loop. The float32 state kept here stands in for them, unless they were replaced
                between two outer steps. Gradients flow through either.
            generator: one, or one for each image; None for that of `set_generator`.
            return_dict: whether the output is a `GlassSchedulerOutput` or a tuple.

        Returns:
            The next sample and the predicted clean sample, in the dtype of the network's output.

        Raises:
            ValueError: the timesteps are used up, the sample was changed within a transition, or the number of
                generators does not fit.
        """
        if self._step_index is None:
            self._step_index = self._begin_index or 0
        if self._step_index >= len(self._queries):
            raise ValueError("step was called once for each timestep already; call set_timesteps before another run")
        query = self._queries[self._step_index]
        sample = self._current_sample(sample)
        denoised = self._denoised(sample, model_output.to(torch.float32), query.level)
        flow = self._flow
        if self._is_between_transitions:
            x = sample / self._input_scale(query.level)
            noise = torch.zeros_like(x)
            if self.transition.draws_noise(query.early_stop.interval):
                noise = draw_noise(x, self._generator if generator is None else generator)
            flow = self._flow = _InnerFlow(x, noise)
        # It began with the transition.
        assert flow is not None
        flow.xbar = inner_step(
            self.transition.solver,
            query.s,
            query.s_next,
            flow.xbar,
            denoised,
            flow.previous,
            query.early_stop.interval.start,
        )
        flow.previous = (query.s, denoised)
        self._step_index += 1
        next_sample = self._next_sample(query, flow)
        self._returned = (next_sample, model_output.dtype)
        output = GlassSchedulerOutput(next_sample.to(model_output.dtype, copy=True), denoised.to(model_output.dtype))
        if self._step_index == len(self._queries):
            self._flow = self._returned = None
        return output if return_dict else output.to_tuple()

    @property
    def _is_between_transitions(self) -> bool:
        # It is asked within a step, which sets the position first.
        assert self._step_index is not None
        return self._step_index % self.order == 0

    def _current_sample(self, sample: Tensor) -> Tensor:
        """The state that the loop's rounded sample stands for."""
        if self._returned is None:
            return sample.to(torch.float32)
        state, dtype = self._returned
        expected = state.to(dtype).to(sample)
        if sample.shape == state.shape and torch.allclose(sample, expected, rtol=0, atol=0, equal_nan=True):
            return state
        if not self._is_between_transitions:
            raise ValueError(
                f"sample was changed after step {self._step_index}, in the middle of a transition, where it is a query "
                f"and not a particle; change latents only after a multiple of {self.order} steps, or take "
                "num_inner_steps=1"
            )
        return sample.to(torch.float32)

    def _next_sample(self, query: _Query, flow: _InnerFlow) -> Tensor:
        early_stop = query.early_stop
        level: Level
        if self._is_between_transitions:
            x, level = early_stop.observation(flow.x, flow.xbar), early_stop.interval.end
        else:
            x, level = fused(flow.x, early_stop.interval.start, flow.xbar, query.s_next)
        is_final = self._step_index == len(self._queries)
        return x * (self._path_scale if is_final else self._input_scale)(float(level))
