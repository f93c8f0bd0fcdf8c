"""Comparisons that were never drawn."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from diamond_diffusers import BestOfN, Cost, NoAlignment
from diamond_diffusers.evaluation.benchmark.compare import method_folder
from diamond_diffusers.evaluation.benchmark.plan import Entry, LeftOut, Plan, SizedMethod
from diamond_diffusers.evaluation.benchmark.records import Batch, Record, image_path, pixel_hash
from diamond_diffusers.evaluation.benchmark.report import Comparison
from diamond_diffusers.evaluation.benchmark.summary import summarise

PLAIN = SizedMethod("plain", NoAlignment(), 3, 6)
BEST = {
    12: SizedMethod("best_of_n", BestOfN(num_particles=2), 3, 12),
    24: SizedMethod("best_of_n", BestOfN(num_particles=4), 3, 24),
}
PLAN = Plan(
    [Entry(12, PLAIN), Entry(12, BEST[12]), Entry(24, PLAIN), Entry(24, BEST[24])],
    [LeftOut(12, "dear", "budget is 12, but <method> 'dear' takes 14 [or more]")],
)
PROMPTS = ("a star", "a ring", "a <heart>", "a cross")
CATEGORIES = ("single_object", "single_object", "counting", "counting")


def made_up_records(
    method: SizedMethod, right: list[bool] | None, rewards: list[float], num_images: int = 1, folder: Path | None = None
) -> list[Record]:
    """Image after image of each prompt, with verdicts and rewards as given; written to a folder where there is one."""
    records = []
    for row, reward in enumerate(rewards):
        index, image = divmod(row, num_images)
        picture = Image.new("RGB", (8, 8), (40 * index, 60 * image, method.evaluations))
        record = Record(
            index=index,
            image=image,
            prompt=PROMPTS[index],
            category=CATEGORIES[index],
            seed=index,
            reward=reward,
            reward_terms={"given": reward},
            held_out_rewards={"2*other": 10 * reward},
            is_right=None if right is None else right[row],
            cost=Cost(network_evaluations=method.evaluations, decodes=1, reward_calls=1, seconds=0.5),
            peak_bytes=2**20 * (row + 1),
            cpu_seconds=0.25,
            trace=[{"mean_value": reward, "effective_sample_size": 1.0}, {"mean_value": reward + 1}],
            pixels=pixel_hash(picture),
            batch=Batch([PROMPTS[index]], [index], None),
            row=0,
            machine={},
        )
        if folder is not None:
            path = image_path(method_folder(folder, method), record.key)
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
        records.append(record)
    return records


def made_up_comparison(folder: Path, is_judged: bool = True) -> Comparison:
    """Four prompts at two budgets."""
    verdicts = {6: [False, True, False, False], 12: [True, True, False, False], 24: [True, True, True, False]}
    rewards = {6: [1.0, 2.0, 3.0, 4.0], 12: [2.0, 2.0, 4.0, 4.0], 24: [3.0, 3.0, 5.0, 5.0]}
    records = {
        method.label: made_up_records(
            method, verdicts[method.evaluations] if is_judged else None, rewards[method.evaluations], folder=folder
        )
        for method in PLAN.methods
    }
    return Comparison({"seed": 0, "budgets": [12, 24]}, PLAN, records, summarise(PLAN, records, folder))
