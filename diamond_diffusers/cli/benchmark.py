"""The commands `diamond-diffusers benchmark` and `redraw`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .benchmark_options import (
    BatchSize,
    Budgets,
    BudgetsSeconds,
    DiversityCLIP,
    Export,
    HardShare,
    HeldOut,
    MaxRewardCalls,
    Methods,
    NumImages,
    NumPrompts,
    NumSteps,
    RecordFile,
    Redrawn,
    ReportOnly,
    Results,
    RunSeed,
    ShardOption,
)
from .calibration import CALIBRATION, Calibrate, CalibrationFile, draw_calibration, read_calibration
from .dry_run import (
    DryRunFlag,
    DryRunPrompts,
    dry_reward,
    print_dry_runs,
    refuse_of_real_runs,
    refuse_with_dry_run,
    stand_ins,
)
from .loading import ModelName, RewardExpression, RewardScale, load_model, model_defaults, named_reward
from .options import (
    Device,
    Offload,
    ParticleBatchSize,
    PromptsSource,
    positive_numbers,
)
from .records import LoadingOptions, StockOptions, WeightOptions, takes_records

if TYPE_CHECKING:
    from accelerate import PartialState

    from ..evaluation.benchmark.compare import Setup, Shard
    from ..evaluation.benchmark.plan import Plan
    from ..evaluation.benchmark.prompts import Prompt, Suite
    from ..evaluation.benchmark.records import Record
    from ..evaluation.benchmark.report import Comparison
    from ..evaluation.dry_run.counting import DryRun
    from ..pipelines.calibration import Calibration
    from ..pipelines.pipeline import DiamondMapPipeline
    from ..rewards import Reward
    from ..rewards.clip import CLIPBasedReward


@takes_records
def benchmark(
    *,
    context: typer.Context,
    budgets: Budgets = None,
    budgets_seconds: BudgetsSeconds = None,
    max_reward_calls: MaxRewardCalls = None,
    methods: Methods = None,
    prompts_source: PromptsSource = None,
    num_prompts: NumPrompts = None,
    hard_share: HardShare = None,
    num_images_per_prompt: NumImages = 1,
    batch_size: BatchSize = 25,
    seed: RunSeed = 0,
    model: ModelName = None,
    reward: RewardExpression = None,
    reward_scale: RewardScale = None,
    calibrate: Calibrate = None,
    calibration: CalibrationFile = None,
    held_out_reward: HeldOut = None,
    diversity_clip: DiversityCLIP = None,
    num_inference_steps: NumSteps = None,
    stock: StockOptions,
    particle_batch_size: ParticleBatchSize = None,
    export: Export = None,
    shard: ShardOption = None,
    report_only: ReportOnly = False,
    loading: LoadingOptions,
    dry_run: DryRunFlag = False,
    dry_run_prompts: DryRunPrompts = 1,
    output: Results = Path("out/benchmark"),
) -> None:
    """Compares alignment methods at equal cost; under `accelerate launch -m` each process draws a share.

    Several machines share a run by `--shard 1/2` and `--shard 2/2`; then the command without it writes the report.
    """
    from accelerate import PartialState

    from ..evaluation.benchmark.compare import Setup, check_seed, drawn_so_far
    from ..evaluation.benchmark.exports import check_export
    from ..evaluation.benchmark.plan import check_request, plan_methods
    from ..evaluation.benchmark.prompts import miniature_suite, read_prompts
    from ..evaluation.benchmark.recipes import all_recipes, names_in
    from ..evaluation.benchmark.report import Comparison
    from ..evaluation.benchmark.summary import summarise
    from ..evaluation.known_prompts import find_prompts
    from ..pipelines.resolution import own_reward_scale

    for name in export or ():
        check_export(name)
    recipes = all_recipes()
    names = list(recipes) if methods is None else names_in(methods)
    sizes = _sizes(budgets, budgets_seconds)
    check_request(names, sizes, recipes)
    check_seed(seed)
    if dry_run:
        refuse_with_dry_run(calibrate=calibrate)
        refuse_of_real_runs(shard=shard, report_only=report_only, budgets_seconds=budgets_seconds)
        tiny = stand_ins(context, model, loading, stock, prompts_source)
        model, loading, stock, output = tiny.model, tiny.loading, tiny.stock, tiny.folder / "out"
        prompts_source = tiny.prompts_source
    part = _shard(shard)
    if report_only:
        _check_report_only(shard, budgets_seconds, output)
    suite = miniature_suite() if prompts_source is None else read_prompts(find_prompts(prompts_source))
    chosen = suite.first(num_prompts, hard_share)
    defaults = model_defaults(model, loading)
    followed, held_out = _rewards(reward, held_out_reward or (), defaults, dry_run)
    used = read_calibration(calibrate, calibration, followed)
    clip = _diversity_clip(diversity_clip, suite) if num_images_per_prompt > 1 and not dry_run else None
    # A share takes as long as its images.
    processes = PartialState(cpu=loading.device == "cpu", timeout=timedelta(days=7))
    pipe = load_model(model, loading, output)
    pipe.set_progress_bar_config(disable=True)
    steps = {} if num_inference_steps is None else {"num_inference_steps": num_inference_steps}
    if calibrate is not None:
        texts = [prompt.text for prompt in chosen]
        with processes.main_process_first():
            used = _calibration(pipe, texts, followed, calibrate, seed, output, stock.given() | steps)
    if used is not None:
        followed = used.apply(followed)
    followed.to(device=pipe.family.device)
    setup = Setup(
        pipe=pipe,
        model=model or "embedded",
        loading=loading.of_weights(),
        suite=suite,
        reward=followed,
        reward_scale=own_reward_scale(followed, defaults) if reward_scale is None else reward_scale,
        held_out_rewards=held_out,
        seed=seed,
        num_images_per_prompt=num_images_per_prompt,
        batch_size=batch_size,
        particle_batch_size=particle_batch_size,
        arguments=stock.given(),
        calibration=used,
    )
    planned = partial(plan_methods, pipe=pipe, reward=followed, arguments=stock.given() | steps, recipes=recipes)
    paces = None
    if budgets_seconds is not None:
        with processes.main_process_first():
            paces = _paces(setup, names, planned, chosen, output)
    plan = planned(names, sizes, max_reward_calls=max_reward_calls, paces=paces)
    if dry_run:
        _print_left_out(plan)
        print_dry_runs(_dry_runs(setup, plan, chosen, dry_run_prompts))
        return
    if report_only:
        plan, records = drawn_so_far(setup, plan, chosen, output)
    else:
        records = _compared(setup, plan, chosen, output, processes, part)
    processes.destroy_process_group()
    if processes.is_main_process and part is not None:
        typer.echo(f"Shard {shard} is in {output}; with those of all shards there, run the command without --shard")
    elif processes.is_main_process:
        summaries = summarise(plan, records, output, clip, {prompt.index for prompt in chosen if prompt.is_hard})
        limits = {"budgets": sizes, "max_reward_calls": max_reward_calls}
        comparison = Comparison(_told(setup, limits, hard_share, paces), plan, records, summaries)
        _report(comparison, chosen, export or (), output)


def _calibration(
    pipe: DiamondMapPipeline,
    texts: Sequence[str],
    reward: Reward,
    num_samples: int,
    seed: int,
    output: Path,
    arguments: dict[str, Any],
) -> Calibration:
    """The calibration of a run: drawn once, and read again by other processes and where a killed run goes on."""
    from ..pipelines.calibration import Calibration

    file = output / CALIBRATION
    if file.exists():
        found = Calibration.load(file)
        if (found.reward, found.num_samples, found.seed) != (reward.name, num_samples, seed):
            raise ValueError(
                f"output is '{output}', which holds a calibration of {found.reward!r} by {found.num_samples} samples "
                f"of seed {found.seed}; take another folder, or the options of that run"
            )
        return found
    found = draw_calibration(pipe, texts, reward, num_samples, seed, **arguments)
    found.save(file)
    return found


def _dry_runs(setup: Setup, plan: Plan, prompts: Sequence[Prompt], num_drawn: int) -> list[DryRun]:
    """What each method costs, counted on one call."""
    from ..evaluation.benchmark.compare import draw
    from ..evaluation.benchmark.records import Batch
    from ..evaluation.dry_run.counting import DryRun
    from ..evaluation.dry_run.rewards import num_tried

    num_images, keys = len(prompts) * setup.num_images_per_prompt, setup.keys(prompts[:num_drawn])
    texts = [prompt.text for prompt in prompts[:num_drawn] for _ in range(setup.num_images_per_prompt)]
    batch = Batch(texts, [setup.seed_of(key) for key in keys], setup.particle_batch_size)
    runs = []
    for method in plan.methods:
        before = num_tried(setup.reward)
        cost = draw(setup.pipe, setup.reward, setup.reward_scale, method, batch, setup.arguments).cost
        tried, num_calls = num_tried(setup.reward) - before, math.ceil(num_images / setup.batch_size)
        runs.append(DryRun(method.label, cost, tried, len(keys), num_images, num_calls))
    return runs


def _print_left_out(plan: Plan) -> None:
    for left_out in plan.left_out:
        typer.echo(f"{left_out.name} is left out at {left_out.budget}: {left_out.reason}")


def _rewards(
    expression: str | None, held_out_expressions: Sequence[str], defaults: dict[str, Any], dry_run: bool
) -> tuple[Reward, list[Reward]]:
    """The reward that alignment follows, which may be the model's own, and those that it does not."""
    from ..evaluation.benchmark.compare import check_held_out
    from ..evaluation.dry_run.rewards import stand_in_reward
    from ..rewards import as_reward

    followed = dry_reward(expression, defaults) if dry_run else named_reward(expression, defaults)
    if followed is None:
        raise ValueError("--reward is not given, and the model has no reward of its own; name one")
    held_out = [stand_in_reward(each) if dry_run else as_reward(each) for each in held_out_expressions]
    check_held_out(held_out, followed)
    return followed, held_out


