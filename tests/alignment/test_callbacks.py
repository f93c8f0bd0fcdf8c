"""Callbacks that watch, replace particles or stop a run; names and rewards that a method cannot work with."""

import math

import pytest
import torch

from diamond_diffusers import (
    SMC,
    AdaptiveTempering,
    AncestralTransition,
    BeamSearch,
    BestOfN,
    DenoiserPoint,
    DiffusionTreeSampling,
    DiffusionTreeSearch,
    GlassPosterior,
    GlassTransition,
    Guidance,
    Guide,
    NoAlignment,
    NoiseEvolution,
    NoiseOptimization,
    ODETransition,
    PathSearch,
    PosteriorBeamSearch,
    PosteriorResampling,
    PosteriorResamplingSMC,
    PosteriorSMC,
    RandomSearch,
    RolloverSearch,
    ValueDecoding,
    ZeroOrderSearch,
)
from diamond_diffusers.alignment.methods import METHODS as REGISTERED
from diamond_diffusers.alignment.named import as_method

from ..core.exact_transition import ExactTransition
from ..core.mixture import make_mixture, standard_error
from ..core.mixture_model import LINEAR, QuadraticReward, images_of, make_law
from .runs import COARSE_LEVELS, ENDED, run

MIXTURE = make_mixture(3)
METHODS = {
    "none": NoAlignment(),
    "best_of_n": BestOfN(num_particles=3),
    "smc": SMC(4, GlassPosterior(2, 2)),
    "guidance": Guidance(),
    "beam_search": BeamSearch(2, 3),
    "path_search": PathSearch(2, 3),
    "rollover_search": RolloverSearch(2, 3),
    "value_decoding": ValueDecoding(2, 3),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_callback_sees_every_step_and_changes_nothing_by_looking(name):
    seen = []
    watched = run(METHODS[name], make_law(MIXTURE, LINEAR), on_step=lambda index, x: seen.append((index, x.clone())))
    plain = run(METHODS[name], make_law(MIXTURE, LINEAR))
    assert [index for index, _ in seen] == list(range(len(COARSE_LEVELS) - 1))
    assert torch.equal(seen[-1][1], watched.latents[0])
    assert torch.equal(watched.latents, plain.latents)


@pytest.mark.parametrize("name", METHODS)
def test_replaced_particles_are_carried_on(name):
    """A callback that moves the particles away at a middle step is felt at the end."""
    replaced = {}

    def on_step(index, x):
        if index == 3:
            replaced["x"] = x + 5
            return replaced["x"]

    result = run(METHODS[name], make_law(MIXTURE, LINEAR, num_images=2), on_step=on_step)
    # At a noise-to-signal ratio of 0.2 the posterior lies between the observation and the prior.
    assert (result.latents.mean((1, 2)) > 1.5).all()
    assert (run(METHODS[name], make_law(MIXTURE, LINEAR, num_images=2)).latents.mean((1, 2)) < 1.5).all()


@pytest.mark.parametrize("name", METHODS)
def test_particles_replaced_at_the_end_are_the_ones_that_are_scored(name):
    last = len(COARSE_LEVELS) - 2

    def on_step(index, x):
        return torch.full_like(x, 2.0) if index == last else None

    law = make_law(MIXTURE, LINEAR, reward_scale=3.0)
    result = run(METHODS[name], law, on_step=on_step)
    assert (result.latents == 2).all()
    shape = result.latents.shape[:2]
    torch.testing.assert_close(result.images, images_of(result.latents.flatten(0, 1)).unflatten(0, shape))
    torch.testing.assert_close(result.rewards, torch.full_like(result.rewards, 2 * 0.8), atol=1e-5, rtol=0)


@pytest.mark.parametrize("posterior", [DenoiserPoint(), GlassPosterior(2, 1)], ids=str)
def test_replaced_particles_keep_the_evidence_unbiased(posterior):
    """Values of replaced particles are estimated anew, and stand for the old ones in the weights, to the end."""
    law = make_law(MIXTURE, LINEAR, num_images=192)
    smc = SMC(64, posterior, ExactTransition(MIXTURE), resampling_threshold=0.9)
    result = run(smc, law, on_step=lambda index, x: x.clone())
    tilted, evidence = LINEAR.tilt(MIXTURE)
    ratio = torch.exp(result.log_evidence - evidence)
    means = torch.einsum("bp,bpd->bd", result.log_weights.exp(), result.latents.double())
    assert (ratio.mean() - 1).abs() < 4 * standard_error(ratio)
    assert ((means.mean(0) - tilted.mean).abs() < 4 * standard_error(means) + 1 / 64).all()


def test_weights_telescope_to_the_reward_through_replacements():
    def on_step(index, x):
        return x + 0.1 if index % 2 == 0 else None

    law = make_law(MIXTURE, LINEAR, num_images=2)
    smc = SMC(8, GlassPosterior(2, 2), GlassTransition(2), resampling_threshold=0.0)
    result = run(smc, law, on_step=on_step)
    expected = torch.log_softmax(result.rewards.double(), 1)
    torch.testing.assert_close(result.log_weights, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", METHODS)
def test_a_callback_may_stop_the_run(name):
    seen = []

    def on_step(index, x):
        seen.append(x.clone())
        if index == 1:
            return ENDED

    law = make_law(MIXTURE, LINEAR)
    result = run(METHODS[name], law, on_step=on_step)
    assert len(result.trace.steps) == 2
    assert torch.equal(result.latents[0], seen[-1])
    assert result.rewards.shape == result.log_weights.shape == (1, METHODS[name].num_particles)
    torch.testing.assert_close(result.log_weights.exp().sum(1), torch.ones(1, dtype=torch.float64))


@pytest.mark.parametrize(
    "alignment", [NoAlignment(), RandomSearch(num_candidates=4)], ids=lambda method: type(method).__name__
)
def test_what_else_a_callback_raises_is_an_error(alignment):
    """Also what ends loops elsewhere."""

    def on_step(index, x):
        raise StopIteration

    with pytest.raises(StopIteration):
        run(alignment, make_law(MIXTURE, LINEAR), on_step=on_step)


def test_names_stand_for_methods_with_their_defaults():
    assert {name: type(as_method(name)) for name in REGISTERED.names()} == {
        "none": NoAlignment,
        "best_of_n": BestOfN,
        "smc": SMC,
        "guidance": Guidance,
        "beam_search": BeamSearch,
        "path_search": PathSearch,
        "random_search": RandomSearch,
        "zero_order_search": ZeroOrderSearch,
        "noise_optimization": NoiseOptimization,
        "noise_evolution": NoiseEvolution,
        "posterior_resampling": PosteriorResampling,
        "posterior_resampling_smc": PosteriorResamplingSMC,
        "posterior_smc": PosteriorSMC,
        "rollover_search": RolloverSearch,
        "value_decoding": ValueDecoding,
        "posterior_beam_search": PosteriorBeamSearch,
        "diffusion_tree_search": DiffusionTreeSearch,
        "diffusion_tree_sampling": DiffusionTreeSampling,
    }
    smc = SMC(num_particles=7)
    assert as_method(smc) is smc
    with pytest.raises(ValueError, match="alignment is 'dsp'; choose one of beam_search, best_of_n, diffusion_tree"):
        as_method("dsp")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_particles": 0}, "num_particles is 0"),
        ({"resampling": "optimal"}, "resampling is 'optimal'; choose one of multinomial, residual, ssp"),
        ({"resampling_threshold": 1.5}, r"resampling_threshold is 1\.5"),
        ({"max_tilt": 0.0}, r"max_tilt is 0\.0"),
        ({"num_valuations": -1}, "num_valuations is -1; give a whole number of at least 0, or None for every step"),
        (
            {"num_valuations": 0, "tempering": AdaptiveTempering()},
            "but num_valuations is 0, so that nothing",
        ),
        ({"default_selection": "worst"}, "default_selection is 'worst'; choose one of sample, heaviest, best, all"),
        ({"transition": ODETransition()}, "draws no noise"),
        ({"transition": AncestralTransition(eta=0.0)}, "draws no noise"),
        ({"transition": GlassTransition(correlation=1.0)}, "draws no noise"),
        ({"guide": Guide("tilted_mean")}, "compares look-aheads"),
    ],
)
def test_smc_refuses_what_it_cannot_do(options, message):
    with pytest.raises(ValueError, match=message):
        SMC(**options)


