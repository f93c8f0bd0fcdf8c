"""Compiling network, decoder and reward by one call."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from benchmarks.zoo.flux import build_tiny_flux
from benchmarks.zoo.stable_diffusion import build_tiny_stable_diffusion
from diamond_diffusers import SMC, DiamondMapPipeline, Guidance, Guide
from diamond_diffusers.rewards import CallableReward, as_reward


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[nn.Module, dict[str, Any]]]:
    """The modules that are compiled, with their options; nothing is compiled."""
    modules: list[tuple[nn.Module, dict[str, Any]]] = []
    monkeypatch.setattr(nn.Module, "compile", lambda module, **options: modules.append((module, options)))
    return modules


def test_network_decoder_and_the_model_s_own_reward_are_compiled(compiled: list) -> None:
    pipe = DiamondMapPipeline.from_pretrained()
    assert pipe.compile(backend="eager", fullgraph=True) is pipe
    reward = pipe._named_rewards["miniature"]
    expected = [reward.tower.image_module, pipe.transformer, pipe.vae.decoder]
    assert [module for module, _ in compiled] == expected
    assert all(options == {"backend": "eager", "fullgraph": True} for _, options in compiled)


def test_each_may_be_left_out_and_rewards_are_compiled_in_all_their_forms(compiled: list, tiny_pipe: Any) -> None:
    tiny_pipe.compile(decoder=False)
    tiny_pipe.compile(network=False, reward=False)
    assert [module for module, _ in compiled] == [tiny_pipe.transformer, tiny_pipe.vae.decoder]
    compiled.clear()

    class Score(nn.Module):
        def forward(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
            return images.mean((1, 2, 3))

    first, second = Score(), Score()
    rewards = CallableReward(first, "first") + 2 * CallableReward(second, "second")
    tiny_pipe.compile(network=False, decoder=False, reward=rewards + as_reward(lambda images, prompts: images.sum()))
    assert [module for module, _ in compiled] == [first, second]


def test_offloaded_layers_are_refused(tiny_pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diamond_diffusers.pipelines.compiling.offloads_layers", lambda module: True)
    with pytest.raises(ValueError, match=r"layers of the FluxTransformer2DModel are offloaded.*network=False"):
        tiny_pipe.compile()


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("build", [build_tiny_flux, build_tiny_stable_diffusion])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.usefixtures("fresh_compiler")
def test_nothing_is_compiled_again_between_steps_chunks_and_gradients(build: Any, backend: str) -> None:
    pipe = DiamondMapPipeline(build())
    pipe.set_progress_bar_config(disable=True)
    arguments = {"prompt": "a star", "height": 16, "width": 16, "output_type": "pt", "reward_scale": 20.0}

    def brightness(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return images.mean((1, 2, 3))

    def images(alignment: Any, num_steps: int, particle_batch_size: int | None = None) -> torch.Tensor:
        options = {"alignment": alignment, "num_inference_steps": num_steps, "particle_batch_size": particle_batch_size}
        generator = torch.Generator().manual_seed(0)
        return pipe(**arguments, **options, reward=brightness, generator=generator).images

    # Of two rows, one and three, with which the number has changed.
    sizes: list[tuple[int, int | None]] = [(2, None), (3, 2), (7, 3)]
    runs = [(Guidance(guide=Guide("pathwise"), num_particles=count), 3, size) for count, size in sizes]
    runs += [(SMC(num_particles=count), 3, size) for count, size in sizes]
    expected = [images(*run) for run in runs]
    pipe.compile(backend=backend)
    for run in runs:
        images(*run)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0
    with torch._dynamo.config.patch(error_on_recompile=True):
        for run, image in zip(runs, expected, strict=True):
            torch.testing.assert_close(images(*run), image, atol=1e-5, rtol=1e-5)
        images(Guidance(guide=Guide("pathwise"), num_particles=6), 5, 4)
        images(SMC(num_particles=7), 6, 4)
    assert counters["stats"]["unique_graphs"] == graphs


@pytest.mark.parametrize("name", ["transformer", "vae"])
@pytest.mark.usefixtures("fresh_compiler")
def test_modules_that_the_user_has_wrapped_are_differentiated_as_they_were(name: str) -> None:
    pipe = DiamondMapPipeline(build_tiny_flux())
    pipe.set_progress_bar_config(disable=True)

    def image(**options: Any) -> torch.Tensor:
        arguments = {"height": 16, "width": 16, "num_inference_steps": 2, "output_type": "pt", **options}
        guided = Guidance(guide=Guide("pathwise"))
        generator = torch.Generator().manual_seed(0)
        return pipe(
            "a star",
            reward=lambda images, _: images.mean((1, 2, 3)),
            alignment=guided,
            generator=generator,
            **arguments,
        ).images

    expected = image()
    # What a call does not see through has no length, and so no truth value.
    setattr(pipe.pipeline, name, torch.compile(getattr(pipe, name), backend="eager"))
    torch.testing.assert_close(image(), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(image(gradient_checkpointing=True), expected, atol=1e-6, rtol=0)
