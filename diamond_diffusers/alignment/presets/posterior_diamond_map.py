"""The Posterior Diamond Map."""

from __future__ import annotations

from typing import Any

from ...core.model import Model
from ...core.serial import with_options
from ...posteriors.diamond import DiamondPosterior
from ...transitions.ode import ODETransition
from ..guide import Guide
from ..methods.guidance import Guidance
from . import PRESETS


@PRESETS.register("posterior_diamond_map")
def posterior_diamond_map(model: Model | None = None, **options: Any) -> Guidance:
    """Posterior Diamond Map (arXiv 2602.05993): guidance x ODE x Diamond look-ahead, pathwise.

    One evaluation a step, of one look-ahead by a map that is loaded (`pipe.load_diamond_map`), beside that of the base
    model, whose ODE is followed; the shift is as large as the drift (`scaling="auto"`). The strength is 1, theirs for
    inverse problems in 12 steps; for prompts, in 48 steps, it is 3. The size of the reward does not count.

    Theirs is guided at pure noise, where our maps do not depend on the state, so that there is no guidance, and in the
    last step, which here is not: of few steps it is a long one, and a change as large as the drift would show in the
    image. `posterior_diamond_map(num_guided_steps=None)` guides it too.
    """
    guidance = Guidance(
        DiamondPosterior(1),
        Guide("pathwise", scaling="auto", max_shift=None),
        ODETransition(),
        num_guided_steps=-1,
    )
    return with_options(guidance, options)
