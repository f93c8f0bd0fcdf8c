"""Draws of a batch of images: each from its own generator, and the first of several as if it were the only one."""

import pytest
import torch

from diamond_diffusers.alignment.random_source import RandomSource

from ..core.mixture import seeded

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
