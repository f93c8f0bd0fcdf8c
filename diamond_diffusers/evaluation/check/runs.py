"""The images that the checks look at, each drawn once, from one seed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from ...alignment.base import Method
from ...alignment.guide import Guide
from ...alignment.memory_plan import MemoryPlan
from ...alignment.methods.guidance import Guidance
from ...core.interruption import never
from ...families.compat import progress_bar
from ...pipelines.output import DiamondMapPipelineOutput
from ...pipelines.pipeline import DiamondMapPipeline
from ...rewards import Reward
from ...rewards.brightness import Brightness
from ..memory import peak_memory

Result = TypeVar("Result")
NUM_STEPS, NUM_FEW_STEPS = 4, 2
"""Steps of a run, and of one of a few-step model: SANA-Sprint's own times are of two."""


class NotReachedError(Exception):
    """What a check needs has failed before, in the check of its own."""


@dataclass(frozen=True)
class Timed:
    """A run, and what it has cost.

    Attributes:
        output: with its image as a tensor `[1, 3, H, W]` in [0, 1].
        seconds: of each step.
        peak_bytes: as of `PeakMemory`.
    """

    output: DiamondMapPipelineOutput
    seconds: list[float]
    peak_bytes: int | None

    @property
    def seconds_per_step(self) -> float:
        """The median, without the first step, which prepares the device, where there are others."""
        return statistics.median(self.seconds[1:] or self.seconds)


class Runs:
    """The runs of a model, each made when a check first asks for it.

    Args:
        pipe: the model, loaded and placed.
        prompt: what is drawn.
        arguments: arguments of the stock call; a number of steps that is None is small.
        reward: the model's or the user's own reward, if there is one.
        seed: of every image.
        is_ended: whether no further image is to be drawn, asked before each.
    """

    def __init__(
        self,
        pipe: DiamondMapPipeline,
        prompt: str,
        arguments: Mapping[str, Any] | None = None,
        reward: Reward | None = None,
        seed: int = 0,
        is_ended: Callable[[], bool] = never,
    ) -> None:
        self.pipe, self.reward, self.seed, self.is_ended = pipe, reward, seed, is_ended
        arguments = {name: value for name, value in (arguments or {}).items() if value is not None}
        steps = NUM_FEW_STEPS if pipe.family.is_few_step else NUM_STEPS
        self.call = {"num_inference_steps": steps, **arguments, "prompt": prompt}
        self._made: dict[str, Any] = {}

    @property
    def device(self) -> torch.device:
        """On which the model computes."""
        return self.pipe.family.device

    @property
    def resolved(self) -> dict[str, Any]:
        """Every argument of the stock call, as `DiamondMapPipeline` resolves it."""
        return dict(self.pipe.prepare(**self.call).arguments)

    def stock(self) -> Tensor:
        """The image `[1, 3, H, W]` of the stock pipeline."""

        def draw() -> Tensor:
            # Those of the output are the stock pipeline's own.
            own = {"generator", "output_type", "return_dict"}
            given = {name: value for name, value in self.resolved.items() if name not in own and value is not None}
            given |= {name: self.resolved[name] for name in self.pipe.family.arguments_with_none}
            with progress_bar(self.pipe.pipeline, disable=True):
                return self.pipe.pipeline(**given, generator=self._generator(), output_type="pt").images

        return self._once("the stock pipeline's image", draw)

    def plain(self) -> Timed:
        """Without alignment; scored by its brightness."""
        return self._once("the plain image", lambda: self._timed("none"))

    def guided(self, gradient: str) -> Timed:
        """Guided towards brightness by one kind of gradient, whose shift has the size of the velocity."""
        method = Guidance(guide=Guide(gradient, scaling="auto"))
        return self._once(f"the image guided by {gradient} gradients", lambda: self._timed(method))

    def plan(self, num_particles: int) -> MemoryPlan | None:
        """How pathwise guidance of many particles would be fitted into memory, for which one is tried."""
        method = Guidance(guide=Guide("pathwise", scaling="auto"), num_particles=num_particles)
        given = {**self.call, "reward": Brightness(), "alignment": method, "generator": self._generator()}
        auto = {"particle_batch_size": "auto", "gradient_checkpointing": "auto"}

        def make() -> MemoryPlan | None:
            with self.pipe.iterate(**given, **auto) as run:
                return run.plan

        return self._once("the plan", make)

    def scored_by_own(self, method: str | None) -> DiamondMapPipelineOutput:
        """A call with the user's reward or the model's own: by a method, or None for the model's own method."""
        name = "the image of the model's own method" if method is None else "the image that the reward scores"
        return self._once(name, lambda: self._timed(method, self.reward)).output

    def _timed(self, method: Method | str | None, reward: Reward | None = None) -> Timed:
        given = {
            **self.call,
            "reward": Brightness() if reward is None else reward,
            "alignment": method,
            "output_type": "pt",
        }
        seconds: list[float] = []
        with (
            progress_bar(self.pipe.pipeline, disable=True),
            peak_memory(self.device) as peak,
            self.pipe.iterate(**given, generator=self._generator()) as run,
        ):
            before = self._clock()
            for _ in run:
                now = self._clock()
                seconds.append(now - before)
                before = now
            output = run.output()
        return Timed(output, seconds, peak.bytes)

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def _clock(self) -> float:
        """Seconds, once the device has done what it was given."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return time.perf_counter()

    def _once(self, name: str, make: Callable[[], Result]) -> Result:
        if name not in self._made:
            if self.is_ended():
                raise NotReachedError("the check was ended before")
            try:
                self._made[name] = make()
            except Exception as error:
                self._made[name] = NotReachedError(f"{name} could not be drawn, as another row says")
                raise error
        if isinstance(self._made[name], NotReachedError):
            raise self._made[name]
        return self._made[name]
