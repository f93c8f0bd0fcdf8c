"""Noise optimisation climbs to the optimum that is known in closed form, and each image by itself."""

import math
from functools import partial

import pytest
import torch

from benchmarks.zoo.flux import build_tiny_flux
from diamond_diffusers import (
    AncestralTransition,
    DiamondMapPipeline,
    FlowMapTransition,
    NoAlignment,
    NoiseEvolution,
    NoiseOptimization,
    ODETransition,
    RenoiseTransition,
)
from diamond_diffusers.alignment.named import as_method
from diamond_diffusers.alignment.noise_ascent import NoiseSampler, log_norm_density_gradient
from diamond_diffusers.alignment.random_source import RandomSource
from diamond_diffusers.core.model import Conditions
from diamond_diffusers.rewards import CallableReward

from ..core.mixture import make_gaussian, make_mixture, seeded, standard_error
from ..core.mixture_model import LINEAR, QUADRATIC, MixtureModel, QuadraticReward, law_of, make_law, make_map_law
from .runs import ENDED, run

GAUSSIAN = make_gaussian()
MIXTURE = make_mixture(3)
LEVELS = (math.inf, 0.7, 0.0)
STEPS = len(LEVELS) - 1
ASCENTS = {
    "gradient": NoiseOptimization(num_iterations=4),
    "two particles": NoiseOptimization(num_iterations=3, num_particles=2, optimizer="adam", learning_rate=0.1),
    "stochastic": NoiseOptimization(num_iterations=3, transition=AncestralTransition()),
    "evolution": NoiseEvolution(num_iterations=3, num_perturbations=3, num_particles=2),
}


def climbing(num_iterations, **options):
    """Along the ODE, with neither limit nor regulariser unless they are given."""
    defaults = {"max_gradient_norm": None, "regularization_weight": 0.0, "transition": ODETransition()}
    return NoiseOptimization(num_iterations=num_iterations, **{**defaults, **options})


def affine_sampler(law, levels=LEVELS):
    """`A [d, d]` and `m [d]` of the samples `A eps + m` that the ODE's steps make of a normal."""
    x = torch.cat([torch.zeros(1, 3), torch.eye(3)]).double()
    ends = run(NoAlignment(ODETransition(), num_particles=4), law, levels, x=x).latents[0]
    return (ends[1:] - ends[0]).T, ends[0]


@pytest.mark.parametrize(("optimizer", "learning_rate"), [("sgd", 0.02), ("adam", 0.1)])
def test_it_converges_to_the_optimum_of_a_linear_reward_and_the_regulariser(optimizer, learning_rate):
    """With `c = scale A' b` that is `r c / |c|`, where `|c| + weight ((d - 1) / r - r) = 0`."""
    scale, weight = 1.5, 0.4
    law = make_law(GAUSSIAN, LINEAR, reward_scale=scale)
    matrix, offset = affine_sampler(law)
    c = scale * matrix.T @ LINEAR.linear[""]
    share = c.norm() / weight
    radius = (share + (share**2 + 4 * 2).sqrt()) / 2
    optimum = matrix @ (radius * c / c.norm()) + offset
    tried = []
    ascent = climbing(200, optimizer=optimizer, learning_rate=learning_rate, regularization_weight=weight)
    x = 0.3 * torch.randn(1, 3, generator=seeded(2)).double()
    result = run(ascent, law, LEVELS, x=x, on_step=lambda index, z: tried.append(z[0]))
    torch.testing.assert_close(tried[-1], optimum, atol=2e-3, rtol=0)
    # Momentum carries it past the optimum, to where rewards are higher.
    rewards = torch.stack(tried) @ LINEAR.linear[""]
    assert torch.equal(result.latents[0, 0], tried[rewards.argmax()])
    values = torch.cat([step.mean_value for step in result.trace.steps])
    torch.testing.assert_close(values.double(), scale * rewards, atol=1e-4, rtol=0)


def test_without_a_regulariser_it_finds_the_maximum_of_a_quadratic_reward():
    """`b / a` maximises `b . z - a |z|^2 / 2`, and the sampler reaches every z."""
    ascent = climbing(80, learning_rate=10.0, num_particles=2)
    result = run(ascent, make_law(GAUSSIAN, QUADRATIC), LEVELS, x=torch.randn(2, 3, generator=seeded(2)).double())
    optimum = (QUADRATIC.linear[""] / QUADRATIC.quadratic).expand(1, 2, 3)
    torch.testing.assert_close(result.latents, optimum, atol=1e-3, rtol=0)


