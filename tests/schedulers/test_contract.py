"""What stock pipelines rely on in a scheduler, clause by clause."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    PNDMScheduler,
)

import diamond_diffusers
from diamond_diffusers import GlassDDPMScheduler, GlassFlowMatchScheduler

from ..core.mixture import make_mixture, seeded
from .loops import KINDS, STABLE_DIFFUSION, make_scheduler, mixture_network, stock_loop, table_of

SHAPE = (2, 3, 4)


def constant_network(scheduler, seed=0):
    """Outputs that depend on the position alone, in bfloat16's values."""
    outputs = torch.randn(1000, *SHAPE, generator=seeded(seed)).bfloat16()
    return lambda x, timestep: outputs[(scheduler.step_index or 0)].to(x.dtype)


def latents(seed=5):
    return torch.randn(SHAPE, generator=seeded(seed)).bfloat16().float()


FLOW_SCHEDULES = {
    "shift": ({"shift": 3.0}, {"num_inference_steps": 5}),
    "dynamic_shift": ({"use_dynamic_shifting": True}, {"num_inference_steps": 5, "mu": 0.8}),
    "sigmas": ({"use_dynamic_shifting": True}, {"sigmas": [1.0, 0.6, 0.2], "mu": 0.8}),
    "terminal": ({"shift_terminal": 0.1}, {"num_inference_steps": 4}),
    "karras": ({"use_karras_sigmas": True}, {"num_inference_steps": 4}),
    "timesteps": ({"shift": 3.0}, {"timesteps": [900.0, 500.0, 100.0]}),
    "both": ({}, {"sigmas": [0.9, 0.5], "timesteps": [800.0, 300.0]}),
}


@pytest.mark.parametrize(("options", "schedule"), FLOW_SCHEDULES.values(), ids=FLOW_SCHEDULES)
def test_outer_levels_are_those_of_the_stock_flow_scheduler(options, schedule):
    stock, glass = FlowMatchEulerDiscreteScheduler(**options), GlassFlowMatchScheduler(num_inner_steps=3, **options)
    stock.set_timesteps(**schedule)
    glass.set_timesteps(**schedule)
    torch.testing.assert_close(glass.sigmas, stock.sigmas, atol=0, rtol=0)
    torch.testing.assert_close(glass.timesteps[::3], stock.timesteps, atol=1e-4, rtol=1e-6)
    assert glass.timesteps.dtype == torch.float32
    assert len(glass.timesteps) == 3 * len(stock.timesteps)
    # Inner queries of the Markov chain lie between the outer levels, in the network's own time.
    assert (glass.timesteps.diff() < 0).all()
    assert glass.num_inference_steps == len(stock.timesteps)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_outer_levels_are_those_of_ddim(spacing):
    options = {**STABLE_DIFFUSION, "timestep_spacing": spacing}
    stock, glass = DDIMScheduler(**options), GlassDDPMScheduler(num_inner_steps=4, **options)
    stock.set_timesteps(5)
    glass.set_timesteps(5)
    # The spacing of some ends at the final level, where DDIM's last step does nothing.
    outer = [t for t in stock.timesteps.tolist() if t > 0]
    assert glass.timesteps[::4].tolist() == outer
    expected = [*table_of()[outer], table_of()[0]]
    np.testing.assert_allclose(glass.sigmas.numpy(), expected, rtol=1e-6)
    assert glass.num_inference_steps == len(outer)
    # Query by query log kappa is interpolated, so timesteps are fractional.
    assert (glass.timesteps.diff() < 0).all()
    assert (glass.timesteps != glass.timesteps.round()).any()


def test_sigmas_may_include_the_final_one():
    glass = GlassFlowMatchScheduler(num_inner_steps=2)
    glass.set_timesteps(sigmas=[1.0, 0.5])
    expected = glass.timesteps
    glass.set_timesteps(sigmas=[1.0, 0.5, 0.0])
    assert glass.sigmas.tolist() == [1.0, 0.5, 0.0]
    torch.testing.assert_close(glass.timesteps, expected)


