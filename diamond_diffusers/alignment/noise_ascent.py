"""Noise optimisation: ascent of the reward in the noise that sampling starts from."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from ..core.attention import differentiable_attention
from ..core.checks import check_choice, check_counts, check_finite
from ..core.deferred import require
from ..core.tensors import expand, finite_rows, sent
from ..core.values import scaled_rewards
from ..transitions.base import Transition
from .faults import NotFiniteError
from .law import Law
from .noise_rounds import NoiseRounds, Sample, plain_sample
from .out_of_memory import with_smaller_chunks
from .random_source import RandomSource
from .scalings import limited

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    "adam": partial(torch.optim.Adam, eps=1e-2),
}
"""By name, with the settings of ReNO. They treat each number by itself, so that every image has a state of its own."""


@dataclass(frozen=True)
class NoiseAscent(NoiseRounds):
    """Improves the noise of each particle step by step, and keeps the sample of the highest reward.

    The objective of the noise `eps` of `d` numbers, sampled to `z(eps)` by every step of the model's own loop, is
    ::

        reward_scale * reward(z(eps)) + regularization_weight * ((d - 1) log |eps| - |eps|^2 / 2)

    whose second term is the log-density of the norm of standard normal noise (a chi distribution). What a stochastic
    transition draws is the same in every iteration. The first noise tried is the one that plain sampling starts from,
    and among equal rewards the first is kept, so that a `reward_scale` of 0 returns the plain sample.

    A callback is called once an iteration: see `NoiseRounds`. Subclasses say how the reward's gradient is found.

    Args:
        num_iterations: noises tried of each particle, the plain one included. With the default a run costs as much as
            the searches over noises by default, 16 plain samples; ReNO takes 50.
        optimizer: a name in `OPTIMIZERS`.
        learning_rate: of the optimiser.
        max_gradient_norm: limit of the norm of each particle's gradient; None for no limit.
        regularization_weight: of the norm's log-density, at least 0.
        transition: how particles move; None for how the stock pipeline moves them.
        num_particles: noises of each image that are optimised; the best is returned.
    """

    num_iterations: int = 6
    optimizer: str = "sgd"
    learning_rate: float = 5.0
    max_gradient_norm: float | None = 0.1
    regularization_weight: float = 0.01
    transition: Transition | None = None
    num_particles: int = 1

    grows = "num_iterations"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(num_iterations=self.num_iterations)
        check_finite(learning_rate=self.learning_rate, regularization_weight=self.regularization_weight)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        for name in ("learning_rate", "max_gradient_norm"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}; give a number above 0")
        if not self.regularization_weight >= 0:
            raise ValueError(f"regularization_weight is {self.regularization_weight}; give at least 0")

    @abstractmethod
    def sample_and_gradient(self, sampler: NoiseSampler, noise: Tensor) -> tuple[Sample, Tensor]:
        """Samples of the noises `[N, ...]`, and the gradient there, `[N, ...]`, of their scaled reward.

        Where there are constraints, it is that of `reward_scale * reward - violation`.
        """

    def num_stages(self, law: Law, levels: Sequence[float]) -> int:
        return self.num_iterations

    def rounds(
        self, law: Law, x: Tensor, levels: Sequence[float], random: RandomSource
    ) -> Iterator[tuple[Sample, Sample]]:
        sampler = NoiseSampler(law, self.moves, levels, random, self.num_particles)
        noise, best = x.detach().clone(), None
        optimizer = OPTIMIZERS[self.optimizer]([noise], lr=self.learning_rate, maximize=True)
        for iteration in range(self.num_iterations):
            ascends = iteration < self.num_iterations - 1
            sampled = partial(self._sampled, sampler, noise, ascends, len(sampler.driving))
            sample, gradient = with_smaller_chunks(law.execution, sampled, random)
            best = sample if best is None else best.improved_by(sample, law)
            yield sample, best
            if gradient is not None:
                noise.grad = self.clipped(gradient + self.regularization_weight * log_norm_density_gradient(noise))
                optimizer.step()

    def _sampled(
        self, sampler: NoiseSampler, noise: Tensor, ascends: bool, num_drawn: int
    ) -> tuple[Sample, Tensor | None]:
        """The samples and, where the noise is to ascend, the gradient; `num_drawn` steps' driving noise is known."""
        # What was drawn in vain is drawn again.
        del sampler.driving[num_drawn:]
        return self.sample_and_gradient(sampler, noise) if ascends else (sampler(noise), None)

    def clipped(self, gradient: Tensor) -> Tensor:
        """Each row of `[N, ...]` brought to a norm of at most `max_gradient_norm`."""
        if self.max_gradient_norm is None:
            return gradient
        return limited(gradient, gradient.flatten(1).norm(dim=1), self.max_gradient_norm)


