"""The scheduler of a Diamond Map: its transitions, its levels, and what pipelines are saved with in its place."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FlowMapEulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from benchmarks.zoo.flux import build_tiny_flux
from diamond_diffusers import DiamondMapPipeline, DiamondMapScheduler, DiamondTransition, NoAlignment
from diamond_diffusers.core.glass import toward
from diamond_diffusers.core.interval import Interval
from diamond_diffusers.families.schedules import stock_levels
from diamond_diffusers.maps.diamond_map import DiamondMap

from ..core.mixture import energy_distance, excess_variance, make_mixture, seeded, standard_error
from ..core.test_diamond import DiamondMixture
from ..maps.tiny_maps import perturb

PROMPTS = ["a red circle", "two blue stars"]
SMALL = {"height": 16, "width": 16, "max_sequence_length": 12, "num_inference_steps": 3}
MIXTURE = make_mixture(3)
REPETITIONS, SAMPLES = 8, 600


def generators(count=2):
    return [seeded(seed) for seed in range(count)]


def mapped_loop(scheduler, diamond_map, sample, generator):
    """Samples with a map `X_{s -> r}`, of which the mean velocity is the slope."""
    for t in scheduler.timesteps:
        inputs = scheduler.map_inputs(sample, t, generator)
        velocity = (inputs.xbar - diamond_map(*inputs)) / (inputs.s - inputs.r)
        sample = scheduler.step(velocity, t, sample).prev_sample
    return sample


def mixture_map(*inputs):
    return DiamondMixture(MIXTURE).diamond_map(*inputs, None)


def smooth_map(xbar, s, r, x, noise_to_signal):
    """Of no law, but it hears all that a map is told."""
    denoised = torch.tanh(2 * x + xbar * math.cos(s + 2 * r) - math.atan(noise_to_signal))
    return toward(xbar, denoised, s, r)


@pytest.fixture(scope="module")
def flux():
    """FLUX with a Diamond Map that is not its base."""
    pipe = DiamondMapPipeline.from_pipe(build_tiny_flux())
    pipe.family.posterior_map = DiamondMap(pipe.family, rank=2)
    perturb(pipe.family.posterior_map, 0.3)
    return pipe


@pytest.fixture
def scheduled(flux):
    """Puts a scheduler made of the pipeline's own into it."""
    stock = flux.scheduler

    def put(**options):
        flux.pipeline.scheduler = DiamondMapScheduler.from_config(stock.config, **options)
        return flux.scheduler

    yield put
    flux.pipeline.scheduler = stock


@torch.no_grad()
def draw_by_hand(pipe, scheduler, generator):
    """The loop of docs/diamond_map_scheduler.md."""
    family, diamond_map = pipe.family, pipe.family.posterior_map
    call = pipe.prepare(PROMPTS, **SMALL)
    conditions = call.conditions
    family.set_timesteps(call.arguments, conditions)
    latents = family.prepare_latents(call.arguments, conditions, len(PROMPTS), generator)
    for t in scheduler.timesteps:
        inputs = scheduler.map_inputs(latents, t, generator)
        denoised = diamond_map.mean_denoiser(*inputs, conditions)
        latents = scheduler.step(inputs.mean_velocity(denoised), t, latents).prev_sample
    return family.decode(latents, conditions)


@pytest.mark.parametrize(("num_map_steps", "correlation"), [(1, "ddpm"), (1, 1.0), (3, 0.4)])
def test_a_loop_with_a_map_samples_as_diamond_map_pipeline_does(flux, scheduled, num_map_steps, correlation):
    stock = flux.scheduler
    scheduler = scheduled(num_map_steps=num_map_steps, correlation=correlation)
    by_hand = draw_by_hand(flux, scheduler, generators())
    # The pipeline reads levels and transition from it.
    call = {**SMALL, "output_type": "pt"}
    torch.testing.assert_close(flux(PROMPTS, generator=generators(), **call).images, by_hand, atol=1e-5, rtol=0)
    flux.pipeline.scheduler = stock
    alignment = NoAlignment(DiamondTransition(num_map_steps, correlation))
    out = flux(PROMPTS, alignment=alignment, generator=generators(), **call)
    torch.testing.assert_close(out.images, by_hand, atol=1e-5, rtol=0)
    assert out.cost.network_evaluations == len(scheduler.timesteps) * len(PROMPTS)
    assert by_hand.std() > 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_map_steps", [1, 2])
