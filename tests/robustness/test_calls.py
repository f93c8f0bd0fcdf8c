"""Every argument of a call, of `iterate` and of `prepare`, with odd values; afterwards the pipe draws what it drew."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.zoo.stable_diffusion import build_tiny_stable_diffusion
from diamond_diffusers import SMC, DiamondMapPipeline, SharedBudget
from diamond_diffusers.alignment.methods import METHODS
from diamond_diffusers.alignment.presets import PRESETS
from diamond_diffusers.pipelines.pipeline import DiamondMapPipelineOutput
from diamond_diffusers.rewards import available_rewards

from ..conftest import redness
from .generators import ALL, Odd, share
from .judging import ANY, OneOf, Tally

OWN = [
    name
    for name, parameter in inspect.signature(DiamondMapPipeline.__call__).parameters.items()
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY
]
STOCK_ALONE = (
    *("guidance_scale", "true_cfg_scale", "eta", "guidance_rescale", "clip_skip", "max_sequence_length"),
    *("sigmas", "timesteps", "prompt_2", "negative_prompt_2", "prompt_embeds", "pooled_prompt_embeds"),
    *("negative_prompt_embeds", "negative_pooled_prompt_embeds", "joint_attention_kwargs", "cross_attention_kwargs"),
    *("ip_adapter_image", "ip_adapter_image_embeds", "callback_on_step_end_tensor_inputs"),
)
TEXTS = ("prompt", "negative_prompt", "prompt_2", "negative_prompt_2", "reward_prompt")
COUNTS = (
    *("num_inference_steps", "num_images_per_prompt", "max_network_evaluations", "max_reward_calls"),
    "particle_batch_size",
)


@dataclass
class Called:
    """A pipeline and the keywords of a short call."""

    pipe: DiamondMapPipeline
    call: Mapping[str, Any]

    @property
    def arguments(self) -> list[str]:
        """Every argument of a call, those of the stock pipeline included."""
        stock = inspect.signature(type(self.pipe.pipeline).__call__).parameters
        return ["prompt", *OWN, *(name for name in STOCK_ALONE if name in stock)]

    def draw(self, **given: Any) -> Any:
        generator = torch.Generator().manual_seed(3)
        return self.pipe(**{"prompt": "a ring", "generator": generator, "output_type": "pt", **self.call, **given})


def embedded() -> Called:
    return Called(DiamondMapPipeline.from_pretrained(), {"num_inference_steps": 1, "alignment": SMC(num_particles=2)})


def flux(folder: Any) -> Called:
    call = {"num_inference_steps": 1, "reward": redness, "alignment": SMC(num_particles=2)}
    return Called(DiamondMapPipeline.from_pretrained(folder), call)


def stable_diffusion() -> Called:
    pipe = DiamondMapPipeline.from_pipe(build_tiny_stable_diffusion())
    call = {"num_inference_steps": 2, "reward": redness, "alignment": SMC(num_particles=2), "height": 16, "width": 16}
    return Called(pipe, call)


@pytest.fixture(
    scope="module",
    params=["flux", *(pytest.param(name, marks=pytest.mark.robustness) for name in ("embedded", "stable_diffusion"))],
)
def called(request: pytest.FixtureRequest, tiny_folder: Any) -> Called:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = {"flux": lambda: flux(tiny_folder), "embedded": embedded, "stable_diffusion": stable_diffusion}
        called = made[request.param]()
    called.pipe.set_progress_bar_config(disable=True)
    return called


@pytest.fixture
def same_afterwards(called: Called) -> Iterator[None]:
    """The pipe draws the same bits before and after, and keeps no more modules, hooks or defaults."""
    before, state = called.draw(), state_of(called.pipe)
    yield
    after = called.draw()
    assert torch.equal(before.images, after.images) and torch.equal(before.rewards, after.rewards)
    for before_it, after_it in zip(state, state_of(called.pipe), strict=True):
        assert before_it == after_it


def state_of(pipe: DiamondMapPipeline) -> Any:
    """What a call must leave as it is."""
    modules = [(name, part) for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)]
    hooks = [
        (name, inner, num_hooks(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks))
        for name, part in modules
        for inner, module in part.named_modules()
    ]
    trained = [weight.requires_grad for _, part in modules for weight in part.parameters()]
    config = {key: str(value) for key, value in pipe.scheduler.config.items()}
    return hooks, trained, config, dict(pipe.defaults), [part.dtype for _, part in modules], type(pipe.scheduler)


def num_hooks(hooks: Mapping[int, Callable[..., Any]]) -> int:
    """The number of hooks, but for those of transformers' own.

    A model of transformers gets these for good the first time that it is asked for its hidden states, as it is for
    `clip_skip` here and in the stock pipeline. They do nothing where nobody asks. To take them away would be to meddle
    with a mark and a lock of transformers, while another thread may be using them.
    """
    return sum(hook.__module__ != "transformers.utils.output_capturing" for hook in hooks.values())


def fault_of_output(out: object, num_images: int | None = None) -> str | None:
    """What is wrong with the output of a call: images have to be finite, in [0, 1] and of the number asked for."""
    if not isinstance(out, DiamondMapPipelineOutput):
        return f"a {type(out).__name__}"
    images = out.images
    if not isinstance(images, torch.Tensor):
        return f"images are a {type(images).__name__}"
    if not torch.isfinite(images).all() or images.min() < 0 or images.max() > 1:
        return "silent: images are not finite numbers between 0 and 1"
    if num_images is not None and len(images) != num_images:
        return f"silent: {len(images)} images in place of {num_images}"
    if out.rewards is not None and not torch.isfinite(out.rewards).all():
        return "silent: rewards are not finite"
    return None


def expected(name: str, value: object) -> str | None:
    """What must not be understood: why a value that was accepted had to be refused; None where it may be taken."""
    if name in COUNTS and (isinstance(value, bool | np.bool_) or not is_whole(value)) and value is not None:
        return "silent: no count"
    is_switch = isinstance(value, bool | np.bool_ | None) or getattr(value, "dtype", None) in (torch.bool, np.bool_)
    if name in ("gradient_checkpointing", "return_dict") and not is_switch:
        return "silent: neither true nor false"
    if name in TEXTS and not is_texts(value) and value is not None:
        return "silent: no text"
    if name == "reward_scale" and not is_scale(value) and value is not None:
        return "silent: no number"
    if name in ("guidance_scale", "true_cfg_scale", "eta", "guidance_rescale") and value is not None:
        return None if is_finite(value) and not isinstance(value, bool) else "silent: no number"
    return None


def is_whole(value: object) -> bool:
    try:
        return float(value) == int(value)  # type: ignore[arg-type, call-overload]
    except (TypeError, ValueError, OverflowError, RuntimeError, NotImplementedError):
        return False


def is_finite(value: object) -> bool:
    try:
        return math.isfinite(float(value))  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, RuntimeError, NotImplementedError):
        return False


def is_scale(value: object) -> bool:
    """Whether it is a number, a list of one for the only prompt, or what says how one is found."""
    if isinstance(value, list | tuple):
        return len(value) == 1 and is_scale(value[0])
    return (isinstance(value, dict) and not value) or (is_finite(value) and not isinstance(value, bool | str | bytes))


def is_texts(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, list | tuple) and all(isinstance(one, str) for one in value))


def num_images(given: Mapping[str, Any]) -> int:
    prompts = given.get("prompt", "a ring")
    each = given.get("num_images_per_prompt")
    return (len(prompts) if isinstance(prompts, list | tuple) else 1) * int(1 if each is None else each)


def fault_of_call(name: str, value: object, out: object) -> str | None:
    if name == "return_dict" and isinstance(out, tuple) and not value:
        return None
    if name == "output_type":
        return None if value in ("pil", "pt", "np", "latent") else "silent: no such type"
    return expected(name, value) or fault_of_output(out, num_images({name: value}))


def shown_of(called: Called, name: str, odd: Odd, *others: str) -> object:
    """What a refusal has to show: a value or one of the others, but nothing where an argument is refused by itself."""
    # Without an adapter no image prompt will do.
    others = (*others, "is given") if name.startswith("ip_adapter") else others
    # What options without any stand for.
    others = (*others, repr(SharedBudget())) if name == "shared_budget" else others
    return ANY if name in called.pipe.family.refused_arguments else OneOf((odd.value, *others))


def judge_call(tally: Tally, called: Called, name: str, odd: Odd) -> None:
    given = {name: odd.value}
    if name == "prompt_embeds":
        given["prompt"] = None
    # By a scale that is finite the network may still overflow, which is said of what it makes.
    made = ("has made NaN",) if "guidance" in name or "cfg" in name else ()
    tally.judge(
        lambda: called.draw(**given),
        (name, *made),
        shown_of(called, name, odd, *made),
        f"{type(called.pipe.pipeline).__name__}: pipe('a ring', {name}={odd.label})",
        lambda out: fault_of_call(name, odd.value, out),
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "argument" in metafunc.fixturenames:
        metafunc.parametrize("argument", ["prompt", *OWN, *STOCK_ALONE])


def test_argument(called: Called, argument: str, tally: Tally, same_afterwards: None) -> None:
    """A twelfth of the values; the rest is the next test's."""
    for odd in share(ALL, 12, argument) if argument in called.arguments else ():
        judge_call(tally, called, argument, odd)
    tally.check()


