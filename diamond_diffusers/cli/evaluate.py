"""The command `diamond-diffusers evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .options import MAX_COUNT, Device, PromptsSource, checked_texts, named_dtype, usable_device

if TYPE_CHECKING:
    from accelerate import PartialState

    from ..evaluation.judging.images import ImageSet
    from ..evaluation.judging.judges import ImageJudge
    from ..evaluation.judging.report import Evaluation
    from ..evaluation.judging.run import CheckedImages, Share
    from ..evaluation.judging.verdicts import StoredVerdict, VerdictFolder

Folders = Annotated[
    list[Path], typer.Argument(metavar="FOLDER", help="Runs, and folders of images with their prompts.")
]
SuiteNames = Annotated[
    list[str] | None,
    typer.Option(
        "--suite", help="A published benchmark's rules, such as geneval or dpg_bench; may come several times."
    ),
]
Rewards = Annotated[
    list[str] | None,
    typer.Option("--reward", help="Such as imagereward or 'imagereward + 5*hpsv2'; may come several times."),
]
VLM = Annotated[
    str | None,
    typer.Option(callback=checked_texts, help="Model that answers a suite's questions; by default the suite's own."),
]
Detector = Annotated[
    str | None, typer.Option(callback=checked_texts, help="Model that finds objects; by default the suite's own.")
]
CLIP = Annotated[str | None, typer.Option(callback=checked_texts, help="CLIP of a suite; by default the suite's own.")]
DType = Annotated[str, typer.Option(help="float32, bfloat16 or float16; 'auto' is each judge's own.")]
BatchSize = Annotated[int, typer.Option(min=1, max=MAX_COUNT, help="Images judged at once, where sizes are equal.")]
ShardText = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="INDEX/COUNT",
        help="Judge this share alone, such as 0/4, and write no tables; under `accelerate launch -m` shares are dealt "
        "out without it.",
    ),
]
Format = Annotated[str, typer.Option("--format", help="What is printed: table, csv, json or markdown.")]
Results = Annotated[Path, typer.Option(help="Folder of verdicts and tables; a killed run resumes from it.")]


def evaluate(
    folders: Folders,
    *,
    suite: SuiteNames = None,
    reward: Rewards = None,
    prompts_source: PromptsSource = None,
    vlm: VLM = None,
    detector: Detector = None,
    clip: CLIP = None,
    device: Device = "auto",
    dtype: DType = "auto",
    batch_size: BatchSize = 8,
    shard_text: ShardText = None,
    output_format: Format = "table",
    output: Results = Path("out/evaluation"),
) -> None:
    """Judges images by benchmarks' rules and by rewards; under `accelerate launch -m` each process judges a share."""
    from accelerate import PartialState

    from ..evaluation.judging.judges import check_judges, load_reward, load_suite
    from ..evaluation.judging.report import FORMATS, Evaluation
    from ..evaluation.judging.run import CheckedImages
    from ..evaluation.judging.summary import summarise
    from ..files.output import prepare_folder

    if output_format not in FORMATS:
        raise ValueError(f"--format is {output_format!r}; choose one of {', '.join(FORMATS)}")
    suites, rewards, options = suite or [], reward or [], {"vlm": vlm, "detector": detector, "clip": clip}
    check_judges(suites, rewards, options)
    shard = None if shard_text is None else _share(shard_text)
    precision = None if dtype == "auto" else named_dtype(dtype)
    image_sets = _image_sets(folders, prompts_source, suites)
    checked = CheckedImages(image_sets)
    prepare_folder(output, "--output")
    # A share takes as long as its images.
    processes = PartialState(cpu=device == "cpu", timeout=timedelta(days=7))
    place = usable_device(device)
    loaders: list[Loader] = [partial(load_suite, name, options, place, precision) for name in suites]
    loaders += [partial(load_reward, expression, place, precision) for expression in rewards]
    if shard is not None:
        _judge_share(checked, loaders, output, batch_size, shard, processes)
        return
    judges, verdicts = _judged_by_all(checked, loaders, output, batch_size, processes)
    if processes.is_main_process:
        settings = {"folders": folders, "suites": suites, "rewards": rewards, "prompts": prompts_source, **options}
        rows = summarise(image_sets, judges, verdicts)
        _report(Evaluation({**settings, "dtype": dtype}, image_sets, judges, verdicts, rows), output_format, output)


