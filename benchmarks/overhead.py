"""What a guided step costs beyond its evaluations: `python -m benchmarks.overhead --help`."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Annotated, Any
from unittest import mock

import torch
import typer
from rich.console import Console
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from diamond_diffusers.alignment.guide import Guide
from diamond_diffusers.alignment.methods.guidance import Guidance
from diamond_diffusers.cli.options import Device, named_dtype, text_table, usable_device
from diamond_diffusers.pipelines.pipeline import DiamondMapPipeline

from .command_line import command
from .cost import AsJson, DType, Gradient, Pixels, Size, brightness
from .zoo.published import PUBLISHED_MODELS

NUM_WARM_UP_STEPS = 2

Evaluation = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
"""A function with its positional and keyword arguments, without a graph; what is differentiated requires gradients."""


@dataclass(frozen=True)
class Overhead:
    """Seconds of guided steps, and of the bare evaluations that they make, in turns.

    Attributes:
        family: whose steps they are.
        steps: of each step of the package.
        bare: of the same evaluations of network, decoder and reward, with their backward passes, after each step.
        answered: of steps whose evaluations are answered at once by earlier results. That is what the package takes by
            itself, with none of the noise of what it evaluates.
    """

    family: str
    steps: tuple[float, ...]
    bare: tuple[float, ...]
    answered: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Seconds a step beyond its evaluations."""
        return fmean(self.differences)

    @property
    def bound(self) -> float:
        """The upper end of the one-sided 95 % interval of that mean."""
        return upper_bound(self.differences)

    @property
    def differences(self) -> list[float]:
        return [step - bare for step, bare in zip(self.steps, self.bare, strict=True)]

    def as_dict(self) -> dict[str, Any]:
        shares = {"share": self.mean / fmean(self.bare), "bound_share": self.bound / fmean(self.bare)}
        return {**dataclasses.asdict(self), "overhead": self.mean, "bound": self.bound, **shares}


def upper_bound(values: Sequence[float]) -> float:
    """The upper end of the one-sided 95 % interval of a mean, by Student's t."""
    from scipy.stats import t

    return fmean(values) + float(t.ppf(0.95, len(values) - 1)) * stdev(values) / len(values) ** 0.5


