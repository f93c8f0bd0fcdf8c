"""GLASS transitions for rectified-flow pipelines (SD3, FLUX, SANA, Qwen-Image, Lumina 2, Z-Image)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from ..core.levels import RectifiedFlowPath
from .base import GlassSchedulerMixin, extends_options_of
from .flow_options import FlowOptionsMixin


class GlassFlowMatchScheduler(GlassSchedulerMixin, FlowOptionsMixin, FlowMatchEulerDiscreteScheduler):
    """Takes the place of `FlowMatchEulerDiscreteScheduler` in a stock pipeline and samples by GLASS transitions.

    `num_inference_steps` outer steps cost `num_inference_steps * num_inner_steps` network evaluations. Levels and their
    shift are those of the base class.

    Args:
        num_inner_steps: network evaluations of one transition.
        correlation: `rho` in `[0, 1]` between the noises at the ends of a transition; `"ddpm"` makes the chain Markov.
        solver: of the inner flow: `euler`, `multistep` or `exponential`.
        **options: of `FlowMatchEulerDiscreteScheduler`; `invert_sigmas` and `stochastic_sampling` are refused.

    Raises:
        ValueError: an option is out of range or not supported.

    Example:
        >>> scheduler = GlassFlowMatchScheduler.from_config(pipe.scheduler.config)
        >>> scheduler.set_timesteps(4, mu=1.0)
    """

    # diffusers names this module in a saved model_index.json, and loads from it once it is imported.
    __module__ = "diamond_diffusers"
    instead = "GlassDDPMScheduler"
    _path = RectifiedFlowPath()

    @register_to_config
    @extends_options_of(FlowMatchEulerDiscreteScheduler)
    def __init__(
        self,
        *,
        num_inner_steps: int = 2,
        correlation: float | str = "ddpm",
        solver: str = "exponential",
        **options: Any,
    ) -> None:
        self._refuse_unsupported(options)
        super().__init__(**options)
        self._set_glass_options(num_inner_steps, correlation, solver)
        self._outer_timesteps = self.timesteps

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """Starts a run; arguments as of the base class, and all of them count outer steps.

        Afterwards `sigmas` holds the outer levels `[num_inference_steps + 1]` and `timesteps` those of all queries,
        `[num_inference_steps * num_inner_steps]`. Where both sigmas and timesteps are given, the timestep of a level
        between them is interpolated.

        Raises:
            ValueError: the levels do not fall, or the numbers of steps differ.
        """
        super().set_timesteps(num_inference_steps, device, sigmas, mu, timesteps)
        if self.sigmas[-2] == self.sigmas[-1]:
            # The levels given ended at zero, to which the base class adds another.
            self.sigmas, self.timesteps = self.sigmas[:-1], self.timesteps[:-1]
        self._outer_timesteps = self.timesteps
        levels = self._path.noise_to_signal(self.sigmas.cpu().double()).tolist()
        self._expand(levels, device, counted_by_caller=num_inference_steps is None)

    def _network_timesteps(self, levels: Tensor) -> Tensor:
        known_sigmas = self.sigmas.cpu().double().flip(0).numpy()
        known_timesteps = np.append(0.0, self._outer_timesteps.cpu().double().flip(0).numpy())
        return torch.from_numpy(np.interp(self._path.time(levels).numpy(), known_sigmas, known_timesteps))

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """Noises clean latents to an outer level.

        Args:
            sample: `[B, ...]`.
            timestep: `[B]`, outer timesteps. They are read only where the pipeline has not set where it begins, for
                one timestep can belong to several queries.
            noise: standard normal, as `sample`.

        Returns:
            `[B, ...]`.

        Raises:
            ValueError: a timestep is not that of an outer level.
        """
        sigma = self._outer_sigma(timestep).to(sample).reshape(-1, *[1] * (sample.ndim - 1))
        return sigma * noise + (1 - sigma) * sample

    def _outer_sigma(self, timestep: Tensor) -> Tensor:
        if self._begin_index is not None:
            position = self._begin_index if self._step_index is None else self._step_index
            return self.sigmas[position // self.order]
        timestep = torch.atleast_1d(timestep).to(self._outer_timesteps)
        matches = timestep[:, None] == self._outer_timesteps
        if not matches.any(1).all():
            raise ValueError(f"timestep is {timestep.tolist()}; give one of timesteps[:: scheduler.order]")
        return self.sigmas[matches.int().argmax(1)]
