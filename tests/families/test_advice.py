"""On few-step models every method works with its defaults, or is refused by one sentence whose advice works there."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler, LCMScheduler
from peft import LoraConfig

import diamond_diffusers
from benchmarks.zoo.flux import build_tiny_flux
from benchmarks.zoo.sana import build_tiny_sana_sprint
from benchmarks.zoo.stable_diffusion import build_tiny_sdxl, build_tiny_stable_diffusion
from diamond_diffusers import DiamondMapPipeline, Guidance, Guide, PosteriorResampling, Reward, WeightedPosterior
from diamond_diffusers.alignment.base import Method
from diamond_diffusers.alignment.methods import METHODS
from diamond_diffusers.alignment.named import as_method
from diamond_diffusers.alignment.presets import PRESETS
from diamond_diffusers.posteriors.base import PosteriorSampler
from diamond_diffusers.rewards.callable_reward import CallableReward
from diamond_diffusers.transitions.base import Transition

from ..conftest import redness

PUBLIC = {name: getattr(diamond_diffusers, name) for name in diamond_diffusers.__all__}
PAGE = (Path(__file__).parents[2] / "docs" / "choosing.md").read_text(encoding="utf-8")
SMALL = {"height": 16, "width": 16}
REWARDS = {
    "black_box": CallableReward(redness, differentiable=False),
    "differentiable": CallableReward(redness, differentiable=True),
}
SHORT = {"noise_optimization": 1, "reno": 1, "noise_evolution": 1}
"""Iterations of what has many."""


def schnell() -> DiamondMapPipeline:
    defaults = {**SMALL, "max_sequence_length": 12}
    return DiamondMapPipeline(build_tiny_flux(guidance_embeds=False), defaults, few_step=True)


def sana_sprint() -> DiamondMapPipeline:
    defaults = {"height": 32, "width": 32, "use_resolution_binning": False, "max_sequence_length": 8}
    return DiamondMapPipeline(build_tiny_sana_sprint(), defaults)


def turbo() -> DiamondMapPipeline:
    pipe = build_tiny_sdxl()
    config = {**pipe.scheduler.config, "timestep_spacing": "trailing"}
    pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(config)
    return DiamondMapPipeline(pipe, {**SMALL, "guidance_scale": 0.0}, few_step=True)


def lcm() -> DiamondMapPipeline:
    pipe = build_tiny_stable_diffusion()
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    return DiamondMapPipeline(pipe, {**SMALL, "guidance_scale": 1.0})


def lora() -> DiamondMapPipeline:
    pipe = build_tiny_stable_diffusion()
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights="gaussian"), "few")
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    return DiamondMapPipeline(pipe, {**SMALL, "guidance_scale": 1.0}, few_step="few")


BUILDERS: dict[str, Callable[[], DiamondMapPipeline]] = {
    each.__name__: each for each in (schnell, sana_sprint, turbo, lcm, lora)
}
NAMES = [name for name in (*METHODS.names(), *PRESETS.names()) if name != "none"]
_pipes: dict[str, DiamondMapPipeline] = {}


def pipe_of(model: str) -> DiamondMapPipeline:
    if model not in _pipes:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            _pipes[model] = BUILDERS[model]()
        _pipes[model].set_progress_bar_config(disable=True)
    return _pipes[model]


def assert_works(
    pipe: DiamondMapPipeline, form: Method | str | Mapping[str, Any], reward: Reward, rounds: int = 3, steps: int = 2
) -> None:
    """Runs a method, or where it is refused every method that the sentence advises."""
    try:
        method = as_method(form, pipe.family)
        images = pipe(
            "a red star",
            reward=reward,
            alignment=form,
            num_inference_steps=steps,
            output_type="pt",
            generator=torch.Generator().manual_seed(0),
        ).images
        assert images.isfinite().all()
    except ValueError as refusal:
        sentence = str(refusal)
        assert rounds > 0, sentence
        assert "\n" not in sentence and len(sentence) < 500
        advised = list(advice(method, sentence, pipe.family.has_denoiser))
        assert advised, sentence
        for each in advised:
            assert_works(pipe, each, reward, rounds - 1, steps)


def advice(method: Method, sentence: str, has_denoiser: bool) -> list[Method | str]:
    """What a refusal advises that changes the call, without loading anything else."""
    remedies = sentence.partition("; ")[2]
    names = re.search(r"alignment ((?:'\w+'(?:, | or )?)+)", remedies)
    found: list[Method | str] = re.findall(r"'(\w+)'", names[1]) if names else []
    if not has_denoiser:
        # Advice for few-step models stands in brackets behind that for others.
        remedies = re.sub(r"\w+\([^()]*\) \(on a few-step model (\w+\([^()]*\))\)", r"\1", remedies)
    changes: dict[str, Any] = {}
    if (gradient := re.search(r"gradient='(\w+)'", remedies)) is not None:
        changes["guide"] = replace(vars(method)["guide"], gradient=gradient[1])
    for text in re.findall(r"\b[A-Z]\w+\([^()]*\)", remedies):
        part = eval(text, PUBLIC)
        if isinstance(part, PosteriorSampler) and hasattr(method, "posterior"):
            if part.num_samples > 1 or not isinstance(method, PosteriorResampling) or method.guide is not None:
                found.append(replace(method, **{**changes, "posterior": part}))
        elif isinstance(part, Transition) and part != method.transition:
            found.append(replace(method, **{"transition": part}))
    return found


def form_of(name: str) -> Method | str | Mapping[str, Any]:
    return {"name": name, "num_iterations": SHORT[name]} if name in SHORT else name


CASES = [
    # One step tells most of it in half the time.
    ("schnell", "black_box", 1),
    *(pytest.param(model, reward, 2, marks=pytest.mark.slow) for model in BUILDERS for reward in REWARDS),
]


@pytest.mark.parametrize(("model", "reward", "steps"), CASES)
def test_a_method_works_or_its_refusal_advises_what_does(model: str, reward: str, steps: int) -> None:
    for name in NAMES:
        assert_works(pipe_of(model), form_of(name), REWARDS[reward], steps=steps)


def methods_on_the_page() -> list[Method | str]:
    """Those that the page names for few-step models, in its tables and below them."""
    _, _, section = PAGE.partition("## A few-step model")
    found: list[Method | str] = []
    for code in re.findall(r"`([^`]+)`", section.partition("\n## ")[0]):
        if re.fullmatch(r"[A-Z]\w+\(.*\)", code):
            made = eval(code, PUBLIC)
            found += [made] if isinstance(made, Method) else []
        elif code.strip('"') in PRESETS:
            found.append(code.strip('"'))
    return found


@pytest.mark.parametrize("model", [pytest.param(name, marks=pytest.mark.slow) for name in BUILDERS])
def test_every_method_that_the_page_names_works(model: str) -> None:
    pipe, named = pipe_of(model), methods_on_the_page()
    assert len(named) > 18
    for method in named:
        kind = "differentiable" if as_method(method, pipe.family).needs_reward_gradient else "black_box"
        form = (
            {"name": method, "num_iterations": SHORT[method]} if isinstance(method, str) and method in SHORT else method
        )
        assert_works(pipe, form, REWARDS[kind], rounds=0)


def test_weighted_look_aheads_need_no_denoiser_by_default() -> None:
    pipe = pipe_of("schnell")
    for method in (
        Guidance(WeightedPosterior(), Guide("tilted_mean")),
        PosteriorResampling(),
        diamond_diffusers.SMC(posterior=WeightedPosterior()),
    ):
        assert_works(pipe, method, REWARDS["black_box"], rounds=0)
        resolved: Any = method.resolve(pipe.family)
        assert resolved.posterior == WeightedPosterior(weights="reward_softmax")
    with pytest.raises(ValueError, match="needs the posterior mean"):
        Guidance(WeightedPosterior(weights="consistent")).resolve(pipe.family)


def test_sana_sprint_says_which_steps_it_takes() -> None:
    with pytest.raises(ValueError, match="num_inference_steps is 4; give intermediate_timesteps=None, or take two"):
        pipe_of("sana_sprint")("a star", num_inference_steps=4, intermediate_timesteps=1.3)
