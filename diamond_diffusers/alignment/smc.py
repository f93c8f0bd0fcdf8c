"""Sequential Monte Carlo: particles, weights, resampling, and an estimate of the evidence."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..posteriors import DenoiserPoint, PosteriorSampler
from ..rewards.base import Reward
from ..transitions import Transition
from .base import Alignment, AlignmentResult, Cloud
from .guidance import Guidance
from .look_ahead import LookAhead, look_ahead
from .model import TiltedModel
from .random_source import RandomSource
from .resampling import RESAMPLING_SCHEMES, effective_sample_size
from .trace import Trace


@dataclass(frozen=True)
class SMC(Alignment):
    """Samples the reward-tilted law `p(z) exp(r(z))` with a cloud of particles an image.

    The target at each level is `p_kappa(y) exp(V(y, kappa))`::

        start:      log w = V(y, kappa_max)
        each step:  y' ~ transition(y);  log w += V(y', kappa') - V(y, kappa)
                    where ESS(w) < threshold * P:  log Z += log mean w;  resample;  log w = 0
        end:        V(z, 0) = r(z);  log Z += log mean w

    The value of a particle is carried with it, never drawn again, so that the weights telescope to `exp(r(z))`: with
    exact transitions the final law and `E[exp log Z]` are right for any estimate of `V`, and a better one only lowers
    the variance. With `DenoiserPoint` and one inner step this is FK steering (arXiv 2501.06848).

    Args:
        num_particles: particles P of each image.
        posterior: draws the look-aheads from which values are estimated.
        transition: how particles move; None for `GlassTransition()`, and `RenoiseTransition()` where the model is a
            few-step one. Stochastic, since copies of a particle must part.
        resampling: a name in `RESAMPLING_SCHEMES`.
        resampling_threshold: share of P under which the effective sample size triggers resampling, in [0, 1].
        max_noise_to_signal: values are taken as zero above this level, where look-aheads say little; exact too.
        guidance: tilts the mean of the driving noise towards the reward; the weights account for it exactly. Only its
            gradient, strength and limit are used.
        max_tilt: limit of the norm of that mean, which bounds the variance that it adds to the log-weights.
    """

    num_particles: int = 4
    posterior: PosteriorSampler = field(default_factory=DenoiserPoint)
    transition: Transition | None = None
    resampling: str = "systematic"
    resampling_threshold: float = 0.5
    max_noise_to_signal: float = math.inf
    guidance: Guidance | None = None
    max_tilt: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resampling not in RESAMPLING_SCHEMES:
            raise ValueError(f"resampling is {self.resampling!r}; choose one of {', '.join(RESAMPLING_SCHEMES)}")
        if not 0 <= self.resampling_threshold <= 1:
            raise ValueError(f"resampling_threshold is {self.resampling_threshold}; it must lie between 0 and 1")
        if self.transition is not None and not self.transition.is_stochastic:
            raise ValueError(
                f"transition is {self.transition}, which draws no noise, so copies of a particle would never part; "
                "take GlassTransition() or AncestralTransition()"
            )
        if self.guidance is not None and self.guidance.gradient == "tilted_mean" and self.posterior.num_samples < 2:
            raise ValueError(
                "guidance uses gradient='tilted_mean', which compares look-aheads, but the posterior of SMC draws "
                f"{self.posterior.num_samples}; take GlassPosterior(num_samples=4) or gradient='pathwise'"
            )

    @property
    def needs_reward_gradient(self) -> bool:
        return self.guidance is not None and self.guidance.needs_reward_gradient

    def check(self, reward: Reward | None) -> None:
        super().check(reward)
        if self.guidance is not None:
            self.guidance.check(reward)

    def step(
        self,
        model: TiltedModel,
        cloud: Cloud,
        noise_to_signal: float,
        next_noise_to_signal: float,
        random: RandomSource,
        is_last: bool,
    ) -> Cloud:
        if cloud.ahead is None:
            cloud = self._start(model, cloud, noise_to_signal, random)
        network = model.network(model.owners(self.num_particles, cloud.x.device))
        noise, log_ratio = self._propose(cloud, noise_to_signal, next_noise_to_signal, random)
        x = self.transition.step(network, cloud.x, noise_to_signal, next_noise_to_signal, cloud.ahead.predicted, noise)
        final = None
        if is_last:
            final = model.evaluate(x, model.owners(self.num_particles, x.device))
            ahead = LookAhead(None, model.reward_scale * final.total.to(x.device))
        else:
            ahead = self._look_ahead(model, x, next_noise_to_signal, random)
        increment = ahead.values.double() - cloud.ahead.values.double() + log_ratio
        log_weights = cloud.log_weights + increment.unflatten(0, (-1, self.num_particles))
        moved = Cloud(x, log_weights, cloud.log_evidence, ahead, final, ahead.figures(self.num_particles))
        return moved if is_last else self._resample(moved, random)

    def replace_particles(self, cloud: Cloud, x: Tensor) -> Cloud:
        """The new particles take over the weights, in which their own values will stand for the old ones."""
        values = cloud.ahead.values.double().unflatten(0, (-1, self.num_particles))
        return replace(super().replace_particles(cloud, x), log_weights=cloud.log_weights - values)

    def finish(self, model: TiltedModel, cloud: Cloud, trace: Trace) -> AlignmentResult:
        result = super().finish(model, cloud, trace)
        log_weights = cloud.log_weights
        if cloud.ahead is None:
            log_weights = log_weights + model.reward_scale * result.rewards.to(log_weights)
        return replace(
            result,
            log_weights=torch.log_softmax(log_weights, 1),
            log_evidence=cloud.log_evidence + _log_mean(log_weights),
        )

    def _start(self, model: TiltedModel, cloud: Cloud, noise_to_signal: float, random: RandomSource) -> Cloud:
        """Puts the values into the weights, at the first level or where a callback replaced the particles."""
        ahead = self._look_ahead(model, cloud.x, noise_to_signal, random)
        values = ahead.values.double().unflatten(0, (-1, self.num_particles))
        return replace(cloud, ahead=ahead, log_weights=cloud.log_weights + values)

    def _look_ahead(self, model: TiltedModel, x: Tensor, noise_to_signal: float, random: RandomSource) -> LookAhead:
        if noise_to_signal > self.max_noise_to_signal:
            network = model.network(model.owners(self.num_particles, x.device))
            predicted = network.predict(x, noise_to_signal) if self.transition.uses_prediction else None
            return LookAhead(predicted, torch.zeros(len(x), device=x.device, dtype=x.dtype))
        gradient = self.guidance.gradient if self.guidance is not None else None
        with_prediction = self.transition.uses_prediction
        return look_ahead(model, self.posterior, x, noise_to_signal, random, gradient, with_prediction)

    def _propose(
        self, cloud: Cloud, noise_to_signal: float, next_noise_to_signal: float, random: RandomSource
    ) -> tuple[Tensor, Tensor | float]:
        """Driving noise `e ~ N(mu, I)` and `log N(e; 0, I) - log N(e; mu, I)`; `mu` is zero without guidance."""
        noise = random.normal(self.num_particles, cloud.x.shape[1:])
        gain = self.transition.tilt_gain(noise_to_signal, next_noise_to_signal)
        if self.guidance is None or cloud.ahead.shift is None or gain == 0:
            return noise, 0.0
        mu = gain * self.guidance.shift(cloud.ahead, noise_to_signal)
        norm = mu.flatten(1).norm(dim=1).clamp(min=torch.finfo(mu.dtype).tiny)
        mu = mu * (self.max_tilt / norm).clamp(max=1).reshape(-1, *[1] * (mu.ndim - 1))
        noise = noise + mu
        return noise, (mu * (mu / 2 - noise)).flatten(1).double().sum(1)

    def _resample(self, cloud: Cloud, random: RandomSource) -> Cloud:
        """Resamples each image's particles where their effective sample size has fallen under the threshold."""
        size = effective_sample_size(cloud.log_weights)
        poor = size < self.resampling_threshold * self.num_particles
        scheme = RESAMPLING_SCHEMES[self.resampling]
        ancestors = torch.arange(self.num_particles).repeat(len(size), 1)
        for image in torch.nonzero(poor.cpu()).flatten().tolist():
            weights = torch.softmax(cloud.log_weights[image], 0).cpu()
            ancestors[image] = scheme(weights, random.of_image(image))
        rows = (ancestors + self.num_particles * torch.arange(len(size))[:, None]).flatten().to(cloud.x.device)
        return replace(
            cloud,
            x=cloud.x[rows],
            ahead=cloud.ahead.rows(rows),
            log_weights=torch.where(poor[:, None], 0.0, cloud.log_weights),
            log_evidence=cloud.log_evidence + torch.where(poor, _log_mean(cloud.log_weights), 0.0),
            figures={**cloud.figures, "effective_sample_size": size, "resampled": poor},
        )


def _log_mean(log_weights: Tensor) -> Tensor:
    return torch.logsumexp(log_weights, 1) - math.log(log_weights.shape[1])
