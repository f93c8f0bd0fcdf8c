"""The course of guidance: which steps are guided, how they move, the jump to the end, the warm-up, the best seen."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from benchmarks.zoo.flux import build_tiny_flux
from diamond_diffusers import (
    DiamondMapPipeline,
    FlowMapPoint,
    FlowMapTransition,
    GlassPosterior,
    GlassTransition,
    Guidance,
    Guide,
    NoAlignment,
    ODETransition,
    WeightedPosterior,
)
from diamond_diffusers.alignment.named import as_method
from diamond_diffusers.core.glass import EarlyStop, inner_times, query_level
from diamond_diffusers.core.interval import Interval
from diamond_diffusers.core.serial import with_options

from ..conftest import redness
from ..core.mixture import make_mixture, seeded
from ..core.mixture_model import LINEAR, QUADRATIC, QuadraticReward, at_rows, make_law, make_map_law
from ..families.test_flux_flow_map import two_time_lora
from .runs import COARSE_LEVELS, falling_levels, run
from .test_guided_laws import assert_has_the_tilted_law
from .test_weighted_look_aheads import assert_same, run_images

MIXTURE = make_mixture(3)
STEPS = len(COARSE_LEVELS) - 1
POINT = Guidance(FlowMapPoint(), Guide("pathwise"), transition=ODETransition())


def steps_guided(guidance, levels=COARSE_LEVELS):
    """Which steps recorded a shift, whichever model takes it."""
    trace = run(guidance, make_map_law(MIXTURE, LINEAR, num_steps=2), levels).trace
    return [step.gradient_norm is not None for step in trace.steps]


@pytest.mark.parametrize(
    ("options", "guided"),
    [
        ({}, [1, 1, 1, 1, 1]),
        ({"num_guided_steps": 2}, [1, 1, 0, 0, 0]),
        ({"num_guided_steps": 0.5}, [1, 1, 1, 0, 0]),
        ({"num_guided_steps": 0.2}, [1, 0, 0, 0, 0]),
        ({"num_guided_steps": 9}, [1, 1, 1, 1, 1]),
        ({"num_guided_steps": 2, "guide.max_noise_to_signal": 100.0}, [0, 1, 1, 0, 0]),
        ({"num_guided_steps": 3, "guide.min_noise_to_signal": 1.0}, [1, 1, 1, 0, 0]),
        ({"num_guided_steps": 2, "num_jump_steps": 1}, [1, 1, 0]),
        ({"num_guided_steps": 2, "num_jump_steps": 3, "guide.max_noise_to_signal": 100.0}, [0, 1, 1, 0]),
        ({"guide.min_noise_to_signal": 1.0, "num_jump_steps": 1}, [1, 1, 1, 0]),
        ({"num_guided_steps": 4, "num_jump_steps": 2}, [1, 1, 1, 1, 0]),
        ({"num_jump_steps": 2}, [1, 1, 1, 1, 1]),
        ({"num_guided_steps": -1}, [1, 1, 1, 1, 0]),
        ({"num_guided_steps": -2, "num_jump_steps": 1}, [1, 1, 1, 0]),
        ({"num_guided_steps": -5}, [0, 0, 0, 0, 0]),
        ({"num_guided_steps": -5, "num_jump_steps": 1}, [0, 0, 0, 0, 0]),
    ],
    ids=str,
)
def test_so_many_steps_are_guided(options, guided):
    assert steps_guided(with_options(POINT, options)) == [bool(step) for step in guided]


def test_queries_within_the_last_guided_step_are_guided_too():
    transition = GlassTransition(num_inner_steps=3, correlation=0.25)
    law = make_law(MIXTURE, LINEAR)
    run(Guidance(transition=transition, num_guided_steps=1), law, (2.0, 0.5, 0.0), x=torch.zeros(1, 3))
    queried = [
        2.0,
        *(query_level(2.0, s) for s in inner_times(3, 2.0, EarlyStop(Interval(2.0, 0.5), 0.25).stop).tolist()[1:-1]),
    ]
    assert law.cost.decodes == 1 + sum(float(level) > 0.5 for level in queried) > 2


def test_the_jump_follows_the_flow_map_in_steps_even_in_time():
    levels, guidance = falling_levels(5), replace(POINT, num_guided_steps=2, num_jump_steps=2)
    states, law = [], make_map_law(MIXTURE, LINEAR, num_steps=8)
    run(guidance, law, levels, on_step=lambda index, x: states.append((index, x.clone())))
    assert [index for index, _ in states] == [0, 1, 2] and law.cost.network_evaluations == 2 + 2
    (_, before), (_, end) = states[1:]
    network = at_rows(law, 1).network
    # At time 0.6 after two of five steps, then 0.3.
    middle = network.flow_map(before, 0.6 / 0.4, 0.3 / 0.7)
    torch.testing.assert_close(end, network.flow_map(middle, 0.3 / 0.7, 0.0), atol=1e-5, rtol=1e-5)


def test_the_jump_needs_a_flow_map():
    with pytest.raises(ValueError, match=r"num_jump_steps is 2, but this .* model has no flow map to jump along"):
        run(replace(POINT, posterior=GlassPosterior(2), num_jump_steps=2), make_law(MIXTURE, LINEAR))


def test_steps_along_a_flow_map_are_guided_to_the_tilted_law():
    guidance = Guidance(
        GlassPosterior(6, 16), Guide("tilted_mean", max_shift=None), transition=FlowMapTransition(), num_particles=600
    )
    assert_has_the_tilted_law(guidance, make_map_law(MIXTURE, QUADRATIC, num_steps=4), falling_levels(15, 20.0))


def test_steps_along_a_flow_map_without_a_shift_are_its_own():
    x, options = torch.randn(4, 3, generator=seeded(1)), {"num_particles": 4, "transition": FlowMapTransition()}
    still = Guidance(FlowMapPoint(), Guide(strength=0.0), **options)
    law = make_map_law(MIXTURE, LINEAR, num_steps=4)
    guided, plain = (run(method, law, x=x).latents for method in (still, NoAlignment(FlowMapTransition(), 4)))
    torch.testing.assert_close(guided, plain, atol=1e-4, rtol=1e-4)


def test_after_the_warm_up_the_best_particle_goes_on_alone():
    guidance = replace(POINT, num_particles=4, num_warm_up_steps=2)
    law, sizes, states = make_map_law(MIXTURE, LINEAR, num_images=3, num_steps=4), [], []

    def on_step(index, x):
        sizes.append(len(x))
        states.append(x.clone())

    result = run(guidance, law, on_step=on_step)
    assert sizes == [12, 3, 3, 3, 3] and result.latents.shape == (3, 1, 3) and result.rewards.shape == (3, 1)
    # Each image pays for four particles in two steps, for their comparison, and for one in three.
    assert law.cost.network_evaluations == 3 * (4 * 2 + 4 + 3)
    # Those that go on are the best by the end of the map, of what all are after two steps.
    everyone = run(replace(guidance, num_warm_up_steps=None), law, COARSE_LEVELS[:3]).latents.flatten(0, 1)
    network = at_rows(law, 4).network
    values = at_rows(law, 4).tilt(network.predict(everyone, COARSE_LEVELS[2])).unflatten(0, (3, 4))
    best = everyone.unflatten(0, (3, 4))[torch.arange(3), values.argmax(1)]
    torch.testing.assert_close(states[1], best)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_best_sample_seen_is_returned(sign):
    """Guidance away from the reward leaves the end worse than what was seen on the way."""
    reward = QuadraticReward({"": (0.9, -0.7, 0.6)})
    scores = reward.score
    seen = []

    def score(images, prompts):
        seen.append(scores(images, prompts))
        return seen[-1]

    reward.score = score
    guidance = Guidance(
        WeightedPosterior(4, weights="equal"),
        Guide("pathwise", strength=-2.0 * sign, max_shift=None),
        transition=ODETransition(),
        keeps_best=True,
    )
    law = make_map_law(MIXTURE, reward, num_steps=4, reward_scale=sign)
    result = run(guidance, law)
    values = sign * torch.cat(seen).float()
    last, best = values[-2], values[-1]
    torch.testing.assert_close(sign * result.rewards[0, 0], values.max())
    torch.testing.assert_close(best, values[:-2].max(), atol=1e-4, rtol=1e-4)
    assert best > last + 0.1
    # Of each step the prediction and the look-aheads; the end, and the best once more.
    assert law.cost.decodes == STEPS * (1 + 4) + 2
    unkept = run(replace(guidance, keeps_best=False), make_map_law(MIXTURE, LINEAR, num_steps=4, reward_scale=sign))
    torch.testing.assert_close(sign * unkept.rewards[0, 0], last)


def test_particles_that_a_caller_replaced_leave_what_the_former_had_seen():
    """So that the end obeys the caller, though a better sample was seen before."""
    guidance = Guidance(
        WeightedPosterior(4, weights="equal"),
        Guide("pathwise", strength=-2.0, max_shift=None),
        transition=ODETransition(),
        keeps_best=True,
    )
    law = make_map_law(MIXTURE, QuadraticReward({"": (0.9, -0.7, 0.6)}), num_steps=4)
    end = torch.tensor([[-1.0, 1.0, -1.0]])
    result = run(guidance, law, on_step=lambda index, x: end if index == STEPS - 1 else None)
    assert torch.equal(result.latents[0], end)


@pytest.mark.parametrize(
    ("share", "num_steps", "expected"), [(0.55, 100, 55), (0.07, 100, 7), (0.5, 5, 3), (0.01, 5, 1)]
)
def test_a_share_of_the_steps_is_rounded_up_to_whole_ones(share, num_steps, expected):
    levels = falling_levels(num_steps)
    planned, _ = Guidance(num_guided_steps=share).planned(make_law(MIXTURE, LINEAR), levels)
    assert sum(planned.guide.acts_at(level) for level in levels[:-1]) == expected


def test_guidance_that_never_begins_does_not_jump():
    """No level of the run is one of the guide's: the particles visit them all, as without a guide."""
    guide = Guide("isotropic", max_noise_to_signal=1e6, min_noise_to_signal=1e5)
    guidance = Guidance(guide=guide, transition=FlowMapTransition(), num_jump_steps=3)
    law, plain = make_map_law(MIXTURE, LINEAR), make_map_law(MIXTURE, LINEAR)
    latents = run(guidance, law).latents
    assert torch.equal(latents, run(NoAlignment(transition=FlowMapTransition()), plain).latents)
    assert law.cost.network_evaluations == plain.cost.network_evaluations


