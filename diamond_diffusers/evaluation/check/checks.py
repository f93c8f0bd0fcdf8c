"""The checks, and what each of them has found."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from ...alignment.methods import METHODS
from ...core.memory_errors import want_of_memory
from ...files.foreign import one_line
from ...pipelines.output import DiamondMapPipelineOutput
from .runs import NotReachedError, Runs, Timed

PASSED, FAILED, MEASURED, SKIPPED = "passed", "failed", "measured", "skipped"
LARGEST_GAP = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.05}
"""Root-mean-square difference of two images in [0, 1] that rounding explains in a few steps."""
GIGABYTE = 1e9
NUM_PARTICLES = 16
"""For which a plan is made."""
SAVE_MEMORY = "take --offload, --quantize or smaller images"


@dataclass(frozen=True)
class Found:
    """What a check has found.

    Attributes:
        verdict: passed, failed; measured, where there is nothing to fail; skipped, where there is nothing to check.
        told: for the user, in one line.
        figures: the numbers behind it.
    """

    verdict: str
    told: str
    figures: Mapping[str, Any] = field(default_factory=dict)


Check = Callable[[Runs], Found]


def stock_parity(runs: Runs) -> Found:
    """Whether the image without alignment is that of the stock pipeline."""
    stock, dtype = runs.stock().float().cpu(), runs.pipe.dtype
    if not stock.isfinite().all():
        remedy = (
            "take --dtype bfloat16 or float32"
            if dtype is torch.float16
            else "take its weights anew from where they were saved"
        )
        return Found(FAILED, f"the stock pipeline's own image is not finite in {_named(dtype)}; {remedy}")
    image = runs.plain().output.images.float().cpu()
    if not image.isfinite().all():
        return Found(FAILED, "the image is not finite, though that of the stock pipeline is")
    gap, largest = (image - stock).square().mean().sqrt().item(), LARGEST_GAP.get(dtype, LARGEST_GAP[torch.bfloat16])
    figures = {"gap": gap, "largest_gap": largest}
    told = f"differs by {gap:.1e} (RMS of pixels in [0, 1]), where rounding explains {largest:.0e}"
    return Found(PASSED if gap <= largest else FAILED, told, figures)


def finite_gradient(runs: Runs, gradient: str) -> Found:
    """Whether guidance by a kind of gradient is finite at every level, and moves the image."""
    output = runs.guided(gradient).output
    levels = [step.noise_to_signal for step in output.trace.steps]
    shifts = [step.gradient_norm for step in output.trace.steps]
    norms = [0.0 if shift is None else shift.max().item() for shift in shifts]
    figures = {"shifts": norms, "noise_to_signal": levels}
    wrong = [level for level, norm in zip(levels, norms, strict=True) if not math.isfinite(norm)]
    if wrong:
        return Found(FAILED, f"the gradient is not finite at the noise-to-signal ratio {wrong[0]:.3g}", figures)
    if not output.images.isfinite().all():
        return Found(FAILED, "the guided image is not finite, though the gradients are", figures)
    if not max(norms) > 0:
        return Found(FAILED, f"the gradient is zero at every level ({len(norms)})", figures)
    return Found(PASSED, f"finite at every level ({len(norms)}), with shifts of RMS up to {max(norms):.2g}", figures)


def rising_reward(runs: Runs) -> Found:
    """Whether guidance makes the image brighter."""
    outputs = {"plain": runs.plain().output, **{name: runs.guided(name).output for name in ("pathwise", "isotropic")}}
    rewards = {name: _reward(output) for name, output in outputs.items()}
    told = ", ".join(f"{name} {reward:.4f}" for name, reward in rewards.items())
    has_risen = all(rewards[name] > rewards["plain"] for name in ("pathwise", "isotropic"))
    return Found(PASSED if has_risen else FAILED, f"brightness: {told}", rewards)


def own_reward(runs: Runs) -> Found:
    """What a call with the model's own method and reward comes to, beside the plain image."""
    if runs.reward is None:
        return Found(SKIPPED, "the model has no reward of its own; name one with --reward")
    plain, aligned = runs.scored_by_own("none"), runs.scored_by_own(None)
    rewards = {"plain": _reward(plain), "aligned": _reward(aligned)}
    name = METHODS.name_of(type(aligned.alignment)) or type(aligned.alignment).__name__
    told = f"{runs.reward.name}: plain {rewards['plain']:.4f}, with {name} {rewards['aligned']:.4f}"
    verdict = MEASURED if all(map(math.isfinite, rewards.values())) else FAILED
    return Found(verdict, told, {**rewards, "alignment": aligned.alignment})


