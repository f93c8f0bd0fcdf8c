"""The output of a call of `DiamondMapPipeline`."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from diffusers.utils import BaseOutput
from torch import Tensor

from ..alignment.base import Method
from ..alignment.law import Law
from ..alignment.memory_plan import MemoryPlan
from ..alignment.out_of_memory import with_smaller_chunks
from ..alignment.random_source import RandomSource
from ..alignment.result import AlignmentResult
from ..alignment.trace import Trace
from ..core.cost import Cost
from ..families.base import Family
from .shared_budget import Shared
from .watch import Watched

logger = logging.getLogger(__name__)

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
"""In which form a call returns its images."""


@dataclass
class DiamondMapPipelineOutput(BaseOutput):
    """The output of a call: `n` images, their rewards, and figures of the run.

    Like every output of diffusers it is also a dictionary, and a tuple under `out[0]` and `out.to_tuple()`. Fields that
    are None are left out there.

    Attributes:
        images: PIL images, an array or a tensor, depending on `output_type`; image after image, and with
            `final_selection="all"` particle after particle of each.
        rewards: unscaled rewards `[n]`; NaN where the reward has failed and `on_reward_error` is `skip`, and for images
            that a safety checker blacked out. None without a reward.
        reward_terms: each term of the reward before weighting, `[n]`; NaN for images whose own reward has no such term,
            where prompts have different ones.
        constraints_met: whether the image holds all constraints of the reward, such as `nsfw < 0.2`, `[n]`; None where
            it has none.
        log_weights: normalised log-weights `[n]` of the returned particles within their image's cloud.
        log_evidence: estimate of `log E[exp(reward_scale * reward)]` for each prompt's image; None if the method makes
            none, or if the call was interrupted. The expectation is that of the law which the method's transitions
            sample. This is not the model's own law where they are one Gaussian step a level (the default; too low by
            1.3, .8, .5 and .2 with 5, 10, 20 and 50 steps on a mixture under a strong tilt) or those of a distilled
            map. For the model's own law take `GlassTransition(num_inner_steps=4)` or more.
        trace: figures of each step; `trace.plot()` draws them.
        cost: the cost of the whole call.
        alignment: the method that has run, with the model's choices filled in and the count that a budget has set.
        interrupted: whether the call was ended before its end, so that its images are clean look-aheads.
        nsfw_content_detected: for each image, whether the stock pipeline's safety checker blacked it out; None where
            there is no checker.
        reward_scale: what multiplied the reward of each image in its law, `[n]` in float64: as given, or as `"auto"`
            has found it. None without a reward, and where `"auto"` found none: for alignment `none`, which makes no use
            of it, and where the call was interrupted before.
        plan: how the call was fitted into memory; None where `particle_batch_size` and `gradient_checkpointing` were
            given, or left out on a CPU, and where there is nothing to choose: a single row that is not differentiated.
        watched: what the `watch` of the call has seen; None without one.
        choice: which method alignment `"auto"` has chosen and why, in one sentence; None where the caller or the model
            has named one.
        shared: what became of the call's `shared_budget`, image by image; None without one.
        stage_calls: how many final particles each stage of a `staged` reward has scored; None for other rewards.

    Example:
        >>> out = pipe(["a red star", "a blue ring"], alignment="best_of_n", num_inference_steps=2)
        >>> len(out.images), len(out.rewards), out.cost.network_evaluations > 0
        (2, 2, True)
    """

    images: Any
    rewards: Tensor | None
    reward_terms: dict[str, Tensor]
    log_weights: Tensor
    log_evidence: Tensor | None
    trace: Trace
    cost: Cost
    alignment: Method
    interrupted: bool = False
    nsfw_content_detected: list[bool] | None = None
    plan: MemoryPlan | None = None
    constraints_met: Tensor | None = None
    reward_scale: Tensor | None = None
    stage_calls: dict[str, int] | None = None
    watched: Watched | None = None
    choice: str | None = None
    shared: Shared | None = None


def make_output(
    law: Law,
    alignment: Method,
    result: AlignmentResult,
    selection: str,
    random: RandomSource,
    output_type: str,
    interrupted: bool,
    plan: MemoryPlan | None = None,
    has_scale: bool = True,
    stage_calls: dict[str, int] | None = None,
    watched: Watched | None = None,
    choice: str | None = None,
    shared: Shared | None = None,
) -> DiamondMapPipelineOutput:
    """Decodes the chosen particles of a run to images of the wanted type, and makes the output of a call of them.

    Args:
        has_scale: whether the law's scale is known by now.
    """
    family = law.model
    assert isinstance(family, Family), "a call samples the model of a pipeline"
    blacked_out = None
    if output_type != "latent" and result.images is not None and _has_safety_checker(family):
        result, blacked_out = _screened(family, result, result.images)
    chosen = result.select(selection, random).to(result.latents.device)
    rows = torch.arange(len(chosen), device=chosen.device)[:, None]

    def pick(per_particle: Tensor) -> Tensor:
        return per_particle[rows.to(per_particle.device), chosen.to(per_particle.device)].flatten(0, 1)

    flagged, latents = None, pick(result.latents)
    if output_type == "latent":
        images = latents
    else:
        decode = partial(law.rows(latents).decode, latents)
        images = with_smaller_chunks(law.execution, decode) if result.images is None else pick(result.images)
        if blacked_out is None:
            images, flagged = family.finish(images)
        else:
            flagged = pick(blacked_out).tolist()
        images = postprocessed(family, images, output_type)
    return DiamondMapPipelineOutput(
        images=images,
        rewards=None if result.rewards is None else pick(result.rewards),
        reward_terms={name: pick(term) for name, term in result.reward_terms.items()},
        log_weights=pick(result.log_weights),
        log_evidence=None if interrupted else result.log_evidence,
        trace=result.trace,
        cost=law.cost,
        alignment=alignment,
        interrupted=interrupted,
        nsfw_content_detected=flagged,
        plan=plan,
        constraints_met=None if result.violation is None else _constraints_met(law, alignment, pick(result.violation)),
        reward_scale=law.scales(len(latents)) if has_scale and law.reward is not None else None,
        stage_calls=stage_calls,
        watched=watched,
        choice=choice,
        shared=shared,
    )


def _constraints_met(law: Law, alignment: Method, violations: Tensor) -> Tensor:
    """Whether the chosen images `[B n]` hold the constraints; says so where a method has found none for a prompt."""
    met = violations == 0
    # What has no score, or was blacked out, is not known to violate any.
    is_missed, is_met = ((each.unflatten(0, (law.num_images, -1)).any(1)) for each in (violations > 0, met))
    missed = int((is_missed & ~is_met).sum())
    if missed and alignment.needs_reward:
        assert law.reward is not None, "it has constraints"
        logger.warning(
            "For %d of %d images no sample was found that holds every constraint of the reward '%s'; the one returned "
            "violates one. Take more particles or steps, a looser threshold, or a prompt that asks for it.",
            missed,
            law.num_images,
            law.reward.name,
        )
    return met


def postprocessed(family: Family, images: Tensor, output_type: str) -> Any:
    """Finished images `[N, 3, H, W]` in [0, 1] as the stock pipeline returns them."""
    processor = family.pipeline.image_processor
    return processor.postprocess(images, output_type=output_type, do_denormalize=[False] * len(images))


def _has_safety_checker(family: Family) -> bool:
    return getattr(family.pipeline, "safety_checker", None) is not None


def _screened(family: Family, result: AlignmentResult, images: Tensor) -> tuple[AlignmentResult, Tensor]:
    """The result with its images `[B, P, 3, H, W]` finished, and which of them a safety checker has blacked out.

    The rewards of those are NaN: what was scored is not what is returned.
    """
    shape = images.shape[:2]
    finished, flagged = family.finish(images.flatten(0, 1))
    blacked_out = torch.tensor(flagged).reshape(shape)

    def masked(scores: Tensor) -> Tensor:
        return scores.masked_fill(blacked_out.to(scores.device), torch.nan)

    terms = {name: masked(term) for name, term in result.reward_terms.items()}
    rewards, violation = (scores if scores is None else masked(scores) for scores in (result.rewards, result.violation))
    finished = finished.unflatten(0, shape)
    return replace(result, images=finished, rewards=rewards, reward_terms=terms, violation=violation), blacked_out
