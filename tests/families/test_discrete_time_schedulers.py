"""Every stock scheduler of discrete-time models: its levels, its steps, and what cannot be honoured."""

from __future__ import annotations

import inspect
import itertools
import math
import pickle
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    TCDScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from benchmarks.zoo.stable_diffusion import LATENTS_SHAPE, SCHEDULE, build_tiny_stable_diffusion
from diamond_diffusers import SMC, AncestralTransition, DiamondMapPipeline, ODETransition
from diamond_diffusers.core.interval import Interval
from diamond_diffusers.core.model import Conditions
from diamond_diffusers.families.schedules import stock_transition

from ..products import diagonal
from .family import PROMPTS, brightness, generators

CALL = {"height": 16, "width": 16, "num_inference_steps": 4, "guidance_scale": 2.0}
LEADING = {"timestep_spacing": "leading", "steps_offset": 1}
TRAILING = {"timestep_spacing": "trailing"}
# First-order samplers, with all that their pipelines are told of them.
FIRST_ORDER: list[tuple[type, dict[str, Any], dict[str, Any]]] = [
    (DDIMScheduler, {**LEADING, "clip_sample": False, "set_alpha_to_one": False}, {}),
    (DDIMScheduler, {**LEADING, "clip_sample": False, "set_alpha_to_one": False}, {"eta": 0.6}),
    (DDIMScheduler, {**TRAILING, "clip_sample": False}, {"eta": 1.0}),
    (DDIMScheduler, {}, {}),
    (DDIMScheduler, {"clip_sample_range": 2.0}, {"eta": 0.6}),
    (DDIMScheduler, {"clip_sample": False, "thresholding": True, "sample_max_value": 2.0}, {}),
    (DDPMScheduler, {**LEADING, "clip_sample": False}, {}),
    (DDPMScheduler, {"clip_sample": False}, {}),
    (DDPMScheduler, {**LEADING, "clip_sample_range": 2.0}, {}),
    (EulerDiscreteScheduler, LEADING, {}),
    (EulerDiscreteScheduler, TRAILING, {}),
    (EulerDiscreteScheduler, {"timestep_spacing": "linspace"}, {}),
    (EulerDiscreteScheduler, {"use_karras_sigmas": True}, {}),
    (EulerAncestralDiscreteScheduler, LEADING, {}),
    (EulerAncestralDiscreteScheduler, TRAILING, {}),
    (DPMSolverMultistepScheduler, {"solver_order": 1, "timestep_spacing": "linspace"}, {}),
    (DPMSolverMultistepScheduler, {"solver_order": 1, "timestep_spacing": "linspace", "thresholding": True}, {}),
    (DPMSolverMultistepScheduler, {"solver_order": 1, "algorithm_type": "sde-dpmsolver++"}, {}),
    (DPMSolverSinglestepScheduler, {"solver_order": 1, "algorithm_type": "sde-dpmsolver++"}, {}),
    (LCMScheduler, {}, {}),
    (LCMScheduler, {"clip_sample": True}, {}),
    (TCDScheduler, {}, {}),
    (TCDScheduler, {}, {"eta": 0.3}),
    (TCDScheduler, {}, {"eta": 1.0}),
]
HIGHER_ORDER = [
    PNDMScheduler,
    DPMSolverMultistepScheduler,
    UniPCMultistepScheduler,
    DEISMultistepScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LMSDiscreteScheduler,
]


@pytest.fixture(scope="module")
def pipe() -> DiamondMapPipeline:
    return DiamondMapPipeline.from_pipe(build_tiny_stable_diffusion())


def arguments(pipe: DiamondMapPipeline, **given: Any) -> dict[str, Any]:
    parameters = inspect.signature(type(pipe.pipeline).__call__).parameters
    return {**{name: parameter.default for name, parameter in parameters.items()}, **CALL, "prompt": PROMPTS, **given}


def conditions(pipe: DiamondMapPipeline, **given: Any) -> Conditions:
    return pipe.family.encode(arguments(pipe, **given))


def latents(seed: int = 7) -> Tensor:
    return torch.randn(2, *LATENTS_SHAPE, generator=torch.Generator().manual_seed(seed))


