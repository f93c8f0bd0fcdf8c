"""Posterior Diamond Maps: one network evaluation draws a sample of the clean image given a noisy one.

Source: Holderrieth et al., arXiv 2602.05993. A Diamond Map is a flow map of the inner GLASS flow,

    X_{s -> r}(xbar_s; x_t, t) = (r / s) xbar_s + (1 - r / s) D_th(xbar_s, s, r; x_t, t),      0 <= r < s <= 1

parametrised by its mean denoiser `D_th`. That is the base network, adapted by LoRA, at the sufficient statistic
`(S, kappa*)` of `x_t` and `xbar_s`. Zero-initialised layers tell it `xbar_s` itself (and `x_t`, if wanted), the outer
time and `(s, r)`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from diffusers.utils.torch_utils import unwrap_module
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..core.glass import query, toward
from ..core.levels import Level, as_level
from ..core.model import Conditions
from ..core.tensors import where_rows
from ..families.base import Family
from ..families.compat import activate_adapters, adapters_disabled, alone_with, offloads_layers
from ..families.two_time import TwoTimeEmbedder
from .conditioning import SITES, MapConditioning, Sites

ADAPTER = "diamond_map"


class DiamondMap(nn.Module):
    """A family's network with the adapter and the conditioning of a Posterior Diamond Map.

    The network's own weights are never changed. The adapter is active only while the map is evaluated, beside the other
    LoRAs that are active then; otherwise the network is the base.

    Args:
        family: an ordinary model of a family in `SITES`.
        rank: rank of the LoRA.
        lora_alpha: scale of the LoRA, which multiplies by `lora_alpha / rank`; None for the rank.
        lora_layers: names or name endings of the modules that are adapted; None for every linear layer in a block.
        condition_on_observation: whether the network is told `x_t` itself too, beside the statistic that contains it.

    Attributes:
        guidance: the call arguments that are baked in, with their values in distillation.
        training_facts: facts about the distillation, for readers of the model card.
        base_model, base_revision: repository or folder, and revision, of a saved map's base.
        license: licence of a saved map, by its name on the Hub.

    Raises:
        ValueError: the family has no known sites, or the network has a Diamond Map already, is a flow map of two times,
            is offloaded layer by layer, or has LoRAs fused into its weights.
    """

    family: Family
    _adapted: list[BaseTunerLayer]

    def __init__(
        self,
        family: Family,
        rank: int = 64,
        lora_alpha: float | None = None,
        lora_layers: Sequence[str] | None = None,
        condition_on_observation: bool = False,
    ) -> None:
        super().__init__()
        self.guidance: dict[str, Any] = {}
        self.training_facts: dict[str, Any] = {}
        self.base_model: str | None = None
        self.base_revision: str | None = None
        self.license: str | None = None
        # Not a submodule: the base's weights are not the map's.
        self.__dict__["family"] = family
        network, sites = self.network, sites_of(family)
        if self.is_attached:
            raise ValueError(
                f"the {type(network).__name__} has a Diamond Map already; unload it first, from the pipeline that "
                "loaded it, with unload_diamond_map()"
            )
        check_can_be_adapted(network)
        self.conditioning = conditioning_layers(network, sites, condition_on_observation)
        self.config = LoraConfig(
            r=rank,
            lora_alpha=rank if lora_alpha is None else lora_alpha,
            target_modules=list(lora_layers) if lora_layers else block_linear_layers(network),
            init_lora_weights=True,
        )
        self._inject()

    def _inject(self) -> None:
        """Puts the adapter into the network, without changing which adapters are active or which weights train."""
        network = self.network
        at_rest = [(layer, layer.active_adapters, layer.disable_adapters) for layer in _tuned_layers(network)]
        trained = {id(parameter) for parameter in network.parameters() if parameter.requires_grad}
        try:
            inject_adapter_in_model(self.config, network, adapter_name=ADAPTER)
        except BaseException:
            # Some layers may have it already.
            self.__dict__["_adapted"] = _layers_with_map(network)
            self.remove()
            raise
        finally:
            for parameter in network.parameters():
                parameter.requires_grad_(id(parameter) in trained)
            for layer in _tuned_layers(network):
                activate_adapters(layer, [], layer.disable_adapters)
            for layer, active, disabled in at_rest:
                activate_adapters(layer, active, disabled)
        # Not submodules either.
        self.__dict__["_adapted"] = _layers_with_map(network)
        for layer in self._adapted:
            layer.scaling = _FixedScaling(layer.scaling)

    @property
    def network(self) -> nn.Module:
        """The family's network, without the wrapper of `torch.compile`."""
        return unwrap_module(self.family.network_module)

    @property
    def is_attached(self) -> bool:
        """Whether the adapter is in the network; stock methods that take out all adapters take out this one too."""
        return ADAPTER in _peft_configs(self.network)

    @property
    def rank(self) -> int:
        """Rank of the LoRA."""
        return self.config.r

    @property
    def lora_alpha(self) -> float:
        """Scale of the LoRA, which multiplies by `lora_alpha / rank`."""
        return self.config.lora_alpha

    @property
    def condition_on_observation(self) -> bool:
        """Whether the network is told `x_t` itself too."""
        return self.conditioning.observation is not None

    @property
    def lora_parameters(self) -> dict[str, nn.Parameter]:
        """The adapter's weights by name in the network."""
        return {name: weight for name, weight in self.network.named_parameters() if f".{ADAPTER}." in name}

    def trained_parameters(self) -> list[nn.Parameter]:
        """The parameters that distillation trains."""
        return list(self.weights().values())

    def weights(self) -> dict[str, nn.Parameter]:
        """The trained parameters by the names under which they are saved: those of stock LoRA files, and
        `conditioning.*`."""
        conditioning = {f"conditioning.{name}": weight for name, weight in self.conditioning.named_parameters()}
        lora = {name.replace(f".{ADAPTER}.", "."): weight for name, weight in self.lora_parameters.items()}
        return {**conditioning, **lora}

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Sets the trained parameters to values named as by `weights`.

        Raises:
            ValueError: a name or a shape is not that of this map.
        """
        own = self.weights()
        odd = sorted(own.keys() ^ weights.keys()) or [name for name in own if own[name].shape != weights[name].shape]
        if odd:
            raise ValueError(f"the weight {odd[0]!r} of the Diamond Map does not fit this network; use its own base")
        for name, parameter in own.items():
            parameter.copy_(weights[name])

    def remove(self) -> None:
        """Takes the adapter out of the network, which is then, bit for bit, as it was; the map cannot be used again."""
        network = self.network
        for layer in self._adapted:
            if ADAPTER in layer.lora_A:
                layer.delete_adapter(ADAPTER)
        for parent in list(network.modules()):
            for name, child in list(parent.named_children()):
                if any(child is layer for layer in self._adapted) and not child.lora_A:
                    setattr(parent, name, child.base_layer)
        configs = _peft_configs(network)
        if ADAPTER in configs:
            del configs[ADAPTER]
            if not configs:
                del network.peft_config

    def take_out(self) -> dict[str, Tensor] | None:
        """Removes the map as `remove` does; returns the pieces that `put_back` takes.

        Raises:
            ValueError: its layers are offloaded one by one or in groups; the map then stays.
        """
        attached = self.is_attached
        if attached and offloads_layers(self.network):
            raise ValueError(
                f"the layers of the {type(self.network).__name__} are offloaded one by one or in groups, so that its "
                "Diamond Map cannot be taken out and put back; call pipe.remove_all_hooks() first"
            )
        weights = {name: weight.detach().clone() for name, weight in self.weights().items()} if attached else None
        self.remove()
        return weights

    def put_back(self, weights: Mapping[str, Tensor] | None) -> None:
        """Puts the map into the network again, if it was there; the global random state stays as it is."""
        if weights is not None:
            with torch.random.fork_rng():
                self._inject()
            self.load_weights(weights)

    @contextmanager
    def away(self) -> Iterator[None]:
        """Context in which the network is without the map, for methods that remove all adapters."""
        weights = self.take_out()
        try:
            yield
        finally:
            self.put_back(weights)

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Context in which the map's adapter is active in the network, beside the other active ones.

        Raises:
            RuntimeError: the adapter is no longer in the network, or other LoRAs are fused into its weights.
        """
        if not self.is_attached:
            raise RuntimeError("the Diamond Map was unloaded, perhaps with all LoRAs of its network; load it again")
        if any(layer.merged for layer in self._adapted):
            raise RuntimeError("LoRAs are fused into the network's weights, which hides the Diamond Map; unfuse them")
        at_rest = [(layer.active_adapters, layer.disable_adapters) for layer in self._adapted]
        try:
            for layer in self._adapted:
                others = [] if layer.disable_adapters else [name for name in layer.active_adapters if name != ADAPTER]
                activate_adapters(layer, [*others, ADAPTER])
            yield
        finally:
            for layer, (active, disabled) in zip(self._adapted, at_rest, strict=True):
                activate_adapters(layer, active, disabled)

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
        is_noise = torch.isinf(kappa)
        outer = torch.where(is_noise, 1.0, kappa / (1 + kappa))
        # Pure noise says nothing, and is not heard: the map is then a flow map of the model.
        observed = where_rows(is_noise, torch.zeros_like(x), x)
        times = [as_level(time).to(x.device, torch.float32).expand(len(x)) for time in (outer, s, r)]
        if self.conditioning.device != x.device:
            self.conditioning.to(x.device)
        unguided = replace(conditions, negative_features=None, classifier_free_guidance_scale=1.0)
        # What makes the base a few-step model is not part of the model that was distilled.
        few_step = self.family.few_step
        as_base = adapters_disabled(self.network, few_step) if isinstance(few_step, tuple) else nullcontext()
        conditioned = self.conditioning.attached(self.network, xbar, observed, torch.stack(times, 1))
        with alone_with(self.network), as_base, self.awake(), conditioned:
            return self.family.predict(statistic, level, unguided)

    def forward(
        self, xbar: Tensor, s: Level, r: Tensor | float, x: Tensor, noise_to_signal: Level, conditions: Conditions
    ) -> Tensor:
        """`X_{s -> r}(xbar_s; x_t, t)`, `[N, ...]`; arguments as of `mean_denoiser`."""
        denoised = self.mean_denoiser(xbar, s, r, x, noise_to_signal, conditions)
        return toward(xbar, denoised, s, r)