COURSES = {
    "warm-up and jump": replace(POINT, num_particles=3, num_warm_up_steps=2, num_guided_steps=3, num_jump_steps=2),
    "best seen": Guidance(
        WeightedPosterior(3, weights="reward_softmax"),
        Guide("pathwise", max_shift=None, scaling="norm", max_noise_to_signal=100.0),
        transition=FlowMapTransition(),
        num_particles=2,
        keeps_best=True,
    ),
}


@pytest.mark.parametrize("name", COURSES)
@torch.no_grad()
def test_images_depend_neither_on_their_neighbours_nor_on_chunks(name):
    together = run_images(COURSES[name], [0, 1, 2])
    for image in range(3):
        assert_same(together, run_images(COURSES[name], [image]), slice(image, image + 1))
    assert_same(together, run_images(COURSES[name], [0, 1, 2], particle_batch_size=5))
    assert_same(together, run_images(COURSES[name], [0, 1, 2], gradient_checkpointing=True))


@pytest.mark.parametrize("name", COURSES)
def test_without_a_reward_scale_the_plain_sample_is_reproduced_bit_for_bit(name):
    law = make_map_law(MIXTURE, LINEAR, num_images=2, num_steps=4, reward_scale=0.0)
    method = COURSES[name]
    plain = run(NoAlignment(method.transition, method.num_particles), law)
    assert torch.equal(run(method, law).latents, plain.latents)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_guided_steps": 0}, "num_guided_steps is 0; give a number of steps, a share"),
        ({"num_guided_steps": 1.5}, r"num_guided_steps is 1\.5; give a number of steps, a share"),
        ({"num_guided_steps": math.inf}, "num_guided_steps is inf; give a number of steps, a share"),
        ({"num_guided_steps": math.nan}, "num_guided_steps is nan; give a number"),
        ({"num_jump_steps": 0}, "num_jump_steps is 0; give a whole number of at least 1"),
        ({"num_warm_up_steps": 0}, "num_warm_up_steps is 0; give a whole number of at least 1"),
    ],
)
def test_unusable_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Guidance(**options)


def test_a_pipeline_calls_back_as_often_as_it_steps():
    """Callbacks get the particles that are left, and a progress bar ends where the run does."""
    pipe = DiamondMapPipeline.from_pipe(build_tiny_flux(guidance_embeds=True))
    pipe.load_lora_weights(two_time_lora(pipe.pipeline))
    totals, seen = [], []
    pipe.pipeline.progress_bar = lambda total: totals.append(total) or _Bar()

    def callback(_, index, timestep, tensors):
        seen.append((index, len(tensors["latents"])))
        return {"latents": tensors["latents"] + 0.01}

    call = {"height": 16, "width": 16, "num_inference_steps": 8, "max_sequence_length": 12, "reward": redness}
    out = pipe(["a ring", "a star"], alignment="fmrg", generator=seeded(1), callback_on_step_end=callback, **call)
    assert len(out.images) == 2 and out.alignment == as_method("fmrg", pipe.family)
    assert seen == [(0, 6), (1, 6), (2, 6), (3, 2), (4, 2)] and totals == [5]


class _Bar:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def update(self):
        pass
