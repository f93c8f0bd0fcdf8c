"""Every family in every precision with methods of every kind: a pairwise cover by default, the rest `slow`."""

from __future__ import annotations

from itertools import combinations, product

import pytest
import torch

from .all_families import FAMILIES
from .precision import CELLS, DTYPES, METHODS, Cell, assert_cell_holds, is_in_pairwise_cover


def cell_name(cell: Cell) -> str:
    family, dtype, method = cell
    return f"{family}-{str(dtype).removeprefix('torch.')}-{method}"


COVER = [cell for cell in CELLS if is_in_pairwise_cover(cell)]
REST = [cell for cell in CELLS if not is_in_pairwise_cover(cell)]


def test_every_two_values_meet() -> None:
    for (first, firsts), (second, seconds) in combinations(enumerate((FAMILIES, DTYPES, METHODS)), 2):
        assert {(cell[first], cell[second]) for cell in COVER} == set(product(firsts, seconds))
    assert len(COVER) == len(FAMILIES) * len(METHODS)


@pytest.mark.parametrize("cell", COVER, ids=cell_name)
def test_images_are_right_in_every_precision(cell: Cell) -> None:
    assert_cell_holds(cell, torch.device("cpu"))


@pytest.mark.slow
@pytest.mark.parametrize("cell", REST, ids=cell_name)
def test_images_are_right_in_the_rest_of_the_matrix(cell: Cell) -> None:
    assert_cell_holds(cell, torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.parametrize("cell", CELLS, ids=cell_name)
def test_images_are_right_on_a_gpu(cell: Cell, gpu: torch.device) -> None:
    assert_cell_holds(cell, gpu)
