"""The end of the flow map as the only look-ahead."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..core.checks import check_counts
from ..core.flow_map import check_is_map, flow_to_data, steps_to_data
from ..core.levels import Level
from ..core.model import Model
from ..core.network import Network
from . import POSTERIORS
from .base import PosteriorSampler, PosteriorSamples, equally_weighted


@POSTERIORS.register("flow_map")
@dataclass(frozen=True)
class FlowMapPoint(PosteriorSampler):
    """The end of the flow map as the only look-ahead (FMTT, arXiv 2511.22688): a typical sample, but not a random one.

    It is free if the model is a few-step map and takes one step, since plain sampling predicts that end. Otherwise it
    costs an evaluation of the map a step, or one less of the ODE of an ordinary model, beyond the prediction.
    A Diamond Map makes an ordinary model a flow map too (`flow_map_of`), with its guidance baked in.

    Args:
        num_steps: number of evaluations from the observation down to clean data; at least 2 for an ordinary model.
            None for 1 where the model is a flow map or has a Diamond Map, else 4.

    Example:
        >>> pipe("a red star", alignment=Guidance(FlowMapPoint()), num_inference_steps=2)
    """

    num_steps: int | None = None

    num_samples = 1
    draws_noise = False
    follows_flow_map = True

    def __post_init__(self) -> None:
        if self.num_steps is not None:
            check_counts(num_steps=self.num_steps)

    def check(self, model: Model) -> None:
        super().check(model)
        check_is_map("num_steps", self.num_steps, model)

    def predicts_end(self, network: Network) -> bool:
        """Whether the end of the flow map is the prediction that the model makes anyway."""
        return steps_to_data(self.num_steps, network) == 1 and not network.predicts_mean

    def needs_prediction(self, network: Network) -> bool:
        return not network.has_flow_map or self.predicts_end(network)

    def sample(
        self, network: Network, x: Tensor, noise_to_signal: Level, predicted: Tensor | None, noise: Tensor
    ) -> PosteriorSamples:
        num_steps = steps_to_data(self.num_steps, network)
        if not network.has_flow_map:
            denoised = network.mean(x, noise_to_signal, predicted)
            end = flow_to_data(network, x, noise_to_signal, num_steps, denoised)
        elif self.predicts_end(network):
            # `needs_prediction` asked for it.
            assert predicted is not None
            end = predicted
        else:
            end = flow_to_data(network, x, noise_to_signal, num_steps)
        return equally_weighted(end, 1)
