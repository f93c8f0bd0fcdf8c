"""Numbers that are none: a run says whose they are, at which level, and what helps."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diamond_diffusers import DiamondMapPipeline, Guidance, Guide
from diamond_diffusers.alignment.faults import NotFiniteError
from diamond_diffusers.rewards import CallableReward

from .test_reward_errors import REWARDED, Judge, build_pipe, call, run


@pytest.fixture(scope="module")
def pipe() -> DiamondMapPipeline:
    return build_pipe()


@contextmanager
def spoilt(module: nn.Module, spoil: Callable[[Any], Any], at: int = 0) -> Iterator[None]:
    """Outputs of a module are spoilt from a call on."""
    count = iter(range(10**6))
    handle = module.register_forward_hook(
        lambda module, arguments, output: spoil(output) if next(count) >= at else output
    )
    try:
        yield
    finally:
        handle.remove()


def spoil_value(output: Any) -> Any:
    return (output[0] * math.nan,) if isinstance(output, tuple) else output * math.nan


def spoil_gradient(output: Any) -> Any:
    first = output[0] if isinstance(output, tuple) else output
    if first.requires_grad:
        first.register_hook(lambda gradient: gradient * math.nan)
    return output


@pytest.mark.parametrize("name", REWARDED)
def test_nan_of_the_network_is_the_network_s(pipe: DiamondMapPipeline, name: str) -> None:
    judge = Judge()
    with (
        spoilt(pipe.transformer, spoil_value, at=1),
        pytest.raises(
            NotFiniteError, match=r"^FluxTransformer2DModel in torch.float32 .* noise-to-signal ratio [\d.i]"
        ),
    ):
        run(pipe, name, judge, on_reward_error="skip")


@pytest.mark.parametrize("name", REWARDED)
def test_nan_of_the_decoder_is_the_decoder_s(pipe: DiamondMapPipeline, name: str) -> None:
    with (
        spoilt(pipe.vae.decoder, spoil_value),
        pytest.raises(NotFiniteError, match=r"^AutoencoderKL in torch.float32 has made NaN of finite latents"),
    ):
        run(pipe, name, Judge(), on_reward_error="skip")


def test_the_remedy_depends_on_the_dtype() -> None:
    pipe = DiamondMapPipeline.from_pretrained(dtype=torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    with (
        spoilt(pipe.vae.decoder, spoil_value),
        pytest.raises(NotFiniteError, match=r"in torch.bfloat16 .* decode in float32: pipe.vae.to\(torch.float32\)"),
    ):
        run(pipe, "best_of_n", Judge())
    pipe.vae.to(torch.float32)
    assert run(pipe, "best_of_n", Judge()).images.isfinite().all()
    with (
        spoilt(pipe.transformer, spoil_value),
        pytest.raises(NotFiniteError, match=r"in torch.bfloat16 .*; load the model in float32"),
    ):
        run(pipe, "best_of_n", Judge())


def test_latents_that_were_given_as_nan_are_no_fault_of_the_network(pipe: DiamondMapPipeline) -> None:
    def spoil(pipe: object, step: int, timestep: object, tensors: dict) -> dict:
        return {"latents": tensors["latents"] * math.nan}

    with pytest.raises(NotFiniteError, match=r"^the latents at .* are not finite before the network is evaluated"):
        run(pipe, "smc", Judge(), callback_on_step_end=spoil)


@pytest.mark.parametrize("name", ["guidance", "noise_optimization", "das", "fmrg"])
def test_gradients_that_are_not_finite_name_whose_they_are(pipe: DiamondMapPipeline, name: str) -> None:
    alignment = {"guidance": Guidance(guide=Guide("pathwise"))}.get(name, call(name)["alignment"])
    options = {**call(name), "alignment": alignment, "reward_scale": 20.0}
    with (
        spoilt(pipe.vae.decoder, spoil_gradient),
        pytest.raises(NotFiniteError, match=r"^the gradient through AutoencoderKL in torch.float32 is not finite"),
    ):
        pipe(**options, reward=Judge().reward())
    with (
        spoilt(pipe.transformer, spoil_gradient),
        pytest.raises(NotFiniteError, match=r"^the gradient through FluxTransformer2DModel in torch.float32 is not"),
    ):
        pipe(**options, reward=Judge().reward())

    def kinked(images: Tensor, prompts: Sequence[str]) -> Tensor:
        # Smooth on the noise that it is tried on, whose values are uniform.
        is_noise = (images.std((1, 2, 3)) - 12**-0.5).abs().max() < 0.02
        return images.mean((1, 2, 3)) if is_noise else (images - images).sqrt().sum((1, 2, 3))

    with pytest.raises(NotFiniteError, match=r"^reward 'kinked' gives the pixels of a finite image a gradient that"):
        pipe(**options, reward=CallableReward(kinked, differentiable=True))
