"""The command line: `diamond-diffusers --help`. What is heavy to import is imported by the command that needs it."""

from __future__ import annotations

import dataclasses
import errno
import inspect
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from ..alignment.methods import METHODS
from ..alignment.presets import PRESETS
from ..core.memory_errors import want_of_memory
from .benchmark import benchmark, redraw
from .loading import DType, ModelName, RewardExpression, RewardScale, load_model, model_defaults, named_reward
from .options import (
    MAX_COUNT,
    MAX_NUMBER,
    MAX_SEED,
    Device,
    GuidanceScale,
    NegativePrompt,
    ParticleBatchSize,
    Pixels,
    TrueCfgScale,
    checked_texts,
    first_sentence,
    text_table,
)
from .rewards import rewards, score

if TYPE_CHECKING:
    from ..alignment.base import Method
    from ..core.model import Model
    from ..evaluation.side_by_side import SideBySide
    from ..posteriors.base import PosteriorSampler

USER_ERRORS = (ValueError, TypeError, OSError, ImportError)


class ExplainingGroup(TyperGroup):
    """Shows an error in the user's input, or a want of memory, as one sentence."""

    def invoke(self, ctx: typer.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (*USER_ERRORS, RuntimeError, MemoryError) as error:
            sentence = _sentence_on(error)
            if sentence is None:
                raise
            Console(stderr=True).print(f"[bold red]Error:[/] {escape(sentence)}", soft_wrap=True, highlight=False)
            raise typer.Exit(2) from error


def _sentence_on(error: Exception) -> str | None:
    """What the user is told of an error; None where it is no matter of theirs."""
    if isinstance(error, USER_ERRORS):
        return None if getattr(error, "errno", None) == errno.EPIPE else str(error)
    reason = want_of_memory(error)
    return reason and f"{reason}; lower --particle-batch-size or --batch-size, or take smaller images"


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


AlignmentName = Annotated[
    str | None,
    typer.Option(
        help=f"A method: {', '.join(METHODS.names())}; or a published one: {', '.join(PRESETS.names())}. "
        "By default the model's own, else smc."
    ),
]
FirstSeed = Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Image i of them all has the seed SEED + i.")]
NumImages = Annotated[int, typer.Option(min=1, max=MAX_COUNT, help="Images of each prompt.")]
NumSteps = Annotated[
    int | None, typer.Option("--num-inference-steps", min=1, max=MAX_COUNT, help="Steps of the sampler.")
]
NumParticles = Annotated[int | None, typer.Option(min=1, max=MAX_COUNT, help="Particles of an image.")]
Posterior = Annotated[
    str | None,
    typer.Option(help="Draws the look-aheads: denoiser or flow_map (points), glass, weighted or diamond (samples)."),
]
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
    list[str], typer.Argument(metavar="PROMPT", callback=checked_texts, help="One or several texts.")
]


