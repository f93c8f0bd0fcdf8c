"""How the commands load a model and its reward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import usable_device, weights_dtype

if TYPE_CHECKING:
    from ..pipelines.pipeline import DiamondMapPipeline
    from ..rewards import Reward

ModelName = Annotated[
    str | None, typer.Option(help="Folder or Hub repository of a diffusers pipeline; by default the embedded model.")
]
RewardExpression = Annotated[
    str | None, typer.Option("--reward", help="Such as 'clip' or '5*clip - miniature'; by default the model's own.")
]
RewardScale = Annotated[
    float | None, typer.Option(help="Multiplies the reward in the law p(image) exp(scale * reward); default 1.")
]
DType = Annotated[
    str, typer.Option(help="float32, bfloat16 or float16; 'auto' is bfloat16 for a named model on a GPU, else float32.")
]


def model_defaults(model: str | None) -> dict[str, Any]:
    """The call defaults of a model, known before it is loaded."""
    from ..pipelines.loading import embedded_model, read_defaults

    if model is None and not (embedded_model() / "model_index.json").exists():
        raise ValueError("The embedded model is not installed; reinstall diamond-diffusers, or name one with --model")
    with _blaming(model):
        return read_defaults(model or embedded_model())


def named_reward(expression: str | None, defaults: dict[str, Any]) -> Reward | None:
    """The reward of an expression, else the model's own, if it has one."""
    from ..rewards import as_reward

    expression = defaults.get("reward") if expression is None else expression
    return None if expression is None else as_reward(expression)


def load_model(model: str | None, dtype: str, device: str, output: Path, source: str = "--model") -> DiamondMapPipeline:
    """The model on its device, after a look at what else the run needs; `source` tells the user what names it."""
    from ..files.output import prepare_folder
    from ..pipelines.pipeline import DiamondMapPipeline

    device = usable_device(device)
    # The embedded model is small enough for float32 anywhere.
    precision = weights_dtype(dtype, "cpu" if model is None else device)
    prepare_folder(output)
    with _blaming(model, source):
        return DiamondMapPipeline.from_pretrained(model, dtype=precision).to(device)


@contextmanager
def _blaming(model: str | None, source: str = "--model") -> Iterator[None]:
    """Turns the many ways in which a model cannot be loaded into one sentence."""
    from ..files.foreign_models import UNLOADABLE, why_unloadable

    try:
        yield
    except UNLOADABLE as error:
        reason = why_unloadable(error).split(" (")[0]
        named = "--model is not given, and the embedded model" if model is None else f"{source} is {model!r}, which"
        raise ValueError(
            f"{named} cannot be loaded ({reason}); "
            "give a folder or Hub repository of a pipeline that `diamond-diffusers models` lists"
        ) from error
