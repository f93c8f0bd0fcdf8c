"""The command `diamond-diffusers generate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from ..alignment.methods import METHODS
from ..alignment.presets import PRESETS
from ..posteriors import POSTERIORS
from .interruption import interruptible
from .loading import ModelName, RewardExpression, RewardScale, load_model, model_defaults, named_reward
from .method import MethodRequest, method_request
from .options import (
    MAX_COUNT,
    MAX_NUMBER,
    MAX_SEED,
    PlannedBatchSize,
    PlannedCheckpointing,
    PromptsFile,
    all_texts,
    checked_texts,
    memory_options,
    text_table,
)
from .records import LoadingOptions, StockOptions, takes_records

if TYPE_CHECKING:
    from ..alignment.base import Method
    from ..evaluation.side_by_side import SideBySide
    from ..pipelines.output import DiamondMapPipelineOutput


def help_of_alignment() -> str:
    """With the names that are registered now."""
    return (
        f"A method: {', '.join(METHODS.names())}; a published one: {', '.join(PRESETS.names())}; or a .yaml or .json "
        "file with the name and options of one. By default the model's own, else smc."
    )


def help_of_posterior() -> str:
    """With the names that are registered now."""
    return f"Draws the look-aheads: {', '.join(POSTERIORS.names())}. Short for -o posterior=NAME."


AlignmentName = Annotated[str | None, typer.Option(help=help_of_alignment())]
MethodOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        "-o",
        metavar="NAME=VALUE",
        help="Any option of the method, such as num_particles=8, posterior=glass or posterior.num_samples=4; may come "
        "several times.",
    ),
]
FirstSeed = Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Image i of them all has the seed SEED + i.")]
NumImages = Annotated[int, typer.Option(min=1, max=MAX_COUNT, help="Images of each prompt.")]
NumSteps = Annotated[
    int | None, typer.Option("--num-inference-steps", min=1, max=MAX_COUNT, help="Steps of the sampler.")
]
NumParticles = Annotated[int | None, typer.Option(min=1, max=MAX_COUNT, help="Particles of an image.")]
Posterior = Annotated[str | None, typer.Option(help=help_of_posterior())]
NumInnerSteps = Annotated[int | None, typer.Option(min=1, max=MAX_COUNT, help="Steps of a GLASS look-ahead.")]
NumLookaheads = Annotated[int | None, typer.Option(min=1, max=MAX_COUNT, help="Look-ahead samples of a particle.")]
Gradient = Annotated[
    str | None, typer.Option(help="isotropic, pathwise, tilted_mean or hybrid; with smc it switches guidance on.")
]
GuidanceStrength = Annotated[
    float | None, typer.Option(help="Multiplies the reward's gradient; with smc it switches guidance on.")
]
MaxNetworkEvaluations = Annotated[
    int | None,
    typer.Option(
        min=1, max=MAX_NUMBER, help="Budget of an aligned image, which sets its particles, candidates or iterations."
    ),
]
Output = Annotated[Path, typer.Option(help="Folder of the images and the record.")]
PromptTexts = Annotated[
    list[str] | None, typer.Argument(metavar="PROMPT", callback=checked_texts, help="One or several texts.")
]
NoPlain = Annotated[bool, typer.Option("--no-plain", help="Draw the aligned images alone.")]


@takes_records
def generate(
    prompts: PromptTexts = None,
    *,
    prompts_file: PromptsFile = None,
    model: ModelName = None,
    alignment: AlignmentName = None,
    option: MethodOptions = None,
    reward: RewardExpression = None,
    reward_scale: RewardScale = None,
    num_images: NumImages = 1,
    seed: FirstSeed = 0,
    num_inference_steps: NumSteps = None,
    num_particles: NumParticles = None,
    posterior: Posterior = None,
    num_inner_steps: NumInnerSteps = None,
    num_lookaheads: NumLookaheads = None,
    gradient: Gradient = None,
    guidance_strength: GuidanceStrength = None,
    stock: StockOptions,
    max_network_evaluations: MaxNetworkEvaluations = None,
    particle_batch_size: PlannedBatchSize = None,
    gradient_checkpointing: PlannedCheckpointing = None,
    loading: LoadingOptions,
    no_plain: NoPlain = False,
    output: Output = Path("out"),
) -> None:
    """Draws plain and aligned images from the same seeds, with a contact sheet and a record of every setting."""
    from ..evaluation.side_by_side import draw_side_by_side, save

    memory = memory_options(particle_batch_size, gradient_checkpointing)
    texts = all_texts(prompts, prompts_file, "PROMPT")
    defaults = model_defaults(model, loading)
    scored_by = named_reward(reward, defaults)
    if scored_by is not None and not any(texts):
        raise ValueError("PROMPT is empty, so that the reward has nothing to read; give a text")
    flags = {
        "--num-particles": num_particles,
        "--posterior": posterior,
        "--num-inner-steps": num_inner_steps,
        "--num-lookaheads": num_lookaheads,
        "--gradient": gradient,
        "--guidance-strength": guidance_strength,
    }
    own = "none" if scored_by is None else defaults.get("alignment", "smc")
    request = method_request(alignment or own, flags, option or ())
    method = request.build()
    check_call(method, request, {"reward_scale": reward_scale, "max_network_evaluations": max_network_evaluations})
    if method.needs_reward and scored_by is None:
        raise ValueError(
            f"--reward is not given, and the model has none of its own, but alignment {request.name!r} needs one; name "
            "one, or take --alignment none"
        )
    method.check(scored_by)
    if no_plain and not method.needs_reward:
        raise ValueError(f"--no-plain is given, but alignment {request.name!r} draws plain images alone; drop one")
    pipe = load_model(model, loading, output)
    with interruptible(pipe):
        drawn = draw_side_by_side(
            pipe,
            texts,
            request.build(pipe.family),
            scored_by,
            seed,
            num_images,
            reward_scale,
            memory,
            {"num_inference_steps": num_inference_steps, **stock.given()},
            max_network_evaluations,
            with_plain=not no_plain,
        )
        settings = {"model": model or "embedded", "loading": loading.of_weights(), "offload": loading.offload}
        save(drawn, output, settings)
        _print_rewards(drawn)
        Console().print(f"Images, contact sheet and record are in {output}", soft_wrap=True, highlight=False)


def check_call(method: Method, request: MethodRequest, given: dict[str, Any]) -> None:
    """Raises a `ValueError` where a method makes no use of what a call is given, or the call replaces an option."""
    uses = {"reward_scale": method.needs_reward, "max_network_evaluations": method.grows is not None}
    for name, value in given.items():
        if value is not None and not uses[name]:
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(f"{flag} is {value}, but alignment {request.name!r} does not use it; drop {flag}")
    budget = given["max_network_evaluations"]
    if budget is not None and method.grows is not None and method.grows in request.options:
        flag, _ = request.flags.get(method.grows, (f"-o {method.grows}", None))
        raise ValueError(
            f"{flag} is {request.options[method.grows]}, which --max-network-evaluations {budget} would replace; drop "
            "one of them"
        )


def _shown_reward(out: DiamondMapPipelineOutput, i: int) -> str:
    if out.rewards is None:
        return "–"
    violates = out.constraints_met is not None and not out.constraints_met[i]
    return f"{out.rewards[i]:.3f}" + (", violates" if violates else "")


def _print_rewards(drawn: SideBySide) -> None:
    table = text_table("prompt", "seed", *(f"{name} reward" for name in drawn.outputs))
    for i, (prompt, seed) in enumerate(zip(drawn.prompts, drawn.seeds, strict=True)):
        table.add_row(escape(prompt), str(seed), *(_shown_reward(out, i) for out in drawn.outputs.values()))
    means = [f"{out.rewards.mean():.3f}" for out in drawn.outputs.values() if out.rewards is not None]
    if means and len(drawn.prompts) > 1:
        table.add_section()
        table.add_row("mean", "", *means)
    console = Console()
    console.print(table)
    for name, out in drawn.outputs.items():
        console.print(f"{name}: {out.cost}", soft_wrap=True)
        if out.plan is not None:
            console.print(f"{name}, planned for memory: {out.plan}", soft_wrap=True)
