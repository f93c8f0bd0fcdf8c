"""The plain and the aligned images of the same prompts from the same seeds."""

from __future__ import annotations

import io
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from PIL.Image import Image

from ..alignment.auto_scale import AutoRewardScale
from ..alignment.base import Method
from ..alignment.methods.none import NoAlignment
from ..families.compat import progress_bar
from ..pipelines.output import DiamondMapPipelineOutput
from ..pipelines.pipeline import DiamondMapPipeline
from ..pipelines.resolution import own_reward_scale
from ..pipelines.shared_budget import SharedBudget
from ..pipelines.watch import Watch
from ..rewards import Reward
from .files import write_bytes, write_image, write_json
from .sheets import OVERVIEWS, SHEET, TRACE, Block, Tile, draw_sheet

RECORD = "record.json"
PACKAGES = ("diamond-diffusers", "diffusers", "torch", "transformers")


@dataclass(frozen=True)
class SideBySide:
    """The plain and the aligned images, image after image: all of the first prompt, then all of the second.

    Attributes:
        prompts: the prompt of each image.
        seeds: the seed of each image.
        plain: the output without alignment; None if it was not asked for.
        aligned: the output with alignment; None if the method is `none`.
        settings: everything on which the images depend.
    """

    prompts: list[str]
    seeds: list[int]
    plain: DiamondMapPipelineOutput | None
    aligned: DiamondMapPipelineOutput | None
    settings: dict[str, Any]

    @property
    def outputs(self) -> dict[str, DiamondMapPipelineOutput]:
        """The runs by name."""
        runs = {"plain": self.plain, "aligned": self.aligned}
        return {name: out for name, out in runs.items() if out is not None}


def draw_side_by_side(
    pipe: DiamondMapPipeline,
    prompts: Sequence[str],
    alignment: Method | Literal["auto"],
    reward: Reward | None,
    seed: int = 0,
    num_images: int = 1,
    reward_scale: float | AutoRewardScale | Literal["auto"] | None = None,
    memory: Mapping[str, Any] | None = None,
    arguments: Mapping[str, Any] | None = None,
    max_network_evaluations: int | None = None,
    with_plain: bool = True,
    max_reward_calls: int | None = None,
    watch: Watch | None = None,
    shared_budget: SharedBudget | None = None,
) -> SideBySide:
    """Draws `num_images` images of each prompt plainly and aligned; image `i` of all has the seed `seed + i`.

    Args:
        alignment: a method, or `"auto"`.
        memory: `particle_batch_size` and `gradient_checkpointing` of the calls, where they are given.
        arguments: arguments of the stock pipeline's `__call__`; None takes the model's default.
        max_network_evaluations: budget of an aligned image.
        with_plain: whether plain images are drawn beside aligned ones.
        max_reward_calls: budget of scores for an aligned image.
        watch: of the aligned call.
        shared_budget: of the aligned call.

    Raises:
        ValueError, TypeError: as `DiamondMapPipeline.__call__`; before anything is drawn.
    """
    if num_images < 1:
        raise ValueError(f"num_images is {num_images}; give at least 1")
    if seed < 0:
        raise ValueError(f"seed is {seed}; give 0 or more")
    seeds = [seed + i for i in range(len(prompts) * num_images)]
    given: dict[str, Any] = {**(arguments or {}), "prompt": list(prompts), "num_images_per_prompt": num_images}
    resolved = pipe.prepare(**given).arguments
    if isinstance(alignment, Method):
        alignment.check(reward)

    budget = {"max_network_evaluations": max_network_evaluations, "max_reward_calls": max_reward_calls}

    def draw(method: Method | str, name: str, own: Mapping[str, Any]) -> DiamondMapPipelineOutput:
        generators = [torch.Generator().manual_seed(each) for each in seeds]
        with progress_bar(pipe.pipeline, desc=name):
            return pipe(
                **given,
                reward=reward,
                alignment=method,
                reward_scale=reward_scale,
                **own,
                **(memory or {}),
                generator=generators,
            )

    # First the call that can be refused.
    is_plain = isinstance(alignment, Method) and not alignment.needs_reward
    ends = {"watch": watch, "shared_budget": shared_budget}
    aligned = None if is_plain else draw(alignment, "aligned", {**budget, **ends})
    plain = draw(NoAlignment(), "plain", {}) if aligned is None or with_plain else None
    ran = aligned or plain
    assert ran is not None, "there are plain images where there are no aligned ones"
    return SideBySide(
        prompts=[prompt for prompt in prompts for _ in range(num_images)],
        seeds=seeds,
        plain=plain,
        aligned=aligned,
        settings={
            "alignment": ran.alignment,
            **({} if ran.choice is None else {"choice": ran.choice}),
            "reward": None if reward is None else reward.name,
            "reward_scale": own_reward_scale(reward, pipe.defaults) if reward_scale is None else reward_scale,
            "particle_batch_size": (memory or {}).get("particle_batch_size"),
            "gradient_checkpointing": (memory or {}).get("gradient_checkpointing"),
            **budget,
            "watch": watch and {"reward": ran.watched and ran.watched.reward, **_counts(watch)},
            "shared_budget": shared_budget
            and {"threshold": shared_budget.threshold, "verifier": ran.shared and ran.shared.verifier},
            "seed": seed,
            "device": pipe.family.device,
            "dtype": pipe.dtype,
            "call": {key: value for key, value in resolved.items() if value is not None},
        },
    )


