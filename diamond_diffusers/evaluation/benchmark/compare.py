"""Draws the same prompts from the same seeds with every method, and keeps the images and their records."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from ...alignment.trace import FIGURES
from ...core.cost import Cost
from ...miniature.judge import judge
from ...pipelines.calibration import Calibration
from ...pipelines.output import DiamondMapPipelineOutput
from ...pipelines.pipeline import DiamondMapPipeline
from ...rewards import Reward
from ...rewards.parts import names_within
from ..clock import cpu_time
from ..devices import device_name
from ..memory import peak_memory
from ..side_by_side import PACKAGES
from .plan import LeftOut, Plan, SizedMethod
from .prompts import Prompt, Suite
from .records import (
    Batch,
    Key,
    Record,
    RecordFolder,
    fingerprint,
    fingerprint_of_map,
    fingerprint_of_model,
    modules_of,
    pixel_hash,
)


@dataclass(frozen=True)
class Shard:
    """A part of the images of every method, for one of several machines or processes that know nothing of each other.

    Args:
        number: which of them it is, from 1 on.
        count: how many there are.

    Raises:
        ValueError: there is no such part.

    Example:
        >>> Shard(2, 3).of("abcdefg")
        'be'
    """

    number: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise ValueError(
                f"shard is {self.number}/{self.count}; give one from 1/{self.count} to {self.count}/{self.count}"
            )

    def of(self, keys: Sequence[Key]) -> Sequence[Key]:
        """Its share of all images, whichever of them are drawn already."""
        return keys[self.number - 1 :: self.count]


OnBatch = Callable[[str, int, int], None]
"""Gets a method's label, how many images this process has drawn with it, and how many it draws in all."""

MAX_SEED = 999
MAX_INDEX = 999_999


@dataclass(frozen=True)
class Setup:
    """The settings that all methods of a comparison share.

    Attributes:
        pipe: the model.
        model: name of the model, for the record.
        suite: the prompts.
        reward: the reward that the methods follow.
        reward_scale: factor of the reward in the tilted law.
        held_out_rewards: further rewards by which images are scored, and which no method ever sees.
        seed: seed of the run, up to 999; every method draws image `j` of prompt `i` from the seed
            `1_000_000 * (seed + 1000 * j) + i`.
        num_images_per_prompt: number of images of each prompt, each a draw of its own.
        batch_size: number of images in one call.
        particle_batch_size: the most rows of one network call, all of one image; None for all images at once.
        arguments: arguments of the stock pipeline's `__call__` that are not the model's defaults.
        loading: how the model was loaded, for the record: its variant, its LoRAs and the like.
        calibration: by which the terms of `reward` are already measured; None where they are in their own units.
    """

    pipe: DiamondMapPipeline
    model: str
    suite: Suite
    reward: Reward
    reward_scale: float = 1.0
    held_out_rewards: Sequence[Reward] = ()
    seed: int = 0
    num_images_per_prompt: int = 1
    batch_size: int = 25
    particle_batch_size: int | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    loading: Mapping[str, Any] = field(default_factory=dict)
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "num_images_per_prompt"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least 1")
        check_seed(self.seed)
        if any(not 0 <= prompt.index <= MAX_INDEX for prompt in self.suite.prompts):
            raise ValueError(f"prompts have an index outside 0 to {MAX_INDEX}; number them within this range")
        check_held_out(self.held_out_rewards, self.reward)

    def keys(self, prompts: Sequence[Prompt]) -> list[Key]:
        """The keys of all images of some prompts."""
        return [Key(prompt.index, image) for prompt in prompts for image in range(self.num_images_per_prompt)]

    def seed_of(self, key: Key) -> int:
        """The seed of an image."""
        return 1_000_000 * (self.seed + 1000 * key.image) + key.index

    def settings(self) -> dict[str, Any]:
        """Everything that the results depend on, except the method and a Diamond Map that it may evaluate."""
        texts = "\n".join(f"{prompt.index} {prompt.text}" for prompt in self.suite.prompts)
        calibration = {} if self.calibration is None else {"calibration": self.calibration.statistics()}
        return {
            "model": self.model,
            "loading": {name: value for name, value in self.loading.items() if name != "diamond_map"},
            "model_weights": fingerprint_of_model(self.pipe.family),
            "model_defaults": defaults_of(self.pipe),
            "arguments": self.arguments,
            "dtype": str(self.pipe.dtype),
            "reward": self.reward.name if self.calibration is None else self.calibration.reward,
            **calibration,
            "reward_weights": fingerprint(modules_of(vars(self.reward))),
            "reward_scale": self.reward_scale,
            "held_out_rewards": [reward.name for reward in self.held_out_rewards],
            "seed": self.seed,
            "prompts": hashlib.sha256(texts.encode()).hexdigest()[:16],
            "version": version("diamond-diffusers"),
        }

    def settings_of(self, method: SizedMethod) -> dict[str, Any]:
        """What the results of one method depend on beside `settings`.

        Only where it evaluates the Diamond Map is that map among them, so that a run goes on with another map without
        drawing the images of other methods again.
        """
        own = {"alignment": method.alignment, "num_inference_steps": method.num_inference_steps}
        if method.alignment.resolve(self.pipe.family).uses_diamond_map(self.pipe.family):
            own |= {"loading": self.loading, "diamond_map_weights": fingerprint_of_map(self.pipe.family)}
        return own


