"""A call is prepared in one place, once, and whatever samples, scores or learns from a model reads it there."""

from __future__ import annotations

import ast
import doctest
import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

import diamond_diffusers
from benchmarks.posteriors.observations import tilted_law
from benchmarks.zoo.flux import build_tiny_flux
from benchmarks.zoo.stable_diffusion import build_tiny_sdxl, build_tiny_stable_diffusion
from diamond_diffusers import SMC, DiamondMapPipeline
from diamond_diffusers.evaluation.benchmark.plan import plan_methods
from diamond_diffusers.evaluation.side_by_side import draw_side_by_side
from diamond_diffusers.pipelines import call as call_module
from diamond_diffusers.pipelines import pipeline as pipeline_module
from diamond_diffusers.pipelines.call import Call
from diamond_diffusers.rewards import as_reward
from diamond_diffusers.training.teacher import Teacher
from tests.families.family import PROMPTS, brightness, generators

PACKAGE = Path(diamond_diffusers.__file__).parent
CALL = {"height": 16, "width": 16, "num_inference_steps": 2, "max_sequence_length": 12}


@pytest.fixture
def pipe() -> DiamondMapPipeline:
    return DiamondMapPipeline.from_pipe(build_tiny_flux(), defaults=CALL)


@pytest.fixture
def encodings(monkeypatch: pytest.MonkeyPatch) -> Callable[[DiamondMapPipeline], list[Any]]:
    """Makes a pipeline note the prompt of each encoding."""

    def noted(pipe: DiamondMapPipeline) -> list[Any]:
        prompts: list[Any] = []
        encode = pipe.family.encode

        def note(arguments: Any) -> Any:
            prompts.append(arguments["prompt"])
            return encode(arguments)

        monkeypatch.setattr(pipe.family, "encode", note)
        return prompts

    return noted


def calls_of_a_family(folder: Path) -> Iterator[tuple[str, str]]:
    """What is called on an object named `family`, or as `resolve_arguments`, and in which file outside of families."""
    for file in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            if isinstance(node.func, ast.Name) and node.func.id == "resolve_arguments":
                yield node.func.id, file.relative_to(folder).as_posix()
            if isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value).split(".")[-1] == "family":
                yield node.func.attr, file.relative_to(folder).as_posix()


def test_arguments_are_resolved_and_prompts_encoded_in_one_place_of_the_package() -> None:
    places = Counter(calls_of_a_family(PACKAGE))
    for name in ("resolve_arguments", "encode", "levels", "calling"):
        assert [(place, count) for (called, place), count in places.items() if called == name] == [
            ("pipelines/call.py", 1)
        ]


def test_a_call_encodes_once(pipe: DiamondMapPipeline, encodings: Callable[..., list[Any]]) -> None:
    encoded = encodings(pipe)
    options = {"reward": brightness, "alignment": SMC(num_particles=2), "max_network_evaluations": 20}
    pipe(PROMPTS, generator=generators(), **options)
    assert encoded == [PROMPTS]


def test_a_score_model_encodes_the_same_prompts_once(
    pipe: DiamondMapPipeline, encodings: Callable[..., list[Any]]
) -> None:
    pipe.score_model = DiamondMapPipeline(build_tiny_flux(), {"max_sequence_length": 8})
    own, of_scores = encodings(pipe), encodings(pipe.score_model)
    call = pipe.prepare(PROMPTS, num_images_per_prompt=2)
    assert (own, of_scores) == ([], [])
    assert call.score_call.arguments.num_images_per_prompt == 2
    assert call.score_call.arguments["max_sequence_length"] == 8
    pipe(PROMPTS, reward=brightness, alignment=SMC(num_particles=2))
    assert (own, of_scores) == ([PROMPTS], [PROMPTS])
    with pytest.raises(ValueError, match="prompt is None, but score_model encodes prompts by itself"):
        pipe.prepare(prompt_embeds=torch.zeros(1, 12, 32))


def test_whoever_reads_a_model_encodes_once(pipe: DiamondMapPipeline, encodings: Callable[..., list[Any]]) -> None:
    encoded = encodings(pipe)
    reward = as_reward(brightness)
    plan_methods(["plain", "best_of_n"], [4, 8], pipe, reward)
    assert encoded == ["a circle"]
    with tilted_law(pipe, PROMPTS) as model:
        assert model.num_images == 2
    assert encoded == ["a circle", PROMPTS]
    teacher = Teacher(pipe.family, pipe.defaults)
    teacher.features(PROMPTS)
    assert encoded[2:] == [[""], PROMPTS]
    draw_side_by_side(pipe, PROMPTS, SMC(num_particles=2), reward)
    assert encoded[4:] == [PROMPTS, PROMPTS]