def test_the_regulariser_is_the_log_density_of_the_norm():
    noise = torch.randn(5, 2, 3, 4, generator=seeded(0), dtype=torch.float64).requires_grad_()
    norms = noise.flatten(1).norm(dim=1)
    # The norm's square is gamma distributed; the norm's density has the factor 2 r more.
    squares = torch.distributions.Gamma(torch.tensor(12.0).double(), 0.5).log_prob(norms**2)
    (expected,) = torch.autograd.grad((squares + norms.log()).sum(), noise)
    torch.testing.assert_close(log_norm_density_gradient(noise.detach()), expected)
    assert not log_norm_density_gradient(torch.zeros(2, 1)).any()
    # Its maximum.
    ring = math.sqrt(23) * noise.detach() / norms.detach().reshape(-1, 1, 1, 1)
    torch.testing.assert_close(log_norm_density_gradient(ring), torch.zeros_like(ring))


def test_each_gradient_is_clipped_by_itself():
    gradient = torch.tensor([[[3.0, 4.0]], [[0.03, 0.04]], [[0.0, 0.0]]])
    expected = torch.tensor([[[0.06, 0.08]], [[0.03, 0.04]], [[0.0, 0.0]]])
    torch.testing.assert_close(NoiseOptimization().clipped(gradient), expected)
    assert torch.equal(NoiseOptimization(max_gradient_norm=None).clipped(gradient), gradient)


def test_a_step_is_nesterovs_of_the_clipped_gradient():
    """The first moves by `learning_rate (1 + momentum)` times it."""
    law = make_law(GAUSSIAN, LINEAR)
    matrix, offset = affine_sampler(law)
    x = torch.randn(1, 3, generator=seeded(5)).double()
    gradient = LINEAR.linear[""] @ matrix + 0.2 * log_norm_density_gradient(x)[0]
    gradient = gradient * 0.1 / gradient.norm()
    assert (gradient @ matrix.T @ LINEAR.linear[""]) > 0
    ascent = climbing(2, learning_rate=3.0, max_gradient_norm=0.1, regularization_weight=0.2)
    result = run(ascent, law, LEVELS, x=x)
    expected = matrix @ (x[0] + 3.0 * 1.9 * gradient) + offset
    torch.testing.assert_close(result.latents[0, 0], expected, atol=1e-6, rtol=1e-6)


def test_the_gradient_is_that_of_all_steps():
    """Against differences, through a few-step model's stochastic steps with the driving noise held."""
    law = make_map_law(MIXTURE, QUADRATIC, num_steps=1, reward_scale=0.7)
    noise = torch.randn(2, 3, generator=seeded(1)).double()
    sampler = NoiseSampler(law, RenoiseTransition(), (20.0, 0.7, 0.0), RandomSource(seeded(2), 1), 2)
    sample, gradient = sampler.differentiated(noise)
    assert torch.equal(sampler(noise).latents, sample.latents)
    for coordinate in range(3):
        step = torch.zeros_like(noise)
        step[:, coordinate] = 0.05
        above, below = (QUADRATIC.score(images(sampler, noise + sign * step), [""] * 2) for sign in (1, -1))
        torch.testing.assert_close(gradient[:, coordinate], 0.7 * (above - below) / 0.1, atol=2e-3, rtol=0.05)


def images(sampler, noise):
    return sampler(noise).evaluation.images


def test_evolution_estimates_the_gradient_without_bias():
    """Of a quadratic reward of an affine sampler the average over perturbed noises is the gradient at their centre."""
    law = make_law(GAUSSIAN, QUADRATIC, reward_scale=0.7)
    matrix, offset = affine_sampler(law)
    copies, size = 400, 0.3
    noise = torch.randn(1, 3, generator=seeded(1)).double()
    z = matrix @ (math.sqrt(1 - size**2) * noise[0]) + offset
    expected = 0.7 * (QUADRATIC.linear[""] - QUADRATIC.quadratic * z) @ matrix
    evolution = NoiseEvolution(num_perturbations=4, perturbation=size, num_particles=copies)
    sampler = NoiseSampler(law, ODETransition(), LEVELS, RandomSource(seeded(2), 1), copies)
    _, estimates = evolution.sample_and_gradient(sampler, noise.expand(copies, 3))
    assert (estimates.mean(0) - expected).norm() < 3 * standard_error(estimates).norm() < expected.norm() / 4