@pytest.mark.robustness
def test_argument_at_length(called: Called, argument: str, tally: Tally, same_afterwards: None) -> None:
    known = share(ALL, 12, argument)
    for odd in ALL if argument in called.arguments else ():
        if odd not in known:
            judge_call(tally, called, argument, odd)
    tally.check()


@pytest.mark.parametrize("begin", [DiamondMapPipeline.prepare, DiamondMapPipeline.iterate], ids=lambda f: f.__name__)
def test_prepare_and_iterate(
    called: Called, argument: str, begin: Callable[..., Any], tally: Tally, same_afterwards: None
) -> None:
    """They refuse what a call refuses, before they return; a run that was begun is closed."""
    takes = (
        inspect.signature(begin).parameters.keys() | inspect.signature(type(called.pipe.pipeline).__call__).parameters
    )
    if begin.__name__ == "iterate":
        takes |= {*OWN} - {"return_dict"}
    if argument not in called.arguments or argument not in takes:
        return

    def begun(value: object) -> None:
        call = {name: part for name, part in called.call.items() if name in takes}
        result = begin(called.pipe, **{"prompt": "a ring", **call, argument: value})
        if hasattr(result, "close"):
            result.close()

    for odd in share(ALL, 15, f"{begin.__name__} {argument}"):
        made_by = f"{type(called.pipe.pipeline).__name__}: pipe.{begin.__name__}('a ring', {argument}={odd.label})"
        tally.judge(
            lambda value=odd.value: begun(value),
            argument,
            shown_of(called, argument, odd),
            made_by,
            lambda _, value=odd.value: expected(argument, value),
        )
    tally.check()


