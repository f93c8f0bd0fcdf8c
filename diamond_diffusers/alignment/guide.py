"""A guide: how the gradient of the value shifts the denoised samples of a step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ..core.checks import check_choice
from ..core.levels import signal_and_noise
from ..core.typed import Typed
from ..posteriors.base import PosteriorSampler
from ..rewards.base import Reward
from .law import Law
from .look_ahead import COMPARING_GRADIENTS, GRADIENTS, REWARD_GRADIENTS, Aim, LookAhead, look_ahead
from .random_source import RandomSource
from .scalings import SCALINGS, limited, root_mean_square


@dataclass(frozen=True)
class Guide(Typed):
    """Replaces the denoiser `D` by the reward-tilted one, `D_r = D + strength * kappa^2 grad_y V`.

    The method `Guidance` follows a guide alone. `SMC` and `PosteriorSMC` take one as their proposal, whose bias their
    weights remove, and `PosteriorResampling` moves the look-ahead that it has chosen by one. Each draws the look-aheads
    from which the value `V` is estimated.

    Args:
        gradient: `pathwise` differentiates network, decoder and reward; `isotropic` decoder and reward only, at no
            further cost of the network; `tilted_mean` needs no derivative but at least two look-aheads; `hybrid` joins
            the pathwise one and the tilted mean in proportion of their errors. With `FlowMapPoint`, `pathwise` is
            FMRG-J and `isotropic` has the direction of FMRG-E (arXiv 2604.27147).
        strength: multiplies the shift; 1 is exact.
        scaling: a name in `SCALINGS`: `exact`; `norm`, which brings each term of the gradient to root-mean-square 1
            before the coefficient, and `sana_sprint_norm` with another coefficient; or `auto`, which gives the change
            of the velocity the size of the velocity.
        max_shift: limit of the shift's root-mean-square, in units of `kappa / sqrt(1 + kappa^2)`, the posterior
            deviation of data of unit variance; None for no limit. It limits the shift of every scaling.
        max_coefficient: limit of the coefficient of the gradient in all scalings but `auto`, which grows without bound
            towards pure noise.
        max_noise_to_signal, min_noise_to_signal: levels between which, both included, there is guidance; beyond them
            no look-aheads are drawn for it. Queries within a transition count by their own level.

    Raises:
        ValueError: an option is unknown or out of range.

    Example:
        >>> SMC(num_particles=8, guide=Guide("pathwise", max_shift=0.5))
        >>> Guidance(guide=Guide("tilted_mean"), posterior=GlassPosterior(num_samples=4))
    """

    gradient: str = "isotropic"
    strength: float = 1.0
    scaling: str = "exact"
    max_shift: float | None = 0.25
    max_coefficient: float = math.inf
    max_noise_to_signal: float = math.inf
    min_noise_to_signal: float = 0.0

    def __post_init__(self) -> None:
        check_choice("gradient", self.gradient, GRADIENTS)
        if not math.isfinite(self.strength):
            raise ValueError(f"strength is {self.strength}; give a finite number, of which 1 is exact")
        if self.max_shift is not None and not self.max_shift > 0:
            raise ValueError(f"max_shift is {self.max_shift}; give a positive number, or None for no limit")
        if not self.max_coefficient > 0:
            raise ValueError(f"max_coefficient is {self.max_coefficient}; give a positive number, or leave it out")
        if not SCALINGS.get(self.scaling).has_coefficient and self.max_coefficient < math.inf:
            raise ValueError(
                f"max_coefficient is {self.max_coefficient}, but scaling={self.scaling!r} has no coefficient; leave it "
                "out, or limit the shift by max_shift"
            )
        if not 0 <= self.min_noise_to_signal <= self.max_noise_to_signal or self.min_noise_to_signal == math.inf:
            raise ValueError(
                f"min_noise_to_signal is {self.min_noise_to_signal} and max_noise_to_signal is "
                f"{self.max_noise_to_signal}; give a finite first one, between 0 and the second"
            )

    @property
    def needs_reward_gradient(self) -> bool:
        """Whether the gradient differentiates the reward."""
        return self.gradient in REWARD_GRADIENTS

    def check_reward(self, reward: Reward) -> None:
        """Raises a `ValueError` where the gradient differentiates the reward and that has none."""
        if self.needs_reward_gradient and not reward.differentiable:
            raise ValueError(
                f"gradient is {self.gradient!r}, but reward {reward.name!r} has no gradient; "
                "use gradient='tilted_mean' with GlassPosterior(num_samples=4) (on a few-step model "
                "WeightedPosterior(num_samples=4)), or alignment 'smc' or 'best_of_n'"
            )

    def check_comparable(self, posterior: PosteriorSampler) -> None:
        """Raises a `ValueError` where the gradient compares look-aheads of which there is one."""
        if self.gradient in COMPARING_GRADIENTS and posterior.num_samples < 2:
            raise ValueError(
                f"gradient is {self.gradient!r}, which compares look-aheads, but the posterior draws "
                f"{posterior.num_samples}; take GlassPosterior(num_samples=4) (on a few-step model "
                "WeightedPosterior(num_samples=4)), on the command line --posterior glass --num-lookaheads 4, or "
                "gradient='pathwise'"
            )

    def acts_at(self, noise_to_signal: float) -> bool:
        """Whether there is guidance at a level."""
        return self.min_noise_to_signal <= noise_to_signal <= self.max_noise_to_signal

    def shift(self, ahead: LookAhead, noise_to_signal: float) -> Tensor:
        """The scaled, limited shift of the denoised samples, `[N, ...]`; zero beyond the levels of guidance."""
        shift = SCALINGS.get(self.scaling).shift(ahead, noise_to_signal, self.max_coefficient)
        shift = self.strength * self.acts_at(noise_to_signal) * shift
        if self.max_shift is None:
            return shift
        _, sigma = signal_and_noise(noise_to_signal)
        return limited(shift, root_mean_square(shift), self.max_shift * sigma)

    def look_ahead(
        self,
        law: Law,
        posterior: PosteriorSampler,
        x: Tensor,
        noise_to_signal: float,
        random: RandomSource,
        *,
        with_prediction: bool = True,
        with_samples: bool = False,
        aim: Aim | None = None,
    ) -> LookAhead:
        """Look-aheads with the gradient in the form that `shift` takes; arguments as of `look_ahead.look_ahead`."""
        scaling = SCALINGS.get(self.scaling)
        return look_ahead(
            law,
            posterior,
            x,
            noise_to_signal,
            random,
            self.gradient,
            with_prediction=with_prediction,
            with_terms=scaling.takes_terms,
            with_drift=scaling.takes_drift,
            with_samples=with_samples,
            aim=aim,
        )