@pytest.mark.parametrize("make_ascent", [NoiseOptimization, NoiseEvolution])
@pytest.mark.parametrize("make", [make_law, partial(make_map_law, num_steps=1)], ids=["denoiser", "flow map"])
def test_the_reward_rises(make_ascent, make):
    law = make(MIXTURE, LINEAR, num_images=2)
    ascent = make_ascent(num_iterations=8, learning_rate=1.0, max_gradient_norm=0.3)
    plain = run(NoAlignment(), law, LEVELS, seed=[1, 2])
    better = run(ascent, law, LEVELS, seed=[1, 2])
    assert (better.rewards > plain.rewards).all()
    assert better.rewards.mean() > plain.rewards.mean() + 0.5
    torch.testing.assert_close(better.rewards[:, 0].double(), better.latents[:, 0].double() @ LINEAR.linear[""])
    best = torch.stack([step.best_value for step in better.trace.steps]).amax(0)
    torch.testing.assert_close(better.rewards[:, 0], best)


@pytest.mark.parametrize("name", ASCENTS)
def test_a_reward_scale_of_zero_returns_the_plain_sample_bit_for_bit(name):
    ascent = ASCENTS[name]
    unscaled, scaled = (make_law(MIXTURE, LINEAR, num_images=2, reward_scale=scale) for scale in (0.0, 1.0))
    plain = run(NoAlignment(ascent.transition, ascent.num_particles), unscaled, LEVELS)
    found = run(ascent, unscaled, LEVELS)
    assert torch.equal(found.latents, plain.latents)
    assert torch.equal(found.rewards, plain.rewards)
    assert torch.equal(found.images, plain.images)
    assert run(ascent, scaled, LEVELS).rewards.mean() > plain.rewards.mean()


def test_a_negative_scale_lowers_the_reward():
    law = make_law(MIXTURE, LINEAR, reward_scale=-1.0)
    plain = run(NoAlignment(), law, LEVELS)
    assert run(NoiseOptimization(num_iterations=5), law, LEVELS).rewards < plain.rewards