def test_a_prepared_call_is_what_the_pipeline_runs(pipe: DiamondMapPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    prepare = call_module.prepare
    monkeypatch.setattr(pipeline_module, "prepare", lambda *args: made.append(prepare(*args)) or made[-1])
    latents = torch.randn(2, 4, 16)
    pipe(PROMPTS, reward_prompt=["a", "b"], latents=latents, generator=generators(), height=32, width=8)
    (call,) = made
    assert call.arguments.prompt == PROMPTS and call.texts == ("a", "b") and call.num_images == 2
    assert (call.arguments.height, call.arguments.width) == (32, 8)
    assert call.arguments.latents is latents and len(call.arguments.generator) == 2
    assert call.arguments.num_inference_steps == 2 and len(call.levels()) == 3
    assert len(call.conditions.features["encoder_hidden_states"]) == 2


def test_levels_are_computed_once_for_a_number_of_steps(
    pipe: DiamondMapPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []
    set_timesteps = type(pipe.family).set_timesteps
    monkeypatch.setattr(
        type(pipe.family),
        "set_timesteps",
        lambda family, arguments, conditions: (
            counts.append(arguments["num_inference_steps"]) or set_timesteps(family, arguments, conditions)
        ),
    )
    call = pipe.prepare("a ring")
    levels = call.levels()
    levels.clear()
    assert [len(call.levels(steps)) for steps in (None, 2, 5, 5)] == [3, 3, 6, 6]
    assert counts == [2, 5]
    assert call.arguments.num_inference_steps == 2


def test_bad_arguments_are_refused_before_prompts_are_encoded(
    pipe: DiamondMapPipeline, encodings: Callable[..., list[Any]]
) -> None:
    encoded = encodings(pipe)
    with pytest.raises(TypeError, match="guidence_scale"):
        pipe.prepare("a ring", guidence_scale=3.0)
    with pytest.raises(ValueError, match="num_inference_steps is 0"):
        pipe.prepare("a ring", num_inference_steps=0)
    with pytest.raises(ValueError, match="reward_prompt holds 2 texts for 1 prompts"):
        pipe.prepare("a ring", reward_prompt=["a", "b"])
    for options in ({"alignment": "smx"}, {"final_selection": "worst"}, {"reward_scale": float("nan")}):
        with pytest.raises(ValueError, match=str(*options)):
            pipe("a ring", reward=brightness, **options)
    with pytest.raises(ValueError, match="shape"):
        pipe("a ring", reward=lambda images, prompts: images.mean())
    assert encoded == []


def test_what_is_prepared_in_inference_mode_can_be_differentiated(pipe: DiamondMapPipeline) -> None:
    embeds = pipe.encode_prompt(prompt=PROMPTS, prompt_2=None, max_sequence_length=12)
    with torch.inference_mode():
        given = {"prompt_embeds": embeds[0].clone(), "pooled_prompt_embeds": embeds[1].clone()}
        assert given["prompt_embeds"].is_inference()
        for call in (pipe.prepare(**given), pipe.prepare(PROMPTS)):
            assert not any(feature.is_inference() for feature in call.conditions.features.values())


def test_an_active_call_holds_the_model_and_puts_it_back() -> None:
    pipe = DiamondMapPipeline.from_pipe(build_tiny_sdxl(force_upcast=True).to(torch.float16))
    call = pipe.prepare("a ring", num_inference_steps=2)
    with call.active():
        assert pipe.vae.dtype == torch.float32
        with call.active():
            assert call.levels()[-1] == 0
        assert pipe.vae.dtype == torch.float32
    assert pipe.vae.dtype == torch.float16
    noisy = DiamondMapPipeline.from_pipe(build_tiny_stable_diffusion())
    noisy.scheduler = DDIMScheduler.from_config(noisy.scheduler.config)
    assert not noisy.family.stock_transition().is_stochastic
    model = noisy.prepare("a ring", eta=1.0).family
    assert model.stock_transition().is_stochastic
    assert model.stochastic_transition() == model.stock_transition()
    assert not noisy.family.stock_transition().is_stochastic


def test_stock_keywords_are_shown_and_examples_run(pipe: DiamondMapPipeline) -> None:
    parameters = inspect.signature(pipe.prepare).parameters
    assert next(iter(parameters)) == "prompt" and {"reward_prompt", "num_inference_steps"} <= set(parameters)
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner()
    for owner, names in ((Call, vars(call_module)), (DiamondMapPipeline.prepare, vars(pipeline_module))):
        (example,) = finder.find(owner, owner.__name__, globs=dict(names))
        assert example.examples
        runner.run(example)
    assert runner.failures == 0


def test_arguments_are_read_only(pipe: DiamondMapPipeline) -> None:
    arguments = pipe.prepare("a ring").arguments
    with pytest.raises(TypeError, match="does not support item assignment"):
        arguments["prompt"] = "a star"
    with pytest.raises(AttributeError):
        arguments.prompt = "a star"
    assert dict(arguments)["prompt"] == arguments.prompt == "a ring"
