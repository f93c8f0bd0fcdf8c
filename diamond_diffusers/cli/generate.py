"""The command `diamond-diffusers generate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from ..alignment import AUTO
from ..alignment.methods import METHODS
from ..alignment.presets import PRESETS
from ..posteriors import POSTERIORS
from .calibration import (
    CALIBRATION,
    Calibrate,
    CalibrationFile,
    draw_calibration,
    print_calibration,
    read_calibration,
    recorded,
)
from .dry_run import DryRunFlag, DryRunPrompts, dry_reward, print_dry_runs, refuse_with_dry_run, stand_ins
from .ends import (
    ShareBudgetAt,
    ShareBudgetVerifier,
    WatchEvery,
    WatchPatience,
    WatchReward,
    shared_budget_of,
    watch_of,
)
from .interruption import interruptible
from .loading import (
    FoundRewardScale,
    ModelName,
    RewardExpression,
    found_reward_scale,
    load_model,
    model_defaults,
    named_reward,
    own_alignment,
)
from .method import MethodRequest, method_request
from .options import (
    MAX_COUNT,
    MAX_NUMBER,
    MAX_SEED,
    PlannedBatchSize,
    PlannedCheckpointing,
    PromptsSource,
    all_texts,
    checked_texts,
    memory_options,
    text_table,
)
from .records import LoadingOptions, StockOptions, takes_records

if TYPE_CHECKING:
    from ..alignment.base import Method
    from ..evaluation.dry_run.counting import DryRun
    from ..evaluation.side_by_side import SideBySide
    from ..pipelines.output import DiamondMapPipelineOutput
    from ..rewards import Reward


def help_of_alignment() -> str:
    """With the names that are registered now."""
    return (
        f"A method: {', '.join(METHODS.names())}; a published one: {', '.join(PRESETS.names())}; or a .yaml or .json "
        "file with the name and options of one. auto, the default of models that have none of their own, takes what "
        "suits model, reward and budget. Options that are given without a method are those of smc."
    )


def help_of_posterior() -> str:
    """With the names that are registered now."""
    return f"Draws the look-aheads: {', '.join(POSTERIORS.names())}. Short for -o posterior=NAME."


BUDGETS = ("max_network_evaluations", "max_reward_calls")
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
MaxRewardCalls = Annotated[
    int | None,
    typer.Option(
        min=1, max=MAX_NUMBER, help="Budget of scores by the reward for an aligned image, which does likewise."
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
    context: typer.Context,
    prompts_source: PromptsSource = None,
    model: ModelName = None,
    alignment: AlignmentName = None,
    option: MethodOptions = None,
    reward: RewardExpression = None,
    reward_scale: FoundRewardScale = None,
    calibrate: Calibrate = None,
    calibration: CalibrationFile = None,
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
    max_reward_calls: MaxRewardCalls = None,
    watch: WatchReward = None,
    watch_patience: WatchPatience = None,
    watch_every: WatchEvery = None,
    share_budget_at: ShareBudgetAt = None,
    share_budget_verifier: ShareBudgetVerifier = None,
    particle_batch_size: PlannedBatchSize = None,
    gradient_checkpointing: PlannedCheckpointing = None,
    loading: LoadingOptions,
    no_plain: NoPlain = False,
    dry_run: DryRunFlag = False,
    dry_run_prompts: DryRunPrompts = 1,
    output: Output = Path("out"),
) -> None:
    """Draws plain and aligned images from the same seeds, with a contact sheet and a record of every setting."""
    from ..evaluation.side_by_side import draw_side_by_side, save

    memory, scale = memory_options(particle_batch_size, gradient_checkpointing), found_reward_scale(reward_scale)
    if dry_run:
        refuse_with_dry_run(
            calibrate=calibrate,
            watch=watch,
            share_budget_at=share_budget_at,
            share_budget_verifier=share_budget_verifier,
        )
        tiny = stand_ins(context, model, loading, stock, prompts_source)
        model, loading, stock, output = tiny.model, tiny.loading, tiny.stock, tiny.folder / "out"
        prompts_source = tiny.prompts_source
    texts = all_texts(prompts, prompts_source, "PROMPT")
    defaults = model_defaults(model, loading)
    scored_by = dry_reward(reward, defaults) if dry_run else named_reward(reward, defaults)
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
    request = requested(alignment, own_alignment(defaults, scored_by), flags, option or ())
    given = {
        "reward_scale": scale,
        "max_network_evaluations": max_network_evaluations,
        "max_reward_calls": max_reward_calls,
    }
    method = checked_method(request, scored_by, given, no_plain)
    watched_by = watch_of(watch, watch_patience, watch_every, method)
    shared_budget = shared_budget_of(share_budget_at, share_budget_verifier, method)
    used = read_calibration(calibrate, calibration, scored_by)
    pipe = load_model(model, loading, output)
    arguments = {"num_inference_steps": num_inference_steps, **stock.given()}
    if calibrate is not None and scored_by is not None:
        used = draw_calibration(pipe, texts, scored_by, calibrate, seed, **memory, **arguments)
    if used is not None and scored_by is not None:
        scored_by = used.apply(scored_by)
        print_calibration(used)
    with interruptible(pipe):
        drawn = draw_side_by_side(
            pipe,
            texts[:dry_run_prompts] if dry_run else texts,
            "auto" if method is None else request.build(pipe.family),
            scored_by,
            seed,
            num_images,
            scale,
            memory,
            arguments,
            max_network_evaluations,
            with_plain=not no_plain,
            max_reward_calls=max_reward_calls,
            watch=watched_by,
            shared_budget=shared_budget,
        )
        if dry_run:
            print_dry_runs(_dry_runs(drawn, scored_by, len(texts) * num_images))
            _print_choices(drawn)
            return
        settings: dict[str, Any] = {
            "model": model or "embedded",
            "loading": loading.of_weights(),
            "offload": loading.offload,
        }
        if used is not None:
            file = calibration or output / CALIBRATION
            settings["calibration"] = recorded(used, file)
            used.save(output / CALIBRATION)
        save(drawn, output, settings, {} if calibrate is None or used is None else {"calibration": used.cost})
        _print_rewards(drawn, num_images, is_scale_found=scale == "auto")
        Console().print(
            f"Images, contact sheet and record are in {output}", soft_wrap=True, markup=False, highlight=False
        )


def requested(
    alignment: str | None, own: str | Mapping[str, Any], flags: Mapping[str, Any], options: Sequence[str]
) -> MethodRequest:
    """The method of a run: as named, else the model's own; of options without a name, `smc`.

    Raises:
        TypeError, ValueError: as of `method_request`; or `auto`, which chooses its options too, is given some.
    """
    given = [f"{flag} is {value}" for flag, value in flags.items() if value is not None]
    given += [f"-o {option} is given" for option in options]
    if alignment == AUTO and given:
        raise ValueError(
            f"{given[0]}, but --alignment auto chooses the method with its options; name a method, or drop the option"
        )
    if alignment is None and own == AUTO and given:
        own = "smc"
    return method_request(alignment or own, flags, options)


def checked_method(
    request: MethodRequest, reward: Reward | None, given: dict[str, Any], no_plain: bool
) -> Method | None:
    """The method that is asked for, before the model is loaded; None where it is chosen for that.

    Args:
        reward: of the run.
        given: options of a call that only some methods take, as of `check_call`.
        no_plain: whether plain images are left out.

    Raises:
        TypeError, ValueError: it lacks a reward, or makes no use of an option that is given.
    """
    method = None if request.is_auto else request.build()
    if (method is None or method.needs_reward) and reward is None:
        raise ValueError(
            f"--reward is not given, and the model has none of its own, but alignment {request.name!r} needs one; name "
            "one, or take --alignment none"
        )
    if method is None:
        return None
    check_call(method, request, given)
    method.check(reward)
    if no_plain and not method.needs_reward:
        raise ValueError(f"--no-plain is given, but alignment {request.name!r} draws plain images alone; drop one")
    return method


def _dry_runs(drawn: SideBySide, reward: Reward | None, num_images: int) -> list[DryRun]:
    """What each run costs, which is one call for all images."""
    from ..evaluation.dry_run.counting import DryRun
    from ..evaluation.dry_run.rewards import num_tried

    # All calls try the reward alike.
    tried = num_tried(reward) // len(drawn.outputs)
    return [
        DryRun(name, out.cost, tried, len(drawn.prompts), num_images, num_calls=1)
        for name, out in drawn.outputs.items()
    ]


def check_call(method: Method, request: MethodRequest, given: dict[str, Any]) -> None:
    """Raises a `ValueError` where a method makes no use of what a call is given, or the call replaces an option."""
    for name, value in given.items():
        if value is None:
            continue
        is_budget, own = name in BUDGETS, f"--{name.replace('_', '-')}"
        if not (method.grows is not None if is_budget else method.needs_reward):
            raise ValueError(f"{own} is {value}, but alignment {request.name!r} does not use it; drop {own}")
        if is_budget and method.grows is not None and method.grows in request.options:
            flag, _ = request.flags.get(method.grows, (f"-o {method.grows}", None))
            raise ValueError(
                f"{flag} is {request.options[method.grows]}, which {own} {value} would replace; drop one of them"
            )


def _shown_reward(out: DiamondMapPipelineOutput, i: int) -> str:
    if out.rewards is None:
        return "–"
    violates = out.constraints_met is not None and not out.constraints_met[i]
    return f"{out.rewards[i]:.3f}" + (", violates" if violates else "")


def _print_choices(drawn: SideBySide) -> None:
    """Prints what alignment `"auto"` has chosen, and why."""
    for name, out in drawn.outputs.items():
        if out.choice is not None:
            Console().print(f"{name}: {out.choice}", soft_wrap=True, markup=False, highlight=False)


def _print_rewards(drawn: SideBySide, num_images: int, is_scale_found: bool) -> None:
    table = text_table("prompt", "seed", *(f"{name} reward" for name in drawn.outputs))
    for i, (prompt, seed) in enumerate(zip(drawn.prompts, drawn.seeds, strict=True)):
        table.add_row(escape(prompt), str(seed), *(_shown_reward(out, i) for out in drawn.outputs.values()))
    means = [f"{out.rewards.mean():.3f}" for out in drawn.outputs.values() if out.rewards is not None]
    if means and len(drawn.prompts) > 1:
        table.add_section()
        table.add_row("mean", "", *means)
    console = Console()
    console.print(table)
    _print_choices(drawn)
    for name, out in drawn.outputs.items():
        console.print(f"{name}: {out.cost}", soft_wrap=True)
        if is_scale_found and out.reward_scale is not None:
            # Those of the images of one prompt are equal.
            scales = ", ".join(f"{out.reward_scale[i]:.4g}" for i in range(0, len(drawn.prompts), num_images))
            console.print(f"{name}: reward scale {scales}", soft_wrap=True, highlight=False)
        if out.watched is not None:
            chosen, checks = [out.watched.rounds[check] + 1 for check in out.watched.chosen], out.watched.held_out
            ended = f", which ended the run after {out.watched.rounds[-1] + 1}" if out.watched.is_ended else ""
            requests = f" by {out.watched.reward_requests} requests" if out.watched.reward_requests else ""
            price = f" for {out.watched.reward_price:.4g}" if out.watched.reward_price else ""
            asked = f"{out.watched.reward_calls} scores of '{out.watched.reward}'{requests}{price}"
            scores = f"{asked} in {len(checks)} checks{ended}"
            text = f"{name}, watched: taken from round {', '.join(map(str, chosen))}; {scores}"
            console.print(text, soft_wrap=True, markup=False)
        if out.shared is not None:
            rounds = ", ".join(map(str, out.shared.num_rounds))
            apart = f"; {out.shared.reward_calls} scores apart" if out.shared.reward_calls else ""
            passed = f"{sum(out.shared.has_passed)} of {len(out.shared.has_passed)} images pass '{out.shared.verifier}'"
            console.print(f"{name}, shared: {passed}, after rounds {rounds}{apart}", soft_wrap=True, markup=False)
        if out.plan is not None:
            console.print(f"{name}, planned for memory: {out.plan}", soft_wrap=True)