def test_unknown_arguments(called: Called, tally: Tally, same_afterwards: None) -> None:
    for name in (
        "no_such_argument",
        "Prompt",
        "num_inference_step",
        "alignments",
        "self_",
        "a b",
        "prompt\n",
        "__class__",
    ):
        tally.judge(
            lambda name=name: called.draw(**{name: 3}),
            repr(name),
            ANY,
            f"pipe({name}=3)",
            lambda _: "silent: it has none",
        )
    tally.check()


@pytest.mark.parametrize("name", [*METHODS.names(), *PRESETS.names()])
def test_every_method_on_a_tiny_budget(called: Called, name: str, tally: Tally, same_afterwards: None) -> None:
    """What a model cannot do is said of the method; all else gives images."""
    for budget in (1, 2, 7):
        given = {"alignment": name, "max_network_evaluations": budget}
        made_by = f"{type(called.pipe.pipeline).__name__}: pipe('a ring', alignment={name!r}, budget={budget})"
        names = ("max_network_evaluations", "alignment", "posterior", "transition", "Posterior", name)
        if name == "none":
            names = (*names, "NoAlignment")
        tally.judge(
            # Of what the model lacks, the sentence names the part that needs it, and not the number.
            lambda given=given: called.draw(**given),
            names,
            OneOf((budget, "DiamondPosterior", "DiamondTransition")),
            made_by,
            lambda out: fault_of_output(out, 1),
        )
    tally.check()


@pytest.mark.parametrize("kind", ["images", "constant", "infinite", "nothing"])
def test_latents(called: Called, kind: str, tally: Tally, same_afterwards: None) -> None:
    call = called.pipe.prepare(
        "a ring", **{k: v for k, v in called.call.items() if k not in OWN or k in ("height", "width")}
    )
    with call.active(), torch.no_grad():
        noise = call.family.prepare_latents(call.arguments, call.conditions, 2, torch.Generator().manual_seed(0))
    values = {
        "images": Image.new("RGB", (16, 16)),
        "constant": torch.zeros_like(noise),
        "infinite": torch.full_like(noise, math.inf),
        "nothing": noise[:0],
    }
    odd = {"images": [values["images"]], "constant": [values["constant"], values["constant"].half()]}
    for value in odd[kind] if kind in odd else [values[kind], values[kind].double()]:
        made_by = f"{type(called.pipe.pipeline).__name__}: pipe('a ring', latents={kind})"
        tally.judge(
            lambda value=value: called.draw(latents=value),
            "latents",
            value,
            made_by,
            lambda out: fault_of_output(out, 1),
        )
    tally.check()


def test_names_of_rewards_and_their_expressions(called: Called, tally: Tally, same_afterwards: None) -> None:
    broken = [
        "",
        " ",
        "+",
        "no_such_reward",
        "miniature +",
        "miniature ++ miniature",
        "2 * ",
        "miniature * 2",
        "nan*miniature",
    ]
    broken += ["1e999*miniature", "inf*miniature", "miniature; import os", "miniature\0", "lambda: 0", "mini ature"]
    broken += [
        "(miniature)",
        "miniature/2",
        "\ud800",
        "×miniature",
        "1e-400000000*nope",
        "--miniature",
        "*",
        "5",
        "5*5*miniature",
    ]
    for text in broken:
        tally.judge(
            lambda text=text: called.draw(reward=text),
            ("reward", "Reward"),
            # The part of an expression that is wrong may be what is shown.
            OneOf((text, "nope", "inf")),
            f"pipe('a ring', reward={text!r})",
            lambda _: "silent: that is no reward",
        )
    assert "miniature" in available_rewards()
    tally.check()
