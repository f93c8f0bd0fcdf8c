"""What the presets of flow maps ask of a model."""

from __future__ import annotations

from ...core.flow_map import has_map_to_data
from ...core.model import Model


def follows_flow_map(model: Model | None) -> bool:
    """Whether particles are to follow a flow map from level to level.

    It is of no use on a few-step model, whose map leads where its Euler steps lead.
    """
    return model is not None and has_map_to_data(model) and model.predicts_mean
