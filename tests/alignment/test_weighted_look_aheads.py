"""Methods on look-aheads of the Weighted Diamond Map: their limits, costs, traces and independence of the batch."""

import math

import pytest
import torch

from diamond_diffusers import (
    SMC,
    FlowMapPoint,
    GlassPosterior,
    GlassTransition,
    Guidance,
    Guide,
    ODETransition,
    WeightedPosterior,
)
from diamond_diffusers.core.model import Conditions
from diamond_diffusers.posteriors.weighted import WEIGHTS

from ..core.exact_transition import ExactTransition
from ..core.mixture import energy_distance, make_mixture, seeded, standard_error
from ..core.mixture_model import (
    LINEAR,
    MixtureMapFamily,
    MixtureModel,
    QuadraticReward,
    law_of,
    make_law,
    make_map_law,
)
from ..products import diagonal, one_of_each_kind
from .runs import COARSE_LEVELS, falling_levels, run

MIXTURE = make_mixture(3)
EXACT = ExactTransition(MIXTURE)
STEPS = len(COARSE_LEVELS) - 1
IMAGES, PARTICLES, SAMPLES = 2, 3, 4

SAMPLERS = {
    **{weights: (WeightedPosterior(4, weights=weights), True) for weights in WEIGHTS},
    "fixed factor": (WeightedPosterior(4, 4.0, weight_temperature=2.0), True),
    "crude ode": (WeightedPosterior(4, num_map_steps=2), False),
    "point": (FlowMapPoint(), True),
    "ode point": (FlowMapPoint(2), False),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_weights_telescope_to_the_tilted_law_for_any_value(name):
    """Inexact maps and weights cost variance alone: evidence and mean are exact, within four standard errors."""
    posterior, is_map = SAMPLERS[name]
    num_images, num_particles = 96, 64
    options = {"num_images": num_images, "reward_scale": 1.5}
    law = make_map_law(MIXTURE, LINEAR, num_steps=6, **options) if is_map else make_law(MIXTURE, LINEAR, **options)
    result = run(SMC(num_particles, posterior, EXACT, resampling_threshold=0.9), law)
    tilted, evidence = LINEAR.tilt(MIXTURE, scale=1.5)
    ratio = torch.exp(result.log_evidence - evidence)
    error = torch.einsum("bp,bpd->bd", result.log_weights.exp(), result.latents.double()) - tilted.mean
    assert (ratio.mean() - 1).abs() < 4 * standard_error(ratio) < 0.2
    assert (error.mean(0).abs() < 4 * standard_error(error) + 1 / num_particles).all()


@pytest.mark.parametrize("gradient", ["tilted_mean", "pathwise"])
def test_guided_particles_have_the_tilted_law(gradient):
    """Of an ordinary model, by its ODE: within a sixth of the distance of the plain law."""
    particles = 300
    tilted, _ = LINEAR.tilt(MIXTURE)
    x = tilted.observation(20.0).sample(particles, seeded(3)).float()
    posterior = WeightedPosterior(16, num_map_steps=4)
    guidance = Guidance(posterior, Guide(gradient, max_shift=None), transition=ODETransition(), num_particles=particles)
    z = run(guidance, make_law(MIXTURE, LINEAR), falling_levels(12, 20.0), x=x).latents[0]
    exact = tilted.sample(2000, seeded(4)).float()
    plain = energy_distance(MIXTURE.sample(2000, seeded(6)).float(), exact)
    assert energy_distance(z, exact) < plain / 6


@pytest.mark.parametrize(("weights", "gradient"), diagonal(WEIGHTS, ["pathwise", "isotropic", "tilted_mean"]))
def test_few_step_models_are_guided_from_pure_noise(weights, gradient):
    law = make_map_law(MIXTURE, LINEAR, num_images=2, num_steps=6)
    guided, plain = (
        run(Guidance(WeightedPosterior(8, weights=weights), Guide(gradient, strength=strength), num_particles=40), law)
        for strength in (1.0, 0.0)
    )
    assert guided.latents.isfinite().all()
    assert guided.rewards.mean() > plain.rewards.mean() + 0.3


# Per particle and step: evaluations beyond the predicted sample, at pure noise and below it, and backward passes.
FEW_STEP_COSTS = {
    "consistent": (WeightedPosterior(SAMPLES), SAMPLES, 2 * SAMPLES + 1, SAMPLES),
    "simpson": (WeightedPosterior(SAMPLES, quadrature="simpson"), SAMPLES, 3 * SAMPLES + 1, SAMPLES),
    "paper": (WeightedPosterior(SAMPLES, weights="paper"), SAMPLES, 2 * SAMPLES + 1, SAMPLES),
    "likelihood": (WeightedPosterior(SAMPLES, weights="likelihood"), SAMPLES, SAMPLES, SAMPLES),
    "reward": (WeightedPosterior(SAMPLES, weights="reward_softmax"), SAMPLES, SAMPLES, SAMPLES),
    "one sample": (WeightedPosterior(1), 1, 1, 1),
    "point": (FlowMapPoint(), 0, 0, 1),
}
ODE = WeightedPosterior(SAMPLES, num_map_steps=3)
PAPER_ODE = WeightedPosterior(SAMPLES, weights="paper", num_map_steps=3)
ORDINARY_COSTS = {
    "ode": (ODE, 3 * SAMPLES, 3 * SAMPLES + 1, 3 * SAMPLES),
    "ode of the paper": (PAPER_ODE, 3 * SAMPLES, 3 * SAMPLES, 3 * SAMPLES),
    "ode point": (FlowMapPoint(3), 2, 2, 3),
    "ode of 4 steps by default": (WeightedPosterior(SAMPLES), 4 * SAMPLES, 4 * SAMPLES + 1, 4 * SAMPLES),
    "ode point of 4 steps by default": (FlowMapPoint(), 3, 3, 4),
}


@pytest.mark.parametrize("gradient", ["isotropic", "pathwise"])
@pytest.mark.parametrize("name", [*FEW_STEP_COSTS, *ORDINARY_COSTS])
def test_costs_are_exact(name, gradient):
    posterior, at_pure_noise, below, backwards = (FEW_STEP_COSTS | ORDINARY_COSTS)[name]
    reward = QuadraticReward({"": (0.9, -0.7, 0.6)})
    if name in FEW_STEP_COSTS:
        law = make_map_law(MIXTURE, reward, IMAGES, num_steps=4)
    else:
        law = make_law(MIXTURE, reward, num_images=IMAGES)
    run(Guidance(posterior, Guide(gradient), num_particles=PARTICLES, transition=ODETransition()), law)
    rows = IMAGES * PARTICLES
    cost = law.cost
    assert cost.network_evaluations == rows * (STEPS + at_pure_noise + (STEPS - 1) * below)
    assert cost.backward_passes == (rows * STEPS * backwards if gradient == "pathwise" else 0)
    assert cost.decodes == cost.reward_calls == reward.calls == rows * (STEPS * posterior.num_samples + 1)


@pytest.mark.parametrize("is_smc", [False, True], ids=["guidance", "smc"])
def test_the_trace_records_the_effective_sample_size_of_weighted_look_aheads(is_smc):
    def traced(posterior):
        method = SMC(PARTICLES, posterior, EXACT) if is_smc else Guidance(posterior, num_particles=PARTICLES)
        return run(method, make_map_law(MIXTURE, LINEAR, IMAGES, num_steps=4)).trace

    name = "look_ahead_effective_sample_size"
    trace = traced(WeightedPosterior(SAMPLES))
    sizes = [getattr(step, name) for step in trace.steps if getattr(step, name) is not None]
    # Steps of SMC record the particles that they arrive at; the last has their rewards and no look-aheads.
    assert len(sizes) == (STEPS - 1 if is_smc else STEPS)
    assert all(size.shape == (IMAGES,) and (size <= SAMPLES + 1e-4).all() and (size >= 1).all() for size in sizes)
    assert min(size.min() for size in sizes) < 0.95 * SAMPLES
    if not is_smc:
        torch.testing.assert_close(sizes[0], torch.full_like(sizes[0], SAMPLES))
    assert name in trace.figures() and name in trace.as_dict()[0]
    assert "look-aheads' effective sample size" in {axes.get_title() for axes in trace.plot().axes}
    for posterior in (WeightedPosterior(SAMPLES, weights="reward_softmax"), GlassPosterior(2, 2)):
        assert name not in traced(posterior).figures()


DIRECTIONS = {"right": (3.0, 0.0, 0.0), "down": (0.0, -3.0, 1.0), "nowhere": (0.0, 0.0, 0.0)}
OFFSETS = torch.tensor([[0.0, 0.0, 0.0], [2.0, 0.0, -1.0], [-3.0, 0.5, 1.0]])
METHODS = {
    "smc": SMC(4, WeightedPosterior(4), GlassTransition(2), resampling_threshold=0.9),
    "guided smc": SMC(4, WeightedPosterior(4), GlassTransition(2), guide=Guide("pathwise")),
    "pathwise": Guidance(WeightedPosterior(4, weights="paper"), Guide("pathwise"), num_particles=2),
    "tilted mean": Guidance(WeightedPosterior(4, quadrature="simpson"), Guide("tilted_mean"), num_particles=2),
}


def run_images(alignment, images, shape=(3,), **options):
    """The images of these indices, each with its own prompt, conditions and generator."""
    conditions = Conditions({"offset": OFFSETS[images]})
    scores = MixtureModel(MIXTURE)
    law = law_of(
        MixtureMapFamily(MIXTURE, scores, num_steps=4),
        conditions,
        [list(DIRECTIONS)[image] for image in images],
        QuadraticReward(DIRECTIONS, 0.1),
        score_model=(scores, conditions),
        **options,
    )
    return run(alignment, law, seed=[11 + image for image in images], shape=shape)


def assert_same(first, second, images=slice(None)):
    for one, other in [(first.latents, second.latents), (first.rewards, second.rewards)]:
        torch.testing.assert_close(one[images], other, atol=1e-4, rtol=1e-4)
    for step, other_step in zip(first.trace.steps, second.trace.steps, strict=True):
        for name in first.trace.figures():
            if getattr(step, name) is not None:
                torch.testing.assert_close(
                    getattr(step, name)[images], getattr(other_step, name), atol=1e-3, rtol=1e-3, check_dtype=False
                )


@pytest.mark.parametrize("name", one_of_each_kind(METHODS, ["guided smc", "tilted mean"]))
def test_images_depend_neither_on_their_neighbours_nor_on_chunks(name):
    together = run_images(METHODS[name], [0, 1, 2])
    for image in range(3):
        assert_same(together, run_images(METHODS[name], [image]), slice(image, image + 1))
    assert_same(together, run_images(METHODS[name], [0, 1, 2], particle_batch_size=5))
    shaped = run_images(METHODS[name], [0, 1, 2], shape=(1, 3, 1))
    torch.testing.assert_close(shaped.latents.flatten(2), together.latents, atol=1e-5, rtol=1e-5)


def test_gradient_checkpointing_changes_nothing():
    alignment = METHODS["pathwise"]
    assert_same(run_images(alignment, [0, 1]), run_images(alignment, [0, 1], gradient_checkpointing=True))


def test_methods_refuse_weights_that_the_model_cannot_give():
    law = make_map_law(MIXTURE, LINEAR, has_scores=False)
    consistent = WeightedPosterior(weights="consistent")
    for method in (SMC(posterior=consistent), Guidance(consistent)):
        with pytest.raises(ValueError, match="WeightedPosterior needs the posterior mean"):
            run(method, law)
    for posterior in (WeightedPosterior(weights="likelihood"), WeightedPosterior()):
        result = run(SMC(posterior=posterior), law, (math.inf, 1.0, 0.0))
        assert result.latents.isfinite().all()