@app.command()
def generate(
    prompts: PromptTexts,
    model: ModelName = None,
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
    max_network_evaluations: MaxNetworkEvaluations = None,
    particle_batch_size: ParticleBatchSize = None,
    dtype: DType = "auto",
    device: Device = "auto",
    output: Output = Path("out"),
) -> None:
    """Draws plain and aligned images from the same seeds, with a contact sheet and a record of every setting."""
    from ..evaluation.side_by_side import draw_side_by_side, save

    defaults = model_defaults(model)
    options = AlignmentOptions(
        reward_scale,
        num_particles,
        posterior,
        num_inner_steps,
        num_lookaheads,
        gradient,
        guidance_strength,
        max_network_evaluations,
    )
    scored_by = named_reward(reward, defaults)
    if scored_by is not None and not any(prompts):
        raise ValueError("PROMPT is empty, so that the reward has nothing to read; give a text")
    name = alignment or ("none" if scored_by is None else defaults.get("alignment", "smc"))
    method = build_alignment(name, options)
    if method.needs_reward and scored_by is None:
        raise ValueError(
            f"--reward is not given, and the model has none of its own, but alignment {name!r} needs one; name one, or "
            "take --alignment none"
        )
    method.check(scored_by)
    pipe = load_model(model, dtype, device, output)
    method = build_alignment(name, options, pipe.family)
    arguments = {
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
        "true_cfg_scale": true_cfg_scale,
        "negative_prompt": negative_prompt,
        "height": height,
        "width": width,
    }
    drawn = draw_side_by_side(
        pipe,
        prompts,
        method,
        scored_by,
        seed,
        num_images,
        reward_scale,
        particle_batch_size,
        arguments,
        max_network_evaluations,
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
    max_network_evaluations: int | None = None

    def given(self) -> dict[str, Any]:
        """Those that are given."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


FIELDS = {
    "reward_scale": {"reward"},
    "num_particles": {"num_particles"},
    "posterior": {"posterior"},
    "num_inner_steps": {"posterior"},
    "num_lookaheads": {"posterior"},
    "gradient": {"guide"},
    "guidance_strength": {"guide"},
    "max_network_evaluations": {"num_particles"},
}
"""Of which a method has at least one where it uses the option."""


def build_alignment(name: str, options: AlignmentOptions, model: Model | None = None) -> Method:
    """The alignment that the options describe; what is not given is the method's own default.

    Args:
        name: of a method.
        options: those of the command line.
        model: on which the settings of published methods and of look-aheads along the flow map depend.

    Raises:
        ValueError: the name is unknown, or an option does not apply to the method.
    """
    from ..alignment.guide import Guide
    from ..alignment.methods.posterior_smc import PosteriorSMC
    from ..alignment.named import as_method

    method = as_method(name, model)
    fields = {field.name for field in dataclasses.fields(method)}
    # Plain sampling has particles too, but nothing to choose among them by.
    fields = fields | {"reward"} if method.needs_reward else fields - {"num_particles"}
    for option, value in options.given().items():
        if not fields & FIELDS[option]:
            flag = f"--{option.replace('_', '-')}"
            raise ValueError(f"{flag} is {value}, but alignment {name!r} does not use it; drop {flag}")
    if method.grows == "num_particles" and {"num_particles", "max_network_evaluations"} <= set(options.given()):
        raise ValueError(
            f"--num-particles is {options.num_particles}, which --max-network-evaluations "
            f"{options.max_network_evaluations} would replace; drop one of them"
        )
    if options.posterior == "weighted" and isinstance(method, PosteriorSMC):
        raise ValueError(
            f"--posterior is weighted, but alignment {name!r} moves particles by look-aheads of equal weight; "
            "take --posterior glass or diamond, or --alignment smc"
        )
    guide = {key: value for key, value in options.given().items() if key in ("gradient", "guidance_strength")}
    arguments = _posterior(options, model) | (
        {} if options.num_particles is None else {"num_particles": options.num_particles}
    )
    if guide:
        guide = {key.removeprefix("guidance_"): value for key, value in guide.items()}
        arguments["guide"] = dataclasses.replace(method.guide or Guide(), **guide)
    return dataclasses.replace(method, **arguments)


def _posterior(options: AlignmentOptions, model: Model | None) -> dict[str, PosteriorSampler]:
    from ..alignment.presets.base import map_steps
    from ..posteriors.denoiser import DenoiserPoint
    from ..posteriors.diamond import DiamondPosterior
    from ..posteriors.flow_map import FlowMapPoint
    from ..posteriors.glass import GlassPosterior
    from ..posteriors.weighted import WeightedPosterior

    samplers = {
        "denoiser": (DenoiserPoint, ()),
        "flow_map": (partial(FlowMapPoint, map_steps(model)), ()),
        "glass": (GlassPosterior, ("num_inner_steps", "num_lookaheads")),
        "weighted": (partial(WeightedPosterior, num_map_steps=map_steps(model)), ("num_lookaheads",)),
        "diamond": (DiamondPosterior, ("num_lookaheads",)),
    }
    given = {name: value for name, value in options.given().items() if name in ("num_inner_steps", "num_lookaheads")}
    if options.posterior is None:
        if given:
            raise ValueError("--num-inner-steps and --num-lookaheads describe look-aheads; add --posterior glass")
        return {}
    if options.posterior not in samplers:
        raise ValueError(f"--posterior is {options.posterior!r}; choose one of {', '.join(samplers)}")
    sampler, takes = samplers[options.posterior]
    for name, value in given.items():
        if name not in takes:
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(f"{flag} is {value}, but --posterior {options.posterior} does not use it; drop {flag}")
    return {"posterior": sampler(**{name.replace("lookaheads", "samples"): value for name, value in given.items()})}


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
app.command()(benchmark)
app.command()(redraw)


@app.command()
def models() -> None:
    """Lists the model families, and the embedded model."""
    from ..families.registry import supported_pipelines
    from ..pipelines.loading import embedded_model, read_defaults

    table = text_table("diffusers pipeline", "family", "what")
    for name, family in supported_pipelines().items():
        table.add_row(name, family.name, escape(first_sentence(inspect.getmodule(family))))
    console = Console()
    console.print(table)
    folder = embedded_model()
    if not (folder / "model_index.json").exists():
        console.print("The embedded model is not installed.")
        return
    defaults = ", ".join(f"{key} {value!r}" for key, value in read_defaults(folder).items())
    console.print(f"Without --model the embedded miniature world is used: {defaults}.", soft_wrap=True)
