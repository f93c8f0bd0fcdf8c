"""FMRG."""

from __future__ import annotations

from typing import Any

from ...core.flow_map import has_map_to_data
from ...core.model import Model
from ...core.serial import with_options
from ...posteriors.flow_map import FlowMapPoint
from ...transitions.flow_map import FlowMapTransition
from ...transitions.ode import ODETransition
from ..guide import Guide
from ..methods.guidance import Guidance
from . import PRESETS
from .base import follows_flow_map


@PRESETS.register("fmrg")
def fmrg(model: Model | None = None, **options: Any) -> Guidance:
    """FMRG (Huang et al., arXiv 2604.27147): guidance x flow map x flow-map point, the shift as large as the drift.

    FMRG-J, theirs for rewards that are networks: the gradient goes through the flow map, is scaled to the norm of the
    velocity, and times 3 is added to it. The first half of the steps is guided; after four of them the best of three
    particles goes on alone, by the reward at its look-ahead; two steps of the flow map, even in time, lead from there
    to the image. Particles follow the flow map from level to level, two evaluations a step; those of a few-step model,
    and of an ordinary one, whose map is 4 steps of its ODE and does not jump, take Euler steps. FMRG-E, theirs for
    inverse problems, is `fmrg(guide={"gradient": "isotropic"})`: the gradient at the look-ahead is applied without
    going through the map. The size of the reward, and so `reward_scale`, does not count.

    Where this is not what they ran: their scripts take the first steps of Adam, which are signs of the gradient times a
    rate that falls linearly, and leave the scaling by the velocity, which their sampler has and their text describes,
    without effect. Mostly they guide the first quarter to eighth of a finer grid, of 16 to 208 steps, at strengths of 2
    to 5 and with no, 2, 4 or more steps of warm-up; only their example for GenEval guides half of ten steps, the last
    of which is the jump. Some runs take one evaluation a step: the map to the end gives the step too. Their weight of
    the shift of FMRG-E is `t (1 - t')`, in place of the step that the ODE would make of it.
    """
    fmrg_j = Guidance(
        FlowMapPoint(),
        Guide("pathwise", strength=3.0, scaling="auto", max_shift=None),
        transition=FlowMapTransition() if follows_flow_map(model) else ODETransition(),
        num_particles=3,
        num_guided_steps=0.5,
        num_warm_up_steps=4,
        num_jump_steps=2 if model is None or has_map_to_data(model) else None,
    )
    return with_options(fmrg_j, options)
