"""Flow map trajectory tilting."""

from __future__ import annotations

from typing import Any

from ...core.serial import with_options
from ...posteriors.flow_map import FlowMapPoint
from ...transitions.glass import GlassTransition
from ...transitions.sampled_model import SampledModel
from ..guide import Guide
from ..methods.guidance import Guidance
from . import PRESETS


@PRESETS.register("fmtt")
def fmtt(model: SampledModel | None = None, **options: Any) -> Guidance:
    """Flow map trajectory tilting (Sabour et al., arXiv 2511.22688): guidance x flow-map point, pathwise.

    Particles move at random, which their search and their weights build on, and several may be drawn: the best is
    returned. The reward counts in full at every level, and the size of the shift is limited. For exact sampling make
    it the proposal of SMC, with the same point: `SMC(posterior=FlowMapPoint(), guide=fmtt().guide)`.
    """
    transition = GlassTransition() if model is None else model.stochastic_transition()
    return with_options(Guidance(FlowMapPoint(), Guide("pathwise"), transition), options)
