"""Inverse problems: the log-likelihood of a measurement as a reward."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from ..core.tensors import at_least_float32
from .base import Reward
from .registry import register_reward


@register_reward("inverse_problem")
class InverseProblem(Reward):
    """The log-likelihood `-|A x - y|^2 / (2 sigma^2)` of a measurement `y = A x + sigma * noise`, up to a constant.

    With `reward_scale` 1 the tilted law is then the posterior of the image given the measurement, with the model as the
    prior. The squared norm is the sum over all channels and pixels of the measurement.

    Args:
        operator: the map `A`: a degradation of `diamond_diffusers.rewards.degradations`, or any callable that maps
            images `[B, 3, H, W]` in [0, 1] to `[B, ...]`.
        measurement: the measurement `y`, in the shape of one degraded image, or with a leading dimension of 1; the
            same for all images and prompts.
        noise_std: the deviation `sigma`, in units of the measurement.
        differentiable: whether gradients pass through the operator.
        name: name under which the scores are reported.

    Raises:
        ValueError: `noise_std` is not positive.

    Source: Chung et al. 2022, "Diffusion Posterior Sampling for General Noisy Inverse Problems", equation 7.
    """

    licence = "Apache-2.0"
    source = "Chung et al. 2022, arXiv:2209.14687"
    size = "none"
    default_reward_scale = 1.0
    is_free = True
    reads_prompts = False

    def __init__(
        self,
        operator: Callable[[Tensor], Tensor],
        measurement: Tensor,
        noise_std: float,
        *,
        differentiable: bool = True,
        name: str = "inverse_problem",
    ) -> None:
        if not noise_std > 0:
            raise ValueError(f"Reward '{name}' got noise_std={noise_std}; give a positive number.")
        self.operator = operator
        self.measurement = measurement
        self.noise_std = noise_std
        self.differentiable = differentiable
        self.name = name

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Log-likelihoods `[B]` of images `[B, 3, H, W]` in [0, 1]; in float32 at least.

        Raises:
            ValueError: the operator maps the images to another shape than the measurement's.
        """
        degraded = self.operator(at_least_float32(images))
        measurement = self.measurement.to(degraded)
        if tuple(measurement.shape) not in (tuple(degraded.shape[1:]), (1, *degraded.shape[1:])):
            raise ValueError(
                f"Reward '{self.name}' has a measurement of shape {list(measurement.shape)}, but its operator maps "
                f"images of shape {list(images.shape)} to {list(degraded.shape)}; give images of the measured size."
            )
        residual = (degraded - measurement).flatten(1)
        return -residual.square().sum(1) / (2 * self.noise_std**2)
