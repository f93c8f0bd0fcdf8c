"""FMRG's move within SMC, against the tilted law and the evidence in closed form."""

import math
from dataclasses import replace

import pytest
import torch

from diamond_diffusers import DiamondTransition, Guide, RenoiseTransition
from diamond_diffusers.alignment.named import as_method

from ..core.mixture import make_mixture, standard_error
from ..core.mixture_model import LINEAR, QUADRATIC, MixtureMapFamily, law_of, make_map_law, unconditional
from ..core.test_diamond import DiamondMixture
from .runs import run
from .test_smc import is_exact

MIXTURE = make_mixture(3)
LEVELS = (math.inf, 1.5, 0.5, 0.0)
MODELS = {"flow map": lambda: MixtureMapFamily(MIXTURE), "diamond map": lambda: DiamondMixture(MIXTURE)}
TRANSITIONS = {"flow map": RenoiseTransition(), "diamond map": DiamondTransition()}


def estimates(method, model, reward, num_images, scale=1.0):
    """`Z / Z_exact [B]`, and weighted means `[B, d]` of the particles less the exact one."""
    law = law_of(model, unconditional(num_images), [""] * num_images, reward, reward_scale=scale)
    result = run(method, law, LEVELS)
    tilted, evidence = reward.tilt(MIXTURE, scale=scale)
    means = torch.einsum("bp,bpd->bd", result.log_weights.exp(), result.latents.double())
    return torch.exp(result.log_evidence - evidence), means - tilted.mean


@pytest.mark.parametrize("reward", [LINEAR, pytest.param(QUADRATIC, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["flow map", pytest.param("diamond map", marks=pytest.mark.slow)])
def test_evidence_and_tilted_mean_are_those_of_the_models_own_law(name, reward):
    """In three steps, since steps of an exact map are exact however few they are."""
    model = MODELS[name]()
    method = as_method({"name": "fmrg_smc", "num_particles": 32}, model)
    assert method.resolve(model).transition == TRANSITIONS[name]
    ratio, mean_error = estimates(method, model, reward, 48)
    assert is_exact(ratio, mean_error, 32)
    # An error of a fifth would be seen.
    assert standard_error(ratio) < 0.05


@pytest.mark.slow
def test_the_gradient_helps_as_many_particles_and_is_not_worth_its_cost_nor_the_size_that_fmrg_gives_it():
    """Mean square errors of `log Z`: guided, guided as strongly as FMRG, and unguided with as many and more particles.

    Three evaluations of a guided particle have two backward passes, which count two each: 37 cost what 16 guided ones
    do.
    """
    method = as_method({"name": "fmrg_smc", "num_particles": 16})
    strong = Guide("pathwise", strength=3.0, scaling="auto", max_shift=None, max_noise_to_signal=100.0)
    methods = {
        "guided": method,
        "unguided": replace(method, guide=None),
        "strong": replace(method, guide=strong),
        "more": replace(method, guide=None, num_particles=37),
    }
    errors = {
        name: estimates(made, MODELS["flow map"](), LINEAR, 256, 2.0)[0].log().square()
        for name, made in methods.items()
    }
    for worse, better in [("unguided", "guided"), ("strong", "guided"), ("guided", "more")]:
        difference = errors[worse] - errors[better]
        assert difference.mean() > 3 * standard_error(difference)


def test_pure_noise_is_not_looked_ahead_from():
    law = make_map_law(MIXTURE, LINEAR, num_images=2, has_scores=False, num_steps=2)
    run(as_method("fmrg_smc", law.model), law, LEVELS)
    # The end of the map is the step's own prediction, and the look-ahead at the two lower levels.
    assert law.cost.network_evaluations == 2 * 4 * 3
    assert law.cost.backward_passes == 2 * 4 * 2
    assert law.cost.reward_calls == 2 * 4 * 3
