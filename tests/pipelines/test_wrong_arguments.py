"""Arguments of a call are understood or refused by their names, before anything is encoded or sampled."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.zoo.flux import build_tiny_flux
from benchmarks.zoo.pixart_sigma import build_tiny_pixart_sigma
from benchmarks.zoo.sana import build_tiny_sana
from benchmarks.zoo.stable_diffusion import build_tiny_stable_diffusion
from diamond_diffusers import SMC, DiamondMapPipeline, GlassPosterior
from diamond_diffusers.families.base import Family
from diamond_diffusers.pipelines.argument_types import call_parameters

from ..robustness.generators import ARRAYS, NUMBERS, TEXTS, TRUTHS

BUILDERS = {
    "flux": build_tiny_flux,
    "stable_diffusion": build_tiny_stable_diffusion,
    "sana": build_tiny_sana,
    "pixart_sigma": build_tiny_pixart_sigma,
}
CALL = {"height": 32, "width": 32, "num_inference_steps": 2}
OWN = (
    "reward",
    "alignment",
    "reward_scale",
    "max_network_evaluations",
    "max_reward_calls",
    "final_selection",
    "particle_batch_size",
    "gradient_checkpointing",
    "distributed_state",
    "reward_prompt",
    "return_dict",
)
VALUES: dict[str, Any] = {
    # Of mappings and of lists that end nowhere, other tests are.
    **{odd.label: odd.value for odd in (*NUMBERS, *TRUTHS, *ARRAYS, *TEXTS)},
    "unknown type of output": "PIL",
    "empty list": [],
    "rising list": [0.1, 0.5],
    "negative list": [0.5, -0.5],
    "nan in a list": [math.nan, 0.5],
    "list of others": [1, "a"],
    "set": {1},
    "mapping": {"no_such_name": 1},
    "wrong form": {"name": 3},
    "class": SMC,
    "part": GlassPosterior(),
    "object": object(),
    "date": datetime.date(2026, 1, 1),
    "function of none": lambda: None,
    "latents in numpy": np.zeros((1, 4, 8, 8)),
    "numpy text": np.array("4"),
    "tensor of whole numbers": torch.zeros(1, 4, dtype=torch.long),
    "complex tensor": torch.zeros(1, 4, dtype=torch.complex64),
    "tensor of nan": torch.full((1, 4, 8, 8), math.nan),
    "latents without numbers": torch.zeros(1, 4, 8, 8, device="meta"),
    "generator": torch.Generator(),
    "generators": [torch.Generator(), torch.Generator()],
}


class EncodedError(Exception):
    """The call has come as far as its prompts."""


@pytest.fixture(
    scope="module",
    params=[
        "flux",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("stable_diffusion", "sana", "pixart_sigma")),
    ],
)
def pipe(request: pytest.FixtureRequest) -> DiamondMapPipeline:
    with torch.random.fork_rng():
        pipe = DiamondMapPipeline(BUILDERS[request.param]())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def nothing_is_encoded(pipe: DiamondMapPipeline, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever passes all checks ends here, before any work."""

    def encode(self: Family, arguments: Any) -> None:
        raise EncodedError

    monkeypatch.setattr(type(pipe.family), "encode", encode)
    return


def names_of(pipe: DiamondMapPipeline) -> list[str]:
    stock = call_parameters(type(pipe.pipeline))
    return [name for name in (*stock, *OWN) if name not in pipe.family.refused_arguments]


@pytest.mark.usefixtures("nothing_is_encoded")
def test_a_value_is_understood_or_refused_by_the_argument_s_name(pipe: DiamondMapPipeline) -> None:
    for name in names_of(pipe):
        for description, value in VALUES.items():
            case = f"{name}, {description}"
            try:
                pipe(**{"prompt": "a star", **CALL, name: value})
            except EncodedError:
                continue
            except (TypeError, ValueError) as error:
                text = str(error)
                assert re.search(rf"\b{name}\b|no_such_name|[Rr]eward", text), f"{case}: {text}"
                assert "\n" not in text and len(text) < 800, f"{case}: {text}"


def after_one(pipe: Any, step: int) -> None:
    """A callback of too few arguments."""


