"""Reported costs are the evaluations, backward passes, decodes and reward calls that the model really saw."""

import pytest
import torch

from diamond_diffusers.alignment import SMC, BestOfN, Guidance, NoAlignment
from diamond_diffusers.alignment.model import TiltedModel
from diamond_diffusers.backbones.base import Conditions
from diamond_diffusers.posteriors import DenoiserPoint, GlassPosterior
from diamond_diffusers.transitions import AncestralTransition, GlassTransition, ODETransition

from ..core.mixture import make_mixture
from ..core.mixture_model import MixtureBackbone, QuadraticReward
from .runs import COARSE_LEVELS, run

IMAGES, STEPS = 2, len(COARSE_LEVELS) - 1
LOOK_AHEADS = GlassPosterior(3, 4)
"""9 evaluations and 4 decodes a particle."""

# Per particle and step: evaluations, of which backward, and decodes.
METHODS = {
    "plain": (NoAlignment(num_particles=3), 1, 0, 0),
    "ancestral": (NoAlignment(AncestralTransition()), 1, 0, 0),
    "glass": (NoAlignment(GlassTransition(4)), 4, 0, 0),
    "best of n": (BestOfN(num_particles=5), 1, 0, 0),
    "fk steering": (SMC(3, DenoiserPoint(), GlassTransition(1)), 1, 0, 1),
    "glass smc": (SMC(3, LOOK_AHEADS, GlassTransition(2)), 9 + 1, 0, 4),
    "pathwise smc": (SMC(3, LOOK_AHEADS, GlassTransition(2), guidance=Guidance(gradient="pathwise")), 9 + 1, 9, 4),
    "tilted mean smc": (
        SMC(3, LOOK_AHEADS, GlassTransition(2), guidance=Guidance(LOOK_AHEADS, "tilted_mean")),
        9 + 1,
        0,
        4,
    ),
    "dps": (Guidance(gradient="pathwise"), 1, 1, 1),
    "isotropic": (Guidance(LOOK_AHEADS, num_particles=2, transition=ODETransition()), 9, 0, 4),
    "pathwise": (Guidance(LOOK_AHEADS, "pathwise", num_particles=2), 9, 9, 4),
    "tilted mean": (Guidance(LOOK_AHEADS, "tilted_mean"), 9, 0, 4),
    "guided inner steps": (Guidance(LOOK_AHEADS, "tilted_mean", transition=GlassTransition(3)), 27, 0, 12),
    "guided ode": (Guidance(GlassPosterior(2, 1), "pathwise", transition=ODETransition()), 2, 2, 1),
}


def run_counted(alignment, is_guided=False, reward=True, **options):
    backbone = MixtureBackbone(make_mixture(3))
    offsets = {"offset": torch.zeros(IMAGES, 1)}
    conditions = Conditions(offsets, offsets if is_guided else None, 2.0)
    reward = QuadraticReward({"": (1.0, 0.0, 0.0)}) if reward else None
    model = TiltedModel(backbone, conditions, [""] * IMAGES, reward)
    run(alignment, model, **options)
    return model


@pytest.mark.parametrize("is_guided", [False, True], ids=["", "classifier-free guidance"])
@pytest.mark.parametrize("name", METHODS)
def test_costs_are_exact(name, is_guided):
    alignment, evaluations, backwards, decodes = METHODS[name]
    model = run_counted(alignment, is_guided)
    cost, backbone = model.cost, model.backbone
    rows = IMAGES * alignment.num_particles
    factor = 2 if is_guided else 1
    assert cost.network_evaluations == backbone.evaluations == rows * STEPS * evaluations * factor
    assert cost.backward_passes == backbone.backwards == rows * STEPS * backwards * factor
    assert cost.decodes == backbone.decoded == rows * (STEPS * decodes + 1)
    assert cost.reward_calls == model.reward.calls == cost.decodes
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
    model = run_counted(NoAlignment())
    run(NoAlignment(), model)
    assert model.cost.network_evaluations == 2 * IMAGES * STEPS
    assert str(model.cost).startswith("20 network evaluations, 0 backward passes, 4 decodes, 4 reward calls")
