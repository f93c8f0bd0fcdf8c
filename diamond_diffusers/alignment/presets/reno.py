"""ReNO."""

from __future__ import annotations

from typing import Any

from ...core.model import Model
from ...core.serial import with_options
from ..methods.noise_optimization import NoiseOptimization
from . import PRESETS


@PRESETS.register("reno")
def reno(model: Model | None = None, **options: Any) -> NoiseOptimization:
    """ReNO (Eyring et al., arXiv 2406.04312): noise optimisation x the steps of the stock pipeline.

    Theirs is one step of a few-step model. Of a model with a Diamond Map `reno(transition=FlowMapTransition())` follows
    the flow map; by itself all steps of the stock pipeline are differentiated.

    Fifty iterations of gradient ascent in the starting noise of a one-step model, with their optimiser (momentum 0.9,
    Nesterov's), learning rate 5, gradients clipped at a norm of 0.1 and regularisation 0.01; the best image by the
    reward alone is kept. Their reward is `"imagereward + 5*hpsv2 + 0.01*clip + 0.05*pickscore"`, in float16; here
    gradients and noises are in float32.
    """
    return with_options(NoiseOptimization(num_iterations=50), options)
