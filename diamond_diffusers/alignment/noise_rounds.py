"""What search over noises and noise optimisation share: whole samples, round after round, of which the best is kept."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ..core.tensors import where_rows
from ..transitions.base import Transition
from .base import AlignmentResult, RunEnded, StepCallback
from .law import Evaluation, TiltedModel
from .methods.none import NoAlignment
from .random_source import RandomSource
from .trace import Trace, TraceStep


@dataclass(frozen=True)
class NoiseRounds(NoAlignment):
    """Samples noises in rounds, and keeps the sample of the highest reward.

    A callback on the end of a step is called once a round, with the number of the round and the clean latents that it
    led to; it may end the run, but not replace them.

    Subclasses say which noises a round samples.
    """

    needs_reward = True
    default_selection = "best"

    @abstractmethod
    def rounds(
        self, model: TiltedModel, x: Tensor, levels: Sequence[float], random: RandomSource
    ) -> Iterator[tuple[Sample, Sample]]:
        """The samples of each round, and the best of each particle so far; arguments as of `run`."""

    def run(
        self,
        model: TiltedModel,
        x: Tensor,
        levels: Sequence[float],
        random: RandomSource,
        on_step: StepCallback | None = None,
    ) -> AlignmentResult:
        started, seconds = time.perf_counter(), model.cost.seconds
        method = self.resolve(model.family)
        trace, last_step = Trace(), len(levels) - 2
        for index, found in enumerate(method.rounds(model, x, levels, random)):
            sample, best = found
            trace.steps.append(TraceStep(levels[0], **sample.figures(model)))
            try:
                replaced = on_step(index, sample.latents, last_step) if on_step else None
            except RunEnded:
                break
            if replaced is not None:
                raise ValueError(
                    "callback_on_step_end returned other latents, which no noise is known to lead to; let it return "
                    f"none with {type(self).__name__}"
                )
        result = method.finish(model, replace(method.start(model, best.latents, 0), final=best.evaluation), trace)
        model.cost.seconds = seconds + time.perf_counter() - started
        return result


@dataclass(frozen=True)
class Sample:
    """What noises were sampled to.

    Attributes:
        latents: clean, `[N, ...]`.
        evaluation: images and rewards of these.
    """

    latents: Tensor
    evaluation: Evaluation

    def improved_by(self, other: Sample, reward_scale: float) -> Sample:
        """Row by row the one of higher scaled reward; this one where they are equal."""
        mine, theirs = self.evaluation, other.evaluation
        better = reward_scale * theirs.total > reward_scale * mine.total
        terms = {name: where_rows(better, term, mine.terms[name]) for name, term in theirs.terms.items()}
        total, images = where_rows(better, theirs.total, mine.total), where_rows(better, theirs.images, mine.images)
        return Sample(where_rows(better, other.latents, self.latents), Evaluation(total, terms, images))

    def figures(self, model: TiltedModel) -> dict[str, Tensor]:
        """What the trace records of equally many rows of each of the model's images, each `[B]`."""
        values = model.reward_scale * self.evaluation.total.unflatten(0, (model.num_images, -1))
        return {"mean_value": values.mean(1), "best_value": values.amax(1)}


def plain_sample(
    model: TiltedModel, transition: Transition, noise: Tensor, levels: Sequence[float], random: RandomSource
) -> Sample:
    """Plain samples of the noises `[N, ...]`, equally many consecutive ones of each image.

    Args:
        model: whose images they are.
        transition: how they move.
        noise: what sampling starts from.
        levels: of the run.
        random: what stochastic transitions draw from.
    """
    result = NoAlignment(transition, len(noise) // model.num_images).run(model, noise, levels, random)
    terms = {name: term.flatten(0, 1) for name, term in result.reward_terms.items()}
    evaluation = Evaluation(result.rewards.flatten(0, 1), terms, result.images.flatten(0, 1))
    return Sample(result.latents.flatten(0, 1), evaluation)
