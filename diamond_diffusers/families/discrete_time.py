"""The base class of families trained on discrete variance-preserving steps (Stable Diffusion, SDXL, PixArt)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import retrieve_timesteps
from torch import Tensor

from ..core.levels import Level, VariancePreservingPath, as_level, interpolate_timesteps
from ..core.model import Conditions
from ..core.tensors import expand
from ..transitions.base import Transition
from .base import Family
from .schedules import check_discrete_time, check_unclipped, range_of, stock_transition, training_levels


class DiscreteTimeFamily(Family):
    """A family whose noise levels are those of training steps; between them `log kappa` is interpolated."""

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        self._eta = 0.0
        self._trained: tuple[Tensor, Tensor, tuple[float, float]] | None = None

    @property
    def training_levels(self) -> Tensor:
        """As of `schedules.training_levels`."""
        return self._levels_and_range()[0]

    @property
    def trained_range(self) -> tuple[float, float]:
        """As of `schedules.trained_range`."""
        return self._levels_and_range()[1]

    def _levels_and_range(self) -> tuple[Tensor, tuple[float, float]]:
        """Both; of one schedule they are computed once."""
        schedule = self.pipeline.scheduler.alphas_cumprod
        if self._trained is None or self._trained[0] is not schedule:
            table = training_levels(self.pipeline.scheduler)
            self._trained = schedule, table, range_of(table)
        return self._trained[1:]

    def for_call(self, arguments: Mapping[str, Any]) -> Self:
        check_discrete_time(self.pipeline.scheduler)
        own = super().for_call(arguments)
        own._eta = arguments.get("eta", 0.0)
        return own

    def check_alignable(self) -> None:
        check_unclipped(self.pipeline.scheduler)

    @property
    def path(self) -> VariancePreservingPath:
        return VariancePreservingPath(self.pipeline.scheduler.config.prediction_type)

    @property
    def max_noise_to_signal(self) -> float:
        return self.trained_range[1]

    def timestep(self, noise_to_signal: Level) -> Tensor:
        return interpolate_timesteps(as_level(noise_to_signal), self.training_levels)

    def set_timesteps(self, arguments: Mapping[str, Any], conditions: Conditions) -> None:
        names = ("timesteps", "sigmas", "original_inference_steps")
        options = {name: arguments[name] for name in names if arguments.get(name) is not None}
        retrieve_timesteps(self.pipeline.scheduler, arguments["num_inference_steps"], self.device, **options)

    def predict(self, x: Tensor, noise_to_signal: Level, conditions: Conditions) -> Tensor:
        """Predicts at any level; outside of the trained levels the network is evaluated at the nearest of them.

        Pure noise is taken as the noisiest trained level, as in stock pipelines. Below the trained levels the predicted
        noise is kept: `D = y - kappa eps_hat`.
        """
        kappa = as_level(noise_to_signal)
        queried = kappa.clamp(*self.trained_range)
        raised = kappa < queried
        # The same y = x sqrt(1 + kappa^2) at the queried level.
        scale = torch.where(raised, torch.sqrt((1 + kappa**2) / (1 + queried**2)), 1.0)
        denoised = super().predict(expand(scale, x) * x, queried, conditions)
        if not raised.any():
            return denoised
        y = expand(torch.where(raised, torch.sqrt(1 + kappa**2), 1.0), x) * x
        return torch.lerp(y, denoised, expand(torch.where(raised, kappa / queried, 1.0), x).to(x.dtype))

    def stock_transition(self) -> Transition:
        return stock_transition(self.pipeline.scheduler, self._eta)

    def stochastic_transition(self) -> Transition:
        """The stock transition if `eta` asks for its noise, else the default."""
        if self._eta > 0 and (stock := self.stock_transition()).is_stochastic:
            return stock
        return super().stochastic_transition()
