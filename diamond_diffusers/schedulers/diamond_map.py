"""Transitions of a Posterior Diamond Map for sampling loops of one's own."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple, NoReturn

import torch
from diffusers import FlowMapEulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_flow_map_euler_discrete import FlowMapEulerDiscreteSchedulerOutput
from torch import Tensor

from ..core.glass import EarlyStop, inner_times
from ..core.interval import intervals
from ..core.levels import RectifiedFlowPath
from ..core.tensors import working_dtype
from ..transitions.diamond import DiamondTransition
from .base import Generators, draw_noise, extends_options_of
from .flow_options import FlowOptionsMixin


class MapInputs(NamedTuple):
    """Where a Diamond Map is to be evaluated, in the order of its arguments; the conditions follow.

    Attributes:
        xbar: inner states `[B, ...]`.
        s: their inner time in (0, 1].
        r: the inner time to map to, in `[0, s)`.
        x: the samples `[B, ...]` in the bounded coordinate.
        noise_to_signal: their level.
    """

    xbar: Tensor
    s: float
    r: float
    x: Tensor
    noise_to_signal: float

    def mean_velocity(self, denoised: Tensor) -> Tensor:
        """`phi = (xbar_s - D_th) / s`, `[B, ...]`, of what the map's mean denoiser returns for these inputs."""
        return (self.xbar - denoised) / self.s


