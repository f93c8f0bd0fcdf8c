"""Layers that carry the additional inputs of a Diamond Map into an unmodified diffusers network."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Sites:
    """Where a family's network takes in its latents and its time.

    Attributes:
        latents: module that embeds the latents; the embedded inner state (and observation) is added to its output.
        time: module that embeds the time, with output `[N, width]`; the embedded times are added to it.
    """

    latents: str
    time: str


SITES: dict[str, Sites] = {
    "flux": Sites("x_embedder", "time_text_embed"),
    "stable_diffusion_3": Sites("pos_embed", "time_text_embed"),
    "sana": Sites("patch_embed", "time_embed.emb"),
    "pixart_sigma": Sites("pos_embed", "adaln_single.emb"),
    "stable_diffusion": Sites("conv_in", "time_embedding"),
    "sdxl": Sites("conv_in", "time_embedding"),
}
"""By name of the family."""

NUM_FREQUENCIES = 4


class TimesEmbedding(nn.Module):
    """Embeds the outer time and the inner times `(s, r)`, each in [0, 1]; zero before training.

    Frequencies are low, from `pi / 2` to `4 pi`: with the usual features of `1000 t` the derivative in `r` would be far
    greater than all others.

    Args:
        width: width of the network's time embedding.
    """

    frequencies: Tensor

    def __init__(self, width: int, hidden_width: int = 128) -> None:
        super().__init__()
        frequencies = math.pi / 2 * 2.0 ** torch.arange(NUM_FREQUENCIES)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.hidden = nn.Linear(3 * 2 * NUM_FREQUENCIES, hidden_width)
        self.output = nn.Linear(hidden_width, width)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, times: Tensor) -> Tensor:
        """Embeddings `[N, width]` of times `[N, 3]`; angles are in float32, whatever the precision of the layers."""
        angles = (times[..., None].float() * self.frequencies.float()).flatten(1)
        features = torch.cat([angles.sin(), angles.cos()], 1).to(self.hidden.weight.dtype)
        return self.output(nn.functional.silu(self.hidden(features)))


class MapConditioning(nn.Module):
    """The layers that make a denoiser a Diamond Map: they carry the inner state and the times into the network.

    At initialisation they add zero, so that the network computes what it did without them.

    Args:
        network: the unmodified diffusers model.
        sites: the modules to whose outputs the layers add.
        condition_on_observation: whether the observation is carried in too.
    """

    def __init__(self, network: nn.Module, sites: Sites, condition_on_observation: bool = False) -> None:
        super().__init__()
        self.sites = sites
        layer = _embedding_layer(network.get_submodule(sites.latents))
        self.inner_state = _zero_copy(layer)
        self.observation = _zero_copy(layer) if condition_on_observation else None
        self.times = TimesEmbedding(_output_width(network.get_submodule(sites.time)))

    @property
    def device(self) -> torch.device:
        return self.inner_state.weight.device

    @contextmanager
    def attached(self, network: nn.Module, inner_state: Tensor, observation: Tensor, times: Tensor) -> Iterator[None]:
        """Conditions every evaluation of a network inside the context.

        Args:
            inner_state: `xbar_s`, in the shape of the network's latents.
            observation: `x_t` in the bounded coordinate, of the same shape; ignored if the map has no layer for it.
            times: outer time and inner times `(s, r)`, `[N, 3]`, each in [0, 1].
        """

        def add_states(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
            embedded = self.inner_state(inner_state.to(self.inner_state.weight.dtype))
            if self.observation is not None:
                embedded = embedded + self.observation(observation.to(self.observation.weight.dtype))
            if embedded.ndim > output.ndim:
                embedded = embedded.flatten(2).transpose(1, 2)
            return output + embedded.to(output.dtype)

        def add_times(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
            return output + self.times(times).to(output.dtype)

        handles = [
            network.get_submodule(self.sites.latents).register_forward_hook(add_states),
            network.get_submodule(self.sites.time).register_forward_hook(add_times),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _embedding_layer(module: nn.Module) -> nn.Linear | nn.Conv2d:
    """The linear or convolutional layer that a module embeds latents with, under its adapters if it has any."""
    layer = _base_layer(getattr(module, "proj", module))
    # The latents' entries in SITES name such layers.
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    return layer


def _base_layer(layer: nn.Module) -> nn.Module:
    """The layer under its adapters, if it has any."""
    base: nn.Module = getattr(layer, "base_layer", layer)
    return base


def _zero_copy(layer: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    """A layer of the same form that returns zero."""
    copy: nn.Linear | nn.Conv2d
    if isinstance(layer, nn.Linear):
        copy = nn.Linear(layer.in_features, layer.out_features)
    else:
        # torch annotates those of a layer as tuples of any length.
        sizes: tuple[Any, Any, Any] = layer.kernel_size, layer.stride, layer.padding
        copy = nn.Conv2d(layer.in_channels, layer.out_channels, *sizes)
    for parameter in copy.parameters():
        nn.init.zeros_(parameter)
    return copy


def _output_width(module: nn.Module) -> int:
    """The width of a time embedding: that of the last layer of its timestep's multilayer perceptron."""
    embedder: nn.Module = getattr(module, "timestep_embedder", module)
    layer = _base_layer(embedder.get_submodule("linear_2"))
    # That of diffusers' TimestepEmbedding.
    assert isinstance(layer, nn.Linear)
    return layer.out_features
