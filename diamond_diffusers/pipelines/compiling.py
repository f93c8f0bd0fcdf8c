"""The method that compiles what a pipeline evaluates."""

from __future__ import annotations

from typing import Any, Self

from torch import nn

from ..families.base import Family
from ..families.compat import offloads_layers
from ..rewards import Reward, RewardLike
from .resolution import loaded_reward


class CompileMethods:
    """The method of `DiamondMapPipeline` that compiles network, decoder and reward."""

    family: Family
    defaults: dict[str, Any]
    _named_rewards: dict[str, Reward]

    def compile(
        self, *, network: bool = True, decoder: bool = True, reward: bool | RewardLike = True, **options: Any
    ) -> Self:
        """Compiles what calls evaluate, in place, as `torch.nn.Module.compile` does; returns this object.

        Each is compiled where it is first evaluated: once with gradients and once without, and of each once more for a
        single row and where the number of rows first changes, after which any number will do. Further steps, chunks and
        calls compile nothing. Load LoRAs and Diamond Maps before. What is saved is uncompiled.

        Args:
            network: whether to compile the network; that of `score_model` is compiled by its own method.
            decoder: whether to compile the autoencoder's decoder, and that of `preview_vae` where there is one.
            reward: True for the model's own reward, if it has one; or another, of which a text names the rewards that
                are then loaded for later calls with the same text. False for none.
            **options: of `torch.compile`, such as `mode="max-autotune-no-cudagraphs"`, `fullgraph` or `backend`.

        Raises:
            TypeError: an option is unknown to `torch.compile`.
            ValueError: layers are offloaded, whose hooks cannot be compiled.

        Example:
            >>> pipe = DiamondMapPipeline.from_pretrained()
            >>> pipe.compile(decoder=False, reward="miniature", backend="eager").transformer._compiled_call_impl is None
            False
        """
        modules: list[nn.Module] = [self.family.network_module] if network else []
        if decoder:
            decoders = (self.family.decoder(False), self.family.decoder(True))
            modules += [vae.decoder for vae in dict.fromkeys(decoders)]
        for module in modules:
            if offloads_layers(module):
                raise ValueError(
                    f"layers of the {type(module).__name__} are offloaded, whose hooks cannot be compiled; compile "
                    "with enable_model_cpu_offload() or on the device, or leave it out: network=False or decoder=False"
                )
        chosen = self.defaults.get("reward") if reward is True else reward
        if chosen is not None and chosen is not False:
            loaded_reward(chosen, self._named_rewards).compile(**options)
        for module in modules:
            module.compile(**options)
        return self
