"""Tables, CSV, JSON, pictures and HTML of comparisons whose figures are known."""

import base64
import csv
import io
import json
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from PIL import Image
from rich.console import Console

from diamond_diffusers import BestOfN
from diamond_diffusers.evaluation.benchmark.pareto import on_front
from diamond_diffusers.evaluation.benchmark.plan import Entry, Plan, SizedMethod
from diamond_diffusers.evaluation.benchmark.plots import (
    cost_figures,
    method_styles,
    overview_figure,
    pareto_figures,
    trace_figure,
)
from diamond_diffusers.evaluation.benchmark.report import Comparison, write_report
from diamond_diffusers.evaluation.benchmark.summary import summarise
from diamond_diffusers.evaluation.benchmark.tables import text_tables
from diamond_diffusers.evaluation.scoring.statistics import Estimate
from diamond_diffusers.evaluation.text_tables import TextTable, markdown, rich_table
from diamond_diffusers.files.csv_tables import csv_table
from diamond_diffusers.files.foreign import ForeignFileError

from .made_up import BEST, PLAIN, PLAN, made_up_comparison, made_up_records


@pytest.fixture
def comparison(tmp_path):
    return made_up_comparison(tmp_path)


def row_of(comparison, budget, name):
    return next(row for row in comparison.summaries if (row.budget, row.method.name) == (budget, name))


def cells(table, name):
    return dict(zip(table.header, next(row for row in table.rows if row[0] == name), strict=True))


def test_rows_by_hand(comparison):
    assert [(row.budget, row.method.name) for row in comparison.summaries] == [
        (12, "plain"),
        (12, "best_of_n"),
        (24, "plain"),
        (24, "best_of_n"),
    ]
    best = row_of(comparison, 24, "best_of_n")
    assert (best.score.mean, best.reward.mean, best.held_out_rewards["2*other"].mean) == (0.75, 4.0, 40.0)
    assert best.scores == {"single_object": 1.0, "counting": 0.5}
    assert {name: difference.mean for name, difference in best.differences.items()} == {"plain": 0.5}
    assert row_of(comparison, 24, "plain").differences["best_of_n"].mean == -0.5
    assert row_of(comparison, 12, "plain").differences["best_of_n"].mean == -0.25
    assert (best.cost["equivalent_evaluations"], best.cost["seconds"], best.peak_bytes) == (24, 0.5, 4 * 2**20)
    assert (best.num_prompts, best.num_images, best.diversity) == (4, 4, None)


def test_without_a_judge_methods_differ_by_reward(tmp_path):
    comparison = made_up_comparison(tmp_path, is_judged=False)
    best = row_of(comparison, 24, "best_of_n")
    assert (best.score, best.scores, best.differences["plain"].mean) == (None, {}, 1.5)
    overview, differences, *_ = comparison.tables()
    assert overview.title.startswith("Mean reward")
    assert cells(overview, "best_of_n")["24"] == "4 [3, 5]"
    assert cells(differences, "best_of_n")["minus plain"].startswith("+0.5 [")
    assert "score_against_cost" not in cost_figures(comparison.summaries)


def test_images_of_one_prompt_are_not_taken_as_independent(tmp_path):
    plan = Plan([Entry(12, PLAIN)], [])
    right, rewards = [True, True, False, False], [1.0, 3.0, 5.0, 7.0]
    records = {PLAIN.label: made_up_records(PLAIN, right, rewards, num_images=2, folder=tmp_path)}
    # Mean colours as features: the images of a prompt differ in green.
    clip = SimpleNamespace(image_features=lambda images: images.mean((2, 3)) / images.mean((2, 3)).norm(dim=1)[:, None])
    (row,) = summarise(plan, records, tmp_path, clip)
    assert (row.num_prompts, row.num_images, row.reward.mean, row.score.mean) == (2, 4, 4.0, 0.5)
    # Two prompts, one of them right throughout: every resample is 0, 1/2 or 1.
    assert (row.score.lower, row.score.upper) == (0.0, 1.0)
    assert (row.reward.lower, row.reward.upper) == (2.0, 6.0)
    first = 1 - 6 / (6**2 + 60**2) ** 0.5
    second = 1 - (40**2 + 6**2) / ((40**2 + 6**2) * (40**2 + 60**2 + 6**2)) ** 0.5
    assert row.diversity.mean == pytest.approx((first + second) / 2, abs=1e-6)


