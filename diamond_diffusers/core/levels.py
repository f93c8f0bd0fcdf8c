"""Noise levels and Gaussian paths in one coordinate system.

Every model family diffuses a clean sample `z` along a Gaussian path `x_t = alpha_t z + sigma_t eps`. What an algorithm
needs of the path is its noise-to-signal ratio `kappa = sigma / alpha`, in `[0, inf]`, and the observation `x`. The core
keeps `x` in the bounded, variance-preserving coordinate

    x = (z + kappa eps) / sqrt(1 + kappa^2)

which is `z` at `kappa = 0` and pure noise at `kappa = inf`; a family converts it to its own scale with a
`GaussianPath`. Levels are floats, or float64 tensors of shape `[B]` for one level a row; coefficients are computed in
float64 on the CPU, and states in float32 or better on the device of the model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from .tensors import expand

Level = float | Tensor
Denoiser = Callable[[Tensor, Level], Tensor]
"""Maps observations `[N, ...]` and their noise-to-signal ratio to `E[z | x]`, `[N, ...]`."""


def as_level(noise_to_signal: Level) -> Tensor:
    """The level as a float64 tensor on the CPU, wherever the model is: some accelerators have no float64."""
    if isinstance(noise_to_signal, Tensor):
        return noise_to_signal.cpu().double()
    return torch.as_tensor(noise_to_signal, dtype=torch.float64)


def signal_and_noise(noise_to_signal: Level) -> tuple[Tensor, Tensor]:
    """`alpha` and `sigma` of the bounded coordinate, with `alpha^2 + sigma^2 = 1`; exact at 0 and at infinity."""
    if isinstance(noise_to_signal, float):
        alpha, sigma = _signal_and_noise_of_step(noise_to_signal)
        return torch.tensor(alpha, dtype=torch.float64), torch.tensor(sigma, dtype=torch.float64)
    kappa = as_level(noise_to_signal)
    return 1 / torch.sqrt(1 + kappa**2), 1 / torch.sqrt(1 + kappa**-2)


@lru_cache(maxsize=1024)
def _signal_and_noise_of_step(noise_to_signal: float) -> tuple[float, float]:
    """The same as numbers: a step asks many times for the levels that it leads from and to."""
    # By torch, whose roots are rounded otherwise than those of Python.
    alpha, sigma = signal_and_noise(torch.tensor(noise_to_signal, dtype=torch.float64))
    return alpha.item(), sigma.item()


def add_noise(z: Tensor, eps: Tensor, noise_to_signal: Level) -> Tensor:
    """An observation of `z` at a level, with standard normal `eps` of the same shape."""
    alpha, sigma = signal_and_noise(noise_to_signal)
    return expand(alpha, z) * z + expand(sigma, z) * eps


def renoise(x: Tensor, noise_to_signal: Level, new_noise_to_signal: Level, eps: Tensor) -> Tensor:
    """Moves an observation up to a noisier level: `y' = y + sqrt(kappa'^2 - kappa^2) eps`."""
    alpha, sigma = signal_and_noise(noise_to_signal)
    new_alpha, new_sigma = signal_and_noise(new_noise_to_signal)
    # In bounded coordinates the added variance is sigma'^2 - (alpha' sigma / alpha)^2, finite at kappa' = inf.
    scale = new_alpha / alpha
    added = torch.sqrt((new_sigma**2 - (scale * sigma) ** 2).clamp(min=0))
    return expand(scale, x) * x + expand(added, x) * eps


def fuse(first: Tensor, first_level: Level, second: Tensor, second_level: Level) -> tuple[Tensor, Tensor]:
    """Joins two independent observations of the same `z` into the sufficient one, by adding precisions.

    Returns:
        The fused observation in the bounded coordinate and its noise-to-signal ratio. Where both observations are
        pure noise the first is returned.
    """
    alpha1, sigma1 = signal_and_noise(first_level)
    alpha2, sigma2 = signal_and_noise(second_level)
    precision = (alpha1 / sigma1) ** 2 + (alpha2 / sigma2) ** 2
    # y = information / precision, then x = y / sqrt(1 + 1 / precision).
    scale = torch.rsqrt(precision * (1 + precision))
    informative = precision > 0
    weight1 = torch.where(informative, scale * alpha1 / sigma1**2, 1.0)
    weight2 = torch.where(informative, scale * alpha2 / sigma2**2, 0.0)
    fused = expand(weight1, first) * first + expand(weight2, second) * second
    return fused, torch.rsqrt(precision)


def predicted_noise(x: Tensor, denoised: Tensor, noise_to_signal: Level) -> Tensor:
    """`eps` in `x = alpha z + sigma eps` when `z` is the denoised sample; the level must be positive."""
    alpha, sigma = signal_and_noise(noise_to_signal)
    return (x - expand(alpha, x) * denoised) / expand(sigma, x)


def ode_step(x: Tensor, denoised: Tensor, noise_to_signal: Level, next_noise_to_signal: Level) -> Tensor:
    """One Euler step of the probability-flow ODE `dy / dkappa = (y - D) / kappa`: DDIM, and rectified flow's Euler.

    `x` itself, to the bit, where the two levels, which must be positive at the start, are equal.
    """
    (alpha, sigma), (next_alpha, next_sigma) = signal_and_noise(noise_to_signal), signal_and_noise(next_noise_to_signal)
    # alpha' D + sigma' eps, with eps = (x - alpha D) / sigma.
    kept = next_sigma / sigma
    return expand(kept, x) * x + expand(next_alpha - kept * alpha, x) * denoised


def ode_target(x: Tensor, next_x: Tensor, noise_to_signal: Level, next_noise_to_signal: Level) -> Tensor:
    """The clean sample to which the Euler step aims that leads from `x` to `next_x`: the inverse of `ode_step`.

    The chord from `x` at `kappa` through `next_x` at the lower level `kappa'` is followed down to 0::

        D = (y' - (kappa' / kappa) y) / (1 - kappa' / kappa)
    """
    (_, sigma), (next_alpha, _) = signal_and_noise(noise_to_signal), signal_and_noise(next_noise_to_signal)
    next_kappa = as_level(next_noise_to_signal)
    # y / kappa = x / sigma is finite at pure noise.
    difference = expand(1 / next_alpha, next_x) * next_x - expand(next_kappa / sigma, x) * x
    return expand(1 / (1 - next_kappa / as_level(noise_to_signal)), x) * difference


def interpolate_timesteps(noise_to_signal: Tensor, table: Tensor) -> Tensor:
    """Fractional training timesteps at which a noise schedule has these levels, log-linear between its timesteps.

    Args:
        noise_to_signal: levels of any shape; those outside of the table give its ends.
        table: rising noise-to-signal ratios of the training timesteps, `[n]`.

    Returns:
        Timesteps in `[0, n - 1]`, float64 on the CPU, of the shape of the levels.
    """
    level = as_level(noise_to_signal).clamp(table[0], table[-1])
    above = torch.searchsorted(table, level.contiguous()).clamp(1, len(table) - 1)
    low, high = table[above - 1].log(), table[above].log()
    return above - 1 + (level.log() - low) / (high - low)


class GaussianPath(ABC):
    """A family's path `x_t = alpha_t z + sigma_t eps` and what its network predicts there."""

    @abstractmethod
    def coefficients(self, time: Level) -> tuple[Tensor, Tensor]:
        """`alpha_t` and `sigma_t`, float64."""

    @abstractmethod
    def time(self, noise_to_signal: Level) -> Tensor:
        """The time at which the path has this noise-to-signal ratio."""

    @abstractmethod
    def denoised(self, x: Tensor, prediction: Tensor, time: Level) -> Tensor:
        """The clean sample that the network's prediction at `x` (in the family's scale) stands for."""

    def noise_to_signal(self, time: Level) -> Tensor:
        alpha, sigma = self.coefficients(time)
        return sigma / alpha

    def from_bounded(self, x: Tensor, time: Level) -> Tensor:
        """An observation in the bounded coordinate, brought to the family's scale."""
        alpha, sigma = self.coefficients(time)
        return x * expand(torch.sqrt(alpha**2 + sigma**2), x)

    def to_bounded(self, x: Tensor, time: Level) -> Tensor:
        """An observation in the family's scale, brought to the bounded coordinate."""
        alpha, sigma = self.coefficients(time)
        return x / expand(torch.sqrt(alpha**2 + sigma**2), x)


class RectifiedFlowPath(GaussianPath):
    """`x_t = (1 - t) z + t eps`; the network predicts the velocity `eps - z` (SD3, FLUX, SANA, ...)."""

    def coefficients(self, time: Level) -> tuple[Tensor, Tensor]:
        t = as_level(time)
        return 1 - t, t

    def time(self, noise_to_signal: Level) -> Tensor:
        return 1 / (1 + 1 / as_level(noise_to_signal))

    def denoised(self, x: Tensor, prediction: Tensor, time: Level) -> Tensor:
        return x - expand(as_level(time), x) * prediction


class VariancePreservingPath(GaussianPath):
    """`alpha_t^2 + sigma_t^2 = 1`, parametrised by the angle `t = atan(kappa)`.

    Args:
        prediction_type: what the network predicts: `epsilon`, `v_prediction` or `sample`.
    """

    def __init__(self, prediction_type: str = "epsilon") -> None:
        if prediction_type not in ("epsilon", "v_prediction", "sample"):
            raise ValueError(
                f"prediction_type is {prediction_type!r}; choose one of 'epsilon', 'v_prediction', 'sample'"
            )
        self.prediction_type = prediction_type

    def coefficients(self, time: Level) -> tuple[Tensor, Tensor]:
        return signal_and_noise(torch.tan(as_level(time)))

    def time(self, noise_to_signal: Level) -> Tensor:
        return torch.atan(as_level(noise_to_signal))

    def denoised(self, x: Tensor, prediction: Tensor, time: Level) -> Tensor:
        if self.prediction_type == "sample":
            return prediction
        alpha, sigma = (expand(coefficient, x) for coefficient in self.coefficients(time))
        if self.prediction_type == "epsilon":
            return (x - sigma * prediction) / alpha
        return alpha * x - sigma * prediction
