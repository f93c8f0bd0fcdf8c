"""The command that measures the table of `alignment="auto"`: resumable, in shards, and each cell has its candidate."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.choosing import (
    Bench,
    Row,
    benchmark_choosing,
    cells_named,
    chosen_name,
    difference,
    draw_all,
    rows_of,
    verdict,
)
from benchmarks.choosing_candidates import candidates_of
from diamond_diffusers.alignment.automatic import BUDGETS, MODELS, REWARDS, Cell
from diamond_diffusers.alignment.named import as_method

CELL = Cell("base", "dear", "none")


def made(rewards: list[float]) -> Row:
    return Row(tuple(rewards), (1.0,) * len(rewards), 8, 4)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What is drawn, in place of drawing it: the name of a method and the first seed."""
    seen: list[tuple[str, int]] = []

    def draw(self: Bench, candidate: object, cell: Cell, captions: list[str], first_seed: int) -> Row:
        name = type(as_method(candidate)).__name__
        seen.append((name, first_seed))
        if name == "PathSearch":
            raise ValueError("it does not fit")
        return made([float(len(caption) + len(name)) for caption in captions])

    monkeypatch.setattr(Bench, "__init__", lambda self, model: setattr(self, "kind", model))
    monkeypatch.setattr(Bench, "drawn", draw)
    return seen


def test_every_cell_has_its_method_among_the_candidates() -> None:
    cells = cells_named(",".join(MODELS))
    assert len(cells) == len(MODELS) * len(REWARDS) * len(BUDGETS)
    for cell in cells:
        assert chosen_name(cell) in candidates_of(cell)
        if cell.reward != "differentiable":
            assert not any(as_method(form).needs_reward_gradient for form in candidates_of(cell).values())


def test_cells_are_named_by_their_beginnings() -> None:
    assert cells_named("base/dear/none") == [CELL]
    assert {cell.budget for cell in cells_named("base/dear,base/dear/none")} == set(BUDGETS)
    with pytest.raises(ValueError, match="--cells holds 'bas'; name cells such as base/differentiable/none"):
        cells_named("bas")


def test_two_shards_draw_everything_once(drawn: list[tuple[str, int]], tmp_path: Path) -> None:
    for shard in ((0, 2), (1, 2), (0, 1)):
        draw_all([CELL], ["choosing"], 12, tmp_path, shard)
    assert len(drawn) == 2 * len(candidates_of(CELL))
    rows = rows_of(CELL, "choosing", 12, tmp_path)
    assert "path_search" not in rows and len(rows["best_of_n"].rewards) == 12
    # Other captions, or other options of a candidate, are not mixed with these.
    with pytest.raises(ValueError, match="is of another captions"):
        rows_of(CELL, "choosing", 10, tmp_path)


def test_a_row_within_an_interval_of_the_best_is_told_from_one_behind() -> None:
    best, equal, behind = made([1.0, 2.0, 3.0, 5.0]), made([1.1, 1.9, 3.2, 4.7]), made([0.0, 1.0, 2.1, 3.9])
    mean, width = difference(behind, best)
    assert mean == pytest.approx(-1.0) and width == pytest.approx(1.96 * 0.0816 / 2, abs=1e-3)
    assert "is within one interval of smc" in verdict(CELL, {"best_of_n": equal, "smc": best})
    assert "is NOT WITHIN one interval of smc" in verdict(CELL, {"best_of_n": behind, "smc": best})


@pytest.mark.parametrize(
    ("options", "message"),
    [({"shard": "2/2"}, "--shard is '2/2'"), ({"shard": "0"}, "--shard is '0'"), ({"splits": "test"}, "--splits is")],
)
def test_wrong_options_are_named(options: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        benchmark_choosing(output=tmp_path, **options)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_a_cell_of_every_model_is_drawn(model: str) -> None:
    cell = Cell(model, "black_box", "small")
    row = Bench(model).drawn(candidates_of(cell)["best_of_n"], cell, ["a red star", "a blue ring"], 0)
    assert torch.tensor(row.rewards).isfinite().all() and row.evaluations <= 4 * 12
