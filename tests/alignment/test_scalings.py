"""Scalings of the guidance shift: what each promises of its size, on every family's path."""

import math

import pytest
import torch

from diamond_diffusers import (
    DenoiserPoint,
    FlowMapPoint,
    GlassPosterior,
    Guidance,
    Guide,
    ODETransition,
    WeightedPosterior,
)
from diamond_diffusers.alignment.look_ahead import look_ahead
from diamond_diffusers.alignment.random_source import RandomSource
from diamond_diffusers.alignment.scalings import SCALINGS, limited, of_unit_size

from ..core.mixture import make_mixture, seeded
from ..core.mixture_model import (
    FAMILIES,
    FAMILIES_AT_PURE_NOISE,
    LINEAR,
    QUADRATIC,
    at_rows,
    make_law,
    make_map_law,
)
from ..products import diagonal
from .runs import run

MIXTURE = make_mixture(3)
KAPPAS = (0.3, 2.0)


def root_mean_square(x):
    return x.square().mean(-1).sqrt()


def observations(kappa, count=6):
    return MIXTURE.observation(kappa).sample(count, seeded(1))


def shift_of(guidance, law, x, kappa):
    random = RandomSource(seeded(2), 1, dtype=torch.float64)
    guide = guidance.guide
    return guide.shift(guide.look_ahead(law, guidance.posterior, x, kappa, random), kappa)


@pytest.mark.parametrize("kappa", KAPPAS)
@pytest.mark.parametrize("gradient", ["pathwise", "isotropic", "tilted_mean", "hybrid"])
def test_auto_changes_the_velocity_of_rectified_flow_by_as_much_as_it_is(gradient, kappa):
    law, x = make_law(MIXTURE, QUADRATIC), observations(kappa)
    posterior = GlassPosterior(3, 4)
    automatic = Guidance(posterior, Guide(gradient, strength=0.7, max_shift=None, scaling="auto"))
    exact = Guidance(posterior, Guide(gradient, max_shift=None))
    path, network = law.model.path, law.model.network
    time = path.time(kappa)
    noisy = path.from_bounded(x, time)
    velocity = network(noisy, time, None)
    shift = shift_of(automatic, law, x, kappa)
    # The prediction whose denoised sample is the shifted one.
    guided = (noisy - path.denoised(noisy, velocity, time) - shift) / time
    torch.testing.assert_close(root_mean_square(guided - velocity), 0.7 * root_mean_square(velocity))
    assert (torch.cosine_similarity(shift, shift_of(exact, law, x, kappa)) > 1 - 1e-9).all()


