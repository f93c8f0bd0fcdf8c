"""A sampling loop as stock pipelines have it, and networks that know a Gaussian mixture."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from diamond_diffusers import GlassDDPMScheduler, GlassFlowMatchScheduler

from ..core.mixture import GaussianMixture

STABLE_DIFFUSION = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
    "set_alpha_to_one": False,
}
KINDS = ["flow", "epsilon", "v_prediction", "sample"]

Network = Callable[[Tensor, Tensor], Tensor]


def make_scheduler(kind: str, **options: object) -> GlassFlowMatchScheduler | GlassDDPMScheduler:
    """A flow of SD3's shift, or Stable Diffusion's training table."""
    if kind == "flow":
        return GlassFlowMatchScheduler(**{"shift": 3.0, **options})
    return GlassDDPMScheduler(**{**STABLE_DIFFUSION, "prediction_type": kind, **options})


def table_of(**options: object) -> np.ndarray:
    """Noise-to-signal ratios of the training steps; that of pure noise is taken as 4096."""
    abar = DDIMScheduler(**{**STABLE_DIFFUSION, **options}).alphas_cumprod.double().numpy()
    return np.sqrt(1 / np.maximum(abar, 1 / (1 + 4096.0**2)) - 1)


def level_at(kind: str, timestep: Tensor, table: np.ndarray | None = None) -> float:
    """The noise-to-signal ratio of a timestep."""
    if kind == "flow":
        time = float(timestep) / 1000
        return time / (1 - time) if time < 1 else float("inf")
    table = table_of() if table is None else table
    return float(np.exp(np.interp(float(timestep), np.arange(len(table)), np.log(table))))


def mixture_network(mixture: GaussianMixture, kind: str, table: np.ndarray | None = None) -> Network:
    """The exact network of a mixture, in float64, as the pipelines of that kind of model call it."""

    def network(x: Tensor, timestep: Tensor) -> Tensor:
        if kind == "flow":
            sigma = torch.as_tensor(float(timestep) / 1000, dtype=torch.float64)
            alpha = 1 - sigma
        else:
            kappa = torch.as_tensor(level_at(kind, timestep, table), dtype=torch.float64)
            alpha, sigma = torch.rsqrt(1 + kappa**2), kappa * torch.rsqrt(1 + kappa**2)
        z = mixture.denoised(x, alpha, sigma)
        eps = (x.double() - alpha * z) / sigma
        prediction = {"flow": eps - z, "epsilon": eps, "v_prediction": alpha * eps - sigma * z, "sample": z}[kind]
        return prediction.to(x.dtype)

    return network


def stock_loop(
    scheduler: GlassFlowMatchScheduler | GlassDDPMScheduler,
    network: Network,
    latents: Tensor,
    num_inference_steps: int,
    generator: torch.Generator | list[torch.Generator] | None = None,
    **schedule: object,
) -> Tensor:
    """Denoises latents as a stock pipeline does, which knows nothing of inner steps."""
    scheduler.set_timesteps(num_inference_steps, **schedule)
    latents = latents * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        model_output = network(scheduler.scale_model_input(latents, timestep), timestep)
        latents = scheduler.step(model_output, timestep, latents, generator=generator, return_dict=False)[0]
    return latents
