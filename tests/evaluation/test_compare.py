import json
from collections import Counter

import pytest
import torch

from diamond_diffusers.alignment import BestOfN, NoAlignment
from diamond_diffusers.evaluation import compare as module
from diamond_diffusers.evaluation.compare import Setup, benchmark_captions, compare, image_path
from diamond_diffusers.evaluation.methods import Method
from diamond_diffusers.evaluation.records import fingerprint
from diamond_diffusers.evaluation.report import markdown_table, summarise, write_examples, write_report
from diamond_diffusers.miniature.grammar import held_out_captions
from diamond_diffusers.rewards import CallableReward

from ..conftest import redness

METHODS = [Method("plain", NoAlignment(), 3), Method("best_of_n", BestOfN(num_particles=2), 3)]


@pytest.fixture
def setup(tiny_pipe):
    return Setup(tiny_pipe, "tiny", CallableReward(redness, differentiable=True), batch_size=2)


@pytest.fixture
def drawn_batches(monkeypatch):
    """The captions' indices of every batch that is really drawn."""
    batches, draw = [], module.draw_batch

    def spy(setup, method, captions, indices, folder):
        batches.append((method.name, list(indices)))
        return draw(setup, method, captions, indices, folder)

    monkeypatch.setattr(module, "draw_batch", spy)
    return batches


def test_captions_are_a_fixed_shuffle():
    captions = benchmark_captions()
    assert Counter(captions) == Counter(held_out_captions())
    assert captions == benchmark_captions()
    assert benchmark_captions(7) == captions[:7]
    assert len({caption.category for caption in captions[:40]}) == 6
    with pytest.raises(ValueError, match="num_captions is 301; give a number from 1 to 300"):
        benchmark_captions(301)


def test_methods_are_paired_and_records_complete(setup, tmp_path):
    captions = benchmark_captions(3)
    records = compare(setup, METHODS, captions, tmp_path)
    for name, drawn in records.items():
        assert [record.caption for record in drawn] == [caption.text for caption in captions]
        assert [record.seed for record in drawn] == [0, 1, 2]
        assert all(image_path(tmp_path, name, record.index).exists() for record in drawn)
    # The first particle of best-of-N is the plain sample, so that it can only gain.
    pairs = zip(records["best_of_n"], records["plain"], strict=True)
    assert all(best.reward >= plain.reward - 1e-5 for best, plain in pairs)


def test_batches_do_not_change_what_is_drawn(setup, tiny_pipe, tmp_path):
    together = compare(setup, METHODS, benchmark_captions(3), tmp_path / "a")
    alone = Setup(tiny_pipe, "tiny", setup.reward, batch_size=1)
    apart = compare(alone, METHODS, benchmark_captions(3), tmp_path / "b")
    for name in together:
        rewards = [[record.reward for record in run[name]] for run in (together, apart)]
        assert rewards[0] == pytest.approx(rewards[1], abs=1e-5)


def test_a_killed_run_resumes(setup, tmp_path, drawn_batches, monkeypatch):
    captions = benchmark_captions(4)
    whole = compare(setup, METHODS, captions, tmp_path / "whole")
    drawn_batches.clear()

    def interrupt(name, done):
        if (name, done) == ("best_of_n", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(setup, METHODS, captions, tmp_path / "killed", interrupt)
    resumed = compare(setup, METHODS, captions, tmp_path / "killed")
    # Nothing was drawn twice.
    assert drawn_batches == [("plain", [0, 1]), ("plain", [2, 3]), ("best_of_n", [0, 1]), ("best_of_n", [2, 3])]
    for name in whole:
        assert [(r.caption, r.reward) for r in resumed[name]] == [(r.caption, r.reward) for r in whole[name]]
    compare(setup, METHODS, captions, tmp_path / "killed")
    assert len(drawn_batches) == 4


def test_more_captions_extend_a_run(setup, tmp_path, drawn_batches):
    compare(setup, METHODS[:1], benchmark_captions(3), tmp_path)
    records = compare(setup, METHODS[:1], benchmark_captions(5), tmp_path)
    assert [record.index for record in records["plain"]] == [0, 1, 2, 3, 4]
    assert drawn_batches[-1] == ("plain", [3, 4])
    assert len(compare(setup, METHODS[:1], benchmark_captions(2), tmp_path)["plain"]) == 2


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"seed": 1}, "seed is 1, but .*plain.json' holds results for 0"), ({"reward_scale": 2.0}, "reward_scale is 2.0")],
)
def test_other_settings_are_refused(setup, tiny_pipe, tmp_path, drawn_batches, changed, message):
    compare(setup, METHODS, benchmark_captions(1), tmp_path)
    drawn_batches.clear()
    other = Setup(tiny_pipe, "tiny", setup.reward, **changed)
    with pytest.raises(ValueError, match=message):
        compare(other, METHODS, benchmark_captions(1), tmp_path)
    assert drawn_batches == []


def test_another_alignment_or_other_weights_are_refused(setup, tiny_pipe, tmp_path):
    compare(setup, METHODS[1:], benchmark_captions(1), tmp_path)
    with pytest.raises(ValueError, match=r"alignment is .*'num_particles': 3.*choose another --output"):
        compare(setup, [Method("best_of_n", BestOfN(num_particles=3), 3)], benchmark_captions(1), tmp_path)
    tiny_pipe.transformer.proj_out.weight.data += 1e-3
    with pytest.raises(ValueError, match="model_weights is"):
        compare(setup, METHODS[1:], benchmark_captions(1), tmp_path)


def test_a_fingerprint_sees_every_weight():
    module = torch.nn.Linear(3, 2)
    before = fingerprint([module])
    assert before == fingerprint([module])
    module.bias.data[0] += 1e-6
    assert fingerprint([module]) != before


def test_report(setup, tmp_path):
    records = compare(setup, METHODS, benchmark_captions(4), tmp_path)
    summaries = summarise(METHODS, records)
    write_report(summaries, {"budget": 12}, tmp_path)
    write_examples(records, tmp_path)
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1
    header, row = ([cell.strip() for cell in line.split("|")] for line in (lines[0], lines[3]))
    cells = dict(zip(header, row, strict=True))
    assert (cells["method"], cells["particles"], cells["steps"], cells["budget used"]) == ("best_of_n", "2", "3", "12")
    assert cells["minus best_of_n"] == "–"
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["settings"] == {"budget": 12}
    assert results["methods"][0]["cost"]["network_evaluations"] == 6
    assert {path.name for path in tmp_path.glob("examples_*")} == {"examples_plain.png", "examples_best_of_n.png"}
    assert not list(tmp_path.rglob("*.partial*"))


def test_a_row_by_hand(setup, tmp_path):
    from dataclasses import replace

    records = compare(setup, METHODS, benchmark_captions(4), tmp_path)
    verdicts = {"plain": [False, False, True, False], "best_of_n": [True, True, True, False]}
    judged = {
        name: [replace(record, is_right=right) for record, right in zip(records[name], verdicts[name], strict=True)]
        for name in records
    }
    plain, best = summarise(METHODS, judged)
    assert (plain.score.mean, best.score.mean) == (0.25, 0.75)
    assert best.differences["plain"].mean == 0.5
    assert set(best.differences) == {"plain"}
    assert "| +50.0 [+0.0, +100.0] |" in markdown_table([plain, best])
    by_hand = {}
    for record in judged["best_of_n"]:
        by_hand.setdefault(record.category, []).append(record.is_right)
    assert best.scores == {category: sum(own) / len(own) for category, own in by_hand.items()}
