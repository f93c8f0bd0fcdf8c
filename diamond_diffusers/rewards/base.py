"""What a reward is, and how rewards add up.

A reward maps images `[B, 3, H, W]` in [0, 1] and `B` prompts to `B` scores, higher is better. Rewards are values of a
small algebra: `2 * a + b - 0.5 * c` is a reward again, and reports the scores of `a`, `b` and `c` next to the total.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Self

import torch
from torch import Tensor, nn

GRADIENT_FREE_ALIGNMENTS = "'best_of_n' or 'smc'"


@dataclass(frozen=True)
class RewardOutput:
    """The scores of one batch.

    Attributes:
        total: `[B]`, float32, on the images' device; carries the graph to the images where they require gradients.
        terms: the unweighted scores `[B]` by reward name, float32, for reports: without a graph.
    """

    total: Tensor
    terms: dict[str, Tensor]


class Reward(ABC):
    """Scores images against prompts; subclasses say how in `score`.

    Attributes:
        name: under which scores and errors are reported; an identifier where the reward is to be named in expressions.
        differentiable: whether the scores carry gradients to the pixels.
        licence: of the weights.
        source: the publication or the project that the score comes from.
    """

    name: str
    differentiable: bool = True
    licence: str = "unspecified"
    source: str = "unspecified"

    @abstractmethod
    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """One score per image, higher is better.

        Args:
            images: `[B, 3, H, W]` in [0, 1], of any floating dtype, size and device.
            prompts: `B` of them; the same prompt often comes many times.

        Returns:
            `[B]` finite numbers.
        """

    def evaluate(self, images: Tensor, prompts: Sequence[str]) -> RewardOutput:
        """The checked scores of a batch. A reward that is not differentiable never sees the images' graph.

        Args:
            images: `[B, 3, H, W]` in [0, 1], of any floating dtype, size and device.
            prompts: `B` of them.

        Raises:
            TypeError: `images` is not a floating tensor, `prompts` is a single string, or the score is not a tensor.
            ValueError: the shape of `images` or the number of `prompts` is wrong; the scores have a wrong shape, are
                not finite, or lack the gradient that the reward declares.
        """
        self._check_batch(images, prompts)
        tracked = self._tracks(images)
        with torch.set_grad_enabled(tracked):
            scores = self.score(images if tracked else images.detach(), prompts)
        self._check_scores(scores, prompts)
        if tracked and not scores.requires_grad:
            raise ValueError(
                f"Reward '{self.name}' declares itself differentiable, but its scores carry no gradient to the images; "
                "compute them with torch operations outside `no_grad`, or set `differentiable` to False."
            )
        total = scores.to(images.device, torch.float32)
        return RewardOutput(total, {self.name: total.detach()})

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The checked scores `[B]`; see `evaluate`."""
        return self.evaluate(images, prompts).total

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Moves and casts every torch module that the reward holds as an attribute, in place; returns the reward."""
        for held in vars(self).values():
            if isinstance(held, nn.Module):
                held.to(device=device, dtype=dtype)
        return self

    def probe(
        self,
        device: torch.device | str = "cpu",
        image_size: tuple[int, int] = (64, 64),
        prompt: str = "a photo",
        needs_gradient: bool = False,
    ) -> None:
        """Scores one random image, so that a broken reward fails before the expensive work.

        Args:
            device: where the images of the run will be.
            image_size: height and width.
            prompt: any.
            needs_gradient: whether the run differentiates the reward.

        Raises:
            TypeError, ValueError: as in `evaluate`; and where a gradient is needed, but missing or not finite.
        """
        with torch.inference_mode(False), torch.set_grad_enabled(needs_gradient):
            images = random_image(device, image_size)
            if not needs_gradient:
                self.evaluate(images, [prompt])
                return
            if not self.differentiable:
                raise ValueError(
                    f"Reward '{self.name}' gives no gradients to the pixels; choose an alignment that needs none, "
                    f"{GRADIENT_FREE_ALIGNMENTS}, or another reward."
                )
            total = self.evaluate(images.requires_grad_(), [prompt]).total
            (gradient,) = torch.autograd.grad(total.sum(), images, allow_unused=True)
        if gradient is None or not gradient.isfinite().all():
            found = "no gradient" if gradient is None else "a gradient that is not finite"
            raise ValueError(
                f"Reward '{self.name}' declares itself differentiable, but gives {found} to the pixels of a random "
                f"image; mend its `score`, or set `differentiable` to False."
            )

    def _tracks(self, images: Tensor) -> bool:
        return images.requires_grad and torch.is_grad_enabled() and self.differentiable

    def _check_batch(self, images: Tensor, prompts: Sequence[str]) -> None:
        if not isinstance(images, Tensor) or not images.is_floating_point():
            found = f"dtype {images.dtype}" if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(f"Reward '{self.name}' got images of {found}; give a floating tensor in [0, 1].")
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                f"Reward '{self.name}' got images of shape {list(images.shape)}; give [B, 3, H, W], in RGB."
            )
        if isinstance(prompts, str):
            raise TypeError(f"Reward '{self.name}' got the string prompts={prompts!r}; give a list, one per image.")
        if len(prompts) != len(images):
            raise ValueError(
                f"Reward '{self.name}' got {len(prompts)} prompts for {len(images)} images; give one prompt per image."
            )

    def _check_scores(self, scores: Tensor, prompts: Sequence[str]) -> None:
        if not isinstance(scores, Tensor):
            raise TypeError(
                f"Reward '{self.name}' returned a {type(scores).__name__}; return a tensor with one score per image."
            )
        if scores.shape != (len(prompts),):
            raise ValueError(
                f"Reward '{self.name}' returned scores of shape {list(scores.shape)} for {len(prompts)} images; "
                f"return shape [{len(prompts)}]."
            )
        if not scores.isfinite().all():
            first = int(scores.isfinite().logical_not().nonzero()[0, 0])
            raise ValueError(
                f"Reward '{self.name}' returned {scores[first].item()} for image {first} (prompt {prompts[first]!r}); "
                "scores must be finite: mend its `score`, or load it in float32."
            )

    def _weighted_terms(self) -> list[tuple[float, Reward]]:
        return [(1.0, self)]

    def __mul__(self, factor: float) -> Reward:
        if not isinstance(factor, Real):
            return NotImplemented
        return WeightedSum([(factor * weight, reward) for weight, reward in self._weighted_terms()])

    __rmul__ = __mul__

    def __neg__(self) -> Reward:
        return -1.0 * self

    def __add__(self, other: Reward) -> Reward:
        if not isinstance(other, Reward):
            return NotImplemented
        return WeightedSum(self._weighted_terms() + other._weighted_terms())

    def __radd__(self, other: int) -> Reward:
        # The built-in `sum` starts from the integer 0.
        return self if isinstance(other, Real) and other == 0 else NotImplemented

    def __sub__(self, other: Reward) -> Reward:
        return self + -other if isinstance(other, Reward) else NotImplemented

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


class WeightedSum(Reward):
    """`sum_i weight_i * reward_i`, made by arithmetic on rewards; differentiable where every term is.

    Args:
        terms: at least one pair of a finite weight and a reward. Where two rewards share a name, the scores of the
            second are reported with the suffix `_2`, and so on.

    Raises:
        ValueError: there is no term, or a weight is not finite.
    """

    def __init__(self, terms: Sequence[tuple[float, Reward]]) -> None:
        if not terms:
            raise ValueError("A sum of rewards got terms=[]; give at least one pair of a weight and a reward.")
        for weight, reward in terms:
            if not math.isfinite(weight):
                raise ValueError(f"Reward '{reward.name}' got the weight {weight}; give a finite number.")
        self.weights = [float(weight) for weight, _ in terms]
        self.rewards = [reward for _, reward in terms]
        self.term_names = _distinct([reward.name for reward in self.rewards])
        self.name = _expression(self.weights, [reward.name for reward in self.rewards])
        self.licence = ", ".join(dict.fromkeys(reward.licence for reward in self.rewards))
        self.source = ", ".join(dict.fromkeys(reward.source for reward in self.rewards))

    @property
    def differentiable(self) -> bool:
        """Whether every term is: the gradient of some of the terms would be that of another reward."""
        return all(reward.differentiable for reward in self.rewards)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The weighted sum `[B]` of the terms' checked scores."""
        return self._combine(self._score_terms(images, prompts))

    def evaluate(self, images: Tensor, prompts: Sequence[str]) -> RewardOutput:
        """The total, and the unweighted scores of every term; errors name the term. See `Reward.evaluate`."""
        self._check_batch(images, prompts)
        scores = self._score_terms(images if self._tracks(images) else images.detach(), prompts)
        reported = {name: score.detach() for name, score in zip(self.term_names, scores, strict=True)}
        return RewardOutput(self._combine(scores), reported)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Moves and casts every term, in place; returns the sum."""
        for reward in self.rewards:
            reward.to(device, dtype)
        return self

    def probe(
        self,
        device: torch.device | str = "cpu",
        image_size: tuple[int, int] = (64, 64),
        prompt: str = "a photo",
        needs_gradient: bool = False,
    ) -> None:
        """Probes every term, so that an error names the one at fault. See `Reward.probe`."""
        for reward in self.rewards:
            reward.probe(device, image_size, prompt, needs_gradient)

    def _score_terms(self, images: Tensor, prompts: Sequence[str]) -> list[Tensor]:
        return [reward(images, prompts) for reward in self.rewards]

    def _combine(self, scores: Sequence[Tensor]) -> Tensor:
        return sum(weight * score for weight, score in zip(self.weights, scores, strict=True))

    def _weighted_terms(self) -> list[tuple[float, Reward]]:
        return list(zip(self.weights, self.rewards, strict=True))


def random_image(device: torch.device | str, image_size: tuple[int, int]) -> Tensor:
    """One image `[1, 3, H, W]` of uniform noise, always the same; torch's global generator stays untouched."""
    return torch.rand(1, 3, *image_size, generator=torch.Generator().manual_seed(0)).to(device)


def _distinct(names: Sequence[str]) -> list[str]:
    distinct: list[str] = []
    for name in names:
        candidate, count = name, 1
        while candidate in distinct:
            count += 1
            candidate = f"{name}_{count}"
        distinct.append(candidate)
    return distinct


def _expression(weights: Sequence[float], names: Sequence[str]) -> str:
    parts = []
    for weight, name in zip(weights, names, strict=True):
        magnitude = "" if abs(weight) == 1 else f"{abs(weight):.12g}*"
        parts.append(f"{'-' if weight < 0 else '+'} {magnitude}{name}")
    expression = " ".join(parts)
    return expression.removeprefix("+ ") if weights[0] >= 0 else "-" + expression.removeprefix("- ")