def sites_of(family: Family) -> Sites:
    """Where the network of a model is conditioned; raises a `ValueError` for a family with no known sites."""
    if family.name not in SITES:
        raise ValueError(f"a {family.name} model has no Diamond Map; families with one are {', '.join(SITES)}")
    return SITES[family.name]


def conditioning_layers(network: nn.Module, sites: Sites, condition_on_observation: bool = False) -> MapConditioning:
    """New layers that condition a network on the arguments of a map.

    Raises:
        ValueError: the network is a flow map of two times.
    """
    if isinstance(network.get_submodule(sites.time), TwoTimeEmbedder):
        name = type(network).__name__
        raise ValueError(f"the {name} has a flow-map LoRA of two times; unload_lora_weights() before the Diamond Map")
    return MapConditioning(network, sites, condition_on_observation).requires_grad_(False)


def block_linear_layers(network: nn.Module) -> list[str]:
    """The linear layers inside a network's blocks, by full name, whether or not they carry adapters."""
    adapted = {name: layer for name, layer in network.named_modules() if isinstance(layer, BaseTunerLayer)}
    inside = tuple(f"{name}." for name in adapted)
    return [
        name
        for name, module in network.named_modules()
        if isinstance(adapted[name].get_base_layer() if name in adapted else module, nn.Linear)
        and "block" in name
        and not name.startswith(inside)
    ]