DIRECTIONS = {"right": (3.0, 0.0, 0.0), "down": (0.0, -3.0, 1.0)}
OFFSETS = torch.tensor([[0.0, 0.0, 0.0], [2.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
PROMPTS = ["right", "down", "down"]


def run_images(ascent, images, **options):
    conditions = Conditions({"offset": OFFSETS[images]}, {"offset": -OFFSETS[images]}, 1.5)
    reward = QuadraticReward(DIRECTIONS, 0.1)
    law = law_of(MixtureModel(MIXTURE), conditions, [PROMPTS[i] for i in images], reward, **options)
    return run(ascent, law, LEVELS, seed=[11 + image for image in images]), law


@pytest.mark.parametrize("name", ASCENTS)
def test_images_do_not_depend_on_the_batch(name):
    order = [2, 0, 1]
    together, _ = run_images(ASCENTS[name], order)
    for position, image in enumerate(order):
        alone, _ = run_images(ASCENTS[name], [image])
        for field in ("latents", "rewards", "images"):
            found, expected = getattr(together, field)[position], getattr(alone, field)[0]
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 100])
@pytest.mark.parametrize("name", ASCENTS)
def test_the_batch_size_of_particles_changes_nothing_but_memory(name, batch_size):
    whole, law = run_images(ASCENTS[name], [0, 1, 2])
    chunked, chunked_law = run_images(ASCENTS[name], [0, 1, 2], particle_batch_size=batch_size)
    torch.testing.assert_close(chunked.latents, whole.latents, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(chunked.rewards, whole.rewards, atol=1e-4, rtol=1e-4)
    assert chunked_law.model.largest_batch <= batch_size
    costs = [{**counted.cost.as_dict(), "seconds": 0} for counted in (law, chunked_law)]
    assert costs[0] == costs[1]


@pytest.mark.parametrize("name", ASCENTS)
def test_costs_are_exact(name):
    ascent = ASCENTS[name]
    _, law = run_images(ascent, [0, 1])
    particles, iterations = 2 * ascent.num_particles, ascent.num_iterations
    is_evolution = isinstance(ascent, NoiseEvolution)
    samples = particles * (iterations + (2 * 3 * (iterations - 1) if is_evolution else 0))
    backwards = 0 if is_evolution else particles * (iterations - 1)
    cost, family = law.cost, law.model
    # Two evaluations a row, for classifier-free guidance.
    assert cost.network_evaluations == family.evaluations == 2 * STEPS * samples
    assert cost.backward_passes == family.backwards == 2 * STEPS * backwards
    assert cost.decodes == family.decoded == cost.reward_calls == law.reward.calls == samples
    assert cost.seconds > 0


def test_a_single_iteration_is_plain_sampling_and_needs_no_gradient():
    reward = CallableReward(lambda images, prompts: images.detach().mean((1, 2, 3)), differentiable=False)
    ascent = NoiseOptimization(num_iterations=1)
    ascent.check(reward)
    law = make_law(MIXTURE, reward)
    assert torch.equal(run(ascent, law, LEVELS).latents, run(NoAlignment(), law, LEVELS).latents)
    assert law.cost.backward_passes == 0


def test_evolution_takes_a_reward_without_gradients():
    calls = []

    def first_coordinate(images, prompts):
        calls.append(torch.is_grad_enabled())
        return 100 * images[:, 0, 0, 0].detach()

    law = make_law(MIXTURE, CallableReward(first_coordinate, differentiable=False))
    plain = run(NoAlignment(), law, LEVELS)
    ascent = NoiseEvolution(num_iterations=8, learning_rate=1.0, max_gradient_norm=0.3)
    ascent.check(law.reward)
    assert run(ascent, law, LEVELS).rewards > plain.rewards
    assert not any(calls)


def test_a_callback_sees_each_iteration_and_may_end_the_run():
    law = make_law(MIXTURE, LINEAR)
    seen = []

    def on_step(index, x):
        seen.append(x.clone())
        assert index == len(seen) - 1
        if len(seen) == 3:
            return ENDED

    result = run(NoiseOptimization(num_iterations=5), law, LEVELS, on_step=on_step)
    assert len(seen) == len(result.trace.steps) == 3
    assert torch.equal(result.latents[0], max(seen, key=lambda x: (x.double() @ LINEAR.linear[""]).item()))
    with pytest.raises(ValueError, match="callback_on_step_end returned other latents"):
        run(NoiseOptimization(num_iterations=5), law, LEVELS, on_step=lambda index, x: x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_iterations": 0}, "num_iterations is 0; give a whole number of at least 1"),
        ({"optimizer": "lbfgs"}, "optimizer is 'lbfgs'; choose one of sgd, adam"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; give a number above 0"),
        ({"max_gradient_norm": -1.0}, "max_gradient_norm is -1.0; give a number above 0"),
        ({"regularization_weight": -0.1}, "regularization_weight is -0.1; give at least 0"),
        ({"num_particles": 0}, "num_particles is 0"),
        ({"num_perturbations": 0}, "num_perturbations is 0; give a whole number of at least 1"),
        ({"perturbation": 1.0}, "perturbation is 1.0; give a number between 0 and 1"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        NoiseEvolution(**options)


def test_what_it_cannot_work_with_is_refused():
    assert as_method("noise_optimization") == NoiseOptimization()
    assert as_method("noise_evolution") == NoiseEvolution()
    with pytest.raises(ValueError, match="alignment NoiseEvolution needs one"):
        NoiseEvolution().check(None)
    reward = CallableReward(lambda images, prompts: images.mean((1, 2, 3)), differentiable=False)
    with pytest.raises(ValueError, match=r"has no gradient, .* use alignment 'noise_evolution'"):
        NoiseOptimization().check(reward)
    with pytest.raises(ValueError, match="FlowMapTransition needs a flow map"):
        run(NoiseOptimization(transition=FlowMapTransition()), make_law(MIXTURE, LINEAR), LEVELS)


@pytest.mark.parametrize("offload", [False, True], ids=["", "checkpointed"])
def test_a_pipeline_optimises_its_noise(offload):
    """Through a network, a decoder and a reward, with progress by iterations."""
    pipe = DiamondMapPipeline.from_pipe(build_tiny_flux(guidance_embeds=False))
    call = {"prompt": ["a red circle", "two blue stars"], "height": 16, "width": 16, "num_inference_steps": 2}
    call |= {"max_sequence_length": 12, "reward": brightness, "reward_scale": 20.0, "gradient_checkpointing": offload}
    seen = {"none": [], "noise optimisation": []}

    def callback(name):
        return lambda pipe, step, timestep, tensors: seen[name].append((step, timestep.item())) or {}

    def draw(alignment, **options):
        generators = [seeded(0), seeded(1)]
        return pipe(alignment=alignment, generator=generators, **call, **options)

    plain = draw("none", callback_on_step_end=callback("none"))
    best = draw(NoiseOptimization(num_iterations=5), callback_on_step_end=callback("noise optimisation"))
    # Iterations are counted, and each ends with the last step.
    _, (_, last_timestep) = seen["none"]
    assert seen["noise optimisation"] == [(iteration, last_timestep) for iteration in range(5)]
    assert (best.rewards > plain.rewards).all()
    assert torch.equal(draw(NoiseOptimization(num_iterations=5)).rewards, best.rewards)


def brightness(images, prompts):
    return 10 * images.mean((1, 2, 3))
