"""A method that is called by its name, and nothing else, makes images better, however few the steps."""

import pytest

from benchmarks.defaults import NAMES, measure

DEAR = ("reno",)
"""It takes thousands of evaluations an image, and keeps the best image that it sees, the plain one among them."""


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in DEAR])
def test_no_method_is_below_plain_sampling(name):
    for gain in measure([name]):
        assert gain.above_plain > 0, gain


SOME = ["guidance", "posterior_smc"]


@pytest.fixture(scope="module")
def gains():
    """Of some methods, by name, over the same plain images."""
    return {gain.method: gain for gain in measure(SOME, steps=[6], count=8)}


@pytest.mark.parametrize("name", SOME)
def test_some_methods_on_a_few_captions(gains, name):
    assert gains[name].above_plain > 0, gains[name]
