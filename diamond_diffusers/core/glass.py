"""GLASS: exact stochastic transitions out of a pretrained denoiser (Holderrieth et al., arXiv 2509.25170).

To sample `z ~ p(z | x_t)`, an *inner* flow builds a second, independent observation of `z` along
`xbar_s = (1 - s) z + s eps`, `s` from 1 to 0. The observation at hand and the inner one fuse into one sufficient
statistic `(S, kappa*)`, at which the pretrained denoiser `D` gives the velocity of the inner flow:

    d xbar / d s = (xbar_s - D(S, kappa*)) / s
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from .checks import check_choice, check_counts
from .interval import Interval
from .levels import Denoiser, Level, as_level, fuse, signal_and_noise
from .tensors import expand, repeat_each, working_dtype

InnerSolver = Callable[[Tensor, Tensor, Tensor, tuple[Tensor, Tensor] | None], Tensor]
"""Maps `(a, a_next, D_i, (a_previous, D_previous) or None)` to the denoised sample that carries `xbar` to `a_next`.

Times are given as `inner_angle`, of shape `[]` or one a row.
"""


def _euler(a: Tensor, a_next: Tensor, denoised: Tensor, previous: tuple[Tensor, Tensor] | None) -> Tensor:
    return denoised


def _multistep(a: Tensor, a_next: Tensor, denoised: Tensor, previous: tuple[Tensor, Tensor] | None) -> Tensor:
    """DPM-Solver++(2M) (arXiv 2211.01095) with `lambda = log((1 - s) / s)`, which is `-log tan a` and a constant."""
    if previous is None:
        return denoised
    a_previous, previous_denoised = previous
    step = torch.log(torch.tan(a) / torch.tan(a_next))
    step_before = torch.log(torch.tan(a_previous) / torch.tan(a))
    # lambda is infinite at noise, where the angle itself is extrapolated over.
    ratio = torch.where(_is_noise(a_previous), (a_next - a) / (a - a_previous), step / step_before)
    # And at the end, where DPM-Solver takes a step of the first order.
    return _extrapolated(denoised, previous_denoised, torch.where(a_next > 0, ratio / 2, 0.0))


def _exponential(a: Tensor, a_next: Tensor, denoised: Tensor, previous: tuple[Tensor, Tensor] | None) -> Tensor:
    """Integrates the inner flow exactly for a `D` that is linear in `cos a` through the last two evaluations.

    `D = E[z | x] + sigma cos(a) eps` is the whole flow for standard normal data. The first step takes `D` as constant,
    which leaves `D` at its end short of that by the factor `sin a`: the second step makes up for both, so that the flow
    is exact for such data after two steps, wherever they end.
    """
    if previous is None:
        return denoised
    a_previous, previous_denoised = previous
    width = torch.sin(a - a_next)
    # D~ is the mean of D over cot a, since 1 / s = 1 + cot(a) / sigma and d (xbar / s) = D d(1 / s).
    mean_cosine = (torch.sin(a) - torch.sin(a_next)) / width
    ratio = (mean_cosine - torch.cos(a)) / (torch.cos(a) - torch.cos(a_previous))
    # 1 - sin(a_next), without cancellation.
    rest = 2 * torch.sin((math.pi / 2 - a_next) / 2) ** 2
    ratio_of_second = rest / (width * torch.cos(a)) - 1
    return _extrapolated(denoised, previous_denoised, torch.where(_is_noise(a_previous), ratio_of_second, ratio))


def _extrapolated(denoised: Tensor, previous_denoised: Tensor, ratio: Tensor) -> Tensor:
    return denoised + expand(ratio, denoised) * (denoised - previous_denoised)


def _is_noise(a: Tensor) -> Tensor:
    return a == math.pi / 2


INNER_SOLVERS: dict[str, InnerSolver] = {"euler": _euler, "multistep": _multistep, "exponential": _exponential}


def check_inner_options(num_inner_steps: int, solver: str) -> None:
    """Raises a `ValueError` for fewer than one inner step or an unknown solver."""
    check_counts(num_inner_steps=num_inner_steps)
    check_choice("solver", solver, INNER_SOLVERS)


def inner_states(
    denoise: Denoiser,
    x: Tensor,
    noise_to_signal: Level,
    noise: Tensor,
    *,
    num_inner_steps: int,
    stop: float = 0.0,
    solver: str = "exponential",
    denoised: Tensor | None = None,
) -> Iterator[Tensor]:
    """Runs the inner flow from noise at `s = 1` down to `stop`, and yields its state at each of `inner_times`.

    At `s = 1` the statistic is the observation itself, so that all samples of one observation share that evaluation:
    K samples of each of N observations cost `N (1 + K (num_inner_steps - 1))` evaluations.

    Args:
        denoise: the denoiser; called with rows repeated K times each after the first evaluation.
        x: observations `[N, ...]` in the bounded coordinate.
        noise_to_signal: their level.
        noise: standard normal `[N K, ...]`, K consecutive rows for each observation.
        num_inner_steps: number of steps, at least 1.
        stop: last inner time, in `[0, 1)`.
        solver: a name in `INNER_SOLVERS`; each spends one evaluation a step.
        denoised: `D(x, noise_to_signal)`, where it is known already.

    Yields:
        `xbar`, `[N K, ...]`: first the noise, and last the state at `stop`; with `stop = 0` these are samples of
        `p(z | x)`.
    """
    check_inner_options(num_inner_steps, solver)
    if denoised is None:
        denoised = denoise(x, noise_to_signal)
    count = len(noise) // len(x)
    rows, row_level = repeat_each(x, count), repeat_each(as_level(noise_to_signal), count)
    current, previous = repeat_each(denoised.to(working_dtype(x)), count), None
    xbar = noise.to(working_dtype(x))
    yield xbar
    for i, (s, s_next) in enumerate(pairwise(inner_times(num_inner_steps, row_level, stop))):
        if i > 0:
            current = denoise(*query(rows, row_level, xbar, s)).to(working_dtype(x))
        xbar = inner_step(solver, s, s_next, xbar, current, previous, row_level)
        yield xbar
        previous = (s, current)


def inner_angle(s: Level, noise_to_signal: Level) -> Tensor:
    """Inner times on a scale that is even at every outer level: the angle whose tangent is `s / ((1 - s) sigma)`.

    What an inner state adds to an observation is decided where its own noise-to-signal ratio `s / (1 - s)` is about the
    deviation of the posterior, which is `sigma` of the bounded coordinate for standard normal data.
    """
    s = as_level(s)
    _, sigma = signal_and_noise(noise_to_signal)
    return torch.atan2(s, (1 - s) * sigma)


def inner_time(angle: Tensor, noise_to_signal: Level) -> Tensor:
    """The inverse of `inner_angle`."""
    _, sigma = signal_and_noise(noise_to_signal)
    noise, signal = sigma * torch.sin(angle), torch.cos(angle).clamp(min=0)
    return noise / (noise + signal)


def inner_times(num_inner_steps: int, noise_to_signal: Level, stop: float = 0.0) -> Tensor:
    """The times of `num_inner_steps` steps from 1 to `stop`, uniform in `inner_angle`.

    Returns:
        `[num_inner_steps + 1]`, float64; for levels `[N]`, which have times of their own, `[num_inner_steps + 1, N]`.
    """
    level = as_level(noise_to_signal)
    shares = torch.linspace(1, 0, num_inner_steps + 1, dtype=torch.float64, device=level.device)
    last = inner_angle(stop, level)
    times = inner_time(
        torch.lerp(last, torch.full_like(last, math.pi / 2), shares.reshape(-1, *[1] * level.ndim)), level
    )
    # The ends to the bit.
    times[0], times[-1] = 1.0, stop
    return times


def inner_step(
    solver: str,
    s: Level,
    s_next: Level,
    xbar: Tensor,
    denoised: Tensor,
    previous: tuple[Level, Tensor] | None,
    noise_to_signal: Level,
) -> Tensor:
    """Moves the inner state from `s` to `s_next`.

    Args:
        solver: a name in `INNER_SOLVERS`.
        s: inner time in (0, 1].
        s_next: inner time in `[0, s)`.
        xbar: inner states `[N, ...]` at `s`.
        denoised: `D` at `s`.
        previous: `(s, D)` of the step before; None on the first, from noise.
        noise_to_signal: level of the observations.
    """
    if previous is not None:
        previous = inner_angle(previous[0], noise_to_signal), previous[1]
    angles = inner_angle(s, noise_to_signal), inner_angle(s_next, noise_to_signal)
    return toward(xbar, INNER_SOLVERS[solver](*angles, denoised, previous), s, s_next)


def toward(xbar: Tensor, denoised: Tensor, s: Level, r: Level) -> Tensor:
    """`(r / s) xbar + (1 - r / s) D`: `xbar` itself, to the bit, where `r` is `s`."""
    kept = expand(as_level(r) / as_level(s), xbar)
    return kept * xbar + (1 - kept) * denoised


def query(x: Tensor, noise_to_signal: Level, xbar: Tensor, s: Level) -> tuple[Tensor, Tensor]:
    """The sufficient statistic `(S, kappa*)` of an observation and an inner state, in the bounded coordinate."""
    s = as_level(s)
    return fuse(x, noise_to_signal, xbar / expand(torch.hypot(1 - s, s), xbar), s / (1 - s))


def query_level(noise_to_signal: float, s: float) -> float:
    """`kappa*` of `query`: `1 / kappa*^2 = 1 / kappa_t^2 + ((1 - s) / s)^2`."""
    return noise_to_signal if s == 1 else 1 / math.hypot(1 / noise_to_signal, (1 - s) / s)


def sample_posterior(
    denoise: Denoiser,
    x: Tensor,
    noise_to_signal: Level,
    noise: Tensor,
    *,
    num_inner_steps: int,
    solver: str = "exponential",
    denoised: Tensor | None = None,
) -> Tensor:
    """Samples `[N K, ...]` of `p(z | x)`, exact as `num_inner_steps` grows; arguments as of `inner_states`.

    Raises:
        ValueError: more than one sample a row with one inner step, which makes all of them the denoiser point.
    """
    if num_inner_steps == 1 and noise.shape[0] > x.shape[0]:
        raise ValueError(
            "num_inner_steps is 1, which makes all posterior samples the denoiser point; "
            "take num_samples=1 or num_inner_steps >= 2"
        )
    *_, samples = inner_states(
        denoise, x, noise_to_signal, noise, num_inner_steps=num_inner_steps, solver=solver, denoised=denoised
    )
    return samples


@dataclass(frozen=True)
class EarlyStop:
    """Where the inner flow stops on the way from one level to the next, and what its state stands for there.

    Args:
        interval: from the level `kappa_t` of the particle to the level `kappa_u <= kappa_t` to reach.
        correlation: `rho` in `[0, 1]` between the noises at the two levels.

    Raises:
        ValueError: the correlation is out of range.
    """

    interval: Interval
    correlation: float

    def __post_init__(self) -> None:
        if not 0 <= self.correlation <= 1:
            raise ValueError(f"correlation is {self.correlation}; give a number between 0 and 1")

    @property
    def stays(self) -> bool:
        """Whether the particle is there already, so that no inner flow is needed: the same level and the same noise."""
        return self.correlation == 1 and self.interval.end == self.interval.start

    @property
    def gain(self) -> float:
        """The weight `g` of `y_t` in `y_u`."""
        return self.correlation * self.interval.end / self.interval.start

    @property
    def stop(self) -> float:
        """The last inner time, in `[0, 1)`."""
        level = self.interval.end * math.sqrt(1 - self.correlation**2) / (1 - self.gain)
        return level / (1 + level)

    def observation(self, x: Tensor, xbar: Tensor) -> Tensor:
        """`x_u` in the bounded coordinate: `y_u = g y_t + (1 - g) xbar / (1 - s)` at the stop `s`."""
        _, sigma_t = signal_and_noise(self.interval.start)
        alpha_u, sigma_u = signal_and_noise(self.interval.end)
        # g y_t, written so that it stays finite at pure noise.
        kept = expand(as_level(self.correlation * sigma_u / sigma_t), x) * x
        return kept + expand(alpha_u * (1 - self.gain) / (1 - self.stop), x) * xbar


def sample_transition(
    denoise: Denoiser,
    x: Tensor,
    interval: Interval,
    correlation: float,
    noise: Tensor,
    *,
    num_inner_steps: int,
    solver: str = "exponential",
    denoised: Tensor | None = None,
) -> Tensor:
    """Samples `x_u` given `x_t` where their noises have a given correlation, by stopping the inner flow early.

    Args:
        interval: from the level `kappa_t` of `x` to the level `kappa_u <= kappa_t` of the result.
        correlation: `rho` in `[0, 1]` between the noises of `x_t` and `x_u`; `kappa_u / kappa_t` makes the chain
            Markov (DDPM).
        noise: standard normal of the shape of `x`; other arguments as of `inner_states`.

    Returns:
        `x_u` in the bounded coordinate, `[N, ...]`. With one inner step this is the DDIM step of matching eta. `x`
        itself where level and noise stay the same.

    Raises:
        ValueError: the correlation is out of range.
    """
    early_stop = EarlyStop(interval, correlation)
    if early_stop.stays:
        return x.to(working_dtype(x))
    *_, xbar = inner_states(
        denoise,
        x,
        interval.start,
        noise,
        num_inner_steps=num_inner_steps,
        stop=early_stop.stop,
        solver=solver,
        denoised=denoised,
    )
    return early_stop.observation(x, xbar)
