"""Any callable as a reward."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .base import Reward, random_image

ScoreFunction = Callable[[Tensor, Sequence[str]], Tensor | Sequence[float]]


class CallableReward(Reward):
    """Any callable `(images, prompts) -> scores` as a reward.

    Args:
        function: maps images `[B, 3, H, W]` in [0, 1] and `B` prompts to a tensor `[B]` or to `B` numbers.
        name: by default the function's own.
        differentiable: whether the scores carry gradients to the pixels. By default this is tried on one random image:
            by `probe` on the run's device, or when the answer is first needed, on the CPU.
    """

    def __init__(self, function: ScoreFunction, name: str | None = None, differentiable: bool | None = None) -> None:
        self.function = function
        self.name = name or getattr(function, "__name__", type(function).__name__)
        self._differentiable = differentiable

    @property
    def differentiable(self) -> bool:
        """Whether gradients reach the pixels, as given or as found on a random image."""
        if self._differentiable is None:
            self.probe()
        return self._differentiable

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The callable's scores; plain numbers become a tensor `[B]`."""
        scores = self.function(images, prompts)
        if isinstance(scores, Tensor) or not hasattr(scores, "__len__"):
            return scores
        return torch.as_tensor(scores, device=images.device)

    def probe(
        self,
        device: torch.device | str = "cpu",
        image_size: tuple[int, int] = (64, 64),
        prompt: str = "a photo",
        needs_gradient: bool = False,
    ) -> None:
        """Finds out whether the callable is differentiable where that was not given, then `Reward.probe`."""
        if self._differentiable is None:
            self._differentiable = self._gives_gradients(random_image(device, image_size), prompt)
        super().probe(device, image_size, prompt, needs_gradient)

    def _gives_gradients(self, image: Tensor, prompt: str) -> bool:
        with torch.inference_mode(False), torch.enable_grad():
            image = image.clone().requires_grad_()
            try:
                scores = self.score(image, [prompt])
            except RuntimeError:
                # `.numpy()`, and with it every PIL-based score, refuses tensors that require gradients; an error of
                # another origin comes back in the probe, which scores the image without them.
                return False
            if not isinstance(scores, Tensor) or not scores.requires_grad:
                return False
            (gradient,) = torch.autograd.grad(scores.sum(), image, allow_unused=True)
        return gradient is not None
