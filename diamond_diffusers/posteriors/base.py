"""Posterior samplers: they draw look-aheads, that is, samples of the clean `z` given a noisy observation of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import Field, dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ..core.conversions import WrongTypeError
from ..core.levels import Denoiser, Level
from ..core.model import Model, Sampler
from ..core.network import Network
from ..core.wording import shown


@dataclass(frozen=True)
class PosteriorSamples:
    """`K` weighted samples of `p(z | x)` for each of `N` observations.

    Attributes:
        samples: `[N, K, ...]`.
        log_weights: `[N, K]`, up to a constant for each observation, differentiable in it; zero where the samples are
            equally weighted.
        predicted: what the loaded model predicts at the copies of the observations that the samples come from,
            `[N K, ...]` with its graph, where the sampler has evaluated that; for its `gradient_terms`.
    """

    samples: Tensor
    log_weights: Tensor
    predicted: Tensor | None = None


@dataclass(frozen=True)
class GradientTerms:
    """The terms of the value's gradient besides that of the rewards, for each of `K` copies of `N` observations.

    Attributes:
        log_likelihoods: `log N(y; z_k, kappa^2 I)` up to a constant, `[N, K]`, with a graph to the observations.
        score_differences: `grad_x log p_kappa'(x'_k) - grad_x log p_kappa(x)`, `[N, K, ...]`, without a graph.
    """

    log_likelihoods: Tensor
    score_differences: Tensor


class PosteriorSampler(Sampler, ABC):
    """Draws look-aheads: samples of the clean latent given an observation.

    Attributes:
        num_samples: number K of samples of one observation.
        is_weighted: whether the samples differ in weight, so that their effective sample size is of interest.
        draws_noise: whether the samples depend on `noise`; if not, none is drawn, and `noise` is zero.
        uses_prediction: whether the sampler needs `predicted` of an ordinary model.
        differentiates_predicted: whether gradients of the samples go through `predicted`.
        has_gradient_terms: whether the sampler separates the terms of the value's gradient, as `WeightedPosterior`
            does.

    Example:
        >>> GlassPosterior(num_samples=4).num_samples, DenoiserPoint().draws_noise
        (4, False)
    """

    # Every sampler is a dataclass, though its base is none: `replace` and `fields` take it.
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    num_samples: int
    is_weighted: bool = False
    draws_noise: bool = True
    uses_prediction: bool = True
    differentiates_predicted: bool = True
    has_gradient_terms: bool = False

    def needs_prediction(self, network: Network) -> bool:
        """Whether `sample` needs `predicted` of this network; if nothing needs it, `predicted` is None."""
        return self.uses_prediction

    def without_diamond_map(self, model: Model) -> str:
        return "GlassPosterior()" if model.has_denoiser else "WeightedPosterior(weights='equal')"

    def resolve(self, model: Model) -> Self:
        """This sampler with what the caller left open filled in for a model; by default itself."""
        return self

    @abstractmethod
    def sample(
        self, network: Network, x: Tensor, noise_to_signal: Level, predicted: Tensor | None, noise: Tensor
    ) -> PosteriorSamples:
        """Samples `p(z | x)`, differentiably in `x`.

        Args:
            network: the model; called with `[N, ...]` rows, or with `[N K, ...]`, K consecutive ones of each
                observation.
            x: observations `[N, ...]` in the bounded coordinate.
            noise_to_signal: their level.
            predicted: `network.predict(x, noise_to_signal)`; None where `needs_prediction` says that it is not needed.
            noise: standard normal `[N K, ...]`.
        """

    def gradient_terms(
        self,
        x: Tensor,
        noise_to_signal: Level,
        largest: float,
        noise: Tensor,
        aim: Denoiser,
        aimed: Tensor,
        aimed_at_copies: Tensor | None = None,
    ) -> GradientTerms:
        """The terms of the value's gradient besides that of the rewards; only if `has_gradient_terms`.

        Args:
            x, noise_to_signal, noise: as of `sample`; a level below infinity.
            largest: the highest level of the model, to which copies are renoised at most.
            aim: the clean sample to which the velocity at an observation points.
            aimed: `aim(x, noise_to_signal)`.
            aimed_at_copies: `aim` at the copies of `x`, `[N K, ...]` with its graph, if it is known already.
        """
        raise NotImplementedError(f"{type(self).__name__} has no gradient_terms, which has_gradient_terms asks for")

    def log_proportions(self, log_weights: Tensor, rewards: Tensor, scales: Tensor) -> Tensor:
        """Log-proportions `[N, K]`, up to a constant, in which `gradient_terms` are averaged over the look-aheads.

        By default they are those of the tilted posterior.

        Args:
            log_weights: of the look-aheads, `[N, K]`.
            rewards: their scaled rewards, `[N, K]`.
            scales: what these are scaled by, `[N]`; 0 where constraints alone count.
        """
        return log_weights + rewards


def check_samples(posterior: PosteriorSampler, drawn: object, noise: Tensor) -> None:
    """Checks what a sampler, perhaps of a user's own, has drawn.

    Args:
        posterior: the sampler.
        drawn: what its `sample` returned.
        noise: that it was given, `[N K, ...]`.

    Raises:
        WrongTypeError: these are no `PosteriorSamples`, or of another shape than `[N, K, ...]`.
    """
    name, count = type(posterior).__name__, posterior.num_samples
    wanted = [len(noise) // count, count, *noise.shape[1:]]
    if not isinstance(drawn, PosteriorSamples):
        raise WrongTypeError(
            f"the sample of {name} returned {shown(drawn)}; return equally_weighted(rows, num_samples)"
        )
    for part, shape in ((drawn.samples, wanted), (drawn.log_weights, wanted[:2])):
        if not isinstance(part, Tensor) or list(part.shape) != shape:
            kind = "samples" if part is drawn.samples else "log_weights"
            raise WrongTypeError(f"the sample of {name} returned {kind} {shown(part)}; return them as of shape {shape}")


def equally_weighted(rows: Tensor, num_samples: int) -> PosteriorSamples:
    """Samples of equal weight from rows `[N K, ...]`, K consecutive ones of each observation."""
    samples = rows.unflatten(0, (-1, num_samples))
    return PosteriorSamples(samples, torch.zeros(samples.shape[:2], device=rows.device, dtype=rows.dtype))
