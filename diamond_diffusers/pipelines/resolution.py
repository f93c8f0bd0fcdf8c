"""Which reward and which alignment a call means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..alignment import Alignment, NoAlignment, as_alignment
from ..backbones.base import Backbone
from ..rewards import Reward, RewardLike, as_reward
from .arguments import check_baked_guidance, check_not_checkpointed


def resolve_reward(
    reward: RewardLike | None,
    alignment: Alignment | str | None,
    backbone: Backbone,
    defaults: Mapping[str, Any],
    named: dict[str, Reward],
) -> Reward | None:
    """The reward of a call, on the model's device: as given, else the model's own, if it has one.

    Args:
        named: rewards that were loaded by name before; one that is named for the first time is added.

    Raises:
        ValueError: there is none, but the alignment needs one.
    """
    pipeline = backbone.pipeline
    if reward is None:
        reward = defaults.get("reward")
    if reward is None:
        if alignment is not None and as_alignment(alignment).needs_reward:
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
    alignment: Alignment | str | None,
    reward: Reward | None,
    backbone: Backbone,
    defaults: Mapping[str, Any],
    arguments: Mapping[str, Any],
) -> Alignment:
    """The alignment of a call, with what it leaves open filled in for the model.

    As given, else the model's own, else SMC with a reward and none without. A model's own that differentiates the
    reward gives way, for rewards without derivative, to posterior SMC where there is a Diamond Map, else to SMC.

    Raises:
        ValueError: it cannot work with this reward, this model, or these arguments of the call.
    """
    if alignment is None:
        alignment = _own_alignment(reward, backbone, defaults)
    alignment = as_alignment(alignment, backbone)
    alignment.check(reward)
    if not isinstance(alignment, NoAlignment) or alignment.needs_reward_gradient:
        backbone.check_alignable()
    alignment = alignment.resolve(backbone)
    if alignment.uses_diamond_map(backbone):
        check_baked_guidance(backbone, arguments)
        check_not_checkpointed(backbone)
    return alignment


def _own_alignment(reward: Reward | None, backbone: Backbone, defaults: Mapping[str, Any]) -> Alignment | str:
    if reward is None:
        return "none"
    own = as_alignment(defaults.get("alignment", "smc"), backbone)
    if own.needs_reward_gradient and not reward.differentiable:
        return "posterior_smc" if backbone.has_diamond_map else "smc"
    return own