class DiamondMapScheduler(FlowOptionsMixin, FlowMapEulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler):
    """Samples a rectified-flow model by early-stopped transitions of its Posterior Diamond Map (arXiv 2602.05993).

    A transition draws inner noise, which the map carries from `s = 1` to the stop of `EarlyStop` in `num_map_steps`
    evaluations: `X_{s -> r}(xbar_s) = xbar_s - (s - r) phi` with the mean velocity `phi`. A loop asks where to evaluate
    the map, and hands in what it gave:

        for t in scheduler.timesteps:
            inputs = scheduler.map_inputs(sample, t, generator)
            denoised = diamond_map.mean_denoiser(*inputs, conditions)
            sample = scheduler.step(inputs.mean_velocity(denoised), t, sample).prev_sample

    Levels and their shift are those of `FlowMatchEulerDiscreteScheduler`. With this scheduler in it,
    `DiamondMapPipeline` without alignment samples by the same transitions. A stock pipeline, which evaluates its own
    network, cannot use it, and it is not saved with any.

    Args:
        num_map_steps: evaluations of one transition.
        correlation: `rho` in `[0, 1]` between the noises at the ends of a transition; `"ddpm"` makes the chain Markov.
        **options: of `FlowMatchEulerDiscreteScheduler`; `invert_sigmas` and `stochastic_sampling` are refused.

    Raises:
        ValueError: an option is out of range or not supported.

    Example:
        >>> scheduler = DiamondMapScheduler.from_config(pipe.scheduler.config)
    """

    instead = "DiamondMapPipeline with DiamondTransition()"
    _path = RectifiedFlowPath()

    @register_to_config
    @extends_options_of(FlowMatchEulerDiscreteScheduler)
    def __init__(self, *, num_map_steps: int = 1, correlation: float | str = "ddpm", **options: Any) -> None:
        self._refuse_unsupported(options)
        self.transition = DiamondTransition(num_map_steps, correlation)
        # The flow map's own __init__ sets timesteps, for which a dynamic shift has no mu yet.
        FlowMatchEulerDiscreteScheduler.__init__(self, **options)
        self._early_stops: list[EarlyStop] = []
        self._restart()

    def _restart(self) -> None:
        self._step_index: int | None = None
        # The inner state, from the first evaluation of a transition to its last.
        self._xbar: Tensor | None = None
        # Between `map_inputs` and `step`.
        self._inputs: MapInputs | None = None

    @property
    def order(self) -> int:
        """Timesteps of one transition: the number of map steps."""
        return self.transition.num_map_steps

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """Starts a run; arguments as of `FlowMatchEulerDiscreteScheduler`, and all of them count transitions.

        Afterwards `sigmas` holds the levels `[num_inference_steps + 1]`, the final zero included, and `timesteps` those
        that transitions start from in thousandths, each `num_map_steps` times.

        Raises:
            ValueError: the levels do not fall from at most 1, the numbers of steps differ, or `mu` is missing for a
                dynamic shift.
        """
        if num_inference_steps is None and sigmas is None and timesteps is None:
            raise ValueError("num_inference_steps, sigmas and timesteps are all None; give one of them")
        FlowMatchEulerDiscreteScheduler.set_timesteps(self, num_inference_steps, device, sigmas, mu, timesteps)
        levels = self._path.noise_to_signal(self.sigmas.cpu().double()).tolist()
        if any(not 0 <= after < before for before, after in pairwise(levels)):
            raise ValueError(
                f"the sigmas are {self.sigmas.tolist()}; let them fall from at most 1, and leave out the final 0"
            )
        self.timesteps = (self.sigmas[:-1] * self.config.num_train_timesteps).repeat_interleave(self.order)
        self._early_stops = [
            EarlyStop(interval, interval.correlation(self.transition.correlation)) for interval in intervals(levels)
        ]
        self._restart()

    def map_inputs(self, sample: Tensor, timestep: float | Tensor, generator: Generators = None) -> MapInputs:
        """Where the map is to be evaluated next; the first call of a transition draws its inner noise.

        Args:
            sample: the latents of the loop, `[B, ...]`.
            timestep: the next one of `timesteps`; a run may begin at any of them.
            generator: one, or one for each row; None for torch's global state.

        Returns:
            Arguments of the map, in float32.

        Raises:
            ValueError: `timestep` is not the next one, `set_timesteps` has not been called, or the number of generators
                does not fit.
        """
        self._step_index = self._position(timestep)
        early_stop, (s, r) = self._early_stop, self._interval
        x = self._bounded(sample)
        if self._xbar is None:
            self._xbar = draw_noise(x, generator)
        self._inputs = MapInputs(self._xbar, s, r, x, early_stop.interval.start)
        return self._inputs

    def step(
        self, model_output: Tensor, timestep: float | Tensor, sample: Tensor, return_dict: bool = True
    ) -> FlowMapEulerDiscreteSchedulerOutput | tuple[Tensor]:
        """Advances the inner state, and after the last evaluation of a transition the sample.

        Args:
            model_output: the map's mean velocity `[B, ...]` at what `map_inputs` returned.
            timestep: as given to `map_inputs`; not read.
            sample: as given to `map_inputs`. Gradients flow through both.
            return_dict: whether the output is an object or a tuple.

        Returns:
            `prev_sample`, `[B, ...]`: at the end of a transition the sample at the next level, in the dtype of
            `model_output`; before that `sample` itself.

        Raises:
            ValueError: `map_inputs` was not called first.
        """
        if self._inputs is None:
            raise ValueError(
                "step was called without map_inputs, which says where to evaluate the Diamond Map; stock pipelines do "
                "not ask for it, so use DiamondMapPipeline, or GlassFlowMatchScheduler in a stock pipeline"
            )
        xbar, s, r, _, _ = self._inputs
        self._xbar, self._inputs = xbar - (s - r) * model_output.to(xbar.dtype), None
        position = self._index
        if position % self.order == self.order - 1:
            stop = self._early_stop
            x = stop.observation(self._bounded(sample), self._xbar)
            sample = self._path.from_bounded(x, self._path.time(stop.interval.end)).to(model_output.dtype)
            self._xbar = None
        self._step_index = position + 1
        return FlowMapEulerDiscreteSchedulerOutput(sample) if return_dict else (sample,)

    def _position(self, timestep: float | Tensor) -> int:
        start = self.index_for_timestep(timestep)
        position = start if self._step_index is None else self._step_index
        is_over = position is None or position // self.order >= len(self._early_stops)
        if is_over or start != position - position % self.order:
            raise ValueError(
                f"timestep is {float(timestep)}; call set_timesteps, then go through scheduler.timesteps in order, once"
            )
        return position

    @property
    def _index(self) -> int:
        """The position in `timesteps` of the evaluation at hand."""
        # It is asked within `map_inputs`, which sets it, and after that.
        assert self._step_index is not None
        return self._step_index

    @property
    def _early_stop(self) -> EarlyStop:
        return self._early_stops[self._index // self.order]

    @property
    def _interval(self) -> tuple[float, float]:
        """The inner times of the evaluation at hand."""
        times = inner_times(self.order, self._early_stop.interval.start, self._early_stop.stop).tolist()
        inner = self._index % self.order
        return times[inner], times[inner + 1]

    def _bounded(self, sample: Tensor) -> Tensor:
        time = self._path.time(self._early_stop.interval.start)
        return self._path.to_bounded(sample.to(working_dtype(sample)), time)

    def stock_scheduler(self) -> FlowMatchEulerDiscreteScheduler:
        """The stock scheduler of the same levels and shift, which is what pipelines are saved with."""
        names = inspect.signature(FlowMatchEulerDiscreteScheduler.__init__).parameters
        return FlowMatchEulerDiscreteScheduler(**{name: self.config[name] for name in names if name in self.config})

    def save_pretrained(self, save_directory: str | os.PathLike[str], **options: Any) -> NoReturn:
        """Refuses: stock pipelines call this when they are saved, and stock diffusers could not load them again.

        `DiamondMapPipeline.save_pretrained` writes `stock_scheduler()` instead, and `save_config` this configuration.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "a DiamondMapScheduler is not saved with a pipeline, since stock diffusers could not load it; save with "
            "DiamondMapPipeline, or set pipe.scheduler = pipe.scheduler.stock_scheduler() first"
        )
