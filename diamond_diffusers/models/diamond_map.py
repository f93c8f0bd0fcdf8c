"""Posterior Diamond Maps: one network evaluation draws a sample of the clean image given a noisy one.

Source: Holderrieth et al., arXiv 2602.05993. A Diamond Map is a flow map of the inner GLASS flow,

    X_{s -> r}(xbar_s; x_t, t) = (r / s) xbar_s + (1 - r / s) D_th(xbar_s, s, r; x_t, t),      0 <= r < s <= 1

parametrised by its mean denoiser `D_th`: the base network at the sufficient statistic `(S, kappa*)` of `x_t` and
`xbar_s`, told `xbar_s` itself, the outer time and `(s, r)` through zero-initialised layers, and adapted by LoRA.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..backbones.base import Backbone, Conditions
from ..glass import query
from ..levels import Level, as_level, expand
from .conditioning import SITES, MapConditioning

ADAPTER = "diamond_map"


class DiamondMap(nn.Module):
    """A backbone's network with the adapter and the conditioning of a Posterior Diamond Map.

    The network's own weights are never changed. Outside this class the adapter is to be off: `dormant` sees to it.

    Args:
        backbone: an ordinary model of a family in `SITES`.
        rank: of the LoRA.
        lora_alpha: scale of the LoRA, which multiplies by `lora_alpha / rank`; None for the rank.
        lora_layers: names or name endings of the modules that are adapted; None for every linear layer in a block.

    Raises:
        ValueError: the family has no known sites.
    """

    def __init__(
        self,
        backbone: Backbone,
        rank: int = 64,
        lora_alpha: float | None = None,
        lora_layers: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        if backbone.family not in SITES:
            raise ValueError(f"a {backbone.family} model has no Diamond Map; families with one are {', '.join(SITES)}")
        # Not a submodule: the base's weights are not the map's.
        self.__dict__["backbone"] = backbone
        network = backbone.model
        self.conditioning = MapConditioning(network, SITES[backbone.family])
        config = LoraConfig(
            r=rank,
            lora_alpha=rank if lora_alpha is None else lora_alpha,
            target_modules=list(lora_layers) if lora_layers else block_linear_layers(network),
            init_lora_weights=True,
        )
        inject_adapter_in_model(config, network, adapter_name=ADAPTER)
        network.requires_grad_(False)
        layers = [module for module in network.modules() if isinstance(module, BaseTunerLayer)]
        self.__dict__["_adapted"] = [layer for layer in layers if ADAPTER in layer.lora_A]
        self.dormant()

    @property
    def lora_parameters(self) -> dict[str, nn.Parameter]:
        """The adapter's weights by name in the network."""
        return {name: weight for name, weight in self.backbone.model.named_parameters() if f".{ADAPTER}." in name}

    def trained_parameters(self) -> list[nn.Parameter]:
        """What distillation trains."""
        return [*self.conditioning.parameters(), *self.lora_parameters.values()]

    def dormant(self) -> None:
        """Makes the network the base again, other adapters as they are."""
        self._activate(lambda adapters: [name for name in adapters if name != ADAPTER])

    @contextmanager
    def awake(self) -> Iterator[None]:
        """The network with the map's adapter, beside the others that are active."""
        self._activate(lambda adapters: [*adapters, ADAPTER])
        try:
            yield
        finally:
            self.dormant()

    def _activate(self, choose: Callable[[list[str]], list[str]]) -> None:
        for layer in self._adapted:
            # set_adapter would also set requires_grad, which torch.func forbids inside its transforms.
            layer._active_adapter = choose(layer.active_adapters)

    def mean_denoiser(
        self, xbar: Tensor, s: Level, r: Tensor | float, x: Tensor, noise_to_signal: Level, conditions: Conditions
    ) -> Tensor:
        """`D_th(xbar_s, s, r; x_t, t)`.

        Args:
            xbar: inner states `[N, ...]`.
            s: their inner times in (0, 1].
            r: inner times to map to, in `[0, s]`; may carry a forward-mode tangent.
            x: observations `[N, ...]` in the bounded coordinate.
            noise_to_signal: their level.
            conditions: `N` rows; their negative prompts are not used, since a map has its guidance baked in.

        Returns:
            `[N, ...]`, differentiable in `xbar`, `x` and `r`.
        """
        statistic, level = query(x, noise_to_signal, xbar, s)
        kappa = as_level(noise_to_signal)
        outer = torch.where(torch.isinf(kappa), 1.0, kappa / (1 + kappa))
        times = [torch.as_tensor(time, device=x.device).float().expand(len(x)) for time in (outer, s, r)]
        unguided = replace(conditions, negative_features=None, classifier_free_guidance_scale=1.0)
        with self.awake(), self.conditioning.attached(self.backbone.model, xbar, torch.stack(times, 1)):
            return self.backbone.predict(statistic, level, unguided)

    def forward(
        self, xbar: Tensor, s: Level, r: Tensor | float, x: Tensor, noise_to_signal: Level, conditions: Conditions
    ) -> Tensor:
        """`X_{s -> r}(xbar_s; x_t, t)`, `[N, ...]`; arguments as of `mean_denoiser`."""
        denoised = self.mean_denoiser(xbar, s, r, x, noise_to_signal, conditions)
        return toward(xbar, denoised, s, r)


def toward(xbar: Tensor, denoised: Tensor, s: Level, r: Tensor | float) -> Tensor:
    """`(r / s) xbar + (1 - r / s) D`."""
    kept = expand(torch.as_tensor(r) / as_level(s), xbar)
    return kept * xbar + (1 - kept) * denoised


def block_linear_layers(network: nn.Module) -> list[str]:
    """The linear layers inside a network's blocks, by full name."""
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and "block" in name and not name.endswith("base_layer")
    ]
