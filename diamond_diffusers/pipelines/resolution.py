"""Resolves the reward, the method and the final selection of a call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..alignment import AUTO
from ..alignment.auto_scale import AutoRewardScale
from ..alignment.automatic import Cell, Choice, choose
from ..alignment.base import Method
from ..alignment.methods.none import NoAlignment
from ..alignment.named import as_method, is_auto
from ..alignment.result import FINAL_SELECTIONS
from ..alignment.reward_errors import RETRY_DELAYS, RewardErrors
from ..alignment.reward_of_each_image import RewardOfEachImage, check_tilted, rewards_and_images
from ..alignment.reward_scales import check_reward_scales, scale_of_each_image
from ..core.checks import check_choice
from ..families.base import Family
from ..rewards import Reward, RewardLike, as_reward
from .call import Call
from .modules import check_differentiable, check_network_differentiable

Value = TypeVar("Value")


def resolve_reward(
    reward: RewardLike | Sequence[RewardLike] | None,
    alignment: Method | str | Mapping[str, Any] | None,
    call: Call,
    defaults: Mapping[str, Any],
    named: dict[str, Reward],
) -> Reward | None:
    """The reward of a call, on the model's device: as given, else the model's own, if it has one.

    Args:
        reward: one for all prompts, or one for each.
        named: rewards that were loaded by name before; a reward that is named for the first time is added.

    Raises:
        ValueError: the method needs a reward, but there is none; or several are not one for each prompt.
    """
    family, pipeline = call.family, call.family.pipeline
    chosen: Any = defaults.get("reward") if reward is None else reward
    if chosen is None:
        if alignment is not None and (is_auto(alignment) or as_method(alignment).needs_reward):
            raise ValueError(
                f"reward is None, and this {type(pipeline).__name__} has no reward of its own; "
                "give reward=... or alignment='none'"
            )
        return None
    if isinstance(chosen, list | tuple):
        rewards = [loaded_reward(each, named) for each in of_each_image("reward", chosen, call)]
        is_one = all(each is rewards[0] for each in rewards)
        return (rewards[0] if is_one else RewardOfEachImage(rewards)).to(device=family.device)
    return loaded_reward(chosen, named).to(device=family.device)


def of_each_image(name: str, values: Sequence[Value], call: Call) -> list[Value]:
    """The values of each image, of an argument that has one for each prompt.

    Raises:
        ValueError: it has another number of values.
    """
    num_images = call.arguments.num_images_per_prompt
    if len(values) * num_images != call.num_images:
        raise ValueError(
            f"{name} holds {len(values)} values for {call.num_images // num_images} prompts; give one for each prompt, "
            "or a single one for all"
        )
    return [value for value in values for _ in range(num_images)]


def resolve_reward_scale(
    reward_scale: float | Sequence[float] | AutoRewardScale | str | None,
    reward: Reward | None,
    call: Call,
    defaults: Mapping[str, Any],
) -> Tensor | AutoRewardScale:
    """The scale of each image of a call, `[B]`, or how it is to be found.

    Raises:
        ValueError: several are not one for each prompt; one is to be found for constraints alone, or for no reward; or
            some images alone are plain samples, as those of a scale of 0.
    """
    scale: Any = own_reward_scale(reward, defaults) if reward_scale is None else reward_scale
    if isinstance(scale, AutoRewardScale | str):
        if reward is None:
            raise ValueError("reward_scale is 'auto', but there is no reward to scale; give reward=...")
        if all(each.is_constraint for each, _ in rewards_and_images(reward)):
            raise ValueError(
                f"reward_scale is 'auto', but the reward {reward.name!r} has constraints alone, which are not scaled; "
                "leave it out"
            )
        return AutoRewardScale() if isinstance(scale, str) else scale
    if isinstance(scale, list | tuple):
        check_reward_scales(scale)
        scale = torch.tensor(of_each_image("reward_scale", scale, call), dtype=torch.float64)
    scales = scale_of_each_image(scale, call.num_images)
    check_tilted(reward, scales)
    return scales


def own_reward_scale(reward: Reward | None, defaults: Mapping[str, Any]) -> Any:
    """The scale of a call that gives none: the model's own, else the reward's, else 1; of several rewards `[B]`."""
    declared = defaults.get("reward_scale")
    if declared is not None:
        return declared
    if isinstance(reward, RewardOfEachImage):
        return torch.tensor([own_reward_scale(each, {}) for each in reward.rewards_of_rows], dtype=torch.float64)
    default = None if reward is None else reward.default_reward_scale
    return 1.0 if default is None else default


def loaded_reward(reward: RewardLike, named: dict[str, Reward]) -> Reward:
    """A reward in any of its forms; `named` as of `resolve_reward`."""
    if isinstance(reward, str):
        # A named reward is a model: loaded once, not at every call, and not for every expression that names it.
        if reward not in named:
            named[reward] = as_reward(reward, named)
        reward = named[reward]
    return as_reward(reward)


def resolve_method(
    alignment: Method | str | Mapping[str, Any] | None,
    reward: Reward | None,
    call: Call,
    defaults: Mapping[str, Any],
    max_network_evaluations: int | None = None,
    max_reward_calls: int | None = None,
) -> tuple[Method, Choice | None]:
    """The method of a call, with the choices filled in that it leaves to the model, and why it was chosen.

    This is the given method, else the model's own, else `none` without a reward and `"auto"` with one. `"auto"` also
    takes the place of a method of the model's own that differentiates the reward where the reward has no gradient.

    Returns:
        The method, and the choice of `"auto"`; None where that has not chosen.

    Raises:
        ValueError: it cannot work with this reward, this model, or these arguments of the call.
    """
    family, choice = call.family, None
    if alignment is None:
        alignment = own_method(reward, defaults, family)
    if is_auto(alignment):
        assert reward is not None, "`resolve_reward` has refused a call without one"
        choice = _automatic(reward, call, max_network_evaluations, max_reward_calls)
    method = as_method(alignment, family) if choice is None else choice.method
    if reward is None:
        method.check(None)
    for each, _ in rewards_and_images(reward):
        method.check(each)
    if not isinstance(method, NoAlignment) or method.needs_reward_gradient:
        family.check_alignable()
    method = method.resolve(family)
    if method.uses_diamond_map(family):
        call.check_baked_guidance()
    return method, choice


def own_method(
    reward: Reward | None, defaults: Mapping[str, Any], family: Family | None = None
) -> Method | str | Mapping[str, Any]:
    """The method of a call that names none; see `resolve_method`. The family is None before it is loaded."""
    if reward is None:
        return "none"
    own: Method | str | Mapping[str, Any] = defaults.get("alignment") or AUTO
    if not is_auto(own) and as_method(own, family).needs_reward_gradient and not reward.differentiable:
        return AUTO
    return own


def _automatic(reward: Reward, call: Call, max_network_evaluations: int | None, max_reward_calls: int | None) -> Choice:
    """The choice of `"auto"` for a call, which leaves out what the call cannot use."""
    family, notes = call.family, []
    with_map = family.has_diamond_map and _holds(call.check_baked_guidance)
    if family.has_diamond_map and not with_map:
        notes.append("the Diamond Map was distilled with other guidance than that of this call")
    budgets = call.num_steps, max_network_evaluations, max_reward_calls
    cell_of = partial(Cell.of, family, reward, *budgets, with_map=with_map)
    choice = choose(family, cell_of())
    if choice.method.needs_reward_gradient and not _holds(partial(check_gradients, call, choice.method)):
        notes.append("nothing can be differentiated through the weights of the model")
        choice = choose(family, cell_of(with_gradient=False))
    method = choice.method.resolve(family)
    latents, transition = call.arguments.latents, method.transition
    is_shared = isinstance(latents, Tensor) and latents.ndim > 0 and len(latents) == call.num_images
    if is_shared and method.num_particles > 1 and transition is not None and not transition.is_stochastic:
        # Particles that start from one noise would stay together.
        notes.append("with a stochastic transition, since all particles of an image start from the same latents")
        choice = replace(choice, method=replace(method, transition=family.stochastic_transition()))
    return replace(choice, note="; ".join(notes))


def check_gradients(call: Call, method: Method) -> None:
    """Raises a `ValueError` where a method that differentiates cannot do so through the weights of a call."""
    check_differentiable(call.modules)
    check_network_differentiable(call.family, method)


def _holds(check: Callable[[], None]) -> bool:
    """Whether a check raises no `ValueError`."""
    try:
        check()
    except ValueError:
        return False
    return True


def checked_selection(selection: str, reward: Reward | None, texts: Sequence[str]) -> str:
    """Checks that `final_selection` is possible, and returns it.

    Raises:
        ValueError: it is unknown, or there is no reward to compare particles by.
    """
    check_choice("final_selection", selection, FINAL_SELECTIONS)
    if selection == "best" and reward is None:
        raise ValueError("final_selection is 'best', but no reward compares particles; give reward=...")
    if reward is not None:
        check_has_prompts(reward, texts)
    return selection


def check_has_prompts(reward: Reward, texts: Sequence[str]) -> None:
    """Raises a `ValueError` where a reward reads prompts, of which there are none."""
    if reward.reads_prompts and not any(texts):
        raise ValueError(
            "the reward reads the prompt, but its text is '', as that of embeddings is; give one, or "
            "reward_prompt=..., or wrap a function that reads none in CallableReward(function, reads_prompts=False)"
        )


def try_reward(
    reward: Reward | None, call: Call, method: Method, errors: RewardErrors, latents: Tensor | None = None
) -> int:
    """Tries the reward on one random image of the size of the run, so that a broken one fails before the work.

    Call it twice: before the prompts are encoded, and once latents are known. A reward is tried in the first call, or
    in the second if it needs the latents.

    Args:
        errors: what is done where a reward fails. If that may pass, it is tried again; in the end its error is raised.
        latents: of one image, `[1, ...]`; None where they are not known yet.

    Returns:
        How many images were scored.

    Raises:
        TypeError, ValueError: as of `Reward.probe`.
    """
    if reward is not None and latents is None:
        reward.check_prompts(call.texts)
    size = (call.arguments.height or 64, call.arguments.width or 64)
    context = {} if latents is None else {"latents": latents}
    delays = () if errors.action == "raise" else RETRY_DELAYS
    scored, failed = 0, [0]

    def count_failure() -> None:
        failed[0] += 1

    for each, image in rewards_and_images(reward):
        if each.wanted_context.get("latents", False) == (latents is not None):
            text = call.texts[image] or None
            tried = partial(each.probe, call.device, size, text, method.needs_reward_gradient, **context)
            scored += errors.retried(tried, delays, count_failure)
    return scored + failed[0]