@pytest.mark.parametrize("correlation", ["ddpm", 0.3, 1.0])
def test_a_loop_runs_the_chain_of_diamond_transitions(correlation, num_map_steps, dtype):
    scheduler = DiamondMapScheduler(num_map_steps=num_map_steps, correlation=correlation, shift=3.0)
    scheduler.set_timesteps(4)
    sample = torch.randn(64, 3, generator=seeded(0)).to(dtype)
    final = mapped_loop(scheduler, smooth_map, sample, seeded(1))
    transition, generator = DiamondTransition(num_map_steps, correlation), seeded(1)

    class Network:
        diamond_map = staticmethod(smooth_map)

    x = sample.float()
    levels = stock_levels(scheduler)
    assert levels[0] == math.inf and levels[-1] == 0 and len(levels) == 5
    for level, next_level in pairwise(levels):
        noise = torch.randn(64, 3, generator=generator)
        x = transition.step(Network, x, Interval(level, next_level), None, noise)
    # Latents are rounded to bfloat16 once, at the start: the map's outputs are float32, as the latents after them.
    torch.testing.assert_close(final, x, atol=1e-4, rtol=0)


@pytest.mark.parametrize("correlation", ["ddpm", 0.5])
def test_the_final_law_is_that_of_the_data(correlation):
    scheduler = DiamondMapScheduler(correlation=correlation)
    scheduler.set_timesteps(sigmas=[1.0, 0.5])
    start = torch.randn(REPETITIONS * SAMPLES, 3, generator=seeded(0))
    final = mapped_loop(scheduler, mixture_map, start, seeded(1)).double().unflatten(0, (REPETITIONS, -1))
    exact, again = (MIXTURE.sample(REPETITIONS * SAMPLES, seeded(s)).unflatten(0, (REPETITIONS, -1)) for s in (2, 3))
    null = torch.stack([energy_distance(again, exact), excess_variance(again, MIXTURE)], 1)
    distance, excess = energy_distance(final, exact).mean().abs(), excess_variance(final, MIXTURE).mean().abs()
    assert distance < 4 * standard_error(null[:, 0])
    assert excess < 4 * standard_error(null[:, 1])


SCHEDULES = {
    "shift": ({"shift": 3.0}, {"num_inference_steps": 5}),
    "dynamic_shift": ({"use_dynamic_shifting": True}, {"num_inference_steps": 5, "mu": 0.8}),
    "linear_shift": ({"use_dynamic_shifting": True, "time_shift_type": "linear"}, {"num_inference_steps": 5, "mu": 2}),
    "sigmas": ({"use_dynamic_shifting": True}, {"sigmas": [1.0, 0.6, 0.2], "mu": 0.8}),
    "terminal": ({"shift_terminal": 0.1}, {"num_inference_steps": 4}),
    "karras": ({"use_karras_sigmas": True}, {"num_inference_steps": 4}),
}


@pytest.mark.parametrize(("options", "schedule"), SCHEDULES.values(), ids=SCHEDULES)
def test_levels_are_those_of_the_stock_flow_scheduler(options, schedule):
    stock, mapped = FlowMatchEulerDiscreteScheduler(**options), DiamondMapScheduler(num_map_steps=2, **options)
    for scheduler in (stock, mapped):
        scheduler.set_timesteps(**schedule)
    assert torch.equal(mapped.sigmas, stock.sigmas)
    assert torch.equal(mapped.timesteps, stock.timesteps.repeat_interleave(2))
    assert (mapped.order, mapped.num_inference_steps) == (2, len(stock.timesteps))
    assert stock_levels(mapped) == stock_levels(stock)


def test_timesteps_given_are_levels_before_the_shift():
    mapped, flow_map = DiamondMapScheduler(shift=3.0), FlowMapEulerDiscreteScheduler(shift=3.0)
    for scheduler in (mapped, flow_map):
        scheduler.set_timesteps(timesteps=[900.0, 500.0, 100.0])
    torch.testing.assert_close(mapped.timesteps.double(), flow_map.timesteps)
    torch.testing.assert_close(mapped.sigmas.double(), flow_map.sigmas)
    z, eps = torch.randn(2, 5, generator=seeded(0)), torch.randn(2, 5, generator=seeded(1))
    sigma = mapped.sigmas[1:2]
    noised = mapped.scale_noise(z, mapped.timesteps[1:2].expand(2), eps)
    torch.testing.assert_close(noised, sigma * eps + (1 - sigma) * z)


