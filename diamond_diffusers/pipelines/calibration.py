"""Calibrates the terms of a reward by plain samples of a model."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch

from ..alignment.methods.none import NoAlignment
from ..core.checks import check_counts
from ..core.wording import shown
from ..files.foreign import ForeignFileError, read_json
from ..files.json_forms import fitted
from ..files.output import whole_file
from ..rewards import Reward, RewardLike
from ..rewards.calibration import ScoreStatistics, TermScores, calibrated
from .resolution import loaded_reward

if TYPE_CHECKING:
    from .output import DiamondMapPipelineOutput
    from .pipeline import DiamondMapPipeline

_IS_CALIBRATION = "take a file that --calibrate or Calibration.save has written"
_OWN = ("prompt", "reward", "alignment", "generator", "num_images_per_prompt", "output_type", "return_dict", "latents")


@dataclass(frozen=True)
class Calibration:
    """What plain samples of a model have shown of the terms of a reward.

    Attributes:
        reward: the sum, as an expression of its terms' names.
        num_samples: how many samples were drawn.
        seed: that they were drawn from.
        terms: mean and deviation of each term's scores.
        cost: of all samples together, by the names of `Cost`.

    Example:
        >>> calibration = calibrate(pipe, "a red star", "miniature + brightness", 2, num_inference_steps=1)
        >>> calibration.apply("miniature + brightness").name
        'standardised(miniature) + standardised(brightness)'
    """

    reward: str
    num_samples: int
    seed: int
    terms: dict[str, ScoreStatistics]
    cost: dict[str, float]

    def apply(self, reward: RewardLike) -> Reward:
        """The reward with these terms measured in standard deviations: `calibrated(reward, self.terms)`.

        Raises:
            ValueError: it has other terms.
        """
        return calibrated(reward, self.terms)

    def statistics(self) -> dict[str, dict[str, float]]:
        """Mean and deviation of each term, as plain values."""
        return {name: asdict(term) for name, term in self.terms.items()}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a file that `load` and the option `--calibration` read.

        Raises:
            OSError: it cannot be written.
        """
        with whole_file(Path(path)) as partial:
            partial.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Reads what `save` has written.

        Raises:
            ForeignFileError: the file is none; it is a `ValueError`.
        """
        found: Self = fitted(read_json(path, _IS_CALIBRATION), cls, f"'{path}'", _IS_CALIBRATION)
        for name, term in found.terms.items():
            if not (abs(term.mean) < float("inf") and 0 < term.standard_deviation < float("inf")):
                raise ForeignFileError(
                    f"terms.{name} of '{path}' is {term.mean} with a deviation of {term.standard_deviation}, which no "
                    f"samples have; {_IS_CALIBRATION}"
                )
        return found


def calibrate(
    pipe: DiamondMapPipeline,
    prompts: str | Sequence[str],
    reward: RewardLike | None = None,
    num_samples: int = 32,
    *,
    seed: int = 0,
    batch_size: int = 8,
    **arguments: Any,
) -> Calibration:
    """Draws plain samples, and takes mean and deviation of each term of a reward from them.

    The samples are of the prompts in turn. The noise of each follows from the seed and its number alone, and from
    nothing that a run with the same seed draws from: a run is the same whether it was calibrated or not.

    Args:
        pipe: the model.
        prompts: one or several texts.
        reward: a sum, in any form that a call takes; None for the model's own reward.
        num_samples: at least 2; the deviation is then known to a factor of about `1 + 1 / sqrt(2 num_samples)`.
        seed: a whole number of at least 0.
        batch_size: samples of one call.
        **arguments: every other argument of a call, such as `num_inference_steps`, except those that follow from these.

    Raises:
        TypeError, ValueError: an argument is out of range, or a term has no deviation.
        RuntimeError: the samples were interrupted.
    """
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    check_counts(num_samples=num_samples, batch_size=batch_size)
    if num_samples < 2:
        raise ValueError(f"num_samples is {num_samples}; give at least 2, which have a deviation")
    if not texts or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"prompts is {shown(prompts)}; give a text or several")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed is {shown(seed)}; give a whole number of at least 0")
    for name in _OWN:
        if name in arguments:
            raise TypeError(f"{name} is given, but calibrate(...) sets it itself; leave it out")
    reward = pipe.defaults.get("reward") if reward is None else reward
    if reward is None:
        raise ValueError("reward is None, and the model has no reward of its own; give reward=...")
    scored = TermScores(loaded_reward(reward, pipe._named_rewards))
    # Of later batches, too.
    scored.check_prompts(texts[:num_samples])
    found = list(_drawn(pipe, texts, scored, num_samples, seed, batch_size, arguments))
    costs = [out.cost.as_dict() for out in found]
    return Calibration(
        scored.name,
        num_samples,
        seed,
        {
            name: ScoreStatistics.of(name, torch.cat([out.reward_terms[name] for out in found]))
            for name in found[0].reward_terms
        },
        {name: sum(cost[name] for cost in costs) for name in costs[0]},
    )


def _drawn(
    pipe: DiamondMapPipeline,
    texts: Sequence[str],
    reward: Reward,
    num_samples: int,
    seed: int,
    batch_size: int,
    arguments: dict[str, Any],
) -> Iterator[DiamondMapPipelineOutput]:
    for start in range(0, num_samples, batch_size):
        numbers = range(start, min(start + batch_size, num_samples))
        out = pipe(
            [texts[number % len(texts)] for number in numbers],
            reward=reward,
            alignment=NoAlignment(),
            generator=[torch.Generator().manual_seed(_seed_of_sample(seed, number)) for number in numbers],
            output_type="pt",
            **arguments,
        )
        if out.interrupted:
            raise RuntimeError(f"The calibration was interrupted at sample {start} of {num_samples}; draw it again")
        yield out


def _seed_of_sample(seed: int, number: int) -> int:
    """A seed below 2**63 that runs, whose seeds are small numbers, do not come by."""
    digest = hashlib.blake2b(f"calibration {seed} {number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1
