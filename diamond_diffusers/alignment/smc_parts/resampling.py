"""Resampling schemes of sequential Monte Carlo, each registered under its name.

A scheme maps the normalised weights `[P]` of one cloud (float64, CPU) to `P` ancestor indices whose expected counts are
`P * weights`, drawing its uniforms from the cloud's own generator. See Chopin & Papaspiliopoulos, *An Introduction to
Sequential Monte Carlo* (2020), chapter 9.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...core.registry import Registry
from ...core.tensors import FLOAT64_DEVICES

ResamplingScheme = Callable[[Tensor, torch.Generator | None], Tensor]
"""Maps normalised weights `[P]` (float64, CPU) and the generator to draw from to ancestor indices `[P]`."""
RESAMPLING_SCHEMES: Registry[ResamplingScheme] = Registry("resampling", "resampling_schemes")


def uniform(count: int, generator: torch.Generator | None) -> Tensor:
    """`count` uniforms in [0, 1), float64 on the CPU, whatever device the generator draws on."""
    device = torch.device("cpu") if generator is None else generator.device
    dtype = torch.float64 if device.type in FLOAT64_DEVICES else torch.float32
    return torch.rand(count, generator=generator, device=device, dtype=dtype).cpu().double()


def invert(weights: Tensor, points: Tensor) -> Tensor:
    """The indices at which the cumulated weights (of any positive sum) pass points in [0, 1)."""
    cumulated = weights.cumsum(0)
    return torch.searchsorted(cumulated / cumulated[-1], points, right=True).clamp(max=len(weights) - 1)


@RESAMPLING_SCHEMES.register("multinomial")
def multinomial(weights: Tensor, generator: torch.Generator | None) -> Tensor:
    """Independent draws."""
    return invert(weights, uniform(len(weights), generator))


@RESAMPLING_SCHEMES.register("stratified")
def stratified(weights: Tensor, generator: torch.Generator | None) -> Tensor:
    """One uniform in each of P equal strata."""
    count = len(weights)
    return invert(weights, (torch.arange(count) + uniform(count, generator)) / count)


@RESAMPLING_SCHEMES.register("systematic")
def systematic(weights: Tensor, generator: torch.Generator | None) -> Tensor:
    """One uniform shared by P equal strata."""
    count = len(weights)
    return invert(weights, (torch.arange(count) + uniform(1, generator)) / count)


@RESAMPLING_SCHEMES.register("residual")
def residual(weights: Tensor, generator: torch.Generator | None) -> Tensor:
    """The whole parts of `P * weights` for certain, multinomial draws for the rest."""
    count = len(weights)
    whole = torch.floor(count * weights).long()
    certain = torch.repeat_interleave(torch.arange(count), whole)
    missing = count - len(certain)
    if missing == 0:
        return certain
    return torch.cat([certain, invert(count * weights - whole, uniform(missing, generator))])


@RESAMPLING_SCHEMES.register("ssp")
def ssp(weights: Tensor, generator: torch.Generator | None) -> Tensor:
    """Srinivasan sampling process: rounds `P * weights` pairwise, so that each count is one of two neighbours.

    Gerber, Chopin & Whiteley, *Negative association, ordering and convergence of resampling methods* (2019).
    """
    count = len(weights)
    expected = (count * weights).tolist()
    counts = [int(e + 1e-9) for e in expected]
    fractions = [e - c for e, c in zip(expected, counts, strict=True)]
    draws = uniform(count, generator).tolist()
    pending = 0
    for i in range(1, count):
        rise = min(fractions[i], 1 - fractions[pending])
        fall = min(fractions[pending], 1 - fractions[i])
        # Move the pair in opposite directions, without bias, until one of the two is whole.
        change = rise if draws[i] * (rise + fall) < fall else -fall
        fractions[pending] += change
        fractions[i] -= change
        finished = pending if min(fractions[pending], 1 - fractions[pending]) < 1e-9 else i
        counts[finished] += round(fractions[finished])
        pending = i if finished == pending else pending
    counts[pending] += round(fractions[pending])
    return torch.repeat_interleave(torch.arange(count), torch.tensor(counts))


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """`(sum w)^2 / sum w^2` over the last dimension: exactly P for equal weights, and 0 where all are zero."""
    largest = log_weights.amax(-1, keepdim=True).clamp(min=torch.finfo(log_weights.dtype).min)
    weights = torch.exp(log_weights - largest)
    # The largest weight is 1, unless there is none.
    return weights.sum(-1).square() / weights.square().sum(-1).clamp(min=1)