def defaults_of(pipe: DiamondMapPipeline) -> dict[str, Any]:
    """The defaults of a model's calls but for its method: a comparison names each of its methods."""
    return {name: value for name, value in pipe.defaults.items() if name != "alignment"}


def check_seed(seed: int) -> None:
    """Raises a `ValueError` where a seed of a run is out of range."""
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed is {seed}; give a number from 0 to {MAX_SEED}")


def check_held_out(held_out_rewards: Sequence[Reward], reward: Reward) -> None:
    """Raises a `ValueError` if a held-out reward is also followed by the methods, or named twice."""
    names = [held_out.name for held_out in held_out_rewards]
    followed = names_within(reward)
    for position, held_out in enumerate(held_out_rewards):
        if shared := sorted(names_within(held_out) & followed):
            raise ValueError(f"held_out_rewards holds {shared[0]!r}, which alignment follows; choose another")
        if held_out.name in names[:position]:
            raise ValueError(f"held_out_rewards holds {held_out.name!r} twice; name each reward once")


def method_folder(folder: Path, method: SizedMethod) -> Path:
    """The folder of the images and records of a method."""
    return folder / "images" / method.label


def compare(
    setup: Setup,
    methods: Sequence[SizedMethod],
    prompts: Sequence[Prompt],
    folder: Path,
    on_batch: OnBatch | None = None,
    processes: PartialState | None = None,
    shard: Shard | None = None,
) -> dict[str, list[Record]]:
    """Draws every prompt with every method; images that `folder` holds already are not drawn again.

    Args:
        processes: the processes that share the images, each of which makes this call; None for this process alone.
        shard: the part of the images that is drawn; None for all.

    Returns:
        The records of these images by the label of their method, in the order of the prompts.

    Raises:
        ValueError: the folder holds results of other settings, a held-out reward fails, or a reward knows nothing
            of a prompt; nothing is drawn then.
    """
    for reward in setup.held_out_rewards:
        reward.to(device=setup.pipe.family.device).probe(setup.pipe.family.device)
    for reward in (setup.reward, *setup.held_out_rewards):
        reward.check_prompts([prompt.text for prompt in prompts])
    keys = (shard or Shard()).of(setup.keys(prompts))
    folders = _folders(setup, methods, folder)
    missing = {label: records.missing(keys) for label, records in folders.items()}
    if processes is not None:
        # All have to share out the same images.
        processes.wait_for_everyone()
        number, index = processes.num_processes, processes.process_index
        missing = {label: absent[index::number] for label, absent in missing.items()}
    of_index = {prompt.index: prompt for prompt in prompts}
    for method in methods:
        mine = missing[method.label]
        for start in range(0, len(mine), setup.batch_size):
            if on_batch is not None:
                on_batch(method.label, start, len(mine))
            batch = mine[start : start + setup.batch_size]
            draw_batch(setup, method, [of_index[key.index] for key in batch], batch, folders[method.label])
        if on_batch is not None:
            on_batch(method.label, len(mine), len(mine))
    if processes is not None:
        processes.wait_for_everyone()
        for records in folders.values():
            records.read()
    return {label: records.of(keys) for label, records in folders.items()}


def drawn_so_far(
    setup: Setup, plan: Plan, prompts: Sequence[Prompt], folder: Path
) -> tuple[Plan, dict[str, list[Record]]]:
    """What is drawn of a comparison: the plan of those methods that have all their images, with their records.

    The other methods are left out, with how much of each is drawn.

    Raises:
        ValueError: no method has all its images, or the folder holds results of other settings.
    """
    keys, folders = setup.keys(prompts), _folders(setup, plan.methods, folder)
    missing = {label: len(records.missing(keys)) for label, records in folders.items()}
    unfinished = [
        LeftOut(
            entry.budget,
            entry.method.name,
            f"{len(keys) - missing[entry.method.label]} of {len(keys)} images are drawn; run on without --report-only",
        )
        for entry in plan.entries
        if missing[entry.method.label]
    ]
    entries = [entry for entry in plan.entries if not missing[entry.method.label]]
    if not entries:
        raise ValueError(f"output is '{folder}', where of {unfinished[0].name} {unfinished[0].reason}")
    done = replace(plan, entries=entries, left_out=[*plan.left_out, *unfinished])
    return done, {method.label: folders[method.label].of(keys) for method in done.methods}