@pytest.mark.parametrize(
    "stock",
    [
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.6, max_shift=0.9, shift_terminal=0.02),
        FlowMapEulerDiscreteScheduler(shift=5.0),
        DPMSolverMultistepScheduler(use_flow_sigmas=True, flow_shift=2.5, prediction_type="flow_prediction"),
    ],
    ids=lambda stock: type(stock).__name__,
)
def test_from_config_keeps_the_shift_of_the_base(stock, tmp_path):
    mapped = DiamondMapScheduler.from_config(stock.config, num_map_steps=2, correlation=0.5)
    reference = stock if isinstance(stock, FlowMatchEulerDiscreteScheduler) else FlowMatchEulerDiscreteScheduler()
    shifts = {name: reference.config[name] for name in ("use_dynamic_shifting", "base_shift", "max_shift")}
    shifts["shift_terminal"] = reference.config.shift_terminal
    shifts["shift"] = stock.config.get("shift", stock.config.get("flow_shift"))
    mapped.save_config(tmp_path)
    for scheduler in (
        mapped,
        DiamondMapScheduler.from_config(mapped.config),
        DiamondMapScheduler.from_pretrained(tmp_path),
    ):
        assert {name: scheduler.config[name] for name in shifts} == shifts
        assert scheduler.transition == DiamondTransition(2, 0.5)
    for scheduler in (stock_scheduler := mapped.stock_scheduler(), mapped):
        scheduler.set_timesteps(5, mu=0.7)
    assert type(stock_scheduler) is FlowMatchEulerDiscreteScheduler
    assert torch.equal(stock_scheduler.sigmas, mapped.sigmas)


def test_a_saved_pipeline_names_the_stock_scheduler(flux, scheduled, tmp_path):
    scheduler = scheduled()
    flux.save_pretrained(tmp_path)
    assert "DiamondMapScheduler" not in (tmp_path / "model_index.json").read_text()
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(loaded.scheduler) is FlowMatchEulerDiscreteScheduler
    assert loaded.scheduler.config.use_dynamic_shifting
    assert flux.scheduler is scheduler
    with pytest.raises(ValueError, match=r"scheduler\.stock_scheduler\(\)"):
        flux.pipeline.save_pretrained(tmp_path / "stock")
    assert not (tmp_path / "stock" / "model_index.json").exists()


def test_a_stock_pipeline_is_told_that_it_does_not_evaluate_a_map(flux, scheduled):
    scheduled()
    with pytest.raises(ValueError, match=r"step was called without map_inputs.*GlassFlowMatchScheduler"):
        flux.pipeline(PROMPTS, **SMALL)


def test_inner_noise_is_drawn_once_a_transition_and_row_by_row():
    def begin(**options):
        scheduler = DiamondMapScheduler(**options)
        scheduler.set_timesteps(2)
        return scheduler

    sample = torch.randn(2, 3, generator=seeded(5))
    scheduler, generator = begin(num_map_steps=2), seeded(0)
    t = scheduler.timesteps
    first = scheduler.map_inputs(sample, t[0], generator)
    assert (first.s, first.noise_to_signal) == (1, math.inf)
    assert torch.equal(scheduler.map_inputs(sample, t[0], generator).xbar, first.xbar)
    # Within a transition the latents of the loop are the sample itself, and the inner state moves.
    between = scheduler.step(torch.ones(2, 3), t[0], sample).prev_sample
    assert between is sample
    second = scheduler.map_inputs(between, t[1], generator)
    torch.testing.assert_close(second.xbar, first.xbar - (first.s - first.r))
    assert second.s == first.r > second.r
    after = scheduler.step(torch.ones(2, 3), t[1], between, return_dict=False)[0]
    assert not torch.equal(scheduler.map_inputs(after, t[2], generator).xbar, first.xbar)

    both = mapped_loop(begin(), smooth_map, sample, generators())
    for row in range(2):
        alone = mapped_loop(begin(), smooth_map, sample[row : row + 1], [generators()[row]])
        torch.testing.assert_close(both[row : row + 1], alone, atol=1e-5, rtol=0)


