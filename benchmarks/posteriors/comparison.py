"""How well posterior samplers do what they are for: the law of their look-aheads, and the values that these give.

The reference is GLASS with many steps, whose law is that of the model's own denoiser but for these steps
(arXiv 2509.25170).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import torch
from torch import Tensor

from diamond_diffusers.alignment.law import Law
from diamond_diffusers.core.model import Model
from diamond_diffusers.core.sample_statistics import energy_distance, mean_with_error, total_deviation
from diamond_diffusers.core.values import value
from diamond_diffusers.posteriors.base import PosteriorSampler, PosteriorSamples
from diamond_diffusers.posteriors.denoiser import DenoiserPoint
from diamond_diffusers.posteriors.diamond import DiamondPosterior
from diamond_diffusers.posteriors.flow_map import FlowMapPoint
from diamond_diffusers.posteriors.glass import GlassPosterior
from diamond_diffusers.posteriors.weighted import WeightedPosterior

from .observations import Observations
from .rank_correlation import rank_correlation

REFERENCE = "reference (noise floor)"
LOOK_AHEAD_COUNTS = (1, 2, 4, 8, 16)
"""Of one value estimate."""


@dataclass(frozen=True)
class Settings:
    """What is drawn.

    Attributes:
        levels: of the observations, as times of rectified flow in (0, 1], `kappa = t / (1 - t)`, whatever the family;
            one above the model's largest level stands for that.
        num_samples: samples of the reference for each observation, at least 4; one half is compared with the other.
        reference_steps: GLASS steps of the reference, which cost it as many evaluations.
        seed: of all draws; what is drawn for an observation at a level does not depend on the others.

    Raises:
        ValueError: one of these is out of range.
    """

    levels: Sequence[float] = (0.3, 0.5, 0.7, 0.9, 1.0)
    num_samples: int = 16
    reference_steps: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        in_range = all(0 < level <= 1 for level in self.levels)
        if not self.levels or not in_range or len(set(self.levels)) < len(self.levels):
            raise ValueError(
                f"levels is {list(self.levels)}; give different times of rectified flow, above 0 and up to 1"
            )
        if self.num_samples < 4 or self.num_samples % 2:
            raise ValueError(f"num_samples is {self.num_samples}; give an even number of at least 4")

    @property
    def reference(self) -> GlassPosterior:
        """What samplers are compared with."""
        # The solver that ends closest to the exact flow.
        return GlassPosterior(self.reference_steps, self.num_samples, "exponential")


@dataclass(frozen=True)
class LawDistance:
    """How far look-aheads are from the reference's at one level, in latents, mean over observations.

    Attributes:
        sampler: its name; of `REFERENCE` one half of the samples is compared with the other: the noise floor.
        energy_distance: unbiased: its expectation is 0 where the laws are equal. The halves of the reference do not
            share their noise as a sampler and the reference do, so that a sampler may well be below the floor.
        standard_error: of it, from how observations differ.
        deviation_ratio: the total standard deviation over the sampler's noise, divided by the reference's.
    """

    sampler: str
    level: float
    energy_distance: float
    standard_error: float
    deviation_ratio: float


@dataclass(frozen=True)
class ValueAccuracy:
    """How far estimates of `V = log E[exp(r) | x]` are from those of all the reference's samples.

    Attributes:
        sampler: its name; of `REFERENCE` the error is the standard error of its values, and the rank correlation that
            between the halves of its samples.
        level: None for all levels together.
        num_look_aheads: K of one estimate; as many latents are decoded and scored.
        network_evaluations: of one estimate; one under classifier-free guidance counts 2.
        error: root mean square over observations, in units of the scaled reward.
        rank_correlation: Spearman's over the observations of a level; None where all values are equal. Over all levels
            it is the mean of theirs.
    """

    sampler: str
    level: float | None
    num_look_aheads: int
    network_evaluations: float
    error: float
    rank_correlation: float | None


@dataclass(frozen=True)
class PosteriorBenchmark:
    """What came out.

    Attributes:
        distances: of every sampler without weights, at every level.
        values: of every sampler with every K in `LOOK_AHEAD_COUNTS` that it has drawn, at every level and over all;
            empty where there is no reward.
        left_out: the samplers that the model does not allow, with the reason.
    """

    distances: list[LawDistance]
    values: list[ValueAccuracy]
    left_out: dict[str, str]


def standard_samplers(num_samples: int) -> dict[str, PosteriorSampler]:
    """The compared samplers by name, each with `num_samples` look-aheads unless it is a point."""
    return {
        "denoiser point": DenoiserPoint(),
        "flow-map point, 1 step": FlowMapPoint(1),
        "flow-map point, 4 steps": FlowMapPoint(4),
        "GLASS, 2 steps": GlassPosterior(2, num_samples),
        "GLASS, 4 steps": GlassPosterior(4, num_samples),
        "GLASS, 8 steps": GlassPosterior(8, num_samples),
        "Diamond, 1 step": DiamondPosterior(num_samples, 1),
        "Diamond, 2 steps": DiamondPosterior(num_samples, 2),
        "Weighted, 1 step": WeightedPosterior(num_samples, num_map_steps=1),
        "Weighted, 4 steps": WeightedPosterior(num_samples, num_map_steps=4),
    }


def usable_samplers(
    model: Model, samplers: Mapping[str, PosteriorSampler]
) -> tuple[dict[str, PosteriorSampler], dict[str, str]]:
    """Those that a model allows, and for the others the reason why it does not."""
    usable, left_out = {}, {}
    for name, sampler in samplers.items():
        try:
            sampler.check(model)
            usable[name] = sampler
        except ValueError as reason:
            left_out[name] = str(reason)
    return usable, left_out


@torch.no_grad()
def compare_posteriors(
    law: Law,
    clean: Tensor,
    settings: Settings | None = None,
    samplers: Mapping[str, PosteriorSampler] | None = None,
    on_level: Callable[[int], None] | None = None,
) -> PosteriorBenchmark:
    """Compares posterior samplers at noised clean latents, which all of them see.

    Laws are compared by look-aheads from the noise of the reference, values by others from noise of their own.

    Args:
        law: of `N` images, at least 2; without a reward only the laws are compared.
        clean: a clean latent of each, `[N, ...]`.
        settings: None for the defaults.
        samplers: by name, each with no more samples than the reference; None for `standard_samplers`.
        on_level: gets the number of levels that are done.

    Raises:
        ValueError: the model has no posterior mean, there are too few latents, or a sampler draws too many samples.
    """
    settings = settings or Settings()
    if len(clean) != law.num_images or len(clean) < 2:
        raise ValueError(
            f"clean holds {len(clean)} latents for {law.num_images} images; give one for each of 2 or more"
        )
    settings.reference.check(law.model)
    usable, left_out = usable_samplers(law.model, samplers or standard_samplers(settings.num_samples))
    for name, sampler in usable.items():
        if sampler.num_samples > settings.num_samples:
            raise ValueError(
                f"samplers holds {name!r} with num_samples={sampler.num_samples}, but the reference draws "
                f"{settings.num_samples}; raise num_samples of the settings to that"
            )
    if law.reward is not None:
        # One that fails does so before all the work.
        law.of_images(torch.tensor([0])).rows(clean[:1]).tilt(clean[:1])
    distances, values = [], []
    for done, level in enumerate(settings.levels, start=1):
        observed = Observations.of(law, clean, level, settings.num_samples, settings.seed)
        reference = observed.draw(settings.reference, observed.reference_noise)
        distances += _law_distances(level, observed, reference, usable)
        if law.reward is not None:
            values += _value_accuracies(level, observed, reference, {REFERENCE: settings.reference, **usable})
        if on_level is not None:
            on_level(done)
    return PosteriorBenchmark(distances, values + _over_levels(values), left_out)


def _law_distances(
    level: float, observed: Observations, reference: PosteriorSamples, samplers: Mapping[str, PosteriorSampler]
) -> list[LawDistance]:
    exact = _vectors(reference)
    distances = [_law_distance(REFERENCE, level, *exact.chunk(2, 1), share_noise=False)]
    for name, sampler in samplers.items():
        if not sampler.is_weighted:
            samples = _vectors(observed.draw(sampler, observed.reference_noise))
            distances.append(_law_distance(name, level, samples, exact, share_noise=True))
    return distances


def _vectors(drawn: PosteriorSamples) -> Tensor:
    return drawn.samples.flatten(2).double()


def _law_distance(name: str, level: float, samples: Tensor, exact: Tensor, share_noise: bool) -> LawDistance:
    energy, error = mean_with_error(energy_distance(samples, exact, share_noise))
    ratio = total_deviation(samples) / total_deviation(exact)
    return LawDistance(name, level, energy, error, ratio.item())


def _value_accuracies(
    level: float, observed: Observations, reference: PosteriorSamples, samplers: Mapping[str, PosteriorSampler]
) -> list[ValueAccuracy]:
    rewards, total = observed.score(reference), samplers[REFERENCE].num_samples
    exact = grouped_values(rewards, reference, total)[:, 0]
    first, second = grouped_values(rewards, reference, total // 2).unbind(1)
    # The standard deviation of the mean of two independent halves is half of what they typically differ by.
    error = (first - second).square().mean().sqrt().item() / 2
    cost = observed.network_evaluations(samplers[REFERENCE])
    accuracies = [ValueAccuracy(REFERENCE, level, total, cost, error, rank_correlation(first, second))]
    for name, sampler in samplers.items():
        if name == REFERENCE:
            continue
        # Estimates that shared the reference's noise would share its errors.
        drawn = observed.draw(sampler, observed.sampler_noise)
        rewards = observed.score(drawn)
        for count in (count for count in LOOK_AHEAD_COUNTS if count <= sampler.num_samples):
            estimates = grouped_values(rewards, drawn, count)
            fewer = sampler if count == sampler.num_samples else replace(sampler, num_samples=count)
            cost = observed.network_evaluations(fewer)
            error = (estimates - exact[:, None]).square().mean().sqrt().item()
            correlation = _mean_of_known([rank_correlation(estimate, exact) for estimate in estimates.unbind(1)])
            accuracies.append(ValueAccuracy(name, level, count, cost, error, correlation))
    return accuracies


def grouped_values(rewards: Tensor, drawn: PosteriorSamples, count: int) -> Tensor:
    """The values `[N, G]` that each of the `G` groups of `count` look-aheads gives, from scaled rewards `[N, K]`."""
    num_groups = rewards.shape[1] // count
    groups = [
        numbers[:, : num_groups * count].reshape(-1, count) for numbers in (rewards, drawn.log_weights.to(rewards))
    ]
    return value(*groups).unflatten(0, (-1, num_groups))


def _over_levels(values: Sequence[ValueAccuracy]) -> list[ValueAccuracy]:
    """The same samplers with the same K over all levels."""
    kinds: dict[tuple[str, int], list[ValueAccuracy]] = {}
    for accuracy in values:
        kinds.setdefault((accuracy.sampler, accuracy.num_look_aheads), []).append(accuracy)
    return [
        ValueAccuracy(
            sampler,
            None,
            count,
            fmean(one.network_evaluations for one in levels),
            fmean(one.error**2 for one in levels) ** 0.5,
            _mean_of_known([one.rank_correlation for one in levels]),
        )
        for (sampler, count), levels in kinds.items()
    ]


def _mean_of_known(numbers: Sequence[float | None]) -> float | None:
    known = [number for number in numbers if number is not None]
    return fmean(known) if known else None
