"""Blockwise control."""

from __future__ import annotations

from typing import Any

from ...core.model import Model
from ...core.serial import with_options
from ...posteriors.denoiser import DenoiserPoint
from ...transitions.ancestral import AncestralTransition
from ..methods.value_decoding import ValueDecoding
from . import PRESETS


@PRESETS.register("code")
def code(model: Model | None = None, **options: Any) -> ValueDecoding:
    """Blockwise control (CoDe, Singh et al., arXiv 2502.00968): value decoding x ancestral steps x denoiser point.

    Theirs is Stable Diffusion 1.5 with 500 DDPM steps at guidance scale 5: after each five steps, and at the end, the
    candidate of the highest reward goes on, at its predicted sample on the way and at the image in the end. Their
    scripts draw 10, 20, 30 or 40 candidates (100 to compress images); 40 it is here. The size of the reward, and so
    `reward_scale`, does not count. With fewer steps than theirs a block of five is a larger share of the way.

    Their code differs in this: it evaluates the network at all copies of the candidate that it has chosen, after it has
    evaluated it to score them; here one evaluation serves both. CoDe(eta), which begins at a reference image that is
    noised to a share eta of the way, is not here: a call begins at pure noise.
    """
    decoding = ValueDecoding(1, 40, DenoiserPoint(), AncestralTransition(), block_size=5, temperature=0.0)
    return with_options(decoding, options)
