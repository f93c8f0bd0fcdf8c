"""The figures of SMC and of guided SMC in docs/methods.md: what these tests measure is what the tables say."""

from dataclasses import replace

import pytest
import torch

from diamond_diffusers import (
    SMC,
    AncestralTransition,
    DenoiserPoint,
    DiamondPosterior,
    DiamondTransition,
    GlassPosterior,
    GlassTransition,
    Guide,
    PosteriorSMC,
)

from ..core.mixture import coefficients, make_mixture, standard_error
from ..core.mixture_model import LINEAR, law_of, make_law, unconditional
from ..documentation import documented
from .runs import falling_levels, run
from .test_posterior_smc import CoarseDiamondMixture, evidence_errors

MIXTURE = make_mixture(3)


def evidence(smc, num_steps, num_images, scale, seed=0):
    """Errors of `log Z`, `[B]`."""
    law = make_law(MIXTURE, LINEAR, num_images=num_images, reward_scale=scale)
    _, exact = LINEAR.tilt(MIXTURE, scale=scale)
    return run(smc, law, falling_levels(num_steps), seed=seed).log_evidence - exact


TRANSITIONS = [
    [GlassTransition(), AncestralTransition()],
    [GlassTransition(2)],
    [GlassTransition(4)],
    [GlassTransition(8)],
]
STEPS = (5, 10, 20, 50)


def check_transitions(columns):
    table = documented("transitions")
    assert len(table) == len(TRANSITIONS)
    for transitions, (label, *figures) in zip(TRANSITIONS, table, strict=True):
        for transition in transitions:
            name, steps = type(transition).__name__, getattr(transition, "num_inner_steps", 1)
            assert name in label and (steps == 1 or f"({steps})" in label.replace("num_inner_steps=", ""))
            for column in columns:
                errors = evidence(SMC(512, DenoiserPoint(), transition), STEPS[column], 32, 3.0)
                # That of the table is of four times as many images.
                assert abs(errors.mean() - float(figures[column])) < 4.5 * standard_error(errors) < 0.25


def test_the_evidence_of_transitions_in_few_steps():
    check_transitions([0, 1])


@pytest.mark.slow
def test_the_evidence_of_transitions_in_many_steps():
    check_transitions([2, 3])


class LastLookAheads(PosteriorSMC):
    """Values by the look-aheads of one step alone."""

    def _look_ahead(self, law, cloud, *arguments):
        return super()._look_ahead(law, replace(cloud, unweighed=cloud.unweighed[:, :0]), *arguments)


BY_THE_MAP = SMC(16, DiamondPosterior(1), DiamondTransition())
BY_POINTS = SMC(16, DenoiserPoint(), GlassTransition(4))
VALUED = [
    PosteriorSMC(16),
    LastLookAheads(16),
    PosteriorSMC(16, num_valuations=None),
    BY_THE_MAP,
    replace(BY_THE_MAP, num_valuations=None),
    BY_POINTS,
    replace(BY_POINTS, num_valuations=None),
]


def check_valuations(indices, columns):
    table = documented("method")
    assert len(table) == len(VALUED)
    for index in indices:
        for column in columns:
            figure, steps = float(table[index][2 + column]), (5, 12, 40)[column]
            smc = VALUED[index]
            is_point = isinstance(smc.posterior, DenoiserPoint)
            errors = evidence(smc, steps, 128, 2.5) if is_point else evidence_errors(smc, steps)
            assert abs(errors.mean() - figure) < 4.5 * standard_error(errors)


def test_the_evidence_of_few_valuations():
    check_valuations([0, 3, 5], [1])


@pytest.mark.slow
def test_the_evidence_of_few_and_many_valuations():
    check_valuations(range(len(VALUED)), range(3))


LOOK_AHEADS = GlassPosterior(num_samples=16)


def check_proposals(gradients):
    for gradient, *figures in documented("proposals"):
        if gradient not in gradients:
            continue
        for max_shift, figure in zip((0.25, None), figures, strict=True):
            guide = None if gradient == "unguided" else Guide(gradient, max_shift=max_shift)
            errors = evidence(SMC(16, LOOK_AHEADS, GlassTransition(4), guide=guide), 10, 128, 3.0)
            # The relative error of a standard deviation of 128 that are nearly normal is 6 %, of 256 it is 4 %.
            assert errors.std() == pytest.approx(float(figure), rel=0.3)


def test_the_spread_of_the_evidence_of_guided_proposals():
    check_proposals(["unguided", "isotropic"])


@pytest.mark.slow
def test_the_spread_of_the_evidence_of_all_guided_proposals():
    gradients = [gradient for gradient, *_ in documented("proposals")]
    assert gradients == ["unguided", "pathwise", "isotropic", "tilted_mean", "hybrid"]
    check_proposals(gradients)


class NarrowDiamondMixture(CoarseDiamondMixture):
    """An imperfect map, whose samples of the posterior lack a third of their spread."""

    def diamond_map(self, xbar, s, r, x, noise_to_signal, conditions):
        mapped = super().diamond_map(xbar, s, r, x, noise_to_signal, conditions)
        mean = self.mixture.denoised(x, *coefficients(noise_to_signal)).to(x)
        signal = 1 - float(r)
        return signal * mean + (1 - 0.35 * signal) * (mapped - signal * mean)


def test_an_imperfect_map_is_right_as_look_aheads_and_wrong_as_a_transition():
    table = {row[0]: float(row[1]) for row in documented("method or transition")}
    methods = {
        "PosteriorSMC": PosteriorSMC(64),
        "DiamondTransition": SMC(64, DiamondPosterior(1), DiamondTransition()),
        "GlassTransition(4)": SMC(64, DiamondPosterior(1), GlassTransition(4)),
    }
    _, exact = LINEAR.tilt(MIXTURE, scale=1.5)
    ratios = {}
    for name, smc in methods.items():
        family, count = NarrowDiamondMixture(MIXTURE), 96
        law = law_of(family, unconditional(count), [""] * count, LINEAR, reward_scale=1.5)
        ratios[name] = torch.exp(run(smc, law, falling_levels(8)).log_evidence - exact)
        assert abs(ratios[name].mean() - table[name]) < 4.5 * standard_error(ratios[name])
    right = ratios.pop("GlassTransition(4)")
    assert abs(right.mean() - 1) < 4 * standard_error(right) < 0.15
    assert all(wrong.mean() < 0.93 for wrong in ratios.values())
