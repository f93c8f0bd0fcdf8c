"""Levels and paths: Bayes' rule for two observations, renoising, the ODE step, and the families' coordinates."""

import math

import pytest
import torch

from diamond_diffusers.core.levels import (
    VariancePreservingPath,
    add_noise,
    fuse,
    ode_step,
    ode_target,
    predicted_noise,
    renoise,
    signal_and_noise,
)

from .mixture import coefficients, make_mixture, seeded
from .mixture_model import FAMILIES, FAMILIES_AT_PURE_NOISE, SIGMA_DATA

LEVELS = [0.03, 0.4, 1.0, 7.0, 150.0]


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def test_signal_and_noise_are_exact_at_both_ends():
    assert [c.item() for c in signal_and_noise(0)] == [1, 0]
    assert [c.item() for c in signal_and_noise(math.inf)] == [0, 1]
    levels = torch.tensor([0.0, *LEVELS, math.inf], dtype=torch.float64)
    torch.testing.assert_close(signal_and_noise(levels), coefficients(levels))


def test_a_level_of_all_rows_has_the_coefficients_of_a_row_at_that_level():
    # By a root that rounds otherwise one in a hundred would differ.
    levels = [0.0, math.inf, *normal(500).exp().tolist()]
    of_rows = torch.stack(signal_and_noise(torch.tensor(levels, dtype=torch.float64)), 1)
    for level, expected in zip(levels, of_rows.tolist(), strict=True):
        assert [c.item() for c in signal_and_noise(level)] == [
            c.item() for c in signal_and_noise(torch.tensor(level, dtype=torch.float64))
        ]
        assert [c.item() for c in signal_and_noise(level)] == pytest.approx(expected, rel=1e-15)


def test_coefficients_that_were_first_asked_for_in_inference_mode_can_be_differentiated():
    level = 0.123456
    with torch.inference_mode():
        signal_and_noise(level)
    x = torch.ones(2, 1, requires_grad=True)
    (signal_and_noise(level)[0] * x).square().sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("first_level", [*LEVELS, math.inf])
@pytest.mark.parametrize("second_level", [0.2, 3.0, math.inf])
def test_fusing_is_bayes_rule_for_two_observations(first_level, second_level):
    mixture = make_mixture(3)
    z = mixture.sample(6, seeded(1))
    first = add_noise(z, normal(6, 3, seed=2), first_level)
    second = add_noise(z, normal(6, 3, seed=3), second_level)
    fused, level = fuse(first, first_level, second, second_level)
    if math.isinf(first_level) and math.isinf(second_level):
        assert torch.equal(fused, first)
        assert math.isinf(level)
        return
    alpha, sigma = coefficients(second_level)
    in_turn, _ = mixture.posterior(first, first_level).tilt(
        alpha / sigma**2 * second, (alpha / sigma) ** 2 * torch.eye(3, dtype=torch.float64)
    )
    at_once = mixture.posterior(fused, level)
    torch.testing.assert_close(at_once.mean, in_turn.mean)
    torch.testing.assert_close(at_once.covariance, in_turn.covariance)


def test_rows_fuse_at_levels_of_their_own():
    x, xbar = normal(4, 3), normal(4, 3, seed=1)
    levels = torch.tensor([0.1, 1.0, 20.0, math.inf], dtype=torch.float64)
    fused, fused_levels = fuse(x, levels, xbar, 0.5)
    for i, level in enumerate(levels.tolist()):
        row, row_level = fuse(x[i : i + 1], level, xbar[i : i + 1], 0.5)
        torch.testing.assert_close(fused[i : i + 1], row)
        torch.testing.assert_close(fused_levels[i], row_level)


@pytest.mark.parametrize("level", [0.0, 0.4, 7.0])
@pytest.mark.parametrize("new_level", [7.0, 20.0, math.inf])
def test_renoised_observations_have_the_signal_and_the_noise_of_the_new_level(level, new_level):
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    kept, added = renoise(one, level, new_level, zero), renoise(zero, level, new_level, one)
    (alpha, sigma), (new_alpha, new_sigma) = coefficients(level), coefficients(new_level)
    assert (kept * alpha).item() == pytest.approx(new_alpha.item(), abs=1e-12)
    assert (kept**2 * sigma**2 + added**2).item() == pytest.approx(new_sigma.item() ** 2, abs=1e-12)
    assert added.item() > 0 or new_level == level


def test_predicted_noise_is_the_noise_that_was_added():
    z, eps = normal(5, 3), normal(5, 3, seed=1)
    for level in [*LEVELS, math.inf]:
        torch.testing.assert_close(predicted_noise(add_noise(z, eps, level), z, level), eps)


def test_the_ode_step_is_the_euler_step_of_rectified_flow():
    x, denoised = normal(5, 3), normal(5, 3, seed=1)
    for t, t_next in [(1.0, 0.8), (0.7, 0.2), (0.4, 0.0)]:
        scale, next_scale = math.hypot(1 - t, t), math.hypot(1 - t_next, t_next)
        velocity = (x * scale - denoised) / t
        stepped = (x * scale + (t_next - t) * velocity) / next_scale
        kappa = math.inf if t == 1 else t / (1 - t)
        torch.testing.assert_close(ode_step(x, denoised, kappa, t_next / (1 - t_next)), stepped)


