"""Where a run stands between two of its steps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ..core.cost import Cost
from ..core.interruption import Interrupted
from .cloud import Cloud
from .law import Law
from .out_of_memory import with_smaller_chunks
from .random_source import RandomSource
from .result import AlignmentResult
from .smc_parts.resampling import effective_sample_size
from .trace import Trace

if TYPE_CHECKING:
    from PIL.Image import Image


class Finishes(Protocol):
    """What a run's method is asked where the run ends, or where its particles are replaced."""

    def finish(self, law: Law, cloud: Cloud, trace: Trace) -> AlignmentResult:
        """Scores the final particles and weighs them."""

    def replace_particles(self, cloud: Cloud, x: Tensor) -> Cloud:
        """The cloud with other particles in place of its own."""


@dataclass
class Progress:
    """Where a run stands: after a step, or after a round for methods that draw whole samples round after round.

    Attributes:
        method: that runs.
        law: that it samples; a caller may put another one in its place, which counts from the next step on. Methods
            that work in rounds refuse another one.
        cloud: the particles.
        trace: figures of each step so far.
        index: number of the step or round, from 0; -1 before the first.
        num_stages: how many there are.
        level_index: of the level that the particles have come from, among those of the run.
        noise_to_signal: level that they have reached.
        is_final: whether particles are clean: at the end, and after every round.
        drawn: what the last stage drew, `[n, ...]`: the particles, or the samples of a round.

    Example:
        >>> for progress in method.iterate(law, x, levels, random):
        ...     if progress.effective_sample_size.min() < 2:
        ...         break
        >>> progress.result().rewards
    """

    method: Finishes
    law: Law
    cloud: Cloud
    trace: Trace
    index: int
    num_stages: int
    level_index: int
    noise_to_signal: float
    is_final: bool
    drawn: Tensor

    @property
    def particles(self) -> Tensor:
        """`[B P, ...]` in the bounded coordinate, image after image."""
        return self.cloud.x

    @property
    def values(self) -> Tensor | None:
        """Scaled values `[B, P]` as they were last estimated; None where nothing has been scored yet."""
        return self.cloud.values

    @property
    def log_weights(self) -> Tensor:
        """Of the particles, `[B, P]`, normalised within each image."""
        return torch.log_softmax(self.cloud.log_weights, 1)

    @property
    def effective_sample_size(self) -> Tensor:
        """Of the weights, `[B]`: P where they are equal."""
        return effective_sample_size(self.cloud.log_weights)

    @property
    def cost(self) -> Cost:
        """Of the run so far."""
        return self.law.cost

    @cached_property
    def clean(self) -> Tensor:
        """A clean look-ahead `[B P, ...]` of each particle, or the particle itself once it is clean.

        It is the best that the method has drawn here; where it has drawn none, what the model predicts, which costs an
        evaluation of each particle.
        """
        if self.is_final:
            return self.cloud.x
        ahead = self.cloud.ahead
        if ahead is not None and ahead.samples is not None and ahead.ranks is not None:
            rows = torch.arange(len(ahead.samples), device=ahead.samples.device)
            return ahead.samples[rows, ahead.ranks.argmax(1)]
        if ahead is not None and ahead.predicted is not None:
            return ahead.predicted
        with torch.no_grad():
            return self.law.rows(self.cloud.x).network.predict(self.cloud.x, self.noise_to_signal)

    def previews(self) -> list[Image]:
        """The clean look-aheads as images, particle after particle of each image; costs a decoding of each."""
        return self._decoded(self.clean, preview=True)

    def best(self) -> list[Image]:
        """The best image of each prompt's so far: of the highest reward, or the heaviest where there is no reward."""
        result = self.result()
        selection = "heaviest" if result.rewards is None else "best"
        index = result.select(selection, RandomSource(None, self.law.num_images))
        rows = torch.arange(len(index))
        if result.images is not None:
            return _pictures(result.images[rows, index[:, 0].to(result.images.device)])
        return self._decoded(result.latents[rows, index[:, 0].to(result.latents.device)])

    @torch.no_grad()
    def _decoded(self, latents: Tensor, preview: bool = False) -> list[Image]:
        decode = partial(self.law.rows(latents).decode, latents, preview)
        return _pictures(with_smaller_chunks(self.law.execution, decode))

    def best_known(self) -> Tensor:
        """The best image `[B, 3, H, W]` of each prompt's, as far as rewards are known: none is asked again."""
        cloud, ahead, count = self.cloud, self.cloud.ahead, self.cloud.log_weights.shape[1]
        values = cloud.log_weights if cloud.values is None else cloud.values
        if not self.is_final and ahead is not None and ahead.ranks is not None:
            values = ahead.ranks.amax(1).unflatten(0, (-1, count))
        best = values.argmax(1) + count * torch.arange(len(values), device=values.device)
        if cloud.final is not None:
            return cloud.final.images[best.to(cloud.final.images.device)].detach()
        with torch.no_grad():
            latents = self.clean[best.to(self.clean.device)]
            return self.law.rows(latents).decode(latents)

    def result(self) -> AlignmentResult:
        """What the run returns if it ends here; before its end, the clean look-aheads are decoded and scored."""
        started = time.perf_counter()
        result = with_smaller_chunks(self.law.execution, self._finished)
        self.law.cost.seconds += time.perf_counter() - started
        return result

    def _finished(self) -> AlignmentResult:
        cloud = self.cloud if self.is_final else replace(self.cloud, x=self.clean, final=None)
        # Of particles that are differentiated, as by noise optimisation, so is the result.
        with torch.set_grad_enabled(cloud.x.requires_grad):
            return self.method.finish(self.law, cloud, self.trace)

    def detached(self) -> Progress:
        """Where the run stands, without the graph of particles that are differentiated."""
        return replace(self, cloud=replace(self.cloud, x=self.cloud.x.detach(), ahead=None, final=None))

    def replace_particles(self, x: Tensor) -> None:
        """Goes on with other particles `[B P, ...]`; what was known of the former ones is forgotten.

        Raises:
            ValueError: the method does not know what its samples came from.
        """
        self.cloud = self.method.replace_particles(self.cloud, x)
        self.__dict__.pop("clean", None)


class InterruptedWithin(Interrupted):
    """Interrupted was a run that another one had begun, such as for a round of a search.

    Attributes:
        latest: where the innermost of them stood.
    """

    def __init__(self, latest: Progress) -> None:
        super().__init__()
        self.latest = latest


def timed(stages: Iterator[Progress], cost: Cost) -> Iterator[Progress]:
    """The stages of a run, whose own time is added to the cost, and not that of who looks at them."""
    while True:
        # Runs within this one have added theirs.
        started, before = time.perf_counter(), cost.seconds
        progress = next(stages, None)
        cost.seconds = before + time.perf_counter() - started
        if progress is None:
            return
        yield progress


def _pictures(images: Tensor) -> list[Image]:
    from torchvision.transforms.v2.functional import to_pil_image

    return [to_pil_image(image) for image in images.float().cpu()]
