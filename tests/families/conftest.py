"""What all families owe is checked of each; what the same code does for each, by default of one of each kind."""

import pytest

KINDS = ("TestEpsilon", "TestSchnell")
"""The tests of a network of convolutions and of one of tokens: Stable Diffusion and FLUX."""


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("shared") and item.cls.__name__ not in KINDS:
            item.add_marker(pytest.mark.slow)