def test_the_ode_step_is_the_ddim_step():
    x, denoised = normal(5, 3), normal(5, 3, seed=1)
    for abar, next_abar in [(0.0, 0.01), (0.05, 0.4), (0.4, 0.9), (0.9, 1.0)]:
        eps = (x - math.sqrt(abar) * denoised) / math.sqrt(1 - abar)
        stepped = math.sqrt(next_abar) * denoised + math.sqrt(1 - next_abar) * eps
        kappa, next_kappa = (math.inf if a == 0 else math.sqrt((1 - a) / a) for a in (abar, next_abar))
        torch.testing.assert_close(ode_step(x, denoised, kappa, next_kappa), stepped)


@pytest.mark.parametrize("family", FAMILIES)
def test_time_and_level_are_inverse_to_each_other(family):
    path = FAMILIES[family].path
    levels = torch.tensor([0.0, *LEVELS], dtype=torch.float64)
    torch.testing.assert_close(path.noise_to_signal(path.time(levels)), levels)
    alpha, sigma = FAMILIES[family].schedule(path.time(levels))
    torch.testing.assert_close(sigma / alpha, levels)
    assert path.noise_to_signal(path.time(math.inf)) > 1e15
    assert path.noise_to_signal(path.time(0.5)) == pytest.approx(0.5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_family_scale_holds_the_same_observation(family):
    """`from_bounded` gives the family's own `alpha_t z + sigma_t eps`, and `to_bounded` undoes it."""
    path, schedule = FAMILIES[family].path, FAMILIES[family].schedule
    z, eps = normal(7, 3), normal(7, 3, seed=1)
    levels = torch.tensor([0.0, *LEVELS, math.inf], dtype=torch.float64)
    times = path.time(levels)
    alpha, sigma = (coefficient[:, None] for coefficient in schedule(times))
    bounded = add_noise(z, eps, levels)
    torch.testing.assert_close(path.from_bounded(bounded, times), alpha * z + sigma * eps)
    torch.testing.assert_close(path.to_bounded(alpha * z + sigma * eps, times), bounded)
    single = path.from_bounded(bounded[2:3], times[2])
    torch.testing.assert_close(single, (alpha * z + sigma * eps)[2:3])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_network_prediction_stands_for_the_clean_sample(family):
    path, schedule, predict = FAMILIES[family].path, FAMILIES[family].schedule, FAMILIES[family].predict
    levels = torch.tensor([*LEVELS, math.inf] if family in FAMILIES_AT_PURE_NOISE else LEVELS, dtype=torch.float64)
    z, eps = normal(len(levels), 3), normal(len(levels), 3, seed=1)
    times = path.time(levels)
    alpha, sigma = (coefficient[:, None] for coefficient in schedule(times))
    x, prediction = alpha * z + sigma * eps, predict(z, eps, alpha, sigma)
    torch.testing.assert_close(path.denoised(x, prediction, times), z)
    for i, time in enumerate(times):
        torch.testing.assert_close(path.denoised(x[i : i + 1], prediction[i : i + 1], time), z[i : i + 1])


def test_the_trigonometric_velocity_is_the_derivative_of_its_path():
    z, eps = normal(5, 3), normal(5, 3, seed=1)
    t = torch.tensor(0.9, dtype=torch.float64)
    family = FAMILIES["trigonometric"]
    _, velocity = torch.autograd.functional.jvp(
        lambda time: family.schedule(time)[0] * z + family.schedule(time)[1] * eps, t, torch.ones_like(t)
    )
    torch.testing.assert_close(SIGMA_DATA * family.predict(z, eps, *family.schedule(t)), velocity)


def test_an_unknown_prediction_type_is_refused():
    with pytest.raises(ValueError, match="prediction_type is 'score'; choose one of 'epsilon'"):
        VariancePreservingPath("score")


@pytest.mark.parametrize("levels", [0.7, torch.full((4,), 0.7, dtype=torch.float64)])
def test_half_precision_observations_are_combined_in_float32(levels):
    x, other = normal(4, 3, dtype=torch.bfloat16), normal(4, 3, seed=1, dtype=torch.bfloat16)
    combined = [
        (lambda a, b: add_noise(a, b, levels)),
        (lambda a, b: renoise(a, levels, 2.0, b)),
        (lambda a, b: fuse(a, levels, b, 0.5)[0]),
        (lambda a, b: predicted_noise(a, b, levels)),
        (lambda a, b: ode_step(a, b, levels, 0.3)),
        (lambda a, b: FAMILIES["rectified_flow"].path.from_bounded(a, levels)),
        (lambda a, b: FAMILIES["v_prediction"].path.denoised(a, b, levels)),
        (lambda a, b: FAMILIES["trigonometric"].path.denoised(a, b, levels)),
    ]
    for combine in combined:
        result = combine(x, other)
        assert result.dtype == torch.float32
        torch.testing.assert_close(result, combine(x.float(), other.float()))


@pytest.mark.parametrize(
    ("level", "next_level"), [(2.0, 0.7), (0.3, 0.2), (math.inf, 5.0), (math.inf, 0.0), (2.0, 0.0)]
)
def test_the_target_of_a_step_is_what_the_step_aims_at(level, next_level):
    x, denoised = normal(4, 3), normal(4, 3, seed=1)
    next_x = ode_step(x, denoised, level, next_level)
    torch.testing.assert_close(ode_target(x, next_x, level, next_level), denoised)
    rows = torch.full((4,), level, dtype=torch.float64)
    torch.testing.assert_close(ode_target(x, next_x, rows, next_level), denoised)
