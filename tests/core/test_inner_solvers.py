"""Single steps of the inner solvers, `xbar' = (s' / s) xbar + (1 - s' / s) D~`, against the integral they stand for."""

import math

import pytest
import torch

from diamond_diffusers.core.glass import INNER_SOLVERS

NOISE = math.pi / 2
STEPS = [(NOISE, 1.2, 0.8), (NOISE, 0.8, 0.0), (1.4, 1.1, 0.5), (1.1, 0.7, 0.1), (0.4, 0.2, 0.0)]
"""Angles `a_previous > a > a_next` of inner times."""


def angles(*values):
    return [torch.tensor(value, dtype=torch.float64) for value in values]


def effective_denoised(denoised, a, a_next, count=200_000):
    """The mean of `D` over `u = cot a`, by the midpoint rule: `d (xbar / s) = D d(1 / s)`; at 0, where it tends."""
    if a_next == 0:
        return denoised(a_next)
    low, high = 1 / torch.tan(a), 1 / torch.tan(a_next)
    u = low + (high - low) * (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return denoised(torch.atan2(torch.ones_like(u), u)).mean()


@pytest.mark.parametrize("step", STEPS[2:])
def test_the_exponential_solver_is_exact_where_the_denoised_sample_is_linear_in_the_cosine(step):
    def denoised(angle):
        return 2.0 - 3.0 * torch.cos(angle)

    a_previous, a, a_next = angles(*step)
    stepped = INNER_SOLVERS["exponential"](a, a_next, denoised(a), (a_previous, denoised(a_previous)))
    torch.testing.assert_close(stepped, effective_denoised(denoised, a, a_next), atol=1e-8, rtol=0)


def two_steps(solver, denoised, a, a_next):
    """The change of `xbar / s` (times `sigma`) in two steps from noise, and the exact one, of a `D` that is given."""
    noise, a, a_next = angles(NOISE, a, a_next)
    first = INNER_SOLVERS[solver](noise, a, denoised(noise), None)
    second = INNER_SOLVERS[solver](a, a_next, denoised(a), (noise, denoised(noise)))
    widths = 1 / torch.tan(a), 1 / torch.tan(a_next) - 1 / torch.tan(a)
    exact = effective_denoised(denoised, noise, a_next) * sum(widths)
    return (first * widths[0] + second * widths[1] - exact).abs().item()


def test_the_second_step_of_the_exponential_solver_makes_up_for_the_first():
    """Two steps from noise are of the second order, as if there had been a step before; others' first step is not."""

    def denoised(angle):
        return torch.sin(2 * angle + 1)

    for solver, order in [("euler", 2), ("multistep", 2), ("exponential", 3)]:
        ratio = two_steps(solver, denoised, NOISE - 0.02, NOISE - 0.04) / two_steps(
            solver, denoised, NOISE - 0.01, NOISE - 0.02
        )
        assert ratio == pytest.approx(2**order, rel=0.15)


def test_both_are_second_order():
    """Halving the step divides the error of `D~` for a curved `D` by four; Euler's only by two."""

    def denoised(angle):
        return torch.sin(2 * angle)

    def error(solver, step):
        a_previous, a, a_next = angles(0.6 + step, 0.6, 0.6 - step)
        stepped = INNER_SOLVERS[solver](a, a_next, denoised(a), (a_previous, denoised(a_previous)))
        return (stepped - effective_denoised(denoised, a, a_next)).abs().item()

    for solver, ratio in [("euler", 2), ("multistep", 4), ("exponential", 4)]:
        assert error(solver, 0.02) / error(solver, 0.01) == pytest.approx(ratio, rel=0.15)


@pytest.mark.parametrize("step", STEPS)
def test_the_multistep_solver_is_dpm_solver_in_the_logarithm_of_the_signal(step):
    a_previous, a, a_next = angles(*step)
    now, last = torch.tensor(0.7), torch.tensor(-0.4)
    stepped = INNER_SOLVERS["multistep"](a, a_next, now, (a_previous, last))
    if a_next == 0:
        assert stepped == now
        return
    if a_previous == NOISE:
        ratio = (a_next - a) / (a - a_previous)
    else:
        odds = [1 / math.tan(angle) for angle in step]
        ratio = math.log(odds[2] / odds[1]) / math.log(odds[1] / odds[0])
    torch.testing.assert_close(stepped, now + ratio / 2 * (now - last), check_dtype=False)


@pytest.mark.parametrize("solver", INNER_SOLVERS)
def test_the_first_step_is_eulers(solver):
    now = torch.tensor(0.7)
    assert INNER_SOLVERS[solver](*angles(NOISE, 0.9), now, None) == now


@pytest.mark.parametrize("solver", INNER_SOLVERS)
def test_rows_may_have_angles_of_their_own(solver):
    rows = torch.tensor(STEPS, dtype=torch.float64)
    now, last = torch.randn(2, len(STEPS), 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    together = INNER_SOLVERS[solver](rows[:, 1], rows[:, 2], now, (rows[:, 0], last))
    for row, (a_previous, a, a_next) in enumerate(rows):
        alone = INNER_SOLVERS[solver](a, a_next, now[row : row + 1], (a_previous, last[row : row + 1]))
        torch.testing.assert_close(together[row : row + 1], alone)