def test_custom_levels_of_a_discrete_time_model():
    glass = make_scheduler("epsilon", num_inner_steps=2)
    glass.set_timesteps(timesteps=[900, 410.5, 20])
    assert glass.timesteps[::2].tolist() == [900, 410.5, 20]
    by_timesteps = glass.sigmas.tolist()
    glass.set_timesteps(sigmas=by_timesteps)
    torch.testing.assert_close(glass.timesteps[::2], torch.tensor([900, 410.5, 20]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loop_sees_a_plain_first_order_scheduler(kind):
    scheduler = make_scheduler(kind, num_inner_steps=3)
    x = latents()
    assert scheduler.init_noise_sigma == 1
    assert scheduler.order == 3
    assert scheduler.scale_model_input(x, torch.tensor(3.0)) is x
    scheduler.set_timesteps(2)
    assert (scheduler.step_index, scheduler.begin_index) == (None, None)
    output = scheduler.step(x, scheduler.timesteps[0], x)
    assert output.prev_sample.shape == output.pred_original_sample.shape == x.shape
    assert scheduler.step_index == 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_position_is_counted_and_the_timestep_not_read(kind):
    scheduler = make_scheduler(kind, num_inner_steps=2)
    network = constant_network(scheduler)
    expected = stock_loop(scheduler, network, latents(), 3, seeded(1))
    scheduler.set_timesteps(3)
    x = latents()
    generator = seeded(1)
    for _ in range(6):
        x = scheduler.step(network(x, None), torch.tensor(float("nan")), x, generator).prev_sample
    torch.testing.assert_close(x, expected, atol=0, rtol=0)
    with pytest.raises(ValueError, match="set_timesteps"):
        scheduler.step(x, 0.0, x)


@pytest.mark.parametrize("kind", KINDS)
def test_states_are_float32_under_a_bfloat16_model(kind):
    scheduler = make_scheduler(kind, num_inner_steps=3)
    network = constant_network(scheduler)
    full = stock_loop(scheduler, network, latents(), 4, seeded(1))
    half = stock_loop(scheduler, network, latents().bfloat16(), 4, seeded(1))
    assert half.dtype == torch.bfloat16
    # Rounded once, at the end: states that had been rounded on the way would differ in more than the last bit.
    torch.testing.assert_close(half, full.bfloat16(), atol=0, rtol=0)


@pytest.mark.parametrize("kind", ["flow", "epsilon"])
@pytest.mark.parametrize("in_place", [False, True])
def test_a_sample_changed_within_a_transition_is_refused(kind, in_place):
    scheduler = make_scheduler(kind, num_inner_steps=2)
    scheduler.set_timesteps(2)
    sample = scheduler.step(latents(1), None, latents()).prev_sample
    changed = sample.mul_(1.001) if in_place else sample * 1.001
    with pytest.raises(ValueError, match=r"sample was changed after step 1.*a multiple of 2 steps"):
        scheduler.step(latents(2), None, changed)


@pytest.mark.parametrize("kind", ["flow", "epsilon"])
def test_a_sample_changed_between_transitions_is_taken(kind):
    def run(scheduler, steps, x):
        generator = seeded(3)
        for seed in steps:
            x = scheduler.step(latents(seed), None, x, generator).prev_sample
        return x

    scheduler = make_scheduler(kind, num_inner_steps=2)
    replacement = latents(77)
    scheduler.set_timesteps(2)
    run(scheduler, (1, 2), latents())
    replaced = run(scheduler, (3, 4), replacement)
    scheduler.set_timesteps(2)
    scheduler.set_begin_index(2)
    torch.testing.assert_close(replaced, run(scheduler, (3, 4), replacement), atol=0, rtol=0)


def test_a_diverged_model_is_not_taken_for_a_changed_sample():
    scheduler = make_scheduler("flow", num_inner_steps=2)
    final = stock_loop(scheduler, lambda x, t: x * float("nan"), latents(), 2)
    assert final.isnan().all()


@pytest.mark.parametrize("kind", ["flow", "v_prediction"])
def test_a_loop_can_be_differentiated(kind):
    # A Markov chain forgets its pure noise at the first transition.
    scheduler = make_scheduler(kind, num_inner_steps=2, correlation=0.9)
    network = mixture_network(make_mixture(4), kind)
    direction = latents(9)

    def final(x):
        return stock_loop(scheduler, network, x, 3, seeded(1)).sum()

    x = latents().requires_grad_()
    (gradient,) = torch.autograd.grad(final(x), x)
    difference = (final(x.detach() + 1e-2 * direction) - final(x.detach() - 1e-2 * direction)) / 2e-2
    torch.testing.assert_close((gradient * direction).sum(), difference, atol=1e-2, rtol=1e-2)
    assert difference.abs() > 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_set_timesteps_starts_afresh(kind):
    scheduler = make_scheduler(kind, num_inner_steps=3)
    network = mixture_network(make_mixture(4), kind)
    expected = stock_loop(scheduler, network, latents(), 3, seeded(1))
    scheduler.set_timesteps(5)
    scheduler.set_begin_index(3)
    for _ in range(2):
        scheduler.step(latents(), None, scheduler._returned[0] if scheduler._returned else latents())
    torch.testing.assert_close(stock_loop(scheduler, network, latents(), 3, seeded(1)), expected, atol=0, rtol=0)


@pytest.mark.parametrize("kind", ["flow", "epsilon"])
def test_each_image_draws_from_its_own_generator(kind):
    scheduler = make_scheduler(kind, num_inner_steps=2)
    network = mixture_network(make_mixture(4), kind)
    both = stock_loop(scheduler, network, latents(), 3, [seeded(1), seeded(2)])
    for image in range(2):
        alone = stock_loop(scheduler, network, latents()[image : image + 1], 3, [seeded(1 + image)])
        torch.testing.assert_close(both[image : image + 1], alone, atol=1e-5, rtol=0)
    # For pipelines that pass none; it outlives set_timesteps, and the argument of step goes before it.
    scheduler.set_generator((seeded(1), seeded(2)))
    torch.testing.assert_close(stock_loop(scheduler, network, latents(), 3), both, atol=0, rtol=0)
    scheduler.set_generator(seeded(9))
    again = stock_loop(scheduler, network, latents(), 3, [seeded(1), seeded(2)])
    torch.testing.assert_close(again, both, atol=0, rtol=0)
    one = stock_loop(scheduler, network, latents(), 3)
    torch.testing.assert_close(one, stock_loop(scheduler, network, latents(), 3, seeded(9)), atol=0, rtol=0)
    assert (one - both).abs().max() > 0.1


def test_a_wrong_number_of_generators_is_refused():
    scheduler = make_scheduler("flow")
    scheduler.set_generator([seeded(0)] * 3)
    with pytest.raises(ValueError, match="generator holds 3 generators for 2 images"):
        stock_loop(scheduler, constant_network(scheduler), latents(), 2)


def test_scale_noise_is_at_the_outer_level():
    glass, stock = GlassFlowMatchScheduler(num_inner_steps=3, shift=3.0), FlowMatchEulerDiscreteScheduler(shift=3.0)
    z, eps = latents(1), latents(2)
    for scheduler in (glass, stock):
        scheduler.set_timesteps(4)
    wanted = stock.timesteps[[1, 3]]
    expected = stock.scale_noise(z, wanted, eps)
    torch.testing.assert_close(glass.scale_noise(z, glass.timesteps[[3, 9]], eps), expected)
    with pytest.raises(ValueError, match=r"timesteps\[:: scheduler.order\]"):
        glass.scale_noise(z, glass.timesteps[[3, 4]], eps)
    # Where a pipeline says where it begins, that is the level.
    glass.set_begin_index(6)
    stock.set_begin_index(2)
    torch.testing.assert_close(glass.scale_noise(z, wanted, eps), stock.scale_noise(z, wanted, eps))
    sample = z
    for _ in range(3):
        sample = glass.step(z, None, sample).prev_sample
    stock.step(z, stock.timesteps[2], z)
    torch.testing.assert_close(glass.scale_noise(z, wanted, eps), stock.scale_noise(z, wanted, eps))


def test_scale_noise_serves_training_before_a_run():
    glass, stock = GlassFlowMatchScheduler(shift=3.0), FlowMatchEulerDiscreteScheduler(shift=3.0)
    z, eps = latents(1), latents(2)
    wanted = stock.timesteps[[10, 700]]
    torch.testing.assert_close(glass.scale_noise(z, wanted, eps), stock.scale_noise(z, wanted, eps))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_add_noise_is_that_of_the_stock_scheduler(dtype):
    glass, stock = make_scheduler("epsilon"), DDIMScheduler(**STABLE_DIFFUSION)
    z, eps, timesteps = latents(1).to(dtype), latents(2).to(dtype), torch.tensor([901, 1])
    expected = stock.add_noise(z.float(), eps.float(), timesteps).to(dtype)
    for given in (timesteps, timesteps.float()):
        torch.testing.assert_close(glass.add_noise(z, eps, given), expected)
    single = glass.add_noise(z[:1], eps[:1], torch.tensor(901))
    torch.testing.assert_close(single, expected[:1])


@pytest.mark.parametrize("begin_index", [-2, 1, 3, 8])
def test_a_run_begins_at_an_outer_step(begin_index):
    scheduler = make_scheduler("flow", num_inner_steps=2)
    scheduler.set_timesteps(4)
    scheduler.set_begin_index(6)
    with pytest.raises(ValueError, match=rf"begin_index is {begin_index}.*multiple of the 2 inner steps"):
        scheduler.set_begin_index(begin_index)


@pytest.mark.parametrize(
    "stock",
    [
        DDIMScheduler(**STABLE_DIFFUSION, clip_sample=False),
        PNDMScheduler(**STABLE_DIFFUSION, skip_prk_steps=True),
        EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1),
        DPMSolverMultistepScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_from_config_reads_discrete_time_schedulers(stock):
    glass = GlassDDPMScheduler.from_config(stock.config, num_inner_steps=3, correlation=0.4, solver="euler")
    torch.testing.assert_close(glass.alphas_cumprod, stock.alphas_cumprod)
    assert (glass.order, glass.config.correlation, glass.config.solver) == (3, 0.4, "euler")
    assert not glass.config.clip_sample
    # And back, with what only the other scheduler knows.
    assert (
        dict(type(stock).from_config(glass.config).config).items()
        >= {key: value for key, value in stock.config.items() if not key.startswith("_")}.items()
    )


@pytest.mark.parametrize(
    ("stock", "shift"),
    [
        (FlowMatchEulerDiscreteScheduler(shift=2.5), 2.5),
        (FlowMatchHeunDiscreteScheduler(shift=2.5), 2.5),
        (
            DPMSolverMultistepScheduler(use_flow_sigmas=True, flow_shift=2.5, prediction_type="flow_prediction"),
            2.5,
        ),
    ],
    ids=["euler", "heun", "sana"],
)
def test_from_config_reads_flow_schedulers(stock, shift):
    glass = GlassFlowMatchScheduler.from_config(stock.config, num_inner_steps=4)
    reference = FlowMatchEulerDiscreteScheduler(shift=shift)
    for scheduler in (glass, reference):
        scheduler.set_timesteps(5)
    torch.testing.assert_close(glass.sigmas, reference.sigmas)
    assert glass.order == 4
    changed = GlassFlowMatchScheduler.from_config(glass.config, shift=7.0)
    assert (GlassFlowMatchScheduler.from_config(changed.config).config.shift, glass.config.shift) == (7.0, shift)


def test_schedulers_survive_saving_and_copying(tmp_path):
    for scheduler in (make_scheduler("flow", num_inner_steps=3), make_scheduler("v_prediction", correlation=0.3)):
        scheduler.save_pretrained(tmp_path)
        loaded = type(scheduler).from_pretrained(tmp_path)
        assert {**loaded.config, "_use_default_values": 0} == {**scheduler.config, "_use_default_values": 0}
        assert copy.deepcopy(scheduler).order == loaded.order
        assert getattr(diamond_diffusers, type(scheduler).__name__) is type(scheduler)


def test_clipping_is_that_of_the_configuration():
    clipped = make_scheduler("sample", clip_sample=True, clip_sample_range=0.5, num_inner_steps=1)
    clipped.set_timesteps(2)
    output = clipped.step(10 * latents(), None, latents())
    assert output.pred_original_sample.abs().max() == 0.5
    dynamic = make_scheduler("sample", thresholding=True, sample_max_value=2.0, num_inner_steps=1)
    dynamic.set_timesteps(2)
    assert dynamic.step(10 * latents(), None, latents()).pred_original_sample.abs().max() == 1.0


REFUSED = {
    "num_inner_steps": (lambda: make_scheduler("flow", num_inner_steps=0), "num_inner_steps is 0"),
    "correlation": (lambda: make_scheduler("epsilon", correlation=1.5), "correlation is 1.5"),
    "solver": (lambda: make_scheduler("flow", solver="heun"), "solver is 'heun'"),
    "inverted": (lambda: make_scheduler("flow", invert_sigmas=True), "invert_sigmas is True"),
    "stochastic": (lambda: make_scheduler("flow", stochastic_sampling=True), "stochastic_sampling is True"),
    "prediction_type": (lambda: make_scheduler("score"), "prediction_type is 'score'"),
    "not_a_flow": (
        lambda: GlassFlowMatchScheduler.from_config(DDIMScheduler().config),
        "config has prediction_type 'epsilon'.*use GlassDDPMScheduler",
    ),
    "a_flow": (
        lambda: GlassDDPMScheduler.from_config(FlowMatchEulerDiscreteScheduler().config),
        "config is that of a flow.*use GlassFlowMatchScheduler",
    ),
    "mu": (lambda: make_scheduler("epsilon").set_timesteps(3, mu=0.5), "mu is 0.5"),
    "two_schedules": (
        lambda: make_scheduler("epsilon").set_timesteps(sigmas=[1, 0], timesteps=[9]),
        "give exactly one",
    ),
    "no_schedule": (lambda: make_scheduler("epsilon").set_timesteps(), "give exactly one"),
    "counts": (
        lambda: make_scheduler("epsilon").set_timesteps(3, timesteps=[9, 1]),
        "num_inference_steps is 3.*give exactly one",
    ),
    "rising": (lambda: make_scheduler("epsilon").set_timesteps(sigmas=[1, 2, 0]), "let them fall"),
    "rising_flow": (lambda: make_scheduler("flow").set_timesteps(sigmas=[0.5, 0.6]), "let them fall"),
}


@pytest.mark.parametrize(("action", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused_by_name(action, message):
    with pytest.raises(ValueError, match=message):
        action()
