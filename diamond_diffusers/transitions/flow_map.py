"""Steps along a flow map."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..core.flow_map import has_map_to_data
from ..core.interval import Interval
from ..core.levels import Level, ode_target
from ..core.model import Model
from ..core.network import Network
from . import TRANSITIONS
from .base import Transition


@TRANSITIONS.register("flow_map")
@dataclass(frozen=True)
class FlowMapTransition(Transition):
    """A noiseless step along the flow map of the model, or of its Diamond Map (arXiv 2506.14603).

    Example:
        >>> method = BestOfN(num_particles=2, transition=FlowMapTransition())
        >>> pipe("a red star", alignment=method, num_inference_steps=2)
    """

    uses_prediction = False
    follows_flow_map = True

    def check(self, model: Model) -> None:
        if not has_map_to_data(model):
            raise ValueError(
                f"FlowMapTransition needs a flow map, but this {model.name} model is a denoiser; "
                "load a few-step LoRA (and name it in few_step=...) or a Diamond Map, use ODETransition(), or set "
                "few_step=True if it is a few-step model"
            )

    def aim(self, network: Network, x: Tensor, noise_to_signal: Level, next_noise_to_signal: float) -> Tensor:
        # By the map's mean velocity down to the next level.
        next_x = network.flow_map(x, noise_to_signal, next_noise_to_signal)
        return ode_target(x, next_x, noise_to_signal, next_noise_to_signal)

    def step(self, network: Network, x: Tensor, interval: Interval, predicted: Tensor | None, noise: Tensor) -> Tensor:
        return network.flow_map(x, interval.start, interval.end)

    def tilt_gain(self, interval: Interval) -> float:
        return 0.0
