"""A step of weighted look-aheads beside its authors': `python -m benchmarks.look_aheads --help`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
import typer
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from peft import LoraConfig, inject_adapter_in_model
from rich.console import Console

from diamond_diffusers.alignment.presets.weighted_diamond_map import weighted_diamond_map
from diamond_diffusers.cli.options import text_table
from diamond_diffusers.families.two_time import TwoTimeEmbedder
from diamond_diffusers.pipelines.pipeline import DiamondMapPipeline

from .command_line import command
from .cost import brightness
from .overhead import Evaluation, Evaluations, leaves_of, repeat, seconds
from .zoo.parts import build_tiny_vae

PIXELS, TOKENS = 256, 512
PUBLISHED_FORWARDS, PUBLISHED_BACKWARDS = 4, 2
"""Of the network, for each look-ahead of the authors' released code for FLUX: both inputs are evaluated twice."""


@dataclass(frozen=True)
class Step:
    """A guided step.

    Attributes:
        name: of what was run.
        forwards, backwards: of the network, for each look-ahead.
        seconds: of the process, on one thread.
    """

    name: str
    forwards: float
    backwards: float
    seconds: float


def build_flux(two_times: bool) -> FluxPipeline:
    """A random FLUX of 37 million weights, of two times or of a few steps, without text encoders."""
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=64,
        num_attention_heads=8,
        axes_dims_rope=(8, 28, 28),
    )
    if two_times:
        transformer.time_text_embed = TwoTimeEmbedder(transformer.time_text_embed)
        targets = ["timestep_embedder.linear_1", "timestep_embedder.linear_2"]
        inject_adapter_in_model(LoraConfig(r=4, target_modules=targets), transformer)
    vae = build_tiny_vae(0.06, 1.5, (4, 8, 8, 8))
    return FluxPipeline(FlowMatchEulerDiscreteScheduler(), vae, None, None, None, None, transformer)


def measure(look_aheads: int, two_times: bool, with_terms: bool = True) -> tuple[Step, Step]:
    """The second guided step of a run, and the evaluations of the authors' step, which are repeated from it."""
    pipe = DiamondMapPipeline.from_pipe(build_flux(two_times), few_step=None if two_times else True)
    pipe.set_progress_bar_config(disable=True)
    evaluations = Evaluations()
    method = weighted_diamond_map(pipe.family)
    method = replace(method, posterior=replace(method.posterior, num_samples=look_aheads))
    if not with_terms:
        method = replace(method, guide=replace(method.guide, scaling="exact"))
    arguments: dict[str, Any] = {
        "prompt_embeds": torch.randn(1, TOKENS, 4096),
        "pooled_prompt_embeds": torch.randn(1, 768),
        "height": PIXELS,
        "width": PIXELS,
        "guidance_scale": 1.0,
        "num_inference_steps": 8,
        "alignment": method,
        "reward": evaluations.seen(brightness),
        "reward_prompt": "any",
        "reward_scale": 250.0,
    }
    with pipe.iterate(generator=torch.Generator().manual_seed(0), **arguments) as run, evaluations.watched(pipe):
        # The first step is at pure noise, which is not guided; the second warms up.
        for _ in range(2):
            progress = next(run)
        before = replace(progress.cost)
        evaluations.asked.clear()
        taken = seconds(lambda: next(run), pipe.device)
    forwards = (progress.cost.network_evaluations - before.network_evaluations) / look_aheads
    backwards = (progress.cost.backward_passes - before.backward_passes) / look_aheads
    kind = "a map of two times" if two_times else "a few-step model"
    terms = "three terms" if with_terms else "one term"
    ours = Step(f"this package, {kind}, {terms}", forwards, backwards, taken)
    theirs = Step(
        f"evaluations of the authors' step, {kind}",
        PUBLISHED_FORWARDS,
        PUBLISHED_BACKWARDS,
        seconds(lambda: repeat_published(evaluations.asked), pipe.device),
    )
    return ours, theirs


def repeat_published(asked: Sequence[Evaluation]) -> None:
    """Evaluates look-aheads as often as the authors' code does: twice with a graph, twice without, and one decode."""
    differentiated = [evaluation for evaluation in asked if leaves_of(evaluation)]
    # The inputs of the decoder and of the reward are images and latents alone.
    of_network = [evaluation for evaluation in differentiated if "timestep" in evaluation[2]]
    others = [evaluation for evaluation in differentiated if "timestep" not in evaluation[2]]
    with_graph = (of_network * PUBLISHED_BACKWARDS)[:PUBLISHED_BACKWARDS]
    for evaluation in (*with_graph, *others):
        repeat(evaluation)
    for evaluation in with_graph:
        repeat(evaluation, differentiates=False)


LookAheads = Annotated[int, typer.Option(min=1, help="Look-aheads of a step; the authors' inference takes 16.")]


def benchmark_look_aheads(look_aheads: LookAheads = 16) -> None:
    """Times a step of weighted look-aheads on a random FLUX, beside as many evaluations as its authors' step makes."""
    torch.set_num_threads(1)
    table = text_table("a guided step", "forwards", "backwards", "CPU seconds", "of the authors'")
    for column in table.columns[1:]:
        column.justify = "right"
    for two_times, with_terms in ((True, True), (True, False), (False, True)):
        ours, theirs = measure(look_aheads, two_times, with_terms)
        for step in (ours, theirs):
            figures = (f"{step.forwards:.2f}", f"{step.backwards:.2f}", f"{step.seconds:.1f}")
            table.add_row(step.name, *figures, f"{step.seconds / theirs.seconds:.2f}")
    Console().print(table)


app = command(benchmark_look_aheads)

if __name__ == "__main__":
    app()