@pytest.mark.parametrize("kappa", KAPPAS)
@pytest.mark.parametrize("max_coefficient", [math.inf, 0.8])
def test_norm_subtracts_the_coefficient_times_the_unit_terms_from_the_velocity(kappa, max_coefficient):
    law, x = make_law(MIXTURE, QUADRATIC), observations(kappa)
    guidance = Guidance(
        guide=Guide("pathwise", strength=0.4, max_shift=None, scaling="norm", max_coefficient=max_coefficient)
    )
    path, network = law.model.path, law.model.network
    time = path.time(kappa)
    noisy = path.from_bounded(x, time).requires_grad_()
    velocity = network(noisy, time, None)
    value = at_rows(law, 6).tilt(path.denoised(noisy, velocity, time))
    (gradient,) = torch.autograd.grad(value.sum(), noisy)
    coefficient = min(float(time / (1 - time)), max_coefficient)
    unit = gradient / root_mean_square(gradient)[:, None]
    corrected = path.denoised(noisy, velocity - 0.4 * coefficient * unit, time).detach()
    expected = corrected - path.denoised(noisy, velocity, time).detach()
    torch.testing.assert_close(shift_of(guidance, law, x, kappa), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("scaling", SCALINGS.names())
@pytest.mark.parametrize("kappa", KAPPAS)
def test_all_families_are_shifted_alike(scaling, kappa):
    guidance = Guidance(GlassPosterior(3, 4), Guide("pathwise", max_shift=None, scaling=scaling))
    x = observations(kappa)
    shifts = [shift_of(guidance, make_law(MIXTURE, QUADRATIC, family), x, kappa) for family in FAMILIES]
    for shift in shifts[1:]:
        torch.testing.assert_close(shift, shifts[0], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("weights", ["consistent", "reward_softmax", "equal"])
def test_the_three_terms_of_weighted_look_aheads_are_scaled_each_for_itself(weights):
    kappa, x = 1.0, observations(1.0)
    law = make_map_law(MIXTURE, QUADRATIC, num_steps=6)
    guidance = Guidance(
        WeightedPosterior(4, weights=weights), Guide("pathwise", strength=0.4, max_shift=None, scaling="norm")
    )
    random = RandomSource(seeded(2), 1, dtype=torch.float64)
    ahead = look_ahead(law, guidance.posterior, x, kappa, random, "pathwise", with_prediction=False, with_terms=True)
    assert ahead.terms.shape == (6, 3, 3)
    assert ahead.terms.flatten(2).norm(dim=2).min() > 1e-3
    units = [term / root_mean_square(term)[:, None] for term in ahead.terms.unbind(1)]
    torch.testing.assert_close(shift_of(guidance, law, x, kappa), 0.4 * 0.5 * sum(units))


@pytest.mark.parametrize("weights", ["reward_softmax", "equal"])
def test_the_scale_of_the_reward_does_not_count_in_the_terms_of_the_authors(weights):
    x = observations(1.0)
    guidance = Guidance(
        WeightedPosterior(4, weights=weights), Guide("pathwise", strength=0.4, max_shift=None, scaling="norm")
    )
    small, large = (
        shift_of(guidance, make_map_law(MIXTURE, QUADRATIC, num_steps=4, reward_scale=scale), x, 1.0)
        for scale in (0.5, 50.0)
    )
    torch.testing.assert_close(small, large)


def test_proportions_of_look_aheads_in_the_terms():
    log_weights, rewards = torch.tensor([[0.0, -1.0, 2.0]]), torch.tensor([[30.0, -20.0, 10.0]])
    scales = torch.tensor([10.0])
    scaled = {weights: WeightedPosterior(3, weights=weights) for weights in ("consistent", "reward_softmax", "equal")}
    proportions = {name: one.log_proportions(log_weights, rewards, scales).tolist() for name, one in scaled.items()}
    assert proportions == {
        "consistent": [[30.0, -21.0, 12.0]],
        "reward_softmax": [[3.0, -2.0, 1.0]],
        "equal": [[0.0, 0.0, 0.0]],
    }
    # A negative scale prefers low rewards, however large it is.
    assert scaled["reward_softmax"].log_proportions(log_weights, rewards, -scales).tolist() == [[3.0, -2.0, 1.0]]


def test_likelihood_and_score_terms_are_those_of_a_gaussian():
    """Of standard normal data, whose posterior mean and score are linear; one look-ahead with known noise."""
    kappa, factor = 1.5, 1.7
    x, noise = observations(kappa).requires_grad_(), torch.randn(6, 3, generator=seeded(3), dtype=torch.float64)
    posterior = WeightedPosterior(1, snr_factor=factor)

    def aim(x, level):
        # E[z | y] = y / (1 + kappa^2), y = x sqrt(1 + kappa^2).
        return x / (1 + level**2) ** 0.5

    terms = posterior.gradient_terms(x, kappa, math.inf, noise, aim, aim(x, torch.tensor(kappa)).detach())
    y = x * (1 + kappa**2) ** 0.5
    copies = y + kappa * (factor - 1) ** 0.5 * noise
    residual = y - copies / (1 + factor * kappa**2)
    torch.testing.assert_close(terms.log_likelihoods[:, 0], -residual.square().sum(1) / (2 * kappa**2))
    # The scores of y are -y / (1 + kappa^2), those of x larger by dy / dx.
    scores = -copies / (1 + factor * kappa**2) + y / (1 + kappa**2)
    torch.testing.assert_close(terms.score_differences[:, 0], (1 + kappa**2) ** 0.5 * scores)


def test_terms_cost_a_backward_pass_of_each_look_ahead_and_an_evaluation_of_one_that_is_no_prediction():
    def cost(posterior, with_terms):
        law = make_map_law(MIXTURE, QUADRATIC, num_steps=2)
        x = observations(1.0).float()
        # As in a pipeline's call.
        with torch.no_grad():
            look_ahead(law, posterior, x, 1.0, RandomSource(seeded(2), 1), "pathwise", with_terms=with_terms)
        return law.cost

    # In one step a look-ahead is what the model predicts at a copy, which both gradients go through; in two it is not.
    cases = [
        (WeightedPosterior(4), 10, 0, 4),
        (WeightedPosterior(4, weights="equal"), 5, 0, 4),
        (WeightedPosterior(4, weights="equal", num_map_steps=2), 9, 4, 8),
    ]
    for posterior, evaluations, more, backwards in cases:
        whole, split = cost(posterior, False), cost(posterior, True)
        assert (whole.network_evaluations, split.network_evaluations) == (6 * evaluations, 6 * (evaluations + more))
        assert (whole.backward_passes, split.backward_passes) == (6 * backwards, 6 * (backwards + 4))
        assert whole.decodes == split.decodes == whole.reward_calls == split.reward_calls == 6 * 4


@pytest.mark.parametrize(("kappa", "limit"), [(0.4, math.inf), (1.0, math.inf), (5.0, math.inf), (50.0, 3.0)])
def test_the_coefficient_of_the_authors_for_sana_sprint_has_the_wrong_sign_below_one(kappa, limit):
    law, x = make_law(MIXTURE, QUADRATIC), observations(kappa)
    options = {"strength": 0.4, "max_shift": None, "max_coefficient": limit}
    shift = shift_of(Guidance(guide=Guide("pathwise", scaling="sana_sprint_norm", **options)), law, x, kappa)
    s = math.atan(kappa)
    b = min(0.25 * (math.sin(s) ** 3 / math.cos(s) - math.sin(s) * math.cos(s)), limit)
    options["max_coefficient"] = math.inf
    right = shift_of(Guidance(guide=Guide("pathwise", scaling="norm", **options)), law, x, kappa)
    # Of the scaled latents, whose deviation is 1/2: dx / ds changes by -b, and the denoised sample by b sin s.
    expected = 0.4 * b * math.sin(s) / 0.5 * right / root_mean_square(right)[:, None]
    torch.testing.assert_close(shift, expected, atol=1e-9, rtol=1e-6)
    assert (b > 0) == (kappa > 1) or kappa == 1


@pytest.mark.parametrize("max_coefficient", [0.5, 2.0, math.inf])
def test_the_coefficient_of_the_exact_shift_is_limited(max_coefficient):
    law = make_law(MIXTURE, LINEAR)
    for kappa in (0.3, 1.0, 4.0):
        x = observations(kappa)
        guidance = Guidance(guide=Guide("pathwise", max_shift=None, max_coefficient=max_coefficient))
        free = shift_of(Guidance(guide=Guide("pathwise", max_shift=None)), law, x, kappa)
        torch.testing.assert_close(shift_of(guidance, law, x, kappa), min(1, max_coefficient / kappa) * free)


@pytest.mark.parametrize("scaling", ["norm", "auto"])
def test_flow_map_points_are_guided_at_pure_noise(scaling):
    """The map depends on the noise, so that the pathwise gradient has a direction where it has no exact size."""
    law = make_map_law(MIXTURE, LINEAR, num_steps=6)
    x = torch.randn(6, 3, generator=seeded(1), dtype=torch.float64)
    options = {"max_coefficient": 3.0} if scaling == "norm" else {}
    guidance = Guidance(FlowMapPoint(), Guide("pathwise", strength=0.4, max_shift=None, scaling=scaling, **options))
    shift = shift_of(guidance, law, x, math.inf)
    predicted = at_rows(law, 6).network.predict(x, math.inf)
    expected = 0.4 * root_mean_square(x - predicted) if scaling == "auto" else torch.full((6,), 0.4 * 3.0).double()
    torch.testing.assert_close(root_mean_square(shift), expected)
    # Uphill.
    closer = at_rows(law, 6).network.predict(x + 1e-3 * shift, math.inf)
    assert (at_rows(law, 6).tilt(closer) > at_rows(law, 6).tilt(predicted)).all()
    unlimited = Guidance(FlowMapPoint(), Guide("pathwise", strength=0.4, max_shift=None, scaling="norm"))
    assert torch.equal(shift_of(unlimited, law, x, math.inf), torch.zeros_like(x))


@pytest.mark.parametrize(
    ("scaling", "gradient", "family"),
    diagonal(
        ["norm", "auto"],
        ["pathwise", "isotropic", "tilted_mean", "hybrid"],
        FAMILIES_AT_PURE_NOISE,
        also=[("auto", "pathwise", "rectified_flow"), ("norm", "hybrid", "rectified_flow")],
    ),
)
def test_scaled_guidance_raises_the_reward(scaling, gradient, family):
    options = {"transition": ODETransition(), "num_particles": 20}
    posterior = DenoiserPoint() if gradient == "isotropic" else GlassPosterior(3, 4)

    def mean_reward(strength):
        guidance = Guidance(posterior, Guide(gradient, strength=strength, scaling=scaling, max_shift=None), **options)
        return run(guidance, make_law(MIXTURE, QUADRATIC, family)).rewards.mean()

    assert mean_reward(0.3) > mean_reward(0.0) + 0.1


def test_rows_of_zeros_stay_zero_and_limits_keep_directions():
    rows = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    torch.testing.assert_close(of_unit_size(rows), torch.tensor([[0.0, 0.0], [3.0, 4.0]]) / math.sqrt(12.5))
    sizes = root_mean_square(rows)
    torch.testing.assert_close(limited(rows, sizes, 1.0), of_unit_size(rows))
    assert torch.equal(limited(rows, sizes, 10.0), rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scaling": "clip"}, "scaling is 'clip'; choose one of auto, exact, norm, sana_sprint_norm"),
        ({"max_coefficient": 0.0}, r"max_coefficient is 0\.0; give a positive number"),
        (
            {"max_coefficient": 3.0, "scaling": "auto"},
            r"max_coefficient is 3\.0, but scaling='auto' has no coefficient",
        ),
    ],
)
def test_unusable_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Guide(**options)