def _share(text: str) -> Share:
    """What `--shard` means."""
    from ..evaluation.judging.run import Share

    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count) <= MAX_COUNT):
        raise ValueError(f"--shard is {text!r}; give INDEX/COUNT, such as 0/4 for the first of four")
    return Share(int(index), int(count))


def _image_sets(folders: Sequence[Path], prompts_source: str | None, suites: Sequence[str]) -> list[ImageSet]:
    """The images with their prompts, which the suites can judge."""
    from ..evaluation.benchmark.prompts import prompts_in
    from ..evaluation.judging.image_sets import find_image_sets
    from ..evaluation.known_prompts import find_prompts
    from ..evaluation.suites import SUITES

    prompts = None if prompts_source is None else prompts_in(find_prompts(prompts_source))
    image_sets = find_image_sets(folders, prompts)
    for name in suites:
        for image_set in image_sets:
            SUITES.get(name).check([image.prompt for image in image_set.images])
    return image_sets


Loader = Callable[[], "ImageJudge"]


def _judged_by_all(
    checked: CheckedImages, loaders: Sequence[Loader], output: Path, batch_size: int, processes: PartialState
) -> tuple[list[ImageJudge], list[StoredVerdict]]:
    """The judges, each loaded when its turn comes, and the verdicts of all of them, which are in one file then."""
    from ..evaluation.judging.run import Share, verdicts_of

    share = Share(processes.process_index, processes.num_processes)
    folder, judges = _judge(checked, loaders, output, batch_size, share, processes.is_main_process)
    processes.wait_for_everyone()
    folder.read()
    verdicts = verdicts_of(checked, judges, folder)
    processes.wait_for_everyone()
    processes.destroy_process_group()
    if processes.is_main_process:
        folder.finish(verdicts)
    return judges, verdicts


def _judge_share(
    checked: CheckedImages,
    loaders: Sequence[Loader],
    output: Path,
    batch_size: int,
    shard: Share,
    processes: PartialState,
) -> None:
    """Judges one share, and leaves the rest and the tables to other commands."""
    if processes.num_processes > 1:
        raise ValueError(
            f"--shard is {shard.index}/{shard.count}, but there are {processes.num_processes} processes, which share "
            "the images by themselves; leave it out"
        )
    _judge(checked, loaders, output, batch_size, shard, True)
    typer.echo(f"Share {shard.index} of {shard.count} is judged; give the command without --shard once all are")


def _judge(
    checked: CheckedImages, loaders: Sequence[Loader], output: Path, batch_size: int, share: Share, is_shown: bool
) -> tuple[VerdictFolder, list[ImageJudge]]:
    """Judges a share by all judges, under a bar for each."""
    from ..evaluation.judging.run import judge_images
    from ..evaluation.judging.verdicts import VerdictFolder

    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn()
    console = Console(stderr=True)
    folder, judges = VerdictFolder(output, f"{share.index}-of-{share.count}"), list[Any]()
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, disable=not is_shown) as bars:
        for load in loaders:
            bar = bars.add_task("", total=None)

            def on_batch(name: str, done: int, total: int, bar: Any = bar) -> None:
                bars.update(bar, description=name, completed=done, total=total)

            judge = load()
            if judge.name in [other.name for other in judges]:
                raise ValueError(f"--reward and --suite give two judges the name {judge.name!r}; leave one of them out")
            judge_images(checked, judge, folder, batch_size, share, on_batch)
            judge.release()
            judges.append(judge)
    return folder, judges


def _report(evaluation: Evaluation, output_format: str, output: Path) -> None:
    """Writes what came of an evaluation, and prints it."""
    from ..evaluation.judging.report import text_of, write_evaluation
    from ..evaluation.text_tables import rich_table

    write_evaluation(evaluation, output)
    if output_format != "table":
        typer.echo(text_of(evaluation, output_format), nl=False)
        return
    console = Console()
    for table in evaluation.tables():
        console.print(table.title, style="bold", markup=False, highlight=False, soft_wrap=True)
        console.print(rich_table(table), end="\n\n")
    console.print(f"Verdicts and tables are in {output}", soft_wrap=True, markup=False, highlight=False)
