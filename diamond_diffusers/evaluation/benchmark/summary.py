"""The rows of a comparison's tables: figures of one method at one budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...rewards.clip import CLIPBasedReward
from ..scoring.diversity import diversities
from ..scoring.statistics import Estimate, clustered_mean, mean, means_by_group, paired_difference
from ..text_tables import flat_row
from .compare import method_folder
from .plan import REFERENCES, Plan, SizedMethod
from .records import AGAIN, Record, image_path


@dataclass(frozen=True)
class Summary:
    """One row of the table; intervals are over prompts.

    Attributes:
        budget: budget of network evaluations for each image.
        method: the largest method within the budget.
        num_prompts, num_images: numbers of prompts and of images from which the row is computed.
        score: share of images that the judge finds right; None if there is no judge.
        scores: this share by category.
        reward: the reward that the method followed, unscaled.
        held_out_rewards: scores by the rewards that no method sees.
        differences: differences in score (in reward, if there is no judge) to each reference method at this budget.
        diversity: mean distance of two images of one prompt in CLIP space; None if each prompt has one image.
        cost: mean cost of an image; the budget limits its `equivalent_evaluations`.
        peak_bytes: the most memory that a batch held; None where that is not known.
    """

    budget: int
    method: SizedMethod
    num_prompts: int
    num_images: int
    score: Estimate | None
    scores: dict[str, float]
    reward: Estimate
    held_out_rewards: dict[str, Estimate]
    differences: dict[str, Estimate]
    diversity: Estimate | None
    cost: dict[str, float]
    peak_bytes: int | None

    def flat(self) -> dict[str, Any]:
        """The row as plain numbers and texts under one-level names, for CSV."""
        options = {
            "budget": self.budget,
            "method": self.method.name,
            "num_particles": self.method.alignment.num_particles,
            "num_inference_steps": self.method.num_inference_steps,
        }
        rest = [name for name in self.__dataclass_fields__ if name not in ("budget", "method")]
        return options | flat_row({name: getattr(self, name) for name in rest})


def summarise(
    plan: Plan, records: Mapping[str, Sequence[Record]], folder: Path, clip: CLIPBasedReward | None = None
) -> list[Summary]:
    """The table's rows, budget after budget.

    Args:
        records: the records of each method of the plan, over the same images.
        folder: folder of the images.
        clip: the CLIP in whose space diversity is measured; None to leave diversity out.
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
        references = {method.name: method for method in plan.at(entry.budget) if method.name in REFERENCES}
        compared = {name: records[method.label] for name, method in references.items() if name != entry.method.name}
        own = records[entry.method.label]
        rows.append(_summarise(entry.budget, entry.method, own, compared, diversity.get(entry.method.label)))
    return rows


def _summarise(
    budget: int,
    method: SizedMethod,
    own: Sequence[Record],
    references: Mapping[str, Sequence[Record]],
    diversity: Estimate | None,
) -> Summary:
    is_judged = own[0].is_right is not None
    aim = "is_right" if is_judged else "reward"
    right = per_prompt(own, "is_right") if is_judged else []
    by_prompt = {record.index: record.category for record in own}
    costs = [record.cost.as_dict() for record in own]
    known = [record.peak_bytes for record in own if record.peak_bytes is not None]
    return Summary(
        budget=budget,
        method=method,
        num_prompts=len(by_prompt),
        num_images=len(own),
        score=_share(own) if is_judged else None,
        scores=means_by_group(right, list(by_prompt.values())) if is_judged else {},
        reward=mean(per_prompt(own, "reward")),
        held_out_rewards={
            name: mean(_per_prompt(own, [record.held_out_rewards[name] for record in own]))
            for name in own[0].held_out_rewards
        },
        differences={
            name: paired_difference(per_prompt(own, aim), per_prompt(others, aim))
            for name, others in references.items()
        },
        diversity=diversity,
        cost={key: sum(cost[key] for cost in costs) / len(costs) for key in costs[0]},
        peak_bytes=max(known) if len(known) == len(own) else None,
    )


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
