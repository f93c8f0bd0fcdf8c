"""Reported costs are the evaluations, backward passes, decodes and reward calls that the model really saw."""

import pytest
import torch

from diamond_diffusers import (
    SMC,
    AncestralTransition,
    BestOfN,
    DenoiserPoint,
    GlassPosterior,
    GlassTransition,
    Guidance,
    Guide,
    NoAlignment,
    ODETransition,
)
from diamond_diffusers.core.model import Conditions

from ..core.mixture import make_mixture
from ..core.mixture_model import MixtureModel, QuadraticReward, law_of
from .runs import COARSE_LEVELS, run

IMAGES, STEPS = 2, len(COARSE_LEVELS) - 1
LOOK_AHEADS = GlassPosterior(3, 4)
"""9 evaluations and 4 decodes a particle."""

# Of a particle: evaluations, of which backward, and decodes. SMC values particles between the steps alone.
LAST = STEPS - 1
METHODS = {
    "plain": (NoAlignment(num_particles=3), 1 * STEPS, 0, 0),
    "ancestral": (NoAlignment(AncestralTransition()), 1 * STEPS, 0, 0),
    "glass": (NoAlignment(GlassTransition(4)), 4 * STEPS, 0, 0),
    "best of n": (BestOfN(num_particles=5), 1 * STEPS, 0, 0),
    "fk steering": (SMC(3, DenoiserPoint(), GlassTransition(1)), 1 * STEPS, 0, 1 * LAST),
    "few valuations": (SMC(3, LOOK_AHEADS, GlassTransition(2), num_valuations=2), 2 * 10 + 3 * 2, 0, 2 * 4),
    "glass smc": (SMC(3, LOOK_AHEADS, GlassTransition(2)), 10 * LAST + 2, 0, 4 * LAST),
    # Guidance looks ahead at every step.
    "pathwise smc": (
        SMC(3, LOOK_AHEADS, GlassTransition(2), guide=Guide("pathwise"), num_valuations=1),
        10 * STEPS,
        9 * STEPS,
        4 * STEPS,
    ),
    "tilted mean smc": (
        SMC(3, LOOK_AHEADS, GlassTransition(2), guide=Guide("tilted_mean")),
        10 * STEPS,
        0,
        4 * STEPS,
    ),
    "dps": (Guidance(guide=Guide("pathwise")), 1 * STEPS, 1 * STEPS, 1 * STEPS),
    "isotropic": (Guidance(LOOK_AHEADS, num_particles=2, transition=ODETransition()), 9 * STEPS, 0, 4 * STEPS),
    "pathwise": (Guidance(LOOK_AHEADS, Guide("pathwise"), num_particles=2), 9 * STEPS, 9 * STEPS, 4 * STEPS),
    "tilted mean": (Guidance(LOOK_AHEADS, Guide("tilted_mean")), 9 * STEPS, 0, 4 * STEPS),
    "guided inner steps": (
        Guidance(LOOK_AHEADS, Guide("tilted_mean"), transition=GlassTransition(3)),
        27 * STEPS,
        0,
        12 * STEPS,
    ),
    "guided ode": (
        Guidance(GlassPosterior(2, 1), Guide("pathwise"), transition=ODETransition()),
        2 * STEPS,
        2 * STEPS,
        1 * STEPS,
    ),
}


def run_counted(alignment, is_guided=False, reward=True, **options):
    family = MixtureModel(make_mixture(3))
    offsets = {"offset": torch.zeros(IMAGES, 1)}
    conditions = Conditions(offsets, offsets if is_guided else None, 2.0)
    reward = QuadraticReward({"": (1.0, 0.0, 0.0)}) if reward else None
    law = law_of(family, conditions, [""] * IMAGES, reward)
    run(alignment, law, **options)
    return law


@pytest.mark.parametrize("is_guided", [False, True], ids=["", "classifier-free guidance"])
@pytest.mark.parametrize("name", METHODS)
def test_costs_are_exact(name, is_guided):
    alignment, evaluations, backwards, decodes = METHODS[name]
    law = run_counted(alignment, is_guided)
    cost, family = law.cost, law.model
    rows = IMAGES * alignment.num_particles
    factor = 2 if is_guided else 1
    assert cost.network_evaluations == family.evaluations == rows * evaluations * factor
    assert cost.backward_passes == family.backwards == rows * backwards * factor
    assert cost.decodes == family.decoded == rows * (decodes + 1)
    assert cost.reward_calls == law.reward.calls == cost.decodes
    assert cost.equivalent_evaluations == cost.network_evaluations + 2 * cost.backward_passes
    assert cost.seconds > 0


def test_without_a_reward_nothing_is_decoded():
    cost = run_counted(NoAlignment(), reward=False).cost
    assert (cost.network_evaluations, cost.decodes, cost.reward_calls) == (IMAGES * STEPS, 0, 0)


def test_levels_above_the_highest_value_cost_no_look_aheads():
    smc = SMC(3, LOOK_AHEADS, GlassTransition(2), max_noise_to_signal=1.0)
    cost = run_counted(smc).cost
    with_values = sum(level <= 1.0 for level in COARSE_LEVELS[:-1])
    assert cost.network_evaluations == IMAGES * 3 * (with_values * 10 + (STEPS - with_values) * 2)
    assert cost.decodes == IMAGES * 3 * (with_values * 4 + 1)


def test_costs_add_up_over_runs_and_read_well():
    law = run_counted(NoAlignment())
    run(NoAlignment(), law)
    assert law.cost.network_evaluations == 2 * IMAGES * STEPS
    assert str(law.cost).startswith("20 network evaluations, 0 backward passes, 4 decodes, 4 reward calls")