@dataclass
class Evaluations:
    """The evaluations of a step, as they were asked for.

    Attributes:
        asked: in their order.
        results: the last one of each function.
        watches: whether what is asked for is kept, which takes time.
        answers: whether functions are answered by these results, and not called.
    """

    asked: list[Evaluation] = field(default_factory=list)
    results: dict[Callable[..., Any], Any] = field(default_factory=dict)
    watches: bool = True
    answers: bool = False

    @contextmanager
    def watched(self, pipe: DiamondMapPipeline) -> Iterator[None]:
        """Sees what a pipeline asks of its network and its decoder."""
        network, vae = pipe.family.network_module, pipe.vae
        forward, decode = network.forward, vae.decode
        with (
            mock.patch.object(network, "forward", self.seen(forward)),
            mock.patch.object(vae, "decode", self.seen(decode)),
        ):
            yield

    def seen(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose calls are kept."""

        def watched(*args: Any, **kwargs: Any) -> Any:
            if self.answers:
                # With a graph, which leads nowhere else. What is not nested is found at once, as this time counts too.
                links = [part.flatten()[0] * 0 for part in (*args, *kwargs.values()) if _is_differentiated(part)]
                result = self.results[function]
                return (sum(links, result[0]), *result[1:]) if isinstance(result, tuple) else sum(links, result)
            if not self.watches:
                return function(*args, **kwargs)
            self.asked.append((function, tree_map(_leaf, args), tree_map(_leaf, kwargs)))
            result = function(*args, **kwargs)
            self.results[function] = tree_map(lambda part: part.detach(), _plain(result))
            return result

        return watched

    def repeat(self) -> None:
        """Evaluates all of them again, forward and backward, and nothing else."""
        for evaluation in self.asked:
            repeat(evaluation)


def leaves_of(evaluation: Evaluation) -> list[Tensor]:
    """What an evaluation is differentiated in."""
    return [leaf for leaf in tree_leaves(evaluation[1:]) if _is_differentiated(leaf)]


def repeat(evaluation: Evaluation, differentiates: bool = True) -> None:
    """Evaluates again, and differentiates what was differentiated."""
    function, args, kwargs = evaluation
    leaves = leaves_of(evaluation) if differentiates else []
    with torch.set_grad_enabled(bool(leaves)):
        result = next(part for part in tree_leaves(_plain(function(*args, **kwargs))) if isinstance(part, Tensor))
    if leaves:
        torch.autograd.grad(result, leaves, torch.ones_like(result))


def _is_differentiated(value: object) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _leaf(value: Any) -> Any:
    return value.detach().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value


def _plain(output: Any) -> Any:
    """An output of diffusers as a tuple."""
    return output.to_tuple() if hasattr(output, "to_tuple") else output


def measure(
    family: str,
    size: str = "tiny",
    pixels: int | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    gradient: str = "pathwise",
    repetitions: int = 10,
) -> Overhead:
    """Times guided steps of one particle and, after each, its evaluations alone; arguments as of `cost.Workload`."""
    published = PUBLISHED_MODELS[family]
    pipe = DiamondMapPipeline.from_pipe(published.build(size, device, dtype))
    pipe.set_progress_bar_config(disable=True)
    evaluations = Evaluations()
    arguments = {
        **published.arguments(pipe.pipeline, size, pixels),
        "reward": evaluations.seen(brightness),
        "reward_prompt": "any",
        "alignment": Guidance(guide=Guide(gradient)),
        # The last step leads to the final image, which is decoded beyond it.
        "num_inference_steps": NUM_WARM_UP_STEPS + 2 * repetitions + 1,
    }
    steps, bare, answered = [], [], []
    with pipe.iterate(generator=torch.Generator().manual_seed(0), **arguments) as run, evaluations.watched(pipe):
        for _ in range(NUM_WARM_UP_STEPS):
            evaluations.asked.clear()
            next(run)
        # Every step evaluates the like.
        evaluations.watches = False
        evaluations.repeat()
        for _ in range(repetitions):
            steps.append(seconds(lambda: next(run), pipe.device))
            bare.append(seconds(evaluations.repeat, pipe.device))
        evaluations.answers = True
        for _ in range(repetitions):
            answered.append(seconds(lambda: next(run), pipe.device))
    return Overhead(family, tuple(steps), tuple(bare), tuple(answered))


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """What a call takes: seconds of the process on a CPU, which other processes do not lengthen, else of the clock."""
    if device.type == "cpu":
        started = time.process_time()
        function()
        return time.process_time() - started
    module = torch.get_device_module(device)
    module.synchronize(device)
    started = time.perf_counter()
    function()
    module.synchronize(device)
    return time.perf_counter() - started


Families = Annotated[str, typer.Option(help="Families, separated by commas; all if left out.")]
Repetitions = Annotated[int, typer.Option(min=2, help="Steps that are timed, each followed by its bare evaluations.")]


def benchmark_overhead(
    families: Families = "",
    size: Size = "tiny",
    pixels: Pixels = None,
    gradient: Gradient = "pathwise",
    repetitions: Repetitions = 10,
    dtype: DType = "auto",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Measures what a guided step costs beyond forward, backward, decode and reward, on models of random weights."""
    device = usable_device(device)
    if dtype == "auto":
        dtype = "bfloat16" if device.startswith("cuda") else "float32"
    names, weights_dtype = families.split(",") if families else list(PUBLISHED_MODELS), named_dtype(dtype)
    measured = [measure(name, size, pixels, device, weights_dtype, gradient, repetitions) for name in names]
    if as_json:
        typer.echo(json.dumps([overhead.as_dict() for overhead in measured], indent=2))
    else:
        print_table(measured)


def print_table(measured: Sequence[Overhead]) -> None:
    columns = ["step", "evaluations", "difference", "at most", "difference, %", "at most, %", "answered", "at most"]
    table = text_table("family, ms", *columns)
    for column in table.columns[1:]:
        column.justify = "right"
    for overhead in measured:
        evaluations = fmean(overhead.bare)
        difference, bound = overhead.mean, overhead.bound
        times = [fmean(overhead.steps), evaluations, difference, bound]
        own = [fmean(overhead.answered), upper_bound(overhead.answered)]
        shares = [f"{100 * share / evaluations:.1f}" for share in (difference, bound)]
        in_ms = [f"{1e3 * figure:.1f}" for figure in (*times, *own)]
        table.add_row(overhead.family, *in_ms[:4], *shares, *in_ms[4:])
    Console().print(table)


app = command(benchmark_overhead)

if __name__ == "__main__":
    app()
