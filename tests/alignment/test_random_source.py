"""Draws of a batch of images: each from its own generator, and the first of several as if it were the only one."""

import pytest
import torch

from diamond_diffusers import (
    AncestralTransition,
    BestOfN,
    FlowMapPoint,
    GlassTransition,
    Guidance,
    Guide,
    NoAlignment,
    NoiseOptimization,
    ODETransition,
    PathSearch,
    RandomSearch,
    RenoiseTransition,
    RolloverSearch,
    ValueDecoding,
)
from diamond_diffusers.alignment.random_source import RandomSource

from ..core.mixture import make_mixture, seeded
from ..core.mixture_model import LINEAR, make_law
from .runs import COARSE_LEVELS

SOURCES = {
    "one generator": lambda: RandomSource(seeded(1), 3),
    "a generator for each image": lambda: RandomSource([seeded(1), seeded(2), seeded(3)], 3),
    "the global state": lambda: RandomSource(None, 3),
}


@pytest.fixture(params=SOURCES)
def make_source(request):
    def make():
        torch.manual_seed(1)
        return SOURCES[request.param]()

    with torch.random.fork_rng():
        yield make


def first_rows(source, counts):
    return [source.normal(count, (4, 2)).unflatten(0, (3, count))[:, 0] for count in counts]


def test_the_first_of_several_rows_is_drawn_as_if_alone(make_source):
    several = first_rows(make_source(), (5, 1, 2))
    alone = first_rows(make_source(), (1, 1, 1))
    assert all(torch.equal(*rows) for rows in zip(several, alone, strict=True))
    assert not torch.equal(alone[0], alone[1])


def test_draws_aside_leave_the_others_as_they_are(make_source):
    source = make_source()
    aside, rows = [], []
    for _ in range(3):
        aside.append(source.aside.normal(6, (4, 2)))
        rows += first_rows(source, (1,))
    assert all(torch.equal(*pair) for pair in zip(rows, first_rows(make_source(), (1, 1, 1)), strict=True))
    again = make_source()
    assert torch.equal(again.aside.normal(6, (4, 2)), aside[0])
    assert not torch.equal(aside[0], aside[1])


def test_all_draws_are_independent_standard_normals(make_source):
    """Between images, rows and numbers, aside or not, and with what is drawn next."""
    source = make_source()
    draws = torch.stack([torch.cat([source.normal(3, (2,)), source.aside.normal(2, (2,))]) for _ in range(4000)])
    draws = draws.flatten(1)
    series = torch.cat([draws[:-1], draws[1:]], 1)
    correlations = torch.corrcoef(series.T) - torch.eye(series.shape[1])
    # The largest of 1770 numbers with the deviation 1 / sqrt(4000).
    assert correlations.abs().max() < 5 / 4000**0.5
    assert draws.mean(0).abs().max() < 5 / 4000**0.5
    assert (draws.var(0) - 1).abs().max() < 5 * (2 / 4000) ** 0.5


@pytest.mark.parametrize(
    ("method", "num_draws"),
    [
        (NoAlignment(), 0),
        (NoAlignment(num_particles=3), 0),
        (NoAlignment(AncestralTransition(eta=0.0)), 0),
        (Guidance(transition=ODETransition()), 0),
        (Guidance(FlowMapPoint(2), Guide("pathwise"), transition=ODETransition(), num_corrections=2), 0),
        (BestOfN(num_particles=3), 0),
        (PathSearch(2, 3), 0),
        (RolloverSearch(2, 3, transition=AncestralTransition()), 4),
        (ValueDecoding(2, 3, transition=AncestralTransition(), block_size=2), 4),
        (RandomSearch(num_candidates=4), 0),
        (NoiseOptimization(num_iterations=2), 0),
        # The last step ends at the predicted sample, whatever the noise.
        (NoAlignment(AncestralTransition()), 4),
        (NoAlignment(RenoiseTransition(), num_particles=3), 4),
        (NoAlignment(GlassTransition()), 4),
        (NoAlignment(GlassTransition(2)), 5),
        (RandomSearch(AncestralTransition(), num_candidates=4), 4),
        (NoiseOptimization(num_iterations=2, transition=AncestralTransition()), 4),
    ],
    ids=str,
)
@pytest.mark.parametrize("selection", ["sample", "best"])
def test_a_run_draws_what_its_steps_depend_on_and_no_more(make_source, method, num_draws, selection):
    """For the first particle: the others, and the choice between them, are drawn aside."""
    source, expected = make_source(), make_source()
    law = make_law(make_mixture(3), LINEAR, num_images=3)
    x = torch.randn(3 * method.num_particles, 3, generator=seeded(0))
    method.run(law, x, COARSE_LEVELS, source).select(selection, source)
    found = source.normal(1, (3,))
    torch.manual_seed(1)
    for _ in range(num_draws):
        expected.normal(1, (3,))
    assert torch.equal(found, expected.normal(1, (3,)))


def test_the_global_state_is_that_of_the_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.tensor([7]))
    assert RandomSource(None, 2, "cuda").states() == [torch.tensor([7])]
    assert torch.equal(RandomSource(None, 2).states()[0], torch.get_rng_state())
