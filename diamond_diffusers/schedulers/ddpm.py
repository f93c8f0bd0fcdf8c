"""GLASS transitions for pipelines trained on discrete variance-preserving steps (Stable Diffusion, SDXL, PixArt)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import DDIMScheduler
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from ..core.levels import VariancePreservingPath, add_noise, interpolate_timesteps
from ..families.schedules import interpolate_levels, trained_range, training_levels
from .base import GlassSchedulerMixin, extends_options_of


class GlassDDPMScheduler(GlassSchedulerMixin, DDIMScheduler):
    """Takes the place of a DDIM, DDPM, PNDM, Euler, DPM-Solver, ... scheduler and samples by GLASS transitions.

    `num_inference_steps` outer steps cost `num_inference_steps * num_inner_steps` network evaluations. Outer levels are
    those of `DDIMScheduler` with the same configuration, down to its final one; queries between training steps have
    fractional timesteps, at which `log kappa` is interpolated.

    Args:
        num_inner_steps: network evaluations of one transition.
        correlation: `rho` in `[0, 1]` between the noises at the ends of a transition; `"ddpm"` makes the chain Markov.
        solver: of the inner flow: `euler`, `multistep` or `exponential`.
        clip_sample: whether predicted clean samples are clipped, for models of pixels.
        **options: of `DDIMScheduler`.

    Raises:
        ValueError: an option is out of range or not supported.

    Example:
        >>> from diffusers import DDPMScheduler
        >>> scheduler = GlassDDPMScheduler.from_config(DDPMScheduler().config)
        >>> scheduler.set_timesteps(4)
    """

    # diffusers names this module in a saved model_index.json, and loads from it once it is imported.
    __module__ = "diamond_diffusers"

    @register_to_config
    @extends_options_of(DDIMScheduler)
    def __init__(
        self,
        *,
        num_inner_steps: int = 2,
        correlation: float | str = "ddpm",
        solver: str = "exponential",
        clip_sample: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(clip_sample=clip_sample, **options)
        self._path = VariancePreservingPath(self.config.prediction_type)
        self._table = training_levels(self)
        self._set_glass_options(num_inner_steps, correlation, solver)

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: Any
    ) -> GlassDDPMScheduler | tuple[GlassDDPMScheduler, dict[str, Any]]:
        """Makes this scheduler of the configuration of any scheduler that is compatible with `DDIMScheduler`.

        Args:
            config: of a stock scheduler.
            return_unused_kwargs: whether options that were not used are returned too.
            **kwargs: options that take precedence over the configuration.

        Raises:
            ValueError: the configuration is one of rectified flow.
        """
        if "shift" in config or config.get("prediction_type") == "flow_prediction":
            raise ValueError("config is that of a flow-matching scheduler; use GlassFlowMatchScheduler")
        return super().from_config(config, return_unused_kwargs, **kwargs)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """Starts a run; all arguments count outer steps, and exactly one of them defines the levels.

        Afterwards `sigmas` holds the outer noise-to-signal ratios `[num_inference_steps + 1]` and `timesteps` those of
        all queries, `[num_inference_steps * num_inner_steps]`.

        Args:
            num_inference_steps: number of steps, spaced as by `DDIMScheduler`.
            device: of `timesteps`.
            sigmas: falling noise-to-signal ratios, the final one included, as of `EulerDiscreteScheduler`.
            mu: not supported: the shift of flow-matching levels.
            timesteps: falling timesteps, whole or fractional.

        Raises:
            ValueError: an argument is not supported, or the levels do not fall.
        """
        if mu is not None:
            raise ValueError(f"mu is {mu}, which shifts the levels of flows only; leave it out")
        if sum(given is not None for given in (num_inference_steps, sigmas, timesteps)) != 1:
            raise ValueError(
                f"num_inference_steps is {num_inference_steps}, sigmas {sigmas} and timesteps {timesteps}; "
                "give exactly one of them"
            )
        if num_inference_steps is not None:
            super().set_timesteps(num_inference_steps)
        if sigmas is not None:
            levels = [float(sigma) for sigma in sigmas]
        else:
            levels = self._levels_of(torch.as_tensor(self.timesteps if timesteps is None else timesteps))
        self.num_inference_steps = len(levels) - 1
        self.sigmas = torch.tensor(levels, dtype=torch.float32)
        self._expand(levels, device, counted_by_caller=num_inference_steps is None)

    def _levels_of(self, timesteps: Tensor) -> list[float]:
        """Noise-to-signal ratios of outer timesteps, and the final one."""
        final = torch.sqrt(1 / self.final_alpha_cumprod.cpu().double() - 1).reshape(1)
        levels = interpolate_levels(timesteps, self._table)
        if self.config.prediction_type != "epsilon":
            # With zero terminal SNR that is pure noise, of which an epsilon network says nothing.
            levels[timesteps.cpu() == len(self._table) - 1] = trained_range(self)[1]
        # Stable Diffusion's final level is that of timestep 0, at which some spacings end.
        return torch.cat([levels[:-1] if torch.isclose(levels[-1], final) else levels, final]).tolist()

    def _network_timesteps(self, levels: Tensor) -> Tensor:
        return interpolate_timesteps(levels, self._table)

    def _input_scale(self, level: float) -> float:
        # Below the trained levels the network is asked at the lowest, for the same y = x sqrt(1 + kappa^2).
        lowest = self._table[0].item()
        return math.sqrt((1 + level**2) / (1 + lowest**2)) if level < lowest else 1.0

    def _denoised(self, sample: Tensor, model_output: Tensor, level: float) -> Tensor:
        lowest = self._table[0].item()
        denoised = super()._denoised(sample, model_output, max(level, lowest))
        if level < lowest:
            # The predicted noise is kept: D = y - kappa eps.
            denoised = torch.lerp(sample * math.sqrt(1 + lowest**2), denoised, level / lowest)
        if self.config.thresholding:
            return self._threshold_sample(denoised)
        if self.config.clip_sample:
            return denoised.clamp(-self.config.clip_sample_range, self.config.clip_sample_range)
        return denoised

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noises clean latents to the levels of timesteps `[B]`, whole or fractional; all have the shape `[B, ...]`."""
        level = interpolate_levels(torch.atleast_1d(timesteps), self._table)
        return add_noise(original_samples, noise, level).to(original_samples.dtype)
