"""Resolves the reward, the method and the final selection of a call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..alignment.base import Method
from ..alignment.methods.none import NoAlignment
from ..alignment.named import as_method
from ..alignment.result import FINAL_SELECTIONS
from ..alignment.reward_errors import RETRY_DELAYS, RewardErrors
from ..core.checks import check_choice
from ..families.base import Family
from ..rewards import Reward, RewardLike, as_reward
from .call import Call


def resolve_reward(
    reward: RewardLike | None,
    alignment: Method | str | Mapping[str, Any] | None,
    family: Family,
    defaults: Mapping[str, Any],
    named: dict[str, Reward],
) -> Reward | None:
    """The reward of a call, on the model's device: as given, else the model's own, if it has one.

    Args:
        named: rewards that were loaded by name before; a reward that is named for the first time is added.

    Raises:
        ValueError: the method needs a reward, but there is none.
    """
    pipeline = family.pipeline
    if reward is None:
        reward = defaults.get("reward")
    if reward is None:
        if alignment is not None and as_method(alignment).needs_reward:
            raise ValueError(
                f"reward is None, and this {type(pipeline).__name__} has no reward of its own; "
                "give reward=... or alignment='none'"
            )
        return None
    return loaded_reward(reward, named).to(device=family.device)


def loaded_reward(reward: RewardLike, named: dict[str, Reward]) -> Reward:
    """A reward in any of its forms; `named` as of `resolve_reward`."""
    if isinstance(reward, str):
        # A named reward is a model: loaded once, not at every call.
        if reward not in named:
            named[reward] = as_reward(reward)
        reward = named[reward]
    return as_reward(reward)


def resolve_method(
    alignment: Method | str | Mapping[str, Any] | None, reward: Reward | None, call: Call, defaults: Mapping[str, Any]
) -> Method:
    """The method of a call, with the choices filled in that it leaves to the model.

    This is the given method, else the model's own, else `smc` with a reward and `none` without. If the model's own
    method differentiates the reward, but the reward has no gradient, posterior SMC takes its place with a Diamond Map,
    and SMC without one.

    Raises:
        ValueError: it cannot work with this reward, this model, or these arguments of the call.
    """
    family = call.family
    if alignment is None:
        alignment = _own_method(reward, family, defaults)
    method = as_method(alignment, family)
    method.check(reward)
    if not isinstance(method, NoAlignment) or method.needs_reward_gradient:
        family.check_alignable()
    method = method.resolve(family)
    if method.uses_diamond_map(family):
        call.check_baked_guidance()
    return method


def _own_method(reward: Reward | None, family: Family, defaults: Mapping[str, Any]) -> Method | str:
    if reward is None:
        return "none"
    own = as_method(defaults.get("alignment", "smc"), family)
    if own.needs_reward_gradient and not reward.differentiable:
        return "posterior_smc" if family.has_diamond_map else "smc"
    return own


def checked_selection(selection: str, reward: Reward | None, texts: Sequence[str]) -> str:
    """Checks that `final_selection` is possible, and returns it.

    Raises:
        ValueError: it is unknown, or there is no reward to compare particles by.
    """
    check_choice("final_selection", selection, FINAL_SELECTIONS)
    if selection == "best" and reward is None:
        raise ValueError("final_selection is 'best', but no reward compares particles; give reward=...")
    if reward is not None and reward.reads_prompts and not any(texts):
        raise ValueError(
            "the reward reads the prompt, but its text is '', as that of embeddings is; give one, or "
            "reward_prompt=..., or wrap a function that reads none in CallableReward(function, reads_prompts=False)"
        )
    return selection


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
    if reward is None or reward.wanted_context.get("latents", False) != (latents is not None):
        return 0
    size = (call.arguments.height or 64, call.arguments.width or 64)
    context = {} if latents is None else {"latents": latents}
    delays = () if errors.action == "raise" else RETRY_DELAYS
    failed: list[int] = []
    scored = errors.retried(
        lambda: reward.probe(call.device, size, call.texts[0] or "a photo", method.needs_reward_gradient, **context),
        delays,
        lambda: failed.append(1),
    )
    return scored + sum(failed)
