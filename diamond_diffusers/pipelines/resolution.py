"""Which reward and which alignment a call means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..alignment.base import Method
from ..alignment.methods.none import NoAlignment
from ..alignment.named import as_method
from ..families.base import Family
from ..rewards import Reward, RewardLike, as_reward
from .arguments import check_baked_guidance, check_not_checkpointed


def resolve_reward(
    reward: RewardLike | None,
    alignment: Method | str | None,
    family: Family,
    defaults: Mapping[str, Any],
    named: dict[str, Reward],
) -> Reward | None:
    """The reward of a call, on the model's device: as given, else the model's own, if it has one.

    Args:
        named: rewards that were loaded by name before; one that is named for the first time is added.

    Raises:
        ValueError: there is none, but the alignment needs one.
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
    if isinstance(reward, str):
        # A named reward is a model: loaded once, not at every call.
        if reward not in named:
            named[reward] = as_reward(reward)
        reward = named[reward]
    return as_reward(reward).to(device=pipeline._execution_device)


def resolve_alignment(
    alignment: Method | str | None,
    reward: Reward | None,
    family: Family,
    defaults: Mapping[str, Any],
    arguments: Mapping[str, Any],
) -> Method:
    """The alignment of a call, with what it leaves open filled in for the model.

    As given, else the model's own, else SMC with a reward and none without. A model's own that differentiates the
    reward gives way, for rewards without derivative, to posterior SMC where there is a Diamond Map, else to SMC.

    Raises:
        ValueError: it cannot work with this reward, this model, or these arguments of the call.
    """
    if alignment is None:
        alignment = _own_alignment(reward, family, defaults)
    alignment = as_method(alignment, family)
    alignment.check(reward)
    if not isinstance(alignment, NoAlignment) or alignment.needs_reward_gradient:
        family.check_alignable()
    alignment = alignment.resolve(family)
    if alignment.uses_diamond_map(family):
        check_baked_guidance(family, arguments)
        check_not_checkpointed(family)
    return alignment


def _own_alignment(reward: Reward | None, family: Family, defaults: Mapping[str, Any]) -> Method | str:
    if reward is None:
        return "none"
    own = as_method(defaults.get("alignment", "smc"), family)
    if own.needs_reward_gradient and not reward.differentiable:
        return "posterior_smc" if family.has_diamond_map else "smc"
    return own