def test_tables(comparison):
    titles = [table.title for table in comparison.tables()]
    assert titles == [
        "Right images, %, by network evaluations an image [95 % intervals]",
        "Right images, % of 4 [95 % interval], budget 12",
        "Differences and rewards [95 % intervals], budget 12",
        "Differences in reward [95 % intervals], budget 12",
        "Cost of an image, budget 12",
        "Right images, % of 4 [95 % interval], budget 24",
        "Differences and rewards [95 % intervals], budget 24",
        "Differences in reward [95 % intervals], budget 24",
        "Cost of an image, budget 24",
        "Pareto front of the reward and held out: 2*other, 1 of 3 [95 % intervals]",
        "Left out",
    ]
    overview, scores, differences, _, costs, *_, left_out = comparison.tables()
    assert [row[0] for row in overview.rows] == ["plain", "best_of_n"]
    assert {name: text.split(" ")[0] for name, text in cells(overview, "best_of_n").items() if name != "method"} == {
        "12": "50.0",
        "24": "75.0",
    }
    assert scores.header == ["method", "single object", "counting", "all"]
    assert cells(scores, "best_of_n")["single object"] == "100.0"
    assert cells(differences, "best_of_n")["minus plain"].startswith("+25.0 [")
    assert cells(differences, "best_of_n")["minus best_of_n"] == "–"
    assert cells(differences, "plain")["held out: 2*other"].startswith("25 [")
    assert (cells(costs, "best_of_n")["network evaluations"], cells(costs, "best_of_n")["peak MiB"]) == ("12", "4")
    assert left_out.rows == [["dear", "12", "budget is 12, but <method> 'dear' takes 14 [or more]"]]


def test_text_of_tables_is_printed_as_it_is(comparison):
    console = Console(width=80, file=io.StringIO())
    for table in comparison.tables():
        console.print(rich_table(table))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert "[or more]" in " ".join(console.file.getvalue().split())
    for table in comparison.tables():
        lines = markdown(table).splitlines()
        assert lines[0] == f"**{table.title}**"
        assert len({line.count("|") for line in lines[2:]}) == 1


def test_headers_of_others_are_texts():
    table = TextTable("Minus a\nb", ["name", "[red]", "[/x] y"], [["a", "1", "2"]])
    console = Console(width=80, file=io.StringIO())
    console.print(rich_table(table))
    assert "[red]" in console.file.getvalue() and "[/x]" in console.file.getvalue()
    assert markdown(table).splitlines()[0] == "**Minus a b**"


def test_bars_within_cells_do_not_end_them():
    table = TextTable("any", ["method", "reason"], [["a|b", "1 | 2"]])
    assert markdown(table).splitlines()[-1] == r"| a\|b | 1 \| 2 |"


def test_markup_within_cells_stays_text():
    table = TextTable("any", ["method", "reason"], [["<b>*a*\n`b`", "[x](http://y)\\ 1 [0, 2]"]])
    assert markdown(table).splitlines()[-1] == r"| \<b>\*a\* \`b\` | [x]\(http://y)\\ 1 [0, 2] |"


def test_prompts_of_any_kind_are_texts_in_every_file(tmp_path, comparison):
    hostile = "=1+1<script>alert(1)</script>"
    records = {
        label: [replace(record, prompt=hostile, category="@<img>|x") for record in found]
        for label, found in comparison.records.items()
    }
    summaries = summarise(comparison.plan, records, tmp_path)
    write_report(replace(comparison, records=records, summaries=summaries), tmp_path)
    images = list(csv.DictReader(io.StringIO((tmp_path / "images.csv").read_text())))
    assert {row["prompt"] for row in images} == {f"'{hostile}"}
    assert {row["category"] for row in images} == {"'@<img>|x"}
    assert {float(row["reward"]) for row in images} == {1, 2, 3, 4, 5}
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page and "<img>" not in page and "&lt;script&gt;" in page
    assert r"@\<img>\|x" in (tmp_path / "table.md").read_text()


def test_a_damaged_image_is_named(tmp_path, comparison):
    path = next(tmp_path.rglob("0000_0.png"))
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ForeignFileError, match=r"0000_0.png' cannot be read .*; delete it with the .json file beside"):
        write_report(comparison, tmp_path)