class _FixedScaling(dict[str, float]):
    """Scales of a layer's adapters, with a fixed one for the map, which a call that scales its LoRAs does not mean."""

    def __setitem__(self, name: str, scale: float) -> None:
        if name != ADAPTER or name not in self:
            super().__setitem__(name, scale)


def check_can_be_adapted(network: nn.Module) -> None:
    """Raises a `ValueError` if a Diamond Map would be wrong in this network, or would break something in it."""
    name = type(network).__name__
    if any(layer.merged for layer in _tuned_layers(network)):
        raise ValueError(f"LoRAs are fused into the weights of the {name}; unfuse_lora() before the Diamond Map")
    if offloads_layers(network):
        raise ValueError(
            f"the layers of the {name} are offloaded one by one or in groups, but layers added to them would not be; "
            "load the Diamond Map first, then offload"
        )


def _peft_configs(network: nn.Module) -> dict[str, LoraConfig]:
    """The peft configurations of the adapters in a network, by name."""
    return getattr(network, "peft_config", {})


def _layers_with_map(network: nn.Module) -> list[BaseTunerLayer]:
    return [layer for layer in _tuned_layers(network) if ADAPTER in layer.lora_A]


def _tuned_layers(network: nn.Module) -> list[BaseTunerLayer]:
    return [module for module in network.modules() if isinstance(module, BaseTunerLayer)]
