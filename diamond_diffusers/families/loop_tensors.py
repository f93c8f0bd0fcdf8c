"""The tensors of the prompts that a stock pipeline shows its callbacks, and takes back changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch

if TYPE_CHECKING:
    from ..core.model import Conditions


class LoopTensors:
    """The part of a family that shows its prompts' tensors to callbacks.

    Attributes:
        loop_tensors: the features that stock callbacks know, by their stock names; those of the negative prompts have
            names that begin with `negative_`.
        joins_negative: whether the stock loop holds the rows of the negative prompts before those of the prompts, in
            the same tensors.
    """

    loop_tensors: ClassVar[dict[str, str]] = {}
    joins_negative: ClassVar[bool] = False

    def shown_tensors(self, conditions: Conditions) -> dict[str, Any]:
        """The tensors, by name, that callbacks may ask for beside the latents, as the stock loop holds them, or None.

        Args:
            conditions: conditions of the next step.
        """
        features, negative = conditions.features, conditions.negative_features
        shown: dict[str, Any] = {}
        for name, feature in self.loop_tensors.items():
            if name.startswith("negative_"):
                shown[name] = negative and negative[feature]
            elif self.joins_negative and negative is not None and feature in features:
                shown[name] = torch.cat([negative[feature], features[feature]])
            else:
                shown[name] = features.get(feature)
        return shown

    def with_changed(self, conditions: Conditions, changed: Mapping[str, Any]) -> Conditions:
        """The conditions with the tensors that a callback has changed, if the stock loop reads these again.

        Raises:
            ValueError: the number of rows of a tensor is not that of the images.
        """
        features, negative = dict(conditions.features), conditions.negative_features
        negative = negative and dict(negative)
        for name, tensor in changed.items():
            feature = self.loop_tensors[name]
            count = len(features[feature])
            if name.startswith("negative_"):
                # Stock loops that show it have joined it to the others before their first step.
                continue
            if self.joins_negative and negative is not None and len(tensor) == 2 * count:
                negative[feature], features[feature] = tensor.chunk(2)
            elif len(tensor) == count:
                features[feature] = tensor
            else:
                raise ValueError(
                    f"callback_on_step_end returned {name} of {len(tensor)} rows for {count} images; return a row for "
                    "each, such as the last half under classifier-free guidance"
                )
        return replace(conditions, features=features, negative_features=negative)