def test_numbers_stay_numbers_and_formulas_become_texts():
    numbers = [-1.5, -2, "-3e-4", None, True, "-inf"]
    texts = ["-1+2", "+a", "=a", "@a", "\ta", "\r=a", " =a", "\n=a", "\ufeff=a", "\xa0\u200b@a", "\uff1da", "\uff0b1"]
    assert csv_table(["caf\udce9"], []).encode() == b"caf\\udce9\n"
    harmless = ["a=b", "'-", "a,b", "a\r\nb", " ", "größer"]
    table = csv_table(["=column"] * 24, [[*numbers, *texts, *harmless]])
    (_, read) = csv.reader(io.StringIO(table, newline=""))
    assert read[:6] == ["-1.5", "-2", "-3e-4", "", "True", "-inf"]
    assert read[6:] == [*(f"'{text}" for text in texts), *harmless]
    assert csv_table(["=column"], []) == "'=column\n"


def test_a_method_that_does_not_fit_everywhere_keeps_its_row(tmp_path, comparison):
    plan = Plan(comparison.plan.entries[1:], [])
    records = comparison.records
    (overview, *_) = type(comparison)({}, plan, records, summarise(plan, records, tmp_path)).tables()
    assert [row[0] for row in overview.rows] == ["plain", "best_of_n"]
    assert cells(overview, "plain")["12"] == "–"


MAPPED = SizedMethod("mapped", BestOfN(num_particles=5), 2, 23, uses_diamond_map=True, own_steps=3)
"""Right where best-of-N is, and once more."""


@pytest.fixture
def with_map(tmp_path):
    """Four prompts at a budget: plain, best-of-N, and a method that evaluates the Diamond Map."""
    plan = Plan([Entry(24, PLAIN), Entry(24, BEST[24]), Entry(24, MAPPED)], [])
    drawn = {
        PLAIN: ([False, True, False, False], [9.0, 9.0, 9.0, 9.0]),
        BEST[24]: ([True, True, True, False], [3.0, 3.0, 5.0, 5.0]),
        MAPPED: ([True, True, True, True], [8.0, 9.0, 10.0, 11.0]),
    }
    records = {method.label: made_up_records(method, *figures, folder=tmp_path) for method, figures in drawn.items()}
    return Comparison({}, plan, records, summarise(plan, records, tmp_path, hard={2, 3}))


def test_differences_to_the_best_method_without_a_map(with_map):
    plain, best, mapped = with_map.summaries
    # By right images best-of-N is the best without a map, and by reward plain sampling.
    assert mapped.best_without_map == plain.best_without_map == {"score": "best_of_n", "reward": "plain"}
    assert {name: found.mean for name, found in mapped.differences.items()} == {
        "plain": 0.75, "best_of_n": 0.25, "best_without_map": 0.25
    }  # fmt: skip
    assert {name: found.mean for name, found in mapped.reward_differences.items()} == {
        "plain": 0.5, "best_of_n": 5.5, "best_without_map": 0.5
    }  # fmt: skip
    # Pairs are resampled: all differ by -1, 0, 1 or 2, whose mean is 0.5.
    assert -1 <= mapped.reward_differences["best_without_map"].lower < 0.5
    assert best.differences.keys() == {"plain"} and plain.reward_differences.keys() == {"best_of_n"}
    tables = {table.title: table for table in with_map.tables()}
    scores = cells(tables["Differences and rewards [95 % intervals]"], "mapped")
    assert scores["minus best_of_n, the best without a map"].startswith("+25.0 [")
    rewards = cells(tables["Differences in reward [95 % intervals]"], "mapped")
    assert rewards["minus plain, the best without a map"].startswith("+0.5 [")
    assert cells(tables["Differences in reward [95 % intervals]"], "plain")["minus plain"] == "–"


def test_hard_captions_have_a_column(with_map, comparison):
    mapped = with_map.summaries[1]
    assert {name: found.mean for name, found in mapped.hard_scores.items()} == {"hard": 0.5, "other": 1.0}
    table = cells(with_map.tables()[1], "best_of_n")
    assert (table["hard captions"][:4], table["other captions"][:5], table["all"][:4]) == ("50.0", "100.0", "75.0")
    assert comparison.summaries[0].hard_scores == {}


def test_fewer_steps_than_its_own_are_in_a_table(with_map):
    (table,) = [table for table in with_map.tables() if table.title.startswith("In fewer steps")]
    assert table.rows == [["mapped", "3", "2 at 24"]]