@dataclass(frozen=True)
class NoiseSampler:
    """Plain sampling from given noise, with the same driving noise every time.

    Attributes:
        law: whose images have `num_particles` particles each.
        transition: how they move.
        levels: of the run.
        random: what the driving noise is drawn from, when the first noises are sampled.
        num_particles: P.
        driving: the draws `[B P, ...]` of each step.
    """

    law: Law
    transition: Transition
    levels: Sequence[float]
    random: RandomSource
    num_particles: int
    driving: list[Tensor] = field(default_factory=list)

    def __call__(self, noise: Tensor) -> Sample:
        """Samples of `[N, ...]`: of each particle, or of equally many consecutive copies of each."""
        return _joined([self._sample(*part) for part in self._parts(noise)])

    def rewards(self, noise: Tensor) -> tuple[Tensor, Tensor | None]:
        """As of `__call__`, the unscaled rewards `[N]` and the violations `[N]` of constraints alone."""
        parts = [self._sample(*part).evaluation for part in self._parts(noise)]
        violations = [part.violation for part in parts if part.violation is not None]
        return torch.cat([part.total for part in parts]), torch.cat(violations) if violations else None

    @differentiable_attention()
    def differentiated(self, noise: Tensor) -> tuple[Sample, Tensor]:
        """The samples, and the gradients of `reward_scale * reward - violation` in the noises, `[N, ...]`."""
        samples: list[Sample] = []
        gradients: list[Tensor] = []
        # The graph of one part is all that memory must hold.
        for rows, index, groups in self._parts(noise):
            rows = rows.detach().requires_grad_()
            with torch.enable_grad():
                sample = self._sample(rows, index, groups)
                scored, scales = sample.evaluation, self.law.scales()[index // self.num_particles]
                objective = scaled_rewards(scored.total, scales, scored.violation).sum()
            gradients += torch.autograd.grad(objective, rows)
            right = finite_rows(gradients[-1])
            require(right, partial(self._fault_of_gradient, sample.latents.detach(), index, right))
            samples.append(Sample(sample.latents.detach(), sample.evaluation.map(Tensor.detach)))
        return _joined(samples), torch.cat(gradients)

    def _fault_of_gradient(self, latents: Tensor, index: Tensor, right: Tensor) -> NotFiniteError:
        """Why the gradients of samples, of these particles, are not finite where they are not right."""
        # Each row is an image of its own.
        at_rows = self.law.of_images(index // self.num_particles).rows(latents)
        return at_rows.fault_of_gradient(latents, ~right, self.levels[0], preview=False)

    def _parts(self, noise: Tensor) -> Iterator[tuple[Tensor, Tensor, tuple[int, ...]]]:
        """The noises in parts of what is evaluated at once, the particle that each belongs to, and their groups."""
        num_images = self.law.num_images
        count = num_images * self.num_particles
        particles = torch.arange(count).repeat_interleave(len(noise) // count)
        start = 0
        for groups in self.law.execution.parts([len(noise) // num_images] * num_images):
            end = start + sum(groups)
            yield noise[start:end], particles[start:end], groups
            start = end

    def _sample(self, noise: Tensor, particles: Tensor, groups: tuple[int, ...]) -> Sample:
        law = self.law.of_images(particles // self.num_particles, groups)
        return plain_sample(law, self.transition, noise, self.levels, _Repeated(self, particles))


class _Repeated(RandomSource):
    """A source of the driving noise of some particles, each time from the first step."""

    def __init__(self, sampler: NoiseSampler, particles: Tensor) -> None:
        super().__init__(None, sampler.law.num_images)
        self.sampler, self.particles, self.step = sampler, particles, 0

    def normal(self, rows_per_image: int, shape: Sequence[int]) -> Tensor:
        driving = self.sampler.driving
        if self.step == len(driving):
            driving.append(self.sampler.random.normal(self.sampler.num_particles, shape))
        self.step += 1
        return driving[self.step - 1][sent(self.particles, driving[0].device)]


def _joined(samples: Sequence[Sample]) -> Sample:
    first, *others = [sample.evaluation for sample in samples]
    evaluation = first.map(lambda *parts: torch.cat(parts), *others)
    return Sample(torch.cat([sample.latents for sample in samples]), evaluation)


def log_norm_density_gradient(noise: Tensor) -> Tensor:
    """The gradient of `(d - 1) log |eps| - |eps|^2 / 2` in each row `eps` of `[N, ...]`; zero at zero."""
    dimension = noise[0].numel()
    square = noise.flatten(1).square().sum(1).clamp(min=torch.finfo(noise.dtype).tiny)
    return expand((dimension - 1) / square - 1, noise) * noise
