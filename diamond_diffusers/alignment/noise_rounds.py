"""What search over noises and noise optimisation share: whole samples, round after round, of which the best is kept."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from ..core.tensors import where_rows
from ..transitions.base import Transition
from .cloud import Cloud
from .evaluation import Evaluation
from .law import Law
from .methods.none import NoAlignment
from .progress import Progress
from .random_source import RandomSource
from .trace import Trace, TraceStep


@dataclass(frozen=True)
class NoiseRounds(NoAlignment):
    """Samples noises in rounds, and keeps the sample of the highest reward.

    A run stands still after each round, where its particles are the best clean latents so far. Neither they nor the law
    can be replaced there, since every round samples the law that the first one did.

    Subclasses say which noises a round samples.
    """

    needs_reward = True
    default_selection = "best"
    works_in_rounds = True

    @abstractmethod
    def rounds(
        self, law: Law, x: Tensor, levels: Sequence[float], random: RandomSource
    ) -> Iterator[tuple[Sample, Sample]]:
        """The samples of each round, and the best of each particle so far; arguments as of `iterate`.

        A round evaluates what it samples `with_smaller_chunks`.
        """

    @abstractmethod
    def num_stages(self, law: Law, levels: Sequence[float]) -> int:
        """Number of the rounds."""

    def stages(self, law: Law, x: Tensor, levels: Sequence[float], random: RandomSource) -> Iterator[Progress]:
        trace, num_stages = Trace(), self.num_stages(law, levels)
        for index, (sample, best) in enumerate(self.rounds(law, x, levels, random)):
            trace.steps.append(TraceStep(levels[0], **sample.figures(law)))
            progress = Progress(
                self,
                law,
                self.cloud_of(law, best),
                trace,
                index,
                num_stages,
                len(levels) - 2,
                levels[-1],
                True,
                sample.latents,
            )
            yield progress
            if progress.law is not law:
                raise ValueError(
                    f"progress.law was replaced, but the rounds of {type(self).__name__} are compared under one law; "
                    "begin another run"
                )

    def cloud_of(self, law: Law, best: Sample) -> Cloud:
        """The particles that a run has come to, which are clean: the best so far."""
        cloud = self.start(law, best.latents, 0)
        values = law.final_values(best.evaluation).reshape(cloud.log_weights.shape)
        return replace(cloud, final=best.evaluation, values=values)

    def replace_particles(self, cloud: Cloud, x: Tensor) -> Cloud:
        raise ValueError(
            "callback_on_step_end returned other latents, which no noise is known to lead to, or changed an option, "
            f"under which the rounds of {type(self).__name__} would not compare; let it change nothing"
        )


@dataclass(frozen=True)
class Sample:
    """What noises were sampled to.

    Attributes:
        latents: clean, `[N, ...]`.
        evaluation: images and rewards of these.
    """

    latents: Tensor
    evaluation: Evaluation

    def improved_by(self, other: Sample, law: Law) -> Sample:
        """Row by row the one of higher scaled reward; this one where they are equal.

        Args:
            other: as many rows.
            law: whose images have equally many consecutive rows each.
        """
        mine, theirs = self.evaluation, other.evaluation
        better = law.final_values(theirs) > law.final_values(mine)
        evaluation = theirs.map(partial(where_rows, better), mine)
        return Sample(where_rows(better, other.latents, self.latents), evaluation)

    def figures(self, law: Law) -> dict[str, Tensor]:
        """What the trace records of equally many rows of each image, each `[B]`."""
        values = law.values(self.evaluation).unflatten(0, (law.num_images, -1))
        return {"mean_value": values.mean(1), "best_value": values.amax(1)}


def plain_sample(
    law: Law, transition: Transition, noise: Tensor, levels: Sequence[float], random: RandomSource
) -> Sample:
    """Plain samples of the noises `[N, ...]`, equally many consecutive ones of each image.

    Args:
        law: whose images they are.
        transition: how they move.
        noise: what sampling starts from.
        levels: of the run.
        random: what stochastic transitions draw from.
    """
    result = NoAlignment(transition, len(noise) // law.num_images).run(law, noise, levels, random)
    assert result.rewards is not None and result.images is not None, "searches of noises need a reward"
    evaluation = Evaluation(result.rewards, result.reward_terms, result.images, result.violation)
    return Sample(result.latents.flatten(0, 1), evaluation.map(lambda rows: rows.flatten(0, 1)))