def _sizes(evaluations: str | None, seconds: str | None) -> list[int] | list[float]:
    """The budgets, of evaluations or of seconds."""
    if seconds is None:
        return positive_numbers("--budgets", evaluations or "120", int, "50,100,200,400")
    if evaluations is not None:
        raise ValueError("--budgets and --budgets-seconds are both given; leave one of them out")
    return positive_numbers("--budgets-seconds", seconds, float, "0.5,1,2")


def _paces(
    setup: Setup, names: Sequence[str], planned: Callable[..., Plan], prompts: Sequence[Prompt], output: Path
) -> dict[str, float]:
    """Seconds of a network evaluation of each method that fits a size at which methods are timed."""
    from ..evaluation.benchmark.paces import EVALUATIONS, measured_paces

    plan, console = planned(names, EVALUATIONS), Console(stderr=True)
    # The first budget within which a method fits.
    sizes = {entry.method.name: entry.method for entry in reversed(plan.entries)}
    with console.status("") as status:
        return measured_paces(setup, sizes, prompts, output, lambda label: status.update(f"timing {label}"))


def _told(
    setup: Setup, limits: dict[str, Any], hard_share: float | None, paces: dict[str, float] | None
) -> dict[str, Any]:
    """The settings that a report tells of its run."""
    from ..evaluation.benchmark.records import fingerprint_of_map

    told = {**limits, **setup.settings(), "hard_share": hard_share}
    told["diamond_map_weights"] = fingerprint_of_map(setup.pipe.family)
    if paces is not None:
        told["seconds_of_an_evaluation"] = paces
    if setup.calibration is not None:
        told["calibration_cost"] = setup.calibration.cost
    return told


