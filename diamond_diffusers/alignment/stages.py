"""The later stages of a reward, which choose among the particles that a run ends with.

This is the ranking cascade of information retrieval (Wang, Lin and Metzler 2011, "A cascade ranking model for efficient
ranked retrieval"): each stage orders the best of the stage before anew, and what it does not see stays below.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ..core.values import final_values
from ..rewards.base import Reward
from ..rewards.names import distinct
from ..rewards.output import RewardOutput
from ..rewards.stages import stages_of
from .base import Method
from .law import Law
from .out_of_memory import with_smaller_chunks
from .result import AlignmentResult
from .reward_errors import Scored


def check_stages(
    reward: Reward | None, method: Method, final_selection: str | None = None, is_budgeted: bool = False
) -> None:
    """Raises a `ValueError` where a reward has stages that would have nothing to choose.

    Args:
        reward: of a call.
        method: with its count known.
        final_selection: as it was given.
        is_budgeted: whether a budget has set the count.
    """
    if stages_of(reward) is None:
        return
    if final_selection in ("sample", "heaviest"):
        raise ValueError(
            f"final_selection is {final_selection!r}, but the stages of the reward choose the best; leave it out, or "
            "give 'best' or 'all'"
        )
    if method.needs_reward and method.num_particles == 1:
        is_to_raise = is_budgeted and method.grows == "num_particles"
        remedy = "raise the budget until it pays for 2" if is_to_raise else "give num_particles of at least 2"
        raise ValueError(
            f"reward has stages, which choose among the particles of an image, but alignment {type(method).__name__} "
            f"ends with 1; {remedy}, or the first stage alone"
        )


def judged(law: Law, result: AlignmentResult) -> tuple[AlignmentResult, dict[str, int]]:
    """The result of a run whose particles the later stages of its reward have scored.

    Args:
        law: of the run, whose cost counts the scores.
        result: whose particles the first stage has scored.

    Returns:
        The result with the order of its particles and with the terms of the later stages, NaN where a stage has not
        scored; and how many scores each stage has given to the final particles. Both as they were where the reward has
        no stages.
    """
    reward = stages_of(law.reward)
    if reward is None or result.rewards is None or result.images is None:
        return result, {}
    started = time.perf_counter()
    signs = law.scales().sign()
    order = _from_best(result.rewards, signs, result.violation)
    terms, calls = dict(result.reward_terms), {reward.first.name: order.numel()}
    for stage in reward.later:
        chosen = order[:, : stage.keep]
        output = with_smaller_chunks(law.execution, partial(_scores, law, stage.reward, result, chosen))
        violations = None if output.violation is None else output.violation.reshape(chosen.shape)
        best = _from_best(output.total.reshape(chosen.shape), signs, violations)
        order = torch.cat([chosen.gather(1, best), order[:, stage.keep :]], 1)
        for name, scores in output.terms.items():
            everywhere = torch.full(order.shape, math.nan)
            everywhere.scatter_(1, chosen, scores.cpu().reshape(chosen.shape))
            terms[distinct([*terms, name])[-1]] = everywhere.to(result.rewards.device)
        calls[distinct([*calls, stage.reward.name])[-1]] = chosen.numel()
    law.cost.seconds += time.perf_counter() - started
    return replace(result, reward_terms=terms, places=order.argsort(1)), calls


def _from_best(scores: Tensor, signs: Tensor, violations: Tensor | None) -> Tensor:
    """The columns of scores `[B, n]` from the best to the worst, the first of equals first; those without one last."""
    values = final_values(scores, signs, violations).cpu()
    return values.sort(dim=1, descending=True, stable=True).indices


@torch.no_grad()
def _scores(law: Law, reward: Reward, result: AlignmentResult, chosen: Tensor) -> RewardOutput:
    """The scores of chosen particles `[B, n]`, image after image."""
    assert result.images is not None, "their images were scored by the first stage"
    owners = torch.arange(len(chosen)).repeat_interleave(chosen.shape[1])
    images, latents = (_rows(each, owners, chosen) for each in (result.images, result.latents))
    names: list[str] = []

    def count(index: Tensor) -> None:
        law.cost.reward_calls += len(index)

    def scored(by: Callable[..., Callable[..., Scored]], index: Tensor, latents: Tensor, images: Tensor) -> Scored:
        prompts = [law.prompts[owner] for owner in owners[index].tolist()]
        return by(reward)(images, prompts, latents=latents, noise_to_signal=0.0)

    def columns(output: RewardOutput) -> Tensor:
        names[:] = output.terms
        return output.columns()

    # Where a service scores, the next chunk is sent meanwhile.
    score_rows = partial(law.reward_errors.scored, columns, law.execution, reward, scored)
    groups = [chosen.shape[1]] * len(chosen)
    scores = law.execution.over_chunks(score_rows, groups, latents, images, count=count)
    return RewardOutput.of_columns(scores, names or reward.term_names)


def _rows(particles: Tensor, owners: Tensor, chosen: Tensor) -> Tensor:
    """The chosen ones of particles `[B, P, ...]`, image after image."""
    return particles[owners.to(particles.device), chosen.flatten().to(particles.device)]
