"""Single steps of the inner solvers, `xbar' = (s' / s) xbar + (1 - s' / s) D~`, against the integral they stand for."""

import math

import pytest
import torch

from diamond_diffusers.glass import INNER_SOLVERS

STEPS = [(1.0, 0.8, 0.6), (1.0, 0.9, 0.45), (0.7, 0.5, 0.3), (0.5, 0.4, 0.05), (0.3, 0.1, 0.0)]
"""Inner times `s_previous > s > s_next`."""


def effective_denoised(denoised, s, s_next, count=200_000):
    """The mean of `D` over `u = 1 / s`, by the midpoint rule: `d (xbar / s) = D d(1 / s)`; at 0, where it tends."""
    if s_next == 0:
        return denoised(torch.tensor(0.0, dtype=torch.float64))
    low, high = 1 / s, 1 / s_next
    u = low + (high - low) * (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return denoised(1 / u).mean()


@pytest.mark.parametrize(("s_previous", "s", "s_next"), STEPS)
def test_the_exponential_solver_is_exact_where_the_denoised_sample_is_linear_in_time(s_previous, s, s_next):
    def denoised(time):
        return 2.0 - 3.0 * torch.as_tensor(time, dtype=torch.float64)

    stepped = INNER_SOLVERS["exponential"](s, s_next, denoised(s), (s_previous, denoised(s_previous)))
    torch.testing.assert_close(stepped, effective_denoised(denoised, s, s_next), atol=1e-8, rtol=0)


@pytest.mark.parametrize("is_second_step", [True, False])
def test_both_are_second_order(is_second_step):
    """Halving the step divides the error of `D~` for a curved `D` by four; Euler's only by two."""

    def denoised(time):
        return torch.sin(2 * torch.as_tensor(time, dtype=torch.float64))

    def error(solver, step):
        s = 1 - step if is_second_step else 0.6
        stepped = INNER_SOLVERS[solver](s, s - step, denoised(s), (s + step, denoised(s + step)))
        return (stepped - effective_denoised(denoised, s, s - step)).abs().item()

    for solver, ratio in [("euler", 2), ("multistep", 4), ("exponential", 4)]:
        assert error(solver, 0.02) / error(solver, 0.01) == pytest.approx(ratio, rel=0.15)


@pytest.mark.parametrize(("s_previous", "s", "s_next"), STEPS)
def test_the_multistep_solver_is_dpm_solver_in_the_logarithm_of_the_signal(s_previous, s, s_next):
    now, last = torch.tensor(0.7), torch.tensor(-0.4)
    stepped = INNER_SOLVERS["multistep"](s, s_next, now, (s_previous, last))
    if s_next == 0:
        assert stepped == now
        return
    if s_previous == 1:
        ratio = (s_next - s) / (s - s_previous)
    else:
        odds = [(1 - time) / time for time in (s_previous, s, s_next)]
        ratio = math.log(odds[2] / odds[1]) / math.log(odds[1] / odds[0])
    torch.testing.assert_close(stepped, now + ratio / 2 * (now - last))


@pytest.mark.parametrize("solver", INNER_SOLVERS)
def test_the_first_step_is_eulers(solver):
    now = torch.tensor(0.7)
    assert INNER_SOLVERS[solver](1.0, 0.6, now, None) == now