def test_a_run_may_begin_at_any_level():
    scheduler = DiamondMapScheduler(num_map_steps=2, shift=3.0)
    scheduler.set_timesteps(4)
    sample = torch.randn(5, 3, generator=seeded(0))
    inputs = scheduler.map_inputs(sample, scheduler.timesteps[4], seeded(1))
    sigma = scheduler.sigmas[2].item()
    assert inputs.noise_to_signal == pytest.approx(sigma / (1 - sigma))
    torch.testing.assert_close(inputs.x, sample / math.hypot(sigma, 1 - sigma))
    assert scheduler.step_index == 4


def test_a_loop_can_be_differentiated():
    scheduler = DiamondMapScheduler(correlation=0.9)
    sample, direction = (torch.randn(4, 3, generator=seeded(seed)) for seed in (0, 1))

    def final(sample):
        scheduler.set_timesteps(sigmas=[0.8, 0.4])
        return mapped_loop(scheduler, smooth_map, sample, seeded(2)).sum()

    sample.requires_grad_()
    (gradient,) = torch.autograd.grad(final(sample), sample)
    difference = (final(sample.detach() + 1e-2 * direction) - final(sample.detach() - 1e-2 * direction)) / 2e-2
    torch.testing.assert_close((gradient * direction).sum(), difference, atol=1e-2, rtol=1e-2)
    assert difference.abs() > 0.05


def begun():
    scheduler = DiamondMapScheduler(num_map_steps=2)
    scheduler.set_timesteps(2)
    return scheduler


def used_up():
    scheduler = begun()
    mapped_loop(scheduler, smooth_map, torch.zeros(1, 3), None)
    scheduler.map_inputs(torch.zeros(1, 3), scheduler.timesteps[-1])


def skipping():
    scheduler = begun()
    inputs = scheduler.map_inputs(torch.zeros(1, 3), scheduler.timesteps[0])
    scheduler.step(inputs.xbar, scheduler.timesteps[0], torch.zeros(1, 3))
    scheduler.map_inputs(torch.zeros(1, 3), scheduler.timesteps[2])


def stepping_twice():
    scheduler = begun()
    inputs = scheduler.map_inputs(torch.zeros(1, 3), scheduler.timesteps[0])
    for t in scheduler.timesteps[:2]:
        scheduler.step(inputs.xbar, t, torch.zeros(1, 3))


REFUSED = {
    "num_map_steps": (lambda: DiamondMapScheduler(num_map_steps=0), "num_map_steps is 0"),
    "correlation": (lambda: DiamondMapScheduler(correlation=1.5), "correlation is 1.5"),
    "inverted": (lambda: DiamondMapScheduler(invert_sigmas=True), "invert_sigmas is True"),
    "stochastic": (lambda: DiamondMapScheduler(stochastic_sampling=True), "stochastic_sampling is True"),
    "not_a_flow": (
        lambda: DiamondMapScheduler.from_config(DDIMScheduler().config),
        "config has prediction_type 'epsilon'.*DiamondTransition",
    ),
    "no_mu": (lambda: DiamondMapScheduler(use_dynamic_shifting=True).set_timesteps(3), "`mu` must be passed"),
    "no_schedule": (lambda: DiamondMapScheduler().set_timesteps(), "all None; give one of them"),
    "rising": (lambda: DiamondMapScheduler().set_timesteps(sigmas=[0.5, 0.6]), "let them fall"),
    "final_zero": (lambda: DiamondMapScheduler().set_timesteps(sigmas=[0.5, 0.0]), "leave out the final 0"),
    "beyond_noise": (lambda: DiamondMapScheduler().set_timesteps(sigmas=[1.2, 0.5]), "from at most 1"),
    "not_begun": (lambda: DiamondMapScheduler().map_inputs(torch.zeros(1, 3), 1000.0), "call set_timesteps"),
    "off_schedule": (lambda: begun().map_inputs(torch.zeros(1, 3), 123.0), "timestep is 123.0.*in order"),
    "skipping": (skipping, "in order, once"),
    "used_up": (used_up, "in order, once"),
    "no_inputs": (stepping_twice, "step was called without map_inputs"),
    "generators": (
        lambda: begun().map_inputs(torch.zeros(2, 3), 1000.0, generators(3)),
        "generator holds 3 generators for 2 images",
    ),
}


@pytest.mark.parametrize(("action", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused_by_name(action, message):
    with pytest.raises(ValueError, match=message):
        action()