class BlackBox(QuadraticReward):
    differentiable = False


@pytest.mark.parametrize("name", ["best_of_n", "smc", "guidance"])
def test_methods_that_need_a_reward_say_so(name):
    with pytest.raises(ValueError, match="reward is None"):
        as_method(name).check(None)
    NoAlignment().check(None)


def test_pathwise_gradients_need_a_differentiable_reward():
    black_box = BlackBox({"": (1.0, 0.0, 0.0)})
    for alignment in (Guidance(), SMC(guide=Guide())):
        assert alignment.needs_reward_gradient
        with pytest.raises(ValueError, match="reward 'quadratic' has no gradient"):
            alignment.check(black_box)
        alignment.check(LINEAR)
    posterior = GlassPosterior(2, 4)
    for alignment in (Guidance(posterior, Guide("tilted_mean")), SMC(), BestOfN()):
        assert not alignment.needs_reward_gradient
        alignment.check(black_box)
        assert run(alignment, make_law(MIXTURE, black_box)).rewards.isfinite().all()


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf])
def test_scales_of_the_reward_are_finite(scale):
    with pytest.raises(ValueError, match=f"reward_scale is {scale}; give a finite number"):
        make_law(MIXTURE, LINEAR, reward_scale=scale)


def test_best_of_n_returns_plain_samples_and_selects_the_best():
    plain = run(NoAlignment(num_particles=6), make_law(MIXTURE, LINEAR, num_images=3))
    result = run(BestOfN(num_particles=6), make_law(MIXTURE, LINEAR, num_images=3))
    assert torch.equal(result.latents, plain.latents)
    chosen = result.select(BestOfN.default_selection, None)
    assert torch.equal(chosen[:, 0], result.rewards.argmax(1))
