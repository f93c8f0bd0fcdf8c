"""The scale of a reward, found from how much the rewards of plain samples differ."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ..core.checks import check_counts
from ..core.typed import Typed
from .smc_parts.resampling import effective_sample_size

NUM_HALVINGS = 60
"""Of the bracket around a logarithm, which leave it right to the last bits."""


@dataclass(frozen=True)
class AutoRewardScale(Typed):
    """Finds the scale of a reward at which the plain model's samples still carry the tilted law.

    That is the scale at which the effective sample size of plain samples, weighted by `exp(scale * reward)`, falls to a
    share of their number. For rewards that are normal with deviation `s` this share is `exp(-(scale * s)^2)` of many
    samples, so that the default of a quarter is `scale = 1.18 / s`: rewards rise by 1.18 deviations, at a distance
    `KL(tilted || plain)` of 0.7 nats. The law then is about as strong as the four particles can carry which SMC has by
    default. A smaller share is a stronger tilt.

    A reward that is multiplied by a factor, or shifted, gets the scale by which the law is the same.

    Args:
        num_samples: plain samples of each prompt. Of 32 the scale is right to about 15 %. They are drawn once a call,
            which costs as much as so many plain images of each prompt.
        effective_share: share of `num_samples` to which the effective sample size falls, above 1 / `num_samples` and
            below 1.

    Raises:
        ValueError: an option is out of range.

    Example:
        >>> scale = AutoRewardScale(num_samples=8, effective_share=0.5)
        >>> out = pipe("a red star", reward="brightness", reward_scale=scale, num_inference_steps=2)
        >>> out.reward_scale.shape
        torch.Size([1])
    """

    num_samples: int = 32
    effective_share: float = 0.25

    def __post_init__(self) -> None:
        check_counts(num_samples=self.num_samples)
        if self.num_samples < 2:
            raise ValueError(f"num_samples is {self.num_samples}; give at least 2, whose rewards can differ")
        if not 1 / self.num_samples < self.effective_share < 1:
            raise ValueError(
                f"effective_share is {self.effective_share}; give a number between 1 / num_samples, here "
                f"{1 / self.num_samples:.3g}, and 1, such as 0.25"
            )

    def of_rewards(self, rewards: Tensor) -> float:
        """The scale for the rewards of plain samples of one prompt, `[num_samples]`.

        Raises:
            ValueError: so many of them are equal, or no numbers, that no scale has the share.
        """
        scored = rewards.double()[rewards.isfinite()]
        is_highest = scored == (scored.max() if len(scored) else math.nan)
        if len(scored) < 2 or int(is_highest.sum()) >= self.effective_share * len(scored):
            raise ValueError(
                f"{len(scored)} of the rewards of {len(rewards)} plain samples are numbers, and "
                f"{int(is_highest.sum())} of them the highest one, so that no scale leaves an effective share of "
                f"{self.effective_share}"
            )
        width = (scored.max() - scored.min()).item()
        # Of rewards from -1 to 0, so that the scale follows a factor of the reward to the last bits.
        levels = (scored - scored.max()) / width
        low = high = 0.0
        while _effective_share(levels, low) <= self.effective_share:
            low -= 1
        while _effective_share(levels, high) > self.effective_share:
            high += 1
        for _ in range(NUM_HALVINGS):
            middle = (low + high) / 2
            if _effective_share(levels, middle) > self.effective_share:
                low = middle
            else:
                high = middle
        return math.exp((low + high) / 2) / width


def _effective_share(rewards: Tensor, log_scale: float) -> float:
    """Of `[N]` samples of these rewards; it falls as the scale rises."""
    log_weights = math.exp(log_scale) * rewards
    return effective_sample_size(log_weights[None]).item() / len(rewards)