def _check_report_only(shard: str | None, budgets_seconds: str | None, output: Path) -> None:
    """Raises a `ValueError` where a run that draws nothing is asked to draw a part, or to time methods."""
    from ..evaluation.benchmark.paces import FILE as SECONDS_FILE

    if shard is not None:
        raise ValueError(f"--shard is {shard}, but --report-only draws nothing; leave one of them out")
    if budgets_seconds is not None and not (output / SECONDS_FILE).exists():
        raise ValueError(
            f"output is '{output}', where no method is timed yet, which --report-only does not do; run on without it"
        )


def _shard(text: str | None) -> Shard | None:
    """The part of a run that an option names."""
    from ..evaluation.benchmark.compare import Shard

    if text is None:
        return None
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal()):
        raise ValueError(f"--shard is '{text}'; give which part of how many, such as 2/4")
    return Shard(int(number), int(count))


def _compared(
    setup: Setup,
    plan: Plan,
    prompts: Sequence[Prompt],
    output: Path,
    processes: PartialState,
    shard: Shard | None,
) -> dict[str, list[Record]]:
    """The records of every method, drawn under a bar for all methods and one for the images of the present one."""
    from ..evaluation.benchmark.compare import compare

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    console, is_silent = Console(stderr=True), not processes.is_main_process
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, disable=is_silent) as progress:
        methods = progress.add_task("methods", total=len(plan.methods))
        images = progress.add_task("", total=None)

        def on_batch(label: str, done: int, total: int) -> None:
            progress.update(images, description=label, completed=done, total=total)
            progress.advance(methods, done == total)

        return compare(setup, plan.methods, prompts, output, on_batch, processes, shard)


