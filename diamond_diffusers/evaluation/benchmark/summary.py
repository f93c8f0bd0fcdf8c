"""The rows of a comparison's tables: figures of one method at one budget."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ...rewards.clip import CLIPBasedReward
from ..scoring.diversity import diversities
from ..scoring.statistics import Estimate, clustered_mean, mean, means_by_group, paired_difference
from ..text_tables import flat_row
from .compare import method_folder
from .plan import EVALUATIONS, REFERENCES, Entry, Plan, SizedMethod
from .records import AGAIN, Record, image_path

WITHOUT_MAP = "best_without_map"
"""Stands for the best method at a budget that does not evaluate the Diamond Map, where others do."""


@dataclass(frozen=True)
class Summary:
    """One row of the table; intervals are over prompts.

    Attributes:
        budget: budget of each image.
        unit: what the budget limits, as of `Plan.unit`.
        method: the largest method within the budget.
        num_prompts, num_images: numbers of prompts and of images from which the row is computed.
        score: share of images that the judge finds right; None if there is no judge.
        scores: this share by category.
        hard_scores: this share of hard captions (`hard`) and of the others (`other`), where there are both.
        reward: the reward that the method followed, unscaled.
        held_out_rewards: scores by the rewards that no method sees.
        differences: differences in score (in reward, if there is no judge) to each reference method at this budget,
            and to `WITHOUT_MAP`: the method of the highest score among those that do not evaluate the Diamond Map.
        reward_differences: such differences in reward; the method without a map is then that of the highest reward.
        best_without_map: the names of these two methods, by `score` and `reward`.
        diversity: mean distance of two images of one prompt in CLIP space; None if each prompt has one image.
        cost: mean cost of an image; the budget limits its `equivalent_evaluations`, or the time that `spent` tells.
            On a CPU the processors' seconds are among it, as `cpu_seconds`.
        peak_bytes: the most memory that a batch held; None where that is not known.
    """

    budget: float
    unit: str
    method: SizedMethod
    num_prompts: int
    num_images: int
    score: Estimate | None
    scores: dict[str, float]
    hard_scores: dict[str, Estimate]
    reward: Estimate
    held_out_rewards: dict[str, Estimate]
    differences: dict[str, Estimate]
    reward_differences: dict[str, Estimate]
    best_without_map: dict[str, str]
    diversity: Estimate | None
    cost: dict[str, float]
    peak_bytes: int | None

    @property
    def spent(self) -> float:
        """How much of what the budget limits an image has cost."""
        if self.unit == EVALUATIONS:
            return self.cost["equivalent_evaluations"]
        return self.cost.get("cpu_seconds", self.cost["seconds"])

    def flat(self) -> dict[str, Any]:
        """The row as plain numbers and texts under one-level names, for CSV."""
        options = {
            "budget": self.budget,
            "unit": self.unit,
            "method": self.method.name,
            "num_particles": self.method.alignment.num_particles,
            "num_inference_steps": self.method.num_inference_steps,
        }
        rest = [name for name in self.__dataclass_fields__ if name not in ("budget", "unit", "method")]
        return options | flat_row({name: getattr(self, name) for name in rest})


def summarise(
    plan: Plan,
    records: Mapping[str, Sequence[Record]],
    folder: Path,
    clip: CLIPBasedReward | None = None,
    hard: Collection[int] = (),
) -> list[Summary]:
    """The table's rows, budget after budget.

    Args:
        records: the records of each method of the plan, over the same images.
        folder: folder of the images.
        clip: the CLIP in whose space diversity is measured; None to leave diversity out.
        hard: the indices of the hard prompts.
    """
    diversity: dict[str, Estimate | None] = {}
    for method in plan.methods:
        if clip is None:
            break
        paths: dict[int, list[Path]] = {}
        for record in records[method.label]:
            paths.setdefault(record.index, []).append(image_path(method_folder(folder, method), record.key))
        found = diversities(clip, paths, remedy=AGAIN)
        diversity[method.label] = mean(found) if found else None
    rows = []
    for entry in plan.entries:
        others = plan.at(entry.budget)
        rows.append(_summarise(entry, plan.unit, others, records, diversity.get(entry.method.label), hard))
    return rows


def _summarise(
    entry: Entry,
    unit: str,
    others: Sequence[SizedMethod],
    records: Mapping[str, Sequence[Record]],
    diversity: Estimate | None,
    hard: Collection[int],
) -> Summary:
    """The row of a method.

    Args:
        others: all methods of its budget.
        records: of all methods, by label.
    """
    own = records[entry.method.label]
    is_judged = own[0].is_right is not None
    aim = "is_right" if is_judged else "reward"
    by_aim, by_reward = (_references(others, records, name) for name in (aim, "reward"))
    figures = {"score": by_aim, "reward": by_reward} if is_judged else {"reward": by_reward}
    best = {figure: found[WITHOUT_MAP].name for figure, found in figures.items() if WITHOUT_MAP in found}
    right = per_prompt(own, "is_right") if is_judged else []
    by_prompt = {record.index: record.category for record in own}
    costs = [record.cost.as_dict() for record in own]
    processors = [record.cpu_seconds for record in own if record.cpu_seconds is not None]
    known = [record.peak_bytes for record in own if record.peak_bytes is not None]
    return Summary(
        budget=entry.budget,
        unit=unit,
        method=entry.method,
        num_prompts=len(by_prompt),
        num_images=len(own),
        score=_share(own) if is_judged else None,
        scores=means_by_group(right, list(by_prompt.values())) if is_judged else {},
        hard_scores=_hard_shares(own, hard) if is_judged else {},
        reward=mean(per_prompt(own, "reward")),
        held_out_rewards={
            name: mean(_per_prompt(own, [record.held_out_rewards[name] for record in own]))
            for name in own[0].held_out_rewards
        },
        differences=_differences(entry.method, by_aim, records, aim),
        reward_differences=_differences(entry.method, by_reward, records, "reward"),
        best_without_map=best,
        diversity=diversity,
        cost={key: sum(cost[key] for cost in costs) / len(costs) for key in costs[0]}
        | ({"cpu_seconds": fmean(processors)} if len(processors) == len(own) else {}),
        peak_bytes=max(known) if len(known) == len(own) else None,
    )


def _references(
    methods: Sequence[SizedMethod], records: Mapping[str, Sequence[Record]], figure: str
) -> dict[str, SizedMethod]:
    """The methods of a budget to which differences in a figure are reported."""
    found = {method.name: method for method in methods if method.name in REFERENCES}
    without_map = [method for method in methods if not method.uses_diamond_map]
    if 0 < len(without_map) < len(methods):
        means = {method.label: fmean(per_prompt(records[method.label], figure)) for method in without_map}
        found[WITHOUT_MAP] = max(without_map, key=lambda method: means[method.label])
    return found


def _differences(
    method: SizedMethod,
    references: Mapping[str, SizedMethod],
    records: Mapping[str, Sequence[Record]],
    figure: str,
) -> dict[str, Estimate]:
    """The paired differences of a method in a figure to each of the references that it is not itself."""
    own = per_prompt(records[method.label], figure)
    return {
        name: paired_difference(own, per_prompt(records[reference.label], figure))
        for name, reference in references.items()
        if reference != method
    }


def _hard_shares(records: Sequence[Record], hard: Collection[int]) -> dict[str, Estimate]:
    """The share of right images of hard prompts and of the others, where there are both."""
    groups = {
        "hard": [record for record in records if record.index in hard],
        "other": [record for record in records if record.index not in hard],
    }
    return {name: _share(group) for name, group in groups.items()} if all(groups.values()) else {}


def method_names(summaries: Sequence[Summary]) -> list[str]:
    """The names of the methods of all rows, in the order of the largest budget, within which most methods fit."""
    return list(dict.fromkeys(row.method.name for row in sorted(summaries, key=lambda row: -row.budget)))


def per_prompt(records: Sequence[Record], name: str) -> list[float]:
    """The mean of an attribute over the images of each prompt, in the order of the prompts."""
    return _per_prompt(records, [getattr(record, name) for record in records])


def _per_prompt(records: Sequence[Record], values: Sequence[float]) -> list[float]:
    return list(means_by_group(values, [str(record.index) for record in records]).values())


def _share(records: Sequence[Record]) -> Estimate:
    """The share of right images."""
    return clustered_mean([bool(record.is_right) for record in records], [str(record.index) for record in records])
