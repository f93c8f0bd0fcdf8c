"""The rows of an evaluation's tables: the scores of one set of images by one judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..benchmark.prompts import Prompt
from ..scoring.statistics import (
    Estimate,
    clustered_mean,
    mean,
    mean_of_group_means,
    means_by_group,
    pooled_mean,
)
from ..suites.base import Verdict
from ..text_tables import flat_row
from .images import ImageSet
from .judges import ImageJudge
from .verdicts import StoredVerdict


@dataclass(frozen=True)
class JudgedSet:
    """The scores of a set of images by one judge; intervals are over prompts.

    Attributes:
        image_set: name of the set.
        judge: name of the judge.
        num_prompts, num_images: numbers of prompts and of images.
        score: the judge's score of the set: the mean over its prompts, or over its categories.
        categories: the score of each category.
        parts: further figures of the judge, such as kinds of questions.
        difference: to the first set, over the prompts that both have; None for the first set, or without such prompts.
        num_shared: number of these prompts.
        figures: means of what was known of the images before, such as their budget.
    """

    image_set: str
    judge: str
    num_prompts: int
    num_images: int
    score: Estimate
    categories: dict[str, Estimate]
    parts: dict[str, Estimate]
    difference: Estimate | None
    num_shared: int
    figures: dict[str, float]

    def flat(self) -> dict[str, Any]:
        """The row as plain numbers and texts under one-level names, for CSV."""
        return flat_row(vars(self))


def summarise(
    image_sets: Sequence[ImageSet], judges: Sequence[ImageJudge], verdicts: Sequence[StoredVerdict]
) -> list[JudgedSet]:
    """The rows of all judges, each over all sets."""
    of_pair: dict[tuple[str, str], list[StoredVerdict]] = {}
    for verdict in verdicts:
        of_pair.setdefault((verdict.judge, verdict.image_set), []).append(verdict)
    rows = []
    for judge in judges:
        first = of_pair[judge.name, image_sets[0].name]
        for image_set in image_sets:
            own = of_pair[judge.name, image_set.name]
            rows.append(_row(image_set, judge, own, None if image_set is image_sets[0] else first))
    return rows


def _row(
    image_set: ImageSet, judge: ImageJudge, own: Sequence[StoredVerdict], first: Sequence[StoredVerdict] | None
) -> JudgedSet:
    prompts = [image.prompt for image in image_set.images]
    by_category: dict[str, list[StoredVerdict]] = {}
    for verdict in own:
        by_category.setdefault(verdict.category, []).append(verdict)
    difference, num_shared = (None, 0) if first is None else _difference(judge, own, first)
    return JudgedSet(
        image_set=image_set.name,
        judge=judge.name,
        num_prompts=len(set(map(_cluster, own))),
        num_images=len(own),
        score=_score(judge, own),
        categories={name: _mean(judge, found) for name, found in by_category.items() if name},
        parts=_parts(judge, prompts, own),
        difference=difference,
        num_shared=num_shared,
        figures=_figures(image_set),
    )


def _cluster(verdict: StoredVerdict) -> str:
    """Images of one prompt are drawn, and judged, alike."""
    return f"{verdict.category}\0{verdict.prompt}"


def _mean(judge: ImageJudge, verdicts: Sequence[StoredVerdict]) -> Estimate:
    scores, clusters = [verdict.score for verdict in verdicts], list(map(_cluster, verdicts))
    if not judge.is_share and len(set(scores)) == 1:
        # Noughts of a reward of any range are no outcomes, whose interval would be that of a share.
        return Estimate(scores[0], scores[0], scores[0])
    return clustered_mean(scores, clusters)


def _score(judge: ImageJudge, verdicts: Sequence[StoredVerdict]) -> Estimate:
    if judge.overall == "prompts":
        return _mean(judge, verdicts)
    means = _prompt_means(verdicts)
    return mean_of_group_means(list(means.values()), [cluster.partition("\0")[0] for cluster in means])


def _prompt_means(verdicts: Sequence[StoredVerdict]) -> dict[str, float]:
    return means_by_group([verdict.score for verdict in verdicts], list(map(_cluster, verdicts)))


def _difference(
    judge: ImageJudge, own: Sequence[StoredVerdict], first: Sequence[StoredVerdict]
) -> tuple[Estimate | None, int]:
    """The difference of the scores over the prompts that both sets have."""
    mine, theirs = _prompt_means(own), _prompt_means(first)
    shared = [cluster for cluster in mine if cluster in theirs]
    if not shared:
        return None, 0
    differences = [mine[cluster] - theirs[cluster] for cluster in shared]
    if judge.overall == "prompts":
        return mean(differences), len(shared)
    return mean_of_group_means(differences, [cluster.partition("\0")[0] for cluster in shared]), len(shared)


def _parts(judge: ImageJudge, prompts: Sequence[Prompt], verdicts: Sequence[StoredVerdict]) -> dict[str, Estimate]:
    """The further figures of a judge: means of all scores that images give to them, where prompts are resampled."""
    gathered: dict[str, dict[str, list[float]]] = {}
    for prompt, stored in zip(prompts, verdicts, strict=True):
        verdict = Verdict(stored.score, stored.reason, stored.details)
        for name, scores in judge.parts(prompt, verdict).items():
            gathered.setdefault(name, {}).setdefault(_cluster(stored), []).extend(scores)
    return {name: pooled_mean(list(clusters.values())) for name, clusters in gathered.items()}


def _figures(image_set: ImageSet) -> dict[str, float]:
    """Means over the images of what is known of all of them."""
    known: Mapping[str, float] = image_set.images[0].figures
    shared = [name for name in known if all(name in image.figures for image in image_set.images)]
    return {name: sum(image.figures[name] for image in image_set.images) / len(image_set.images) for name in shared}