def _report(comparison: Comparison, prompts: Sequence[Prompt], exports: Sequence[str], output: Path) -> None:
    """Writes what came of a comparison, copies its images where they are asked for, and prints its tables."""
    from ..evaluation.benchmark.exports import export
    from ..evaluation.benchmark.report import write_report
    from ..evaluation.text_tables import rich_table

    write_report(comparison, output)
    for name in exports:
        export(name, comparison.plan, comparison.records, prompts, output)
    console = Console()
    for table in comparison.tables():
        console.print(table.title, style="bold", markup=False, highlight=False, soft_wrap=True)
        console.print(rich_table(table), end="\n\n")
    console.print(f"Results, pictures and report.html are in {output}", soft_wrap=True, markup=False, highlight=False)


def redraw(
    record: RecordFile,
    output: Redrawn = Path("out/redrawn.png"),
    device: Device = "auto",
    offload: Offload = None,
) -> None:
    """Draws an image of a benchmark once more from its record, and says whether it is the same bit for bit."""
    from ..evaluation.benchmark import redraw as redrawing
    from ..evaluation.files import check_image_path, write_image
    from ..files.foreign import ForeignFileError
    from ..files.json_forms import fitted

    check_image_path(output)
    recorded = redrawing.read_recorded(record)
    settings = recorded.settings
    try:
        reward = redrawing.reward_of(settings, record)
    except (ValueError, ImportError) as error:
        raise ForeignFileError(f"settings.reward of '{record}' cannot be used here: {error}") from error
    model = None if settings["model"] == "embedded" else settings["model"]
    form = {**WeightOptions().of_weights(), **settings["loading"]}
    weights = fitted(form, WeightOptions, f"settings.loading of '{record}'", "take the record as it was written")
    loading = LoadingOptions(**weights.of_weights(), dtype=recorded.dtype, device=device, offload=offload)
    pipe = load_model(model, loading, output.parent, f"settings.model of '{record}'")
    pipe.set_progress_bar_config(disable=True)
    redrawn = redrawing.redraw(recorded, pipe, reward.to(device=pipe.family.device))
    write_image(output, redrawn.image)
    if redrawn.is_same:
        typer.echo(f"{output} has the pixels of the record, bit for bit")
        return
    changes = "; ".join(f"{name} was {then}, is {now}" for name, (then, now) in redrawn.changes.items())
    typer.echo(f"{output} differs from the record ({changes or 'on the same device and libraries'})")
    raise typer.Exit(1)


def _diversity_clip(checkpoint: str | None, suite: Suite) -> CLIPBasedReward:
    """The CLIP named, else the one that knows the prompts: the miniature's own, or OpenAI's."""
    from ..rewards import as_reward
    from ..rewards.clip import CLIPReward

    if checkpoint is not None:
        return CLIPReward(checkpoint)
    reward: Any = as_reward("miniature" if suite.is_judged else "clip")
    return reward