def trained_level(scheduler: Any, timestep: float) -> float:
    """`sqrt((1 - abar) / abar)`, its logarithm linear between training steps."""

    def log_level(step: int) -> float:
        abar = scheduler.alphas_cumprod[step].double().item()
        return 0.5 * math.log((1 - abar) / abar)

    below = min(int(timestep), len(scheduler.alphas_cumprod) - 2)
    return math.exp(log_level(below) + (timestep - below) * (log_level(below + 1) - log_level(below)))


@pytest.mark.parametrize(("sampler", "prediction_type"), diagonal(FIRST_ORDER, ["epsilon", "v_prediction"]))
def test_first_order_steps_are_those_of_the_stock_pipeline(
    pipe: DiamondMapPipeline, sampler: tuple[type, dict[str, Any], dict[str, Any]], prediction_type: str
) -> None:
    scheduler, options, call = sampler
    pipe.scheduler = scheduler(**SCHEDULE, **options, prediction_type=prediction_type)
    outputs = (latents_and_images(one, generators(), **CALL, **call) for one in (pipe.pipeline, pipe))
    for stock, ours in zip(*outputs, strict=True):
        # Of latents as large as those of a random model of the noise: 16.
        torch.testing.assert_close(ours, stock, atol=1e-5 * stock.std().item(), rtol=1e-5)
        assert stock.std() > 0.05


def latents_and_images(pipe: Any, generator: Any, **call: Any) -> list[Tensor]:
    """Of calls in a row: the second shows what the first has drawn."""
    return [pipe(list(PROMPTS), generator=generator, output_type=kind, **call).images for kind in ("latent", "pt")]


def test_stochastic_schedulers_of_higher_order_take_the_stochastic_step_that_they_refine() -> None:
    for scheduler in (
        KDPM2AncestralDiscreteScheduler(),
        DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", use_flow_sigmas=True),
    ):
        transition = stock_transition(scheduler)
        assert transition.transition == AncestralTransition()
        assert transition.draws_noise(Interval(1.0, 0.0))
    assert stock_transition(DPMSolverMultistepScheduler()) == ODETransition()


@pytest.mark.parametrize("variance", ["fixed_large", "learned_range"])
def test_other_variances_of_ddpm_are_refused_where_its_step_is_taken(pipe: DiamondMapPipeline, variance: str) -> None:
    pipe.scheduler = DDPMScheduler(**SCHEDULE, clip_sample=False, variance_type=variance)
    with pytest.raises(ValueError, match=f"variance_type is '{variance}' in the DDPMScheduler, .*='fixed_small'"):
        pipe(PROMPTS, **CALL)
    aligned = {"reward": brightness, "alignment": SMC(num_particles=2), "output_type": "pt"}
    assert pipe(PROMPTS, **CALL, **aligned).images.isfinite().all()


@pytest.mark.parametrize("scheduler", [DDIMScheduler, DDPMScheduler])
def test_outputs_of_clipping_schedulers_can_be_pickled(pipe: DiamondMapPipeline, scheduler: type) -> None:
    pipe.scheduler = scheduler(**SCHEDULE)
    out = pipe(PROMPTS, generator=generators(), output_type="latent", **CALL)
    assert torch.equal(pickle.loads(pickle.dumps(out)).images, out.images)


