"""Any callable as a reward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..core.attention import differentiable_attention
from .base import Reward
from .checks import refuses_inference_tensors
from .context import check_context, check_signature, select_context, wanted_context
from .probing import random_image
from .returned_scores import read_scores

ScoreFunction = Callable[..., Any]
"""`(images, prompts) -> scores`; it may name `latents`, `noise_to_signal` and `pil_images` as further parameters.

Scores are in any of the forms that `returned_scores.read_scores` lists.
"""


class CallableReward(Reward):
    """Any callable `(images, prompts) -> scores` as a reward.

    Args:
        function: maps images `[B, 3, H, W]` in [0, 1] and `B` prompts to a tensor `[B]`, to `B` numbers, or to what
            else can only mean them: `returned_scores.read_scores` lists the forms. It is also given `latents`,
            `noise_to_signal` or `pil_images` if it names such parameters; see `context.py`.
        name: name of the reward; by default that of the function.
        differentiable: whether the scores carry gradients to the pixels. By default this is tried on one random image:
            by `probe` on the run's device, or on the CPU when the answer is first needed.
        max_batch_size: the largest number of images in one call; None for all at once.
        reads_prompts: whether the scores depend on the prompts. If so, a run without prompts is refused.
        is_free: whether a score costs next to nothing. Say False for a function that asks a model or a service, so that
            a call that is to ask it for more than 200 scores of an image says so before.
        is_dear: whether a score is slow or paid, so that alignment `"auto"` takes methods that ask for few.

    Raises:
        TypeError: `function` cannot be called with images and prompts, or is asynchronous or a generator.
    """

    def __init__(
        self,
        function: ScoreFunction,
        name: str | None = None,
        differentiable: bool | None = None,
        max_batch_size: int | None = None,
        reads_prompts: bool = True,
        is_free: bool = True,
        is_dear: bool = False,
    ) -> None:
        own_name: str = getattr(function, "__name__", type(function).__name__)
        self.name = name or own_name
        check_signature(self.name, function)
        self.function = function
        self.max_batch_size = max_batch_size
        self.reads_prompts = reads_prompts
        self.is_free = is_free
        self.is_dear = is_dear
        self._differentiable = differentiable
        self._num_untold = 0

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        """Whether gradients reach the pixels, as given or as found on a random image.

        Raises:
            ValueError: `differentiable` was not given, and the function needs latents, so that a random image cannot
                tell.
        """
        if self._differentiable is None:
            if self.wanted_context.get("latents"):
                raise ValueError(
                    f"Reward '{self.name}' needs latents, so that it cannot be tried on a random image; say whether "
                    "it is differentiable: CallableReward(function, differentiable=True) or False."
                )
            self._num_untold = self.probe()
            # That has found it out.
            assert self._differentiable is not None
        return self._differentiable

    @cached_property
    def wanted_context(self) -> dict[str, bool]:
        """The further parameters that the function names, and whether each is required."""
        return wanted_context(self.function)

    def score(self, images: Tensor, prompts: Sequence[str], **context: Any) -> Any:
        """What the callable returns, which `evaluate` reads as scores."""
        return self.function(images, prompts, **context)

    def probe(
        self,
        device: torch.device | str = "cpu",
        image_size: tuple[int, int] = (64, 64),
        prompt: str | None = None,
        needs_gradient: bool = False,
        **context: Tensor | float,
    ) -> int:
        """Finds out whether the callable is differentiable, unless that was given, and then calls `Reward.probe`.

        Returns:
            How many images were scored, with those of a trial that `differentiable` has made before.
        """
        scored, self._num_untold = self._num_untold, 0
        if self._differentiable is None:
            image = random_image(device, image_size)
            given = check_context(self.name, image, {"noise_to_signal": 0.0, **context})
            selected = select_context(self.name, self.wanted_context, image, given)
            text = self.example_prompt if prompt is None else prompt
            self._differentiable = self._gives_gradients(image, text, selected)
            scored += 1
        return scored + super().probe(device, image_size, prompt, needs_gradient, **context)

    def _gives_gradients(self, image: Tensor, prompt: str, context: dict[str, Any]) -> bool:
        with torch.inference_mode(False), torch.enable_grad(), differentiable_attention():
            image = image.clone().requires_grad_()
            try:
                scores = read_scores(self.name, self.score(image, [prompt], **context), [prompt], image.device)
            except RuntimeError as error:
                # `.numpy()`, and with it every PIL-based score, refuses tensors that require gradients; an error of
                # another origin comes back in the probe, which scores the image without them, or in the run.
                return refuses_inference_tensors(error)
            if not scores.requires_grad:
                return False
            (gradient,) = torch.autograd.grad(scores.sum(), image, allow_unused=True)
        return gradient is not None
