"""The flow map: the ODE of an ordinary model against the exact map, and the point at its end."""

import math

import pytest
import torch

from diamond_diffusers import DenoiserPoint, FlowMapPoint
from diamond_diffusers.alignment.look_ahead import look_ahead
from diamond_diffusers.alignment.random_source import RandomSource
from diamond_diffusers.core.flow_map import flow_map_of, flow_to_data, integrate_ode, ode_levels
from diamond_diffusers.core.glass import toward
from diamond_diffusers.core.levels import ode_step
from diamond_diffusers.core.model import Conditions
from diamond_diffusers.core.network import Network

from .mixture import coefficients, make_gaussian, make_mixture, seeded
from .mixture_model import (
    FAMILIES,
    FAMILIES_AT_PURE_NOISE,
    LINEAR,
    MixtureModel,
    images_of,
    make_law,
    make_map_law,
)

MIXTURE, GAUSSIAN = make_mixture(3), make_gaussian()
LEVELS = (0.4, 2.0, 10.0)


def gaussian_map(level):
    """`X(x) = mean + J (x - alpha mean)` of the Gaussian, with `J = C^(1/2) (alpha^2 C + sigma^2 I)^(-1/2)`."""
    alpha, sigma = coefficients(level)
    variances, axes = torch.linalg.eigh(GAUSSIAN.covariances[0])
    jacobian = axes @ torch.diag(torch.sqrt(variances / (alpha**2 * variances + sigma**2))) @ axes.T
    return jacobian, lambda x: GAUSSIAN.means[0] + (x - alpha * GAUSSIAN.means[0]) @ jacobian


def denoiser_of(mixture, family="rectified_flow"):
    family = MixtureModel(mixture, family)
    return lambda x, level: family.predict(x, level, Conditions({}))


def relative_error(ends, exact):
    """Mean distance, relative to the spread of the ends."""
    return ((ends - exact).norm(dim=1).mean() / (exact - exact.mean(0)).norm(dim=1).mean()).item()


@pytest.mark.parametrize("level", [*LEVELS, math.inf])
def test_the_exact_map_of_the_tests_is_exact(level):
    x = GAUSSIAN.observation(level).sample(20, seeded(1))
    end = GAUSSIAN.flow(x, level, num_steps=64)
    torch.testing.assert_close(end, gaussian_map(level)[1](x), atol=1e-4, rtol=0)
    middle = GAUSSIAN.flow(x, level, 0.2, num_steps=64)
    torch.testing.assert_close(GAUSSIAN.flow(middle, 0.2, num_steps=64), end, atol=1e-4, rtol=0)


@pytest.mark.parametrize("level", [*LEVELS, math.inf])
def test_the_ode_reaches_the_exact_map_at_second_order(level):
    x = MIXTURE.observation(level).sample(500, seeded(2))
    exact = MIXTURE.flow(x, level, num_steps=48)
    errors = {n: relative_error(integrate_ode(denoiser_of(MIXTURE), x, level, n), exact) for n in (4, 8, 32, 64)}
    euler = x
    for kappa, next_kappa in zip(ode_levels(level, 8)[:-1], ode_levels(level, 8)[1:], strict=True):
        euler = ode_step(euler, denoiser_of(MIXTURE)(euler, kappa), kappa, next_kappa)
    assert errors[8] < relative_error(euler, exact) / 4
    assert errors[8] < 0.02
    assert errors[64] < errors[32] / 3 < errors[4] / 30


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_its_ode(family):
    for level in [*LEVELS, math.inf] if family in FAMILIES_AT_PURE_NOISE else LEVELS:
        x = MIXTURE.observation(level).sample(100, seeded(3)).float()
        ends = integrate_ode(denoiser_of(MIXTURE, family), x, level, 16)
        assert ends.dtype == torch.float32
        assert relative_error(ends, MIXTURE.flow(x, level)) < 0.01


def test_the_ode_is_exact_for_a_denoiser_that_is_linear_in_the_angle():
    """But for its first step, which takes the denoiser as constant: with `D = theta`, `D / sin^2` has an integral."""
    level, x = 3.0, torch.zeros(1, 1, dtype=torch.float64)
    ends = integrate_ode(lambda x, kappa: torch.atan(kappa).expand_as(x), x, level, 5)
    first, second = torch.atan(torch.stack(ode_levels(level, 5)[:2]))
    # x / sin at theta' is x / sin at theta + the integral of D / sin^2; then the mean of D over the way to 0 is 0.
    kept = first * (1 / torch.tan(second) - 1 / torch.tan(first))
    near = torch.tensor(1e-6, dtype=torch.float64)
    moment = torch.log(torch.sin(second) / torch.sin(near)) + near / torch.tan(near) - second / torch.tan(second)
    expected = torch.sin(near) * (kept + moment)
    torch.testing.assert_close(ends[0, 0], expected, atol=1e-4, rtol=0)


def test_levels_fall_from_the_given_one_to_zero():
    for level in (0.3, math.inf):
        levels = [level.item() for level in ode_levels(level, 4)]
        assert levels[0] == level and levels[-1] == 0 and levels == sorted(levels, reverse=True)
    torch.testing.assert_close(ode_levels(math.inf, 4)[1].item(), math.tan(math.pi / 2 * 0.75**1.5))


