"""The shipped Diamond Map: posteriors of the right width, and runs that cost one evaluation a look-ahead."""

from __future__ import annotations

import random

import pytest
import torch

from benchmarks.posteriors.comparison import Settings, compare_posteriors
from benchmarks.posteriors.observations import rendered_latents, tilted_law
from diamond_diffusers import DenoiserPoint, DiamondMapPipeline, DiamondPosterior, DiamondTransition, NoAlignment
from diamond_diffusers.alignment.named import as_method
from diamond_diffusers.core.flow_map import integrate_ode
from diamond_diffusers.core.levels import add_noise
from diamond_diffusers.miniature.grammar import held_out_captions


@pytest.fixture(scope="module")
def pipe() -> DiamondMapPipeline:
    pipe = DiamondMapPipeline.from_pretrained()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize(
    ("steps", "levels"),
    [
        (16, Settings().levels[2:3]),
        pytest.param(16, Settings().levels, marks=pytest.mark.slow),
        pytest.param(64, Settings().levels, marks=pytest.mark.slow),
    ],
)
def test_one_evaluation_has_the_law_of_many(pipe: DiamondMapPipeline, steps: int, levels: tuple[float, ...]) -> None:
    """The deviation within 10 % of GLASS's, and a law far nearer to it than the denoiser's point."""
    captions = random.Random(0).sample(held_out_captions(), 6)
    samplers = {"map": DiamondPosterior(8), "point": DenoiserPoint()}
    with tilted_law(pipe, [caption.text for caption in captions]) as model:
        result = compare_posteriors(
            model, rendered_latents(pipe, captions), Settings(levels, num_samples=8, reference_steps=steps), samplers
        )
    found = {(one.sampler, one.level): one for one in result.distances}
    for level in levels:
        assert abs(found["map", level].deviation_ratio - 1) < 0.1
        assert found["map", level].energy_distance < found["point", level].energy_distance / 4


@pytest.mark.parametrize(
    "time", [pytest.param(0.5, marks=pytest.mark.slow), 0.7, pytest.param(0.8, marks=pytest.mark.slow)]
)
@torch.no_grad()
def test_given_pure_noise_it_is_the_flow_map_of_the_model(pipe: DiamondMapPipeline, time: float) -> None:
    """Its one evaluation ends less than two thirds as far from the end of the ODE as the denoiser's point, which costs
    two."""
    captions = random.Random(0).sample(held_out_captions(), 8)
    level = time / (1 - time)
    with tilted_law(pipe, [caption.text for caption in captions]) as law:
        network = law.rows(torch.empty(law.num_images)).network
        clean = rendered_latents(pipe, captions)
        x = add_noise(clean, torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)), level)
        exact = integrate_ode(network.denoise, x, level, 32)
        mapped, point = network.flow_map(x, level, 0.0), network.denoise(x, level)
    assert (mapped - exact).square().mean().sqrt() < (point - exact).square().mean().sqrt() * 2 / 3


def test_the_default_alignment_evaluates_the_map_alone(pipe: DiamondMapPipeline) -> None:
    out = pipe("a red star left of a blue ring", generator=torch.Generator().manual_seed(0), num_inference_steps=4)
    # Four particles of four steps, with one look-ahead each.
    assert out.cost.network_evaluations == 16
    assert out.alignment == as_method("diamond_guided_resampling") and out.choice is not None
    plain = pipe("a red star left of a blue ring", alignment="none", generator=torch.Generator().manual_seed(0))
    assert out.rewards[0] > plain.rewards[0]


def test_the_map_draws_in_one_evaluation_a_step(pipe: DiamondMapPipeline) -> None:
    """Guidance is baked in, which the base pays twice for."""
    out = pipe("three red circles", alignment=NoAlignment(DiamondTransition()), num_inference_steps=3)
    assert out.cost.network_evaluations == 3


def test_without_its_map_the_embedded_model_still_aligns() -> None:
    pipe = DiamondMapPipeline.from_pretrained()
    pipe.set_progress_bar_config(disable=True)
    # What suits it depends on the reward and the budget of a call.
    assert "alignment" not in pipe.defaults
    pipe.unload_diamond_map()
    out = pipe("three red circles", num_inference_steps=2, generator=torch.Generator().manual_seed(0))
    assert out.choice is not None and "an ordinary model" in out.choice