def cost(runs: Runs, run: Callable[[Runs], Timed]) -> Found:
    """Seconds a step and memory of a run."""
    timed = run(runs)
    size = "x".join(map(str, timed.output.images.shape[-2:]))
    figures = {"seconds_per_step": timed.seconds_per_step, "peak_bytes": timed.peak_bytes, "size": size}
    kind = "of the process" if runs.device.type == "cpu" else "with weights"
    memory = "memory unknown" if timed.peak_bytes is None else f"peak {timed.peak_bytes / GIGABYTE:.2f} GB {kind}"
    return Found(MEASURED, f"{timed.seconds_per_step:.3g} s a step, {memory}, at {size} pixels", figures)


def plan(runs: Runs) -> Found:
    """What `particle_batch_size="auto"` and `gradient_checkpointing="auto"` choose for many particles."""
    chosen = runs.plan(NUM_PARTICLES)
    if chosen is None:
        return Found(SKIPPED, "there is nothing to choose")
    figures = {"num_particles": NUM_PARTICLES, **chosen.as_dict()}
    told = f"{NUM_PARTICLES} particles, pathwise: {chosen}"
    if not chosen.fits:
        return Found(FAILED, f"{told}, which does not fit; {SAVE_MEMORY}", figures)
    return Found(MEASURED, told, figures)


CHECKS: Mapping[str, Check] = {
    "stock parity": stock_parity,
    "pathwise gradient": partial(finite_gradient, gradient="pathwise"),
    "isotropic gradient": partial(finite_gradient, gradient="isotropic"),
    "reward rises": rising_reward,
    "own reward": own_reward,
    "cost, plain": partial(cost, run=Runs.plain),
    "cost, pathwise": partial(cost, run=lambda runs: runs.guided("pathwise")),
    "cost, isotropic": partial(cost, run=lambda runs: runs.guided("isotropic")),
    "plan": plan,
}
"""By name, in their order."""


def run_checks(runs: Runs, before: Callable[[str], object] = lambda name: None) -> Iterator[tuple[str, Found]]:
    """Makes every check, whatever becomes of the others.

    Args:
        runs: what they look at.
        before: told the name of each check before it is made.

    Yields:
        The name of each check, and what it has found.
    """
    for name, check in CHECKS.items():
        before(name)
        try:
            found = check(runs)
        except NotReachedError as error:
            found = Found(SKIPPED, str(error))
        except Exception as error:
            found = Found(FAILED, sentence_on(error))
        if found.verdict == FAILED:
            # What has failed for want of memory must not take any from the others.
            gc.collect()
            if runs.device.type != "cpu":
                torch.get_device_module(runs.device).empty_cache()
        yield name, found


def sentence_on(error: Exception) -> str:
    """What a row says of an error."""
    if (reason := want_of_memory(error)) is not None:
        return f"{reason}; {SAVE_MEMORY}"
    first = one_line(str(error).strip().partition("\n")[0])
    return first if isinstance(error, ValueError) and first else f"{type(error).__name__}: {first}".rstrip(": ")


def _reward(output: DiamondMapPipelineOutput) -> float:
    """Of its only image."""
    assert output.rewards is not None, "every run has a reward"
    return float(output.rewards.item())


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