def test_time_is_what_a_budget_of_seconds_limits(with_map, tmp_path):
    plan = replace(with_map.plan, unit="seconds")
    rows = summarise(plan, with_map.records, tmp_path)
    assert [row.spent for row in rows] == [0.25, 0.25, 0.25] and [row.spent for row in with_map.summaries] == [
        6,
        24,
        23,
    ]
    assert text_tables(rows)[0].title == "Right images, %, by seconds an image [95 % intervals]"
    (axes,) = cost_figures(rows)["reward_against_cost"].axes
    assert axes.get_xlabel() == "seconds of an image, of the processors"
    gpu = {label: [replace(record, cpu_seconds=None) for record in found] for label, found in with_map.records.items()}
    (row, *_) = summarise(plan, gpu, tmp_path)
    assert row.spent == 0.5 and "cpu_seconds" not in row.cost


def test_the_grid_is_a_table(with_map):
    names = ["point_smc", "glass_smc", "glass_guidance"]
    rows = [
        replace(row, method=replace(row.method, name=name))
        for row, name in zip(with_map.summaries, names, strict=True)
    ]  # fmt: skip
    (table,) = [table for table in text_tables(rows) if table.title.startswith("Every method with every posterior")]
    assert table.header == ["method", "point", "glass"]
    assert table.rows == [["smc", "25 / 9", "75 / 4"], ["guidance", "–", "100 / 9.5"]]
    assert not any(table.title.startswith("Every") for table in text_tables(rows[:2]))