def _folders(setup: Setup, methods: Sequence[SizedMethod], folder: Path) -> dict[str, RecordFolder]:
    shared = setup.settings()
    return {
        method.label: RecordFolder(method_folder(folder, method), {**shared, **setup.settings_of(method)})
        for method in methods
    }


def draw_batch(
    setup: Setup, method: SizedMethod, prompts: Sequence[Prompt], keys: Sequence[Key], folder: RecordFolder
) -> None:
    """Draws images together, one of each of the prompts, and keeps them with their records."""
    texts = [prompt.text for prompt in prompts]
    batch = Batch(texts, [setup.seed_of(key) for key in keys], setup.particle_batch_size)
    device = setup.pipe.family.device
    with peak_memory(device) as peak, cpu_time(device) as spent:
        out = draw(setup.pipe, setup.reward, setup.reward_scale, method, batch, setup.arguments)
    images = out.images.float().cpu()
    verdicts = judge(images, texts).tolist() if setup.suite.is_judged else [None] * len(texts)
    with torch.no_grad():
        held_out = {reward.name: reward(out.images.float(), texts).tolist() for reward in setup.held_out_rewards}
    if out.constraints_met is not None:
        # A figure of the images beside the reward, which does not say it.
        held_out["constraints met"] = out.constraints_met.float().tolist()
    share, traces, machine = _share(out.cost, len(keys)), _traces(out, len(keys)), machine_facts(setup.pipe)
    assert out.rewards is not None, "a comparison has a reward"
    for row, (prompt, key) in enumerate(zip(prompts, keys, strict=True)):
        image = to_pil_image(images[row])
        record = Record(
            index=key.index,
            image=key.image,
            prompt=prompt.text,
            category=prompt.category,
            seed=batch.seeds[row],
            reward=out.rewards[row].item(),
            reward_terms={name: term[row].item() for name, term in out.reward_terms.items()},
            held_out_rewards={name: scores[row] for name, scores in held_out.items()},
            is_right=verdicts[row],
            cost=share,
            peak_bytes=peak.bytes,
            cpu_seconds=None if spent.seconds is None else spent.seconds / len(keys),
            trace=traces[row],
            pixels=pixel_hash(image),
            batch=batch,
            row=row,
            machine=machine,
        )
        folder.add(record, image)


def draw(
    pipe: DiamondMapPipeline,
    reward: Reward,
    reward_scale: float,
    method: SizedMethod,
    batch: Batch,
    arguments: Mapping[str, Any],
) -> DiamondMapPipelineOutput:
    """The images of a batch as a tensor, one for each of its prompts and seeds."""
    return pipe(
        **arguments,
        prompt=batch.prompts,
        reward=reward,
        reward_scale=reward_scale,
        alignment=method.alignment,
        num_inference_steps=method.num_inference_steps,
        generator=[torch.Generator().manual_seed(seed) for seed in batch.seeds],
        particle_batch_size=batch.particle_batch_size,
        output_type="pt",
    )


def machine_facts(pipe: DiamondMapPipeline) -> dict[str, Any]:
    """The facts on which the last bits of an image depend beside its settings."""
    device = pipe.family.device
    return {
        "device": device_name(device),
        "device_type": device.type,
        "num_threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def _traces(out: DiamondMapPipelineOutput, count: int) -> list[list[dict[str, float]]]:
    """For each image the figures of its steps."""
    traces: list[list[dict[str, float]]] = [[] for _ in range(count)]
    for step in out.trace.steps:
        figures: dict[str, Tensor] = {name: getattr(step, name) for name in FIGURES if getattr(step, name) is not None}
        for row, trace in enumerate(traces):
            trace.append({name: figure[row].item() for name, figure in figures.items()})
    return traces


def _share(cost: Cost, count: int) -> Cost:
    """The cost of one of `count` images that cost the same."""
    return Cost(
        network_evaluations=cost.network_evaluations // count,
        backward_passes=cost.backward_passes // count,
        decodes=cost.decodes // count,
        reward_calls=cost.reward_calls // count,
        reward_requests=cost.reward_requests // count,
        reward_price=cost.reward_price / count,
        seconds=cost.seconds / count,
    )