def _counts(watch: Watch) -> dict[str, int]:
    return {"patience": watch.patience, "every": watch.every}


def save(
    drawn: SideBySide,
    folder: Path,
    settings: Mapping[str, Any],
    costs: Mapping[str, Mapping[str, float]] | None = None,
) -> None:
    """Writes every image, `contact_sheet.png`, `trace.png` where there is a trace, and `record.json`.

    The files of an earlier run in the same folder are removed, so that no image stays beside a record without it.

    Args:
        settings: further settings for the record.
        costs: of what was drawn beside these images, by name.
    """
    _remove_recorded(folder)
    for name, out in drawn.outputs.items():
        for i, image in enumerate(out.images):
            write_image(folder / image_name(name, i), image)
    write_image(folder / SHEET, contact_sheet(drawn))
    if drawn.aligned is not None and drawn.aligned.trace.figures():
        write_bytes(folder / TRACE, _trace_picture(drawn.aligned))
    write_json(folder / RECORD, record(drawn, settings, costs))


def _remove_recorded(folder: Path) -> None:
    """Removes the files of an earlier run from a folder that holds its record; other files stay."""
    if not (folder / RECORD).exists():
        return
    images = re.compile(r"(plain|aligned)_\d{3,}\.png")
    for path in list(folder.iterdir()):
        if path.name in OVERVIEWS or images.fullmatch(path.name):
            path.unlink()
    (folder / RECORD).unlink()


def image_name(run: str, index: int) -> str:
    """The file of image `index` of a run."""
    return f"{run}_{index:03d}.png"


def contact_sheet(drawn: SideBySide) -> Image:
    """Plain and aligned images in pairs, under their prompts and over their rewards."""
    blocks: dict[str, list[Tile]] = {}
    for i, prompt in enumerate(drawn.prompts):
        for name, out in drawn.outputs.items():
            reward = "" if out.rewards is None else f": reward {out.rewards[i]:.2f}"
            if out.constraints_met is not None and not out.constraints_met[i]:
                reward += ", violates a constraint"
            blocks.setdefault(prompt, []).append(Tile(out.images[i], f"{name}{reward}"))
    widest = max(len(tiles) for tiles in blocks.values())
    return draw_sheet([Block(prompt, tiles) for prompt, tiles in blocks.items()], columns=min(widest, 4))


def _trace_picture(out: DiamondMapPipelineOutput) -> bytes:
    picture = io.BytesIO()
    out.trace.plot().savefig(picture, format="png", dpi=150)
    return picture.getvalue()


def record(
    drawn: SideBySide, settings: Mapping[str, Any], costs: Mapping[str, Mapping[str, float]] | None = None
) -> dict[str, Any]:
    """All settings and the results."""
    images = []
    for i, (prompt, seed) in enumerate(zip(drawn.prompts, drawn.seeds, strict=True)):
        runs = {name: _image_facts(out, name, i) for name, out in drawn.outputs.items()}
        images.append({"prompt": prompt, "seed": seed, **runs})
    return {
        "settings": {**settings, **drawn.settings},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "images": images,
        "interrupted": [name for name, out in drawn.outputs.items() if out.interrupted],
        "cost": {name: out.cost.as_dict() for name, out in drawn.outputs.items()} | dict(costs or {}),
        "plan": {name: out.plan and out.plan.as_dict() for name, out in drawn.outputs.items()},
        "watched": {name: vars(out.watched) for name, out in drawn.outputs.items() if out.watched is not None},
        "shared": {name: out.shared.as_dict() for name, out in drawn.outputs.items() if out.shared is not None},
        "stage_calls": {name: out.stage_calls for name, out in drawn.outputs.items() if out.stage_calls is not None},
        "trace": {name: out.trace.as_dict() for name, out in drawn.outputs.items()},
    }


def _image_facts(out: DiamondMapPipelineOutput, name: str, i: int) -> dict[str, Any]:
    return {
        "file": image_name(name, i),
        "reward": None if out.rewards is None else out.rewards[i],
        "reward_terms": {term: values[i] for term, values in out.reward_terms.items()},
        **({} if out.constraints_met is None else {"constraints_met": out.constraints_met[i]}),
        "log_evidence": None if out.log_evidence is None else out.log_evidence[i],
        "reward_scale": None if out.reward_scale is None else out.reward_scale[i],
    }
