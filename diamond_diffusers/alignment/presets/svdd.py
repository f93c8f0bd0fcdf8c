"""Soft value-based decoding."""

from __future__ import annotations

from typing import Any

from ...core.model import Model
from ...core.serial import with_options
from ...posteriors.denoiser import DenoiserPoint
from ...transitions.ancestral import AncestralTransition
from ..methods.value_decoding import ValueDecoding
from . import PRESETS


@PRESETS.register("svdd")
def svdd(model: Model | None = None, **options: Any) -> ValueDecoding:
    """Soft value-based decoding (SVDD, Li et al., arXiv 2408.08252): value decoding x ancestral steps x denoiser point.

    Theirs for images is SVDD-PM, with 50 DDIM steps (`eta=1`) of Stable Diffusion 1.5: of 20 candidates of each step,
    the one whose predicted sample has the highest reward goes on. That is the limit of their temperature alpha at 0, in
    which the size of the reward, and so `reward_scale`, does not count; `svdd(temperature=1.0)` is the soft choice, of
    alpha `1 / reward_scale`.

    Their code differs in this: it evaluates the network again at the candidate that it has chosen, where here the first
    evaluation serves. SVDD-MC, whose values are those of a network that is trained for them, is not here: values come
    from look-aheads, of any posterior sampler.
    """
    decoding = ValueDecoding(1, 20, DenoiserPoint(), AncestralTransition(), block_size=1, temperature=0.0)
    return with_options(decoding, options)