@pytest.mark.usefixtures("nothing_is_encoded")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_images_per_prompt": 0}, "num_images_per_prompt is 0; give a whole number of at least 1"),
        ({"num_images_per_prompt": True}, "num_images_per_prompt is True; give a whole number"),
        ({"num_inference_steps": 2.5}, "num_inference_steps is 2.5; give a whole number"),
        ({"height": -8}, "height is -8; give a whole number of at least 1"),
        ({"width": math.nan}, "width is nan; give a whole number"),
        ({"guidance_scale": "3"}, "guidance_scale is '3'; give a number"),
        ({"output_type": "PIL"}, "output_type is 'PIL'; choose one of pil, np, pt, latent"),
        ({"return_dict": "no"}, "return_dict is 'no'; give True or False"),
        (
            {"reward_scale": "1"},
            "reward_scale is '1'; give a number or a list, each of which is a number or auto, or an object, such as "
            "AutoRewardScale(), or None",
        ),
        ({"gradient_checkpointing": "yes"}, "gradient_checkpointing is 'yes'; give True or False or auto or None"),
        ({"final_selection": 3}, "final_selection is 3; give a text or None"),
        ({"final_selection": ""}, "final_selection is ''; choose one of sample, heaviest, best, all"),
        ({"particle_batch_size": 1.5}, "particle_batch_size is 1.5; give a whole number or auto or None"),
        ({"max_network_evaluations": math.nan}, "max_network_evaluations is nan; give a whole number or None"),
        ({"max_reward_calls": 0}, "max_reward_calls is 0; give a whole number of at least 1"),
        ({"alignment": SMC}, "alignment is the class SMC; give an instance, SMC()"),
        ({"callback_on_step_end": "log"}, "callback_on_step_end is 'log'; give a function"),
        ({"callback_on_step_end": after_one}, "give a function of (pipe, step, timestep, tensors)"),
        ({"latents": np.zeros((1, 4, 8, 8))}, "latents is a ndarray of shape [1, 4, 8, 8]; give a tensor"),
        (
            {"latents": torch.zeros(1, 4, 8, 8, dtype=torch.long)},
            "latents is of torch.int64; give numbers of a floating",
        ),
        ({"latents": torch.full((1, 4, 8, 8), math.nan)}, "latents holds nan or inf"),
        ({"latents": torch.tensor([])}, "latents is a tensor of no numbers, of shape [0]; give one with a row"),
        ({"callback_on_step_end": torch.nn.Identity()}, "is Identity(), which takes (input: torch.Tensor) -> torch."),
        ({"generator": ""}, "generator is '', which is empty; give torch.Generator objects"),
        ({"reward_scale": 1e308}, "reward_scale is 1e+308; give at most 3.4e+38, the largest in float32"),
        ({"prompt": ["a star", 3]}, "prompt holds 3; give a text or a list of texts"),
        ({"reward_prompt": []}, "reward_prompt holds 0 texts for 1 prompts"),
    ],
)
def test_wrong_arguments_get_one_sentence(pipe: DiamondMapPipeline, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        pipe(**{"prompt": "a star", **CALL, **arguments})


@pytest.mark.usefixtures("nothing_is_encoded")
@pytest.mark.parametrize("name", ["sigmas", "timesteps"])
@pytest.mark.parametrize("levels", [[], [0.1, 0.5], [0.5, -0.5], [math.inf, 0.5], "0.5,0.1", 3, {0.5}])
def test_wrong_levels_are_refused(pipe: DiamondMapPipeline, name: str, levels: Any) -> None:
    if name in call_parameters(type(pipe.pipeline)):
        with pytest.raises((TypeError, ValueError), match=rf"^{name}"):
            pipe("a star", **CALL, **{name: levels})


@pytest.mark.parametrize("pipe", ["stable_diffusion"], indirect=True)
def test_whole_timesteps_are_taken_in_a_tensor_as_in_a_list(pipe: DiamondMapPipeline) -> None:
    resolved = [
        pipe.prepare("a star", height=16, width=16, timesteps=timesteps).levels()
        for timesteps in ([900, 100], torch.tensor([900, 100]), np.array([900, 100]))
    ]
    assert resolved[0] == resolved[1] == resolved[2]


@pytest.mark.parametrize(
    ("option", "place"),
    [
        ("num_particles", r"an option of an alignment method; give alignment=SMC\(num_particles=...\)"),
        ("branching", r"give alignment=BeamSearch\(branching=...\)"),
        ("strength", r"give alignment=Guidance\(guide=Guide\(strength=...\)\)"),
        ("num_inner_steps", r"give alignment=SMC\(posterior=GlassPosterior\(num_inner_steps=...\)\)"),
        ("eta_max", "is no argument of DiamondMapPipeline or of the"),
        ("gamma", r"give alignment=SMC\(tempering=ScheduledTempering\(gamma=...\)\)"),
        ("few_step", r"an option of loading; give DiamondMapPipeline.from_pretrained\(..., few_step=...\)"),
        ("torch_dtype", r"give DiamondMapPipeline.from_pretrained\(..., torch_dtype=...\)"),
        ("num_inference_step", "did you mean 'num_inference_steps'"),
    ],
)
def test_an_option_of_something_else_says_where_it_belongs(pipe: DiamondMapPipeline, option: str, place: str) -> None:
    with pytest.raises(TypeError, match=place):
        pipe("a star", **{option: 1})


@pytest.mark.parametrize(
    ("defaults", "message"),
    [
        (3, "defaults is 3; give a mapping"),
        ({"rewrd": "brightness"}, "defaults holds 'rewrd', did you mean 'reward'"),
        ({"height": -8}, "height is -8"),
        ({"num_inference_steps": "4"}, "num_inference_steps is '4'; give a whole number"),
        ({"reward_scale": math.nan}, "reward_scale is nan"),
        ({"alignment": "smx"}, "alignment is 'smx'; choose one of"),
        ({"alignment": {"name": "smc", "num_particles": "many"}}, "num_particles is 'many'"),
    ],
)
def test_wrong_defaults_are_refused_at_once(pipe: DiamondMapPipeline, defaults: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        DiamondMapPipeline(pipe.pipeline, defaults)
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        DiamondMapPipeline.from_pretrained(defaults=defaults)
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        pipe.defaults = defaults


def test_arguments_of_a_call_are_not_those_of_loading() -> None:
    with pytest.raises(TypeError, match=r"'alignment' is an argument of a call; give pipe\(..., alignment=...\)"):
        DiamondMapPipeline.from_pretrained(alignment="smc")
    with pytest.raises(TypeError, match="pretrained_model_name_or_path is 3"):
        DiamondMapPipeline.from_pretrained(3)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({"zz": 1}, "callback_on_step_end returned 'zz'; with"),
        ({"latents": 3}, "callback_on_step_end returned latents as 3; return a tensor"),
        (3, "callback_on_step_end returned a int"),
    ],
)
def test_what_a_callback_returns_is_checked(pipe: DiamondMapPipeline, returned: Any, message: str) -> None:
    if "callback_on_step_end" in call_parameters(type(pipe.pipeline)):
        with pytest.raises((TypeError, ValueError), match=message):
            pipe("a star", **CALL, callback_on_step_end=lambda *_: returned)


@pytest.mark.usefixtures("nothing_is_encoded")
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("timesteps", [5000, 10], "timesteps begins at 5000; with this model noise is pure at 1000"),
        ("eta", -8, "eta is -8; give a number between 0"),
        ("clip_skip", -1, "clip_skip is -1; give a number of layers"),
        ("joint_attention_kwargs", {1: 2}, "joint_attention_kwargs holds the key 1; give each option by its name"),
        ("cross_attention_kwargs", {1: 2}, "cross_attention_kwargs holds the key 1; give each option by its name"),
        ("prompt_embeds", torch.tensor([]), "prompt_embeds is a tensor of no numbers"),
    ],
)
def test_values_beyond_what_a_model_has_are_refused(
    pipe: DiamondMapPipeline, name: str, value: Any, message: str
) -> None:
    if name in call_parameters(type(pipe.pipeline)):
        with pytest.raises(ValueError, match=message):
            pipe("a star", **CALL, **{name: value})
