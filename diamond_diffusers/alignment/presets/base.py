"""What the presets of flow maps ask of a model."""

from __future__ import annotations

from ...core.flow_map import has_map_to_data
from ...core.model import Model
from ...posteriors.flow_map import FlowMapPoint

ODE_MAP_STEPS = 4
"""Evaluations of the flow map of a model that is none, by integrating its ODE."""


def follows_flow_map(model: Model | None) -> bool:
    """Whether particles are to follow a flow map from level to level.

    It is of no use on a few-step model, whose map leads where its Euler steps lead.
    """
    return model is not None and has_map_to_data(model) and model.predicts_mean


def map_steps(model: Model | None) -> int:
    """Evaluations of a look-ahead along the flow map: one where the model has such a map, or is not known."""
    return 1 if model is None or has_map_to_data(model) else ODE_MAP_STEPS


def flow_map_point(model: Model | None) -> FlowMapPoint:
    """The look-ahead along the flow map, in as many evaluations as this model needs."""
    return FlowMapPoint(map_steps(model))