@pytest.mark.parametrize("scheduler", [EulerDiscreteScheduler, DDIMScheduler])
def test_zero_terminal_snr_starts_at_pure_noise(pipe: DiamondMapPipeline, scheduler: type) -> None:
    options = {**SCHEDULE, **TRAILING, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    pipe.scheduler = scheduler.from_config(options, clip_sample=False)
    levels = pipe.family.levels(arguments(pipe), conditions(pipe))
    # Euler's scheduler stops short of it.
    assert levels[0] == float("inf") if scheduler is DDIMScheduler else 4000 < levels[0] < 4100
    call = {**CALL, "guidance_rescale": 0.7, "output_type": "latent"}
    stock = pipe.pipeline(PROMPTS, generator=generators(), **call).images
    ours = pipe(PROMPTS, generator=generators(), **call).images
    # Stock latents of size 4096 in float32 have lost the rest.
    torch.testing.assert_close(ours, stock, atol=1e-5 if scheduler is DDIMScheduler else 1e-3, rtol=0)


@pytest.mark.parametrize("scheduler", HIGHER_ORDER)
def test_higher_order_schedulers_give_their_levels_once_each(pipe: DiamondMapPipeline, scheduler: type) -> None:
    pipe.scheduler = scheduler(**SCHEDULE)
    levels = pipe.family.levels(arguments(pipe), conditions(pipe))
    assert all(one > other for one, other in itertools.pairwise(levels))
    # Those of second order have a level for each of the evaluations of a step.
    visited = sorted(set(pipe.scheduler.timesteps[:: pipe.scheduler.order].tolist()), reverse=True)
    expected = [trained_level(pipe.scheduler, timestep) for timestep in visited]
    # Some schedulers round their timesteps, or interpolate the level itself between training steps.
    assert levels[: len(expected)] == pytest.approx(expected, rel=5e-3)
    assert levels[-1] <= expected[-1]
    image = pipe(PROMPTS, generator=generators(), output_type="pt", **CALL).images
    assert image.isfinite().all()
    assert image.std() > 0.05


def test_predictions_are_those_of_the_stock_scheduler(pipe: DiamondMapPipeline) -> None:
    family = pipe.family
    for prediction_type in ("epsilon", "v_prediction", "sample"):
        pipe.scheduler = DDIMScheduler(**SCHEDULE, clip_sample=False, prediction_type=prediction_type)
        pipe.scheduler.set_timesteps(1000)
        given = conditions(pipe, guidance_scale=1.0)
        for timestep in (999, 700, 31, 1):
            x = latents(timestep)
            with torch.no_grad():
                output = pipe.unet(x, timestep, **given.features).sample
                stock = pipe.scheduler.step(output, timestep, x).pred_original_sample
                ours = family.predict(x, trained_level(pipe.scheduler, timestep), given)
            torch.testing.assert_close(ours, stock, atol=1e-4, rtol=1e-5)


def test_the_network_is_asked_between_its_training_steps(pipe: DiamondMapPipeline) -> None:
    pipe.scheduler = DDIMScheduler(**SCHEDULE, clip_sample=False)
    given = conditions(pipe, guidance_scale=1.0)
    timesteps = torch.tensor([500.25, 31.5], dtype=torch.float64)
    levels = torch.tensor([trained_level(pipe.scheduler, timestep) for timestep in timesteps.tolist()]).double()
    asked = []
    hook = pipe.unet.register_forward_pre_hook(lambda module, args: asked.append(args[1]))
    with torch.no_grad():
        pipe.family.predict(latents(), levels, given)
    hook.remove()
    torch.testing.assert_close(asked[0].double(), timesteps, atol=1e-4, rtol=0)


def test_outside_the_trained_levels_the_ends_are_asked(pipe: DiamondMapPipeline) -> None:
    pipe.scheduler = DDIMScheduler(**SCHEDULE, clip_sample=False)
    lowest, highest = (trained_level(pipe.scheduler, timestep) for timestep in (0, 999))
    given, x = conditions(pipe, guidance_scale=1.0), latents()
    with torch.no_grad():
        torch.testing.assert_close(pipe.family.predict(x, float("inf"), given), pipe.family.predict(x, highest, given))
        y, level = x * math.sqrt(1 + (lowest / 3) ** 2), lowest / 3
        noise = pipe.unet(y / math.sqrt(1 + lowest**2), 0, **given.features).sample
        torch.testing.assert_close(pipe.family.predict(x, level, given), y - level * noise, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (EDMEulerScheduler(), "scheduler is a EDMEulerScheduler"),
        (FlowMatchEulerDiscreteScheduler(), "scheduler is a FlowMatchEulerDiscreteScheduler"),
        (EulerDiscreteScheduler(prediction_type="v_prediction", timestep_type="continuous"), "discrete training steps"),
    ],
)
def test_schedulers_of_other_kinds_are_refused(pipe: DiamondMapPipeline, scheduler: Any, message: str) -> None:
    pipe.scheduler = scheduler
    with pytest.raises(ValueError, match=message):
        pipe(PROMPTS, **CALL)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (DDIMScheduler(), "clip_sample is on in the DDIMScheduler"),
        (DDIMScheduler(clip_sample=False, thresholding=True), "thresholding is on"),
    ],
)
def test_clipped_samples_are_not_aligned(pipe: DiamondMapPipeline, scheduler: Any, message: str) -> None:
    pipe.scheduler = scheduler
    for alignment in ("smc", "guidance", "noise_optimization"):
        with pytest.raises(ValueError, match=message):
            pipe(PROMPTS, reward=brightness, alignment=alignment, **CALL)
    assert pipe(PROMPTS, reward=brightness, alignment="best_of_n", **CALL).rewards.isfinite().all()
