"""The command line: `diamond-diffusers --help`. What is heavy to import is imported by the command that needs it."""

from __future__ import annotations

import dataclasses
import errno
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from typer.core import TyperGroup

from .cli_common import first_sentence, named_dtype, text_table, usable_device
from .cli_cost import benchmark_cost
from .cli_rewards import rewards, score

if TYPE_CHECKING:
    from .alignment import Alignment
    from .evaluation.side_by_side import SideBySide
    from .pipelines import DiamondMapPipeline
    from .posteriors import PosteriorSampler
    from .rewards import Reward

USER_ERRORS = (ValueError, TypeError, OSError, ImportError)


class ExplainingGroup(TyperGroup):
    """Shows an error in the user's input as the one sentence that it is."""

    def invoke(self, ctx: typer.Context) -> Any:
        try:
            return super().invoke(ctx)
        except USER_ERRORS as error:
            if getattr(error, "errno", None) == errno.EPIPE:
                raise
            Console(stderr=True).print(f"[bold red]Error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
            raise typer.Exit(2) from error


app = typer.Typer(cls=ExplainingGroup, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def main() -> None:
    """Entry point of the console script."""
    app()


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"diamond-diffusers {version('diamond-diffusers')}")
        raise typer.Exit()


@app.callback()
def root(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Draws images that obey a reward, with diffusion and flow models as they are."""


Model = Annotated[
    str | None, typer.Option(help="Folder or Hub repository of a diffusers pipeline; by default the embedded model.")
]
AlignmentName = Annotated[
    str | None, typer.Option(help="none, best_of_n, smc or guidance; by default the model's own, else smc.")
]
RewardExpression = Annotated[
    str | None, typer.Option("--reward", help="Such as 'clip' or '5*clip - miniature'; by default the model's own.")
]
RewardScale = Annotated[
    float | None, typer.Option(help="Multiplies the reward in the law p(image) exp(scale * reward); default 1.")
]
FirstSeed = Annotated[int, typer.Option(min=0, help="Image i of them all has the seed SEED + i.")]
RunSeed = Annotated[int, typer.Option(min=0, help="Of the run; every method draws from the same seeds.")]
NumImages = Annotated[int, typer.Option(min=1, help="Images of each prompt.")]
NumSteps = Annotated[int | None, typer.Option("--num-inference-steps", min=1, help="Steps of the sampler.")]
NumParticles = Annotated[int | None, typer.Option(min=1, help="Particles of an image.")]
Posterior = Annotated[
    str | None, typer.Option(help="Draws the look-aheads: 'denoiser' (a point, free) or 'glass' (samples).")
]
NumInnerSteps = Annotated[int | None, typer.Option(min=1, help="Steps of a GLASS look-ahead.")]
NumLookaheads = Annotated[int | None, typer.Option(min=1, help="GLASS look-aheads of a particle.")]
Gradient = Annotated[
    str | None, typer.Option(help="'isotropic', 'pathwise' or 'tilted_mean'; with smc it switches guidance on.")
]
GuidanceStrength = Annotated[
    float | None, typer.Option(help="Multiplies the reward's gradient; with smc it switches guidance on.")
]
GuidanceScale = Annotated[float | None, typer.Option(help="The model's prompt guidance (embedded in FLUX.1-dev).")]
TrueCfgScale = Annotated[float | None, typer.Option(help="FLUX's classifier-free guidance.")]
NegativePrompt = Annotated[str | None, typer.Option(help="What classifier-free guidance leads away from.")]
Pixels = Annotated[int | None, typer.Option(min=1, help="In pixels; by default the model's own.")]
ParticleBatchSize = Annotated[
    int | None, typer.Option(min=1, help="Rows of one network call, where memory is short; by default all at once.")
]
DType = Annotated[
    str, typer.Option(help="float32, bfloat16 or float16; 'auto' is bfloat16 for a named model on a GPU, else float32.")
]
Device = Annotated[str, typer.Option(help="Such as cuda, cuda:1 or cpu; 'auto' is a GPU where there is one.")]
Output = Annotated[Path, typer.Option(help="Folder of the images and the record.")]
Budget = Annotated[int, typer.Option(min=1, help="Network evaluations an image; a backward pass counts 2.")]
Methods = Annotated[str | None, typer.Option(help="Names, separated by commas; by default all.")]
NumCaptions = Annotated[int, typer.Option(min=1, help="How many of the 300 held-out captions.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Captions drawn at once.")]
Results = Annotated[Path, typer.Option(help="Folder of the results; a killed run resumes from it.")]


@app.command()
def generate(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT", help="One or several texts.")],
    model: Model = None,
    alignment: AlignmentName = None,
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
    guidance_scale: GuidanceScale = None,
    true_cfg_scale: TrueCfgScale = None,
    negative_prompt: NegativePrompt = None,
    height: Pixels = None,
    width: Pixels = None,
    particle_batch_size: ParticleBatchSize = None,
    dtype: DType = "auto",
    device: Device = "auto",
    output: Output = Path("out"),
) -> None:
    """Draws plain and aligned images from the same seeds, with a contact sheet and a record of every setting."""
    from .evaluation.side_by_side import draw_side_by_side, save

    defaults = _defaults(model)
    options = AlignmentOptions(
        reward_scale, num_particles, posterior, num_inner_steps, num_lookaheads, gradient, guidance_strength
    )
    scored_by = _reward(reward, defaults)
    name = alignment or ("none" if scored_by is None else defaults.get("alignment", "smc"))
    method = build_alignment(name, options)
    method.check(scored_by)
    pipe = _load(model, dtype, device, output)
    arguments = {
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
        "true_cfg_scale": true_cfg_scale,
        "negative_prompt": negative_prompt,
        "height": height,
        "width": width,
    }
    drawn = draw_side_by_side(
        pipe, prompts, method, scored_by, seed, num_images, reward_scale, particle_batch_size, arguments
    )
    save(drawn, output, {"model": model or "embedded"})
    _print_rewards(drawn)
    Console().print(f"Images, contact sheet and record are in {output}", soft_wrap=True, highlight=False)


@dataclasses.dataclass(frozen=True)
class AlignmentOptions:
    """Options of `generate` that only some methods have; None where they are not given."""

    reward_scale: float | None = None
    num_particles: int | None = None
    posterior: str | None = None
    num_inner_steps: int | None = None
    num_lookaheads: int | None = None
    gradient: str | None = None
    guidance_strength: float | None = None

    def given(self) -> dict[str, Any]:
        """Those that are given."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


def build_alignment(name: str, options: AlignmentOptions) -> Alignment:
    """The alignment that the options describe; what is not given is the method's own default.

    Raises:
        ValueError: the name is unknown, or an option does not apply to the method.
    """
    from .alignment import ALIGNMENTS, Guidance, as_alignment

    fields = {field.name for field in dataclasses.fields(as_alignment(name))}
    # Plain sampling has particles too, but nothing to choose among them by.
    fields -= {"num_particles"} if not as_alignment(name).needs_reward else set()
    guiding = {"gradient", "guidance"}
    users = {"num_particles": {"num_particles"}, "gradient": guiding, "guidance_strength": guiding}
    for option, value in options.given().items():
        if not fields & users.get(option, {"posterior"}):
            flag = f"--{option.replace('_', '-')}"
            raise ValueError(f"{flag} is {value}, but alignment {name!r} does not use it; drop {flag}")
    guidance = {key: value for key, value in options.given().items() if key in ("gradient", "guidance_strength")}
    posterior = _posterior(options)
    arguments = posterior | ({} if options.num_particles is None else {"num_particles": options.num_particles})
    if guidance and "guidance" in fields:
        return ALIGNMENTS[name](**arguments, guidance=Guidance(**guidance, **posterior))
    return ALIGNMENTS[name](**arguments, **guidance)


def _posterior(options: AlignmentOptions) -> dict[str, PosteriorSampler]:
    from .posteriors import DenoiserPoint, GlassPosterior

    inner = {"num_inner_steps": options.num_inner_steps, "num_samples": options.num_lookaheads}
    inner = {argument: value for argument, value in inner.items() if value is not None}
    if options.posterior not in (None, "denoiser", "glass"):
        raise ValueError(f"--posterior is {options.posterior!r}; choose denoiser or glass")
    if inner and options.posterior != "glass":
        raise ValueError("--num-inner-steps and --num-lookaheads describe GLASS look-aheads; add --posterior glass")
    if options.posterior is None:
        return {}
    return {"posterior": GlassPosterior(**inner) if options.posterior == "glass" else DenoiserPoint()}


def _defaults(model: str | None) -> dict[str, Any]:
    """The call defaults of a model, known before it is loaded."""
    from .pipelines.loading import embedded_model, read_defaults

    if model is None and not (embedded_model() / "model_index.json").exists():
        raise ValueError("The embedded model is not installed; reinstall diamond-diffusers, or name one with --model")
    with _blaming(model):
        return read_defaults(model or embedded_model())


def _reward(expression: str | None, defaults: dict[str, Any]) -> Reward | None:
    from .rewards import as_reward

    expression = defaults.get("reward") if expression is None else expression
    return None if expression is None else as_reward(expression)


def _load(model: str | None, dtype: str, device: str, output: Path) -> DiamondMapPipeline:
    """The model on its device, after a look at what else the run needs."""
    from .evaluation.files import prepare_folder
    from .pipelines import DiamondMapPipeline

    device = usable_device(device)
    if dtype == "auto":
        dtype = "bfloat16" if model is not None and device.startswith("cuda") else "float32"
    weights_dtype = named_dtype(dtype)
    prepare_folder(output)
    with _blaming(model):
        return DiamondMapPipeline.from_pretrained(model, dtype=weights_dtype).to(device)


@contextmanager
def _blaming(model: str | None) -> Iterator[None]:
    """Turns the many ways in which a model cannot be loaded into one sentence."""
    try:
        yield
    except (OSError, ValueError, AttributeError) as error:
        reason = str(error).strip().split("\n")[0].split(" (")[0].rstrip(".")
        named = "--model is not given, and the embedded model" if model is None else f"--model is {model!r}, which"
        raise ValueError(
            f"{named} cannot be loaded ({reason}); "
            "give a folder or Hub repository of a pipeline that `diamond-diffusers models` lists"
        ) from error


def _print_rewards(drawn: SideBySide) -> None:
    table = text_table("prompt", "seed", *(f"{name} reward" for name in drawn.outputs))
    for i, (prompt, seed) in enumerate(zip(drawn.prompts, drawn.seeds, strict=True)):
        rewards = [None if out.rewards is None else out.rewards[i] for out in drawn.outputs.values()]
        table.add_row(escape(prompt), str(seed), *("–" if reward is None else f"{reward:.3f}" for reward in rewards))
    if drawn.plain.rewards is not None and len(drawn.prompts) > 1:
        table.add_section()
        table.add_row("mean", "", *(f"{out.rewards.mean():.3f}" for out in drawn.outputs.values()))
    console = Console()
    console.print(table)
    for name, out in drawn.outputs.items():
        console.print(f"{name}: {out.cost}", soft_wrap=True)


app.command()(rewards)
app.command()(score)
app.command()(benchmark_cost)


@app.command()
def models() -> None:
    """Lists the model families, and the embedded model."""
    from .backbones import supported_pipelines
    from .pipelines.loading import embedded_model, read_defaults

    table = text_table("diffusers pipeline", "family", "what")
    for name, backbone in supported_pipelines().items():
        table.add_row(name, backbone.family, escape(first_sentence(inspect.getmodule(backbone))))
    console = Console()
    console.print(table)
    folder = embedded_model()
    if not (folder / "model_index.json").exists():
        console.print("The embedded model is not installed.")
        return
    defaults = ", ".join(f"{key} {value!r}" for key, value in read_defaults(folder).items())
    console.print(f"Without --model the embedded miniature world is used: {defaults}.", soft_wrap=True)


@app.command()
def benchmark(
    budget: Budget = 120,
    methods: Methods = None,
    num_captions: NumCaptions = 300,
    batch_size: BatchSize = 25,
    seed: RunSeed = 0,
    model: Model = None,
    reward: RewardExpression = None,
    reward_scale: RewardScale = None,
    particle_batch_size: ParticleBatchSize = None,
    dtype: DType = "auto",
    device: Device = "auto",
    output: Results = Path("out/benchmark"),
) -> None:
    """Compares alignment methods on the miniature world at equal cost, by the judge's verdict."""
    from .evaluation.compare import Setup, benchmark_captions, compare
    from .evaluation.methods import RECIPES, build_methods
    from .evaluation.report import console_tables, summarise, write_examples, write_report

    names = list(RECIPES) if methods is None else [name.strip() for name in methods.split(",")]
    captions = benchmark_captions(num_captions)
    defaults = _defaults(model)
    scored_by = _reward(reward, defaults)
    if scored_by is None:
        raise ValueError("--reward is not given, and the model has no reward of its own; name one")
    scale = defaults.get("reward_scale", 1.0) if reward_scale is None else reward_scale
    pipe = _load(model, dtype, device, output)
    pipe.set_progress_bar_config(disable=True)
    built = build_methods(names, budget, pipe)
    setup = Setup(pipe, model or "embedded", scored_by, scale, seed, batch_size, particle_batch_size)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        bars = {method.name: progress.add_task(method.name, total=len(captions)) for method in built}
        records = compare(
            setup, built, captions, output, lambda name, done: progress.update(bars[name], completed=done)
        )
    summaries = summarise(built, records)
    write_report(summaries, {"budget": budget, "num_captions": num_captions, **setup.settings()}, output)
    write_examples(records, output)
    console = Console()
    for table in console_tables(summaries):
        console.print(table, end="\n\n")
    console.print(f"Results, table and examples are in {output}", soft_wrap=True, highlight=False)
