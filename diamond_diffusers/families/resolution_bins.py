"""The base class of families whose stock pipelines sample at the nearest trained size (SANA, SANA-Sprint, PixArt)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from ..core.model import Conditions
from ..core.tensors import to_unit_range
from .base import Family


class BinnedFamily(Family):
    """A family that samples at the trained size of the nearest aspect ratio, and resizes and crops the decoded images.

    The conditions share `height` and `width` of the sampled image in pixels, and `resized_to`, which is width and
    height of the returned image, or None without bins.

    Attributes:
        resolution_bins: for each `sample_size` of the network, heights and widths by aspect ratio.
        unbinned_multiple: what height and width have to be multiples of without bins.
    """

    resolution_bins: ClassVar[Mapping[int, Mapping[str, Sequence[float]]]]
    unbinned_multiple: ClassVar[int]

    def image_size(self, arguments: Mapping[str, Any]) -> tuple[int, int]:
        default = self.network_module.config.sample_size * self.pipeline.vae_scale_factor
        return arguments["height"] or default, arguments["width"] or default

    def size_multiple(self, arguments: Mapping[str, Any]) -> int:
        return 1 if arguments["use_resolution_binning"] else self.unbinned_multiple

    def sizes(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Sizes that the conditions share.

        Raises:
            ValueError: `use_resolution_binning` is set, but there are no bins for the network's `sample_size`.
        """
        height, width = self.image_size(arguments)
        sample_size = self.network_module.config.sample_size
        if not arguments["use_resolution_binning"]:
            return {"height": height, "width": width, "resized_to": None}
        if sample_size not in self.resolution_bins:
            raise ValueError(
                f"use_resolution_binning is True, but the sample_size of the {self.network_name} is {sample_size} and "
                f"bins are known for {', '.join(map(str, self.resolution_bins))}; give use_resolution_binning=False"
            )
        binned_height, binned_width = self.pipeline.image_processor.classify_height_width_bin(
            height, width, ratios=self.resolution_bins[sample_size]
        )
        return {"height": binned_height, "width": binned_width, "resized_to": (width, height)}

    def decode(self, z: Tensor, conditions: Conditions, preview: bool = False) -> Tensor:
        images, resized_to = self.decode_latents(z, preview), conditions.shared["resized_to"]
        if resized_to is not None:
            images = self.pipeline.image_processor.resize_and_crop_tensor(images, *resized_to)
        return to_unit_range(images)
