"""Methods that load Diamond Maps and LoRAs into the network of a pipeline."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from diffusers import DiffusionPipeline
from torch import Tensor

from ..families.base import Family
from ..maps.diamond_map import ADAPTER
from ..maps.storage import SavedMap, read_diamond_map
from .loading import HUB_OPTIONS, find_map


class AdapterMethods:
    """The methods of `DiamondMapPipeline` that load and remove Diamond Maps and LoRAs."""

    pipeline: DiffusionPipeline
    family: Family
    defaults: dict[str, Any]
    _base_defaults: dict[str, Any]
    _take_defaults: Callable[[Mapping[str, Any]], None]

    def load_diamond_map(self, source: str | os.PathLike[str], **hub: Any) -> None:
        """Loads a Posterior Diamond Map of this model, for `DiamondPosterior` and `DiamondTransition`.

        While the map is loaded, its call defaults take precedence over those of the base. The base stays what it is,
        bit for bit, and ordinary LoRAs act on both. A map that was loaded before is replaced; if the new one is
        refused, the model stays as it was.

        Args:
            source: folder or Hub repository of the map, alone or beside its base.
            **hub: `subfolder`, `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`.

        Raises:
            FileNotFoundError: there is no map.
            TypeError: an argument is unknown.
            ValueError: the map is for another base, its files are damaged or hold invalid values, or the network
                has fused LoRAs, a two-time LoRA, or layers that are offloaded.
        """
        for name in hub.keys() - {"subfolder", *HUB_OPTIONS}:
            raise TypeError(f"load_diamond_map has no argument {name!r}; it takes subfolder, {', '.join(HUB_OPTIONS)}")
        found = None if "subfolder" in hub else find_map(source, hub)
        self._adopt(read_diamond_map(source, self.family, **(hub if found is None else found.hub)))

    def _adopt(self, saved: SavedMap) -> None:
        """Replaces the former map by a new one; if the new one does not fit or fails, the former one stays."""
        saved.check_fits(self.family)
        former = self.family.posterior_map
        former_weights = None if former is None else former.take_out()
        try:
            self.family.posterior_map = saved.around(self.family, self.family.device)
        except BaseException:
            if former is not None:
                former.put_back(former_weights)
            raise
        if former is None:
            self.__dict__["_base_defaults"] = self.defaults
        self._take_defaults({**self._base_defaults, **saved.config["defaults"]})

    def unload_diamond_map(self) -> None:
        """Removes the Diamond Map, if there is one; the base and the call defaults are then as before it was loaded."""
        if self.family.posterior_map is not None:
            self.family.posterior_map.remove()
            self.family.posterior_map = None
            self._take_defaults(self._base_defaults)

    def load_lora_weights(
        self, pretrained_model_name_or_path_or_dict: str | os.PathLike[str] | dict[str, Tensor], **kwargs: Any
    ) -> None:
        """Loads a LoRA as the stock pipeline does; also FLUX's two-time LoRA, which makes it a flow map.

        Args:
            pretrained_model_name_or_path_or_dict: folder, file, Hub repository, or weights.
            **kwargs: options of the stock method (`adapter_name`, `weight_name`, ...).

        Raises:
            AttributeError: stock diffusers has no LoRA loader for the pipeline.
            ValueError: the LoRA is for modules that the network does not have, or declares a rank that its weights do
                not have.
        """
        self.family.load_lora_weights(pretrained_model_name_or_path_or_dict, **kwargs)

    def unload_lora_weights(self, **kwargs: Any) -> None:
        """Removes every LoRA, as the stock pipeline's method does, but leaves a Diamond Map.

        A `few_step` that names adapters is forgotten.
        """
        self.family.unload_lora_weights(**kwargs)

    def set_adapters(self, adapter_names: str | list[str], *args: Any, **kwargs: Any) -> None:
        """Activates LoRAs as the stock pipeline does; a Diamond Map is active by itself, where it is evaluated.

        Raises:
            ValueError: the names include the Diamond Map.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        if self.family.has_diamond_map and ADAPTER in names:
            raise ValueError(
                f"adapter_names holds {ADAPTER!r}, the Diamond Map, which is active where it is evaluated and nowhere "
                "else; leave it out"
            )
        self.pipeline.set_adapters(adapter_names, *args, **kwargs)
