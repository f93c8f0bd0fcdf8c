"""A reward on a device of its own, either always or only while it scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor

from .base import CompositeReward, Reward
from .context import moved_context
from .output import RewardOutput


class PlacedReward(CompositeReward):
    """A reward that scores on one device, whichever device the images are on.

    Use it to keep a large reward on another GPU, or off the GPU between steps. With `rest_device` the reward is on
    `device` only while it scores, and again while its gradient is computed: the scores are then computed once more in
    the backward pass, and nothing is stored between the passes.

    Args:
        reward: the reward to place; from then on `to` changes its dtype, but does not move it.
        device: the device on which it scores.
        rest_device: the device on which it is between calls, such as "cpu"; None for `device`.
    """

    def __init__(
        self, reward: Reward, device: torch.device | str, rest_device: torch.device | str | None = None
    ) -> None:
        super().__init__([reward], reward.name)
        self.device = torch.device(device)
        self.rest_device = None if rest_device is None else torch.device(rest_device)
        reward.to(self.device if rest_device is None else self.rest_device)

    @property
    def default_reward_scale(self) -> float | None:  # type: ignore[override]
        """That of the reward within."""
        return self.rewards[0].default_reward_scale

    @property
    def is_constraint(self) -> bool:  # type: ignore[override]
        """Whether the reward within is."""
        return self.rewards[0].is_constraint

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Casts the reward, in place; it stays on its own device."""
        self.rewards[0].to(dtype=dtype)
        return self

    def evaluate(self, images: Tensor, prompts: Sequence[str], **context: Tensor | float) -> RewardOutput:
        """The scores of the reward within, on the images' device. See `Reward.evaluate`."""
        if self.rest_device is None:
            return self._evaluate(images, prompts, context)
        with torch.no_grad(), self._at_work():
            output = self._evaluate(images, prompts, context)
        if not self._tracks(images, *context.values()):
            return output
        scores = _ScoreAgainBackwards.apply(self, prompts, context, _scores(output), images, context.get("latents"))
        return RewardOutput(scores[0], output.terms, scores[1] if output.violation is not None else None)

    def probe(
        self,
        device: torch.device | str = "cpu",
        image_size: tuple[int, int] = (64, 64),
        prompt: str | None = None,
        needs_gradient: bool = False,
        **context: Tensor | float,
    ) -> int:
        """Probes the reward within where it scores, whatever the device of the run is. See `Reward.probe`."""
        with self._at_work():
            return self.rewards[0].probe(
                self.device, image_size, prompt, needs_gradient, **moved_context(context, self.device)
            )

    def _evaluate(self, images: Tensor, prompts: Sequence[str], context: dict[str, Any]) -> RewardOutput:
        output = self.rewards[0].evaluate(images.to(self.device), prompts, **moved_context(context, self.device))
        terms = {name: term.to(images.device) for name, term in output.terms.items()}
        violation = None if output.violation is None else output.violation.to(images.device)
        return RewardOutput(output.total.to(images.device), terms, violation)

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        if self.rest_device is None:
            yield
            return
        self.rewards[0].to(self.device)
        try:
            yield
        finally:
            self.rewards[0].to(self.rest_device)


def _scores(output: RewardOutput) -> Tensor:
    """What carries a graph: the total and, where there are constraints, their violation."""
    return torch.stack([output.total] if output.violation is None else [output.total, output.violation])


class _ScoreAgainBackwards(torch.autograd.Function):
    """Returns scores that were computed without a graph unchanged; their graph is built in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        placed: PlacedReward,
        prompts: Sequence[str],
        context: dict[str, Any],
        scores: Tensor,
        images: Tensor,
        latents: Tensor | None,
    ) -> Tensor:
        ctx.placed, ctx.prompts, ctx.context = placed, prompts, context
        ctx.save_for_backward(images, latents)
        return scores.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs = [None if saved is None else saved.detach().requires_grad_() for saved in ctx.saved_tensors]
        images, latents = inputs
        context = ctx.context if latents is None else {**ctx.context, "latents": latents}
        leaves = [leaf for leaf in inputs if leaf is not None]
        with torch.enable_grad(), ctx.placed._at_work():
            scores = _scores(ctx.placed._evaluate(images, ctx.prompts, context))
            found = iter(torch.autograd.grad(scores, leaves, gradient, allow_unused=True))
        return None, None, None, None, *(None if leaf is None else next(found) for leaf in inputs)