def test_rows_may_have_levels_of_their_own():
    x, levels = torch.randn(3, 3, generator=seeded(4)), torch.tensor([0.4, 2.0, math.inf], dtype=torch.float64)
    together = integrate_ode(denoiser_of(MIXTURE), x, levels, 6)
    alone = [integrate_ode(denoiser_of(MIXTURE), x[i : i + 1], levels[i].item(), 6) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))


@pytest.mark.parametrize("num_steps", [1, 3])
def test_maps_compose_to_themselves(num_steps):
    network = Network(None, None, lambda x, level, low: MIXTURE.flow(x, float(level), float(low), 32), False)
    x = MIXTURE.observation(2.0).sample(20, seeded(5))
    ends = flow_to_data(network, x, 2.0, num_steps)
    torch.testing.assert_close(ends, MIXTURE.flow(x, 2.0, num_steps=64), atol=1e-4, rtol=0)


def point(law, posterior, x, level, gradient=None):
    posterior.check(law.model)
    return look_ahead(law, posterior, x, level, RandomSource(seeded(6), 1), gradient)


@pytest.mark.parametrize("level", [*LEVELS, math.inf])
def test_the_point_of_a_few_step_model_is_what_it_predicts(level):
    law = make_map_law(MIXTURE, LINEAR, has_scores=False)
    x = MIXTURE.observation(level).sample(4, seeded(7))
    ahead = point(law, FlowMapPoint(), x, level)
    torch.testing.assert_close(ahead.values, LINEAR.score(images_of(MIXTURE.flow(x, level)), [""] * 4))
    assert law.cost.network_evaluations == law.model.evaluations == 4
    assert ahead.effective_sample_size is None
    # With a score model the map is still the map.
    with_scores = point(make_map_law(MIXTURE, LINEAR), FlowMapPoint(), x, level)
    torch.testing.assert_close(with_scores.values, ahead.values)
    law = make_map_law(MIXTURE, LINEAR, has_scores=False)
    torch.testing.assert_close(point(law, FlowMapPoint(3), x, level).values, ahead.values, atol=1e-3, rtol=0)
    assert law.cost.network_evaluations == 4 * (1 + 3)


@pytest.mark.parametrize("level", [*LEVELS, math.inf])
def test_the_point_of_an_ordinary_model_is_the_end_of_its_ode(level):
    law = make_law(MIXTURE, LINEAR)
    x = MIXTURE.observation(level).sample(4, seeded(8))
    ahead = point(law, FlowMapPoint(40), x, level)
    exact = LINEAR.score(images_of(MIXTURE.flow(x, level)), [""] * 4)
    torch.testing.assert_close(ahead.values, exact, atol=0.02, rtol=0)
    assert law.cost.network_evaluations == 4 * 40
    mean = point(law, DenoiserPoint(), x, level).values
    assert (mean - exact).abs().max() > 0.1


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("is_map", [True, False], ids=["map", "ode"])
def test_the_gradient_of_the_point_goes_through_the_map(level, is_map):
    """`grad_y (a . X) = J' a` of a Gaussian, in the bounded coordinate; `kappa^2 grad_y = sigma^2 / alpha grad_x`."""
    law = make_map_law(GAUSSIAN, LINEAR, num_steps=32) if is_map else make_law(GAUSSIAN, LINEAR)
    x = GAUSSIAN.observation(level).sample(3, seeded(9))
    ahead = point(law, FlowMapPoint(1 if is_map else 48), x, level, "pathwise")
    alpha, sigma = coefficients(level)
    expected = sigma**2 / alpha * (gaussian_map(level)[0] @ LINEAR.linear[""])
    torch.testing.assert_close(ahead.shift, expected.expand(3, 3), atol=0, rtol=2e-3 if is_map else 1e-2)
    assert law.cost.backward_passes == 3 * (1 if is_map else 48)


@pytest.mark.parametrize("level", [0.03, 0.4, 1 / 3, 7.0, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_map_from_a_level_to_itself_is_the_identity_to_the_bit(level, dtype):
    """Of the chord of a few-step model, and of the flow map that a Diamond Map contains."""

    def diamond_map(xbar, s, r, x, noise_to_signal):
        return toward(xbar, denoised, s, r)

    x, denoised = torch.randn(2, 6, 3, generator=seeded(1), dtype=dtype)
    contained = flow_map_of(diamond_map)
    levels = torch.tensor([level, 0.2, level, 0.5, 1.0, level], dtype=torch.float64)
    assert torch.equal(ode_step(x, denoised, level, level), x)
    assert torch.equal(ode_step(x, denoised, levels, levels), x)
    assert torch.equal(contained(x, level, level), x)
    # In some rows only.
    lower = torch.where(levels == level, levels, levels / 2)
    moved = contained(x, levels, lower)
    stays = levels == level
    assert torch.equal(moved[stays], x[stays]) and (moved[~stays] != x[~stays]).all()
    stepped = ode_step(x, denoised, levels, lower)
    assert torch.equal(stepped[stays], x[stays]) and (stepped[~stays] != x[~stays]).all()


def test_an_ordinary_model_refuses_one_step():
    FlowMapPoint().check(MixtureModel(MIXTURE))
    with pytest.raises(ValueError, match=r"num_steps is 1, but .* give num_steps=4, or use DenoiserPoint\(\)"):
        FlowMapPoint(1).check(MixtureModel(MIXTURE))
    with pytest.raises(ValueError, match="num_steps is 0; give a whole number of at least 1"):
        FlowMapPoint(0)