class Page(HTMLParser):
    """What a page refers to, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.sources, self.words = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href", "srcset")]

    def handle_data(self, data):
        self.words.append(data)


def test_everything_is_written(comparison, tmp_path):
    write_report(comparison, tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["settings"] == comparison.settings
    assert results["methods"][3]["score"]["mean"] == 0.75
    assert results["methods"][3]["method"]["alignment"]["num_particles"] == 4
    assert results["left_out"][0]["name"] == "dear"
    rows = list(csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text())))
    assert [(row["budget"], row["method"], float(row["score_mean"])) for row in rows] == [
        ("12", "plain", 0.25),
        ("12", "best_of_n", 0.5),
        ("24", "plain", 0.25),
        ("24", "best_of_n", 0.75),
    ]
    assert float(rows[3]["differences_plain_mean"]) == 0.5
    assert rows[3]["differences_best_of_n_mean"] == ""
    images = list(csv.DictReader(io.StringIO((tmp_path / "images.csv").read_text())))
    assert len(images) == 12
    assert all((tmp_path / row["file"]).exists() for row in images)
    assert (images[2]["prompt"], images[2]["is_right"], float(images[2]["held_out_2*other"])) == (
        "a <heart>",
        "False",
        30,
    )
    pictures = {path.name for path in (tmp_path / "plots").iterdir()}
    curves = {f"{name}_against_cost.png" for name in ("reward", "score", "held_out_2_other")}
    assert pictures == {"overview.png", "pareto_2_other.png"} | curves | {
        f"{kind}_{budget}.png" for kind in ("traces", "images") for budget in (12, 24)
    }
    assert not list(tmp_path.rglob("*.partial*"))


def test_the_page_stands_alone(comparison, tmp_path):
    write_report(comparison, tmp_path)
    page = Page((tmp_path / "report.html").read_text())
    assert not page.tags & {"script", "link", "iframe", "heart", "method"}
    # Seven figures, and four prompts drawn by two methods at two budgets.
    assert len(page.sources) == 7 + 16
    for source in page.sources:
        kind, content = source.split(",")
        assert kind in ("data:image/png;base64", "data:image/jpeg;base64")
        Image.open(io.BytesIO(base64.b64decode(content))).verify()
    text = " ".join(page.words)
    for words in ("a <heart>", "75.0 [", "'dear' takes 14 [or more]", "Cost of an image, budget 24"):
        assert words in text


def test_curves_have_the_means_and_bands_of_the_table(comparison):
    figure = cost_figures(comparison.summaries)["reward_against_cost"]
    (axes,) = figure.axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}
    assert lines == {"plain": [[6.0, 2.5]], "best_of_n": [[12.0, 3.0], [24.0, 4.0]]}
    (band,) = [part for part in axes.collections if len(part.get_paths()[0].vertices) > 2]
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices.tolist()}
    for row in comparison.summaries[1::2]:
        assert {(row.method.evaluations, row.reward.lower), (row.method.evaluations, row.reward.upper)} <= corners


def test_the_overview_has_the_means_best_methods_first(tmp_path, comparison):
    figure = overview_figure(comparison.summaries)
    scores, rewards = figure.axes
    assert [label.get_text() for label in scores.get_yticklabels()] == ["best_of_n", "plain"]
    assert [label.get_text() for label in scores.get_xticklabels()] == ["12", "24"]
    assert [text.get_text() for text in scores.texts] == ["50", "75", "25", "25"]
    assert [text.get_text() for text in rewards.texts] == ["3.0", "4.0", "2.5", "2.5"]
    plan = Plan(comparison.plan.entries[1:], [])
    (alone,) = overview_figure(summarise(plan, made_up_comparison(tmp_path, is_judged=False).records, tmp_path)).axes
    assert [text.get_text() for text in alone.texts] == ["3.0", "4.0", "–", "2.5"]


PAIRS = [(1.0, 3.0), (2.0, 2.0), (1.0, 2.0), (3.0, 1.0), (2.0, 2.0), (2.5, 0.5)]


def test_a_front_holds_what_nothing_beats_in_both():
    assert on_front(PAIRS) == [True, True, False, True, True, False]
    assert on_front([(1.0, 1.0)]) == [True] and on_front([]) == []


def test_the_front_is_drawn_and_tabled(comparison):
    rows = [
        replace(
            comparison.summaries[0],
            method=replace(PLAIN, name=f"method {number}", evaluations=number),
            cost={**comparison.summaries[0].cost, "equivalent_evaluations": number},
            reward=Estimate(first, first - 0.1, first + 0.2),
            held_out_rewards={"other": Estimate(second, second - 0.3, second + 0.4)},
        )
        for number, (first, second) in enumerate(PAIRS)
    ]
    # A method that does not grow is the same at a further budget.
    rows.append(replace(rows[0], budget=24))
    (axes,) = pareto_figures(rows)["pareto_other"].axes
    front, *points = axes.get_lines()
    assert front.get_xydata().tolist() == [[1, 3], [2, 2], [2, 2], [3, 1]]
    assert front.get_drawstyle() == "steps-pre"
    drawn = {tuple(point.get_xydata()[0]): point.get_alpha() for point in points if len(point.get_xydata()) == 1}
    assert drawn == {(1, 3): 1, (2, 2): 1, (1, 2): 0.3, (3, 1): 1, (2.5, 0.5): 0.3}
    bars = [part.get_segments()[0].round(6).tolist() for part in axes.collections]
    assert [[0.9, 3.0], [1.2, 3.0]] in bars and [[1.0, 2.7], [1.0, 3.4]] in bars
    assert {text.xy: text.get_text() for text in axes.texts} == {(3, 1): "1", (2, 2): "3", (1, 3): "4"}
    table = text_tables(rows)[-1]
    assert table.title.startswith("Pareto front of the reward and held out: other, 4 of 6")
    assert table.rows[0] == ["method 3", "3", "3 [2.9, 3.2]", "1 [0.7, 1.4]"]
    assert [row[0] for row in table.rows] == ["method 3", "method 1", "method 4", "method 0"]


def test_many_methods_have_lines_of_their_own(comparison):
    row = comparison.summaries[0]
    rows = [replace(row, method=replace(row.method, name=f"method {number}")) for number in range(41)]
    styles = method_styles(rows)
    assert len({(style["color"], style["linestyle"]) for style in styles.values()}) == 41


def test_traces_are_means_over_images(comparison):
    styles = method_styles(comparison.summaries)
    figure = trace_figure(PLAN.at(24), comparison.records, styles)
    sizes, values = figure.axes
    assert {line.get_label(): line.get_xydata().tolist() for line in sizes.get_lines()} == {
        "plain": [[0.5, 1.0]],
        "best_of_n": [[0.5, 0.25]],
    }
    lines = {line.get_label(): line for line in values.get_lines()}
    assert lines["best_of_n"].get_xydata().tolist() == [[0.5, 4.0], [1.0, 5.0]]
    assert lines["best_of_n"].get_color() == styles["best_of_n"]["color"] != styles["plain"]["color"]
    silent = made_up_records(BEST[12], None, [1.0])
    silent[0].trace.clear()
    assert trace_figure([BEST[12]], {BEST[12].label: silent}, styles) is None
