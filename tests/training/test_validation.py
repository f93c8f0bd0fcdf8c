"""What a run shows of its map: figures against the teacher's laws on rows that it does not see, and labelled images."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from diamond_diffusers.core.glass import inner_times
from diamond_diffusers.core.sample_statistics import deviation_ratio, total_variance
from diamond_diffusers.maps.storage import read_map_config
from diamond_diffusers.training import grid, laws
from diamond_diffusers.training.checkpoints import decisive_options
from diamond_diffusers.training.errors import TrainingError
from diamond_diffusers.training.grid import MAP_ROWS, grid_drawer, labelled_grid, map_rows, teacher_row
from diamond_diffusers.training.laws import MAPS, Laws, Observed, accuracy
from diamond_diffusers.training.options.records import DataOptions, PreparationOptions
from diamond_diffusers.training.trainer import Trainer

from ..core.mixture import make_mixture, seeded
from ..core.mixture_model import PIXEL_RANGE, unconditional
from ..core.test_diamond import DiamondMixture
from .processes import in_two_processes, sharding_accelerator
from .runs import assert_same, weights_of

MIXTURE = make_mixture(2)
NUM_OBSERVATIONS, NUM_SAMPLES = 12, 24


class Exact(DiamondMixture):
    """A teacher with the map whose law is that of its GLASS in very many steps."""

    device = torch.device("cpu")
    max_step = 0.05


class Narrow(Exact):
    """Its map's samples are seven tenths as far from the mean as they should be."""

    def diamond_map(self, xbar, s, r, x, noise_to_signal, conditions):
        end = super().diamond_map(xbar, s, r, x, noise_to_signal, conditions)
        return torch.lerp(self.predict(x, noise_to_signal, conditions), end, 0.7) if float(r) == 0 else end


def teacher_of(family: Exact) -> SimpleNamespace:
    return SimpleNamespace(
        family=family,
        features=lambda captions: {"offset": torch.zeros(len(captions), 1)},
        conditions=lambda features: unconditional(len(features["offset"])),
    )


@pytest.fixture
def laws_of_mixture(monkeypatch):
    """The figures of a map of the mixture, by sampler and level."""
    monkeypatch.setattr(laws, "LEVELS", (0.4, 1.0))

    def judge(kind: type[Exact]):
        family = kind(MIXTURE)
        judged = Laws(teacher_of(family), NUM_SAMPLES, seed=3, batch_size=200)
        clean = MIXTURE.sample(NUM_OBSERVATIONS, seeded(1)).float()
        observed = Observed(list(range(NUM_OBSERVATIONS)), clean, {"offset": torch.zeros(NUM_OBSERVATIONS, 1)})
        drawn = judged.of_teacher(observed)
        own = {name: judged.statistics(sampler, drawn, family.diamond_map) for name, sampler in MAPS.items()}
        found = accuracy({**own, **drawn.statistics}, drawn.variances, NUM_SAMPLES)
        return {(law.sampler, law.level): law for law in found.laws}

    return judge


def test_a_map_of_the_right_law_is_told_from_a_narrow_one(laws_of_mixture):
    exact, narrow = laws_of_mixture(Exact), laws_of_mixture(Narrow)
    for (sampler, level), law in exact.items():
        # Of the scale of the posteriors, which GLASS in 32 steps is a thousandth from.
        is_map = sampler in MAPS
        assert abs(law.energy_distance) < (0.002 if is_map else 0.1)
        assert abs(law.deviation_ratio - 1) < (0.01 if is_map else 0.15)
        assert not is_map or law.deviation_ratio_error < 0.01
        if is_map:
            wrong = narrow[sampler, level]
            assert wrong.deviation_ratio == pytest.approx(0.7, abs=0.01)
            assert wrong.energy_distance > 3 * wrong.energy_distance_error > 0


def test_figures_take_the_vectors_of_one_observation_at_a_time(laws_of_mixture, monkeypatch):
    """All at once, in float64, they would fill a device."""
    counts = []
    whole = laws.energy_distance

    def counted(first, second, share_noise):
        counts.append(len(first))
        return whole(first, second, share_noise)

    monkeypatch.setattr(laws, "REFERENCE_STEPS", 2)
    monkeypatch.setattr(laws, "energy_distance", counted)
    laws_of_mixture(Exact)
    assert counts == [1] * NUM_OBSERVATIONS * 2 * (len(MAPS) + len(laws.TEACHERS))


def test_the_error_of_a_deviation_ratio_is_that_of_repeated_draws():
    """Of laws that differ in width, sampled in pairs with the same noise and with others."""
    widths = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64).repeat(6)[:, None, None]
    for shared in (True, False):
        ratios, errors = [], []
        for repetition in range(300):
            generator = seeded(repetition)
            first, second = torch.randn(2, len(widths), 8, 3, generator=generator, dtype=torch.float64)
            # As a narrower map with some noise of its own.
            narrow = widths * (0.7 * (first if shared else second) + 0.2 * second)
            ratio, error = deviation_ratio(total_variance(narrow), total_variance(widths * first))
            ratios.append(ratio)
            errors.append(error)
        exact = math.hypot(0.7, 0.2) if shared else 0.9
        spread = torch.tensor(ratios).std().item()
        assert sum(ratios) / 300 == pytest.approx(exact, abs=0.02)
        # Of 300 draws the deviation is known to 4 %.
        assert sum(errors) / 300 == pytest.approx(spread, rel=0.2)
    assert deviation_ratio(torch.zeros(3), torch.ones(3)) == (0, 0)


def test_the_rows_of_the_grid_begin_at_the_same_noise_and_end_where_the_teacher_does(monkeypatch):
    monkeypatch.setattr(grid, "REFERENCE_STEPS", 32)
    family, times = Exact(MIXTURE), []

    def recorded(xbar, s, r, x, level, conditions):
        times.append((float(s), float(r)))
        return family.diamond_map(xbar, s, r, x, level, conditions)

    draw = grid_drawer(teacher_of(family), "a ring", (2,), 3, seed=0)
    teacher, rows = teacher_row(draw), map_rows(draw, recorded)
    assert list(rows) == ["map, 1 step", "map, 2 steps", "map, 4 steps"]
    for row in rows.values():
        # A hundredth of a latent's unit.
        torch.testing.assert_close(row, teacher, atol=0.01 / PIXEL_RANGE, rtol=0)
    # Those of `DiamondPosterior`, which are not at equal distances.
    expected = [pair for steps in MAP_ROWS.values() for pair in pairwise(inner_times(steps, math.inf).tolist())]
    torch.testing.assert_close(torch.tensor(times), torch.tensor(expected))


def test_the_grid_is_labelled():
    colours = {"teacher: GLASS, 32 steps": (1.0, 0.0, 0.0), "map, 1 step": (0.0, 0.0, 1.0)}
    rows = {label: torch.tensor(colour)[None, :, None, None].expand(2, 3, 16, 16) for label, colour in colours.items()}
    drawn = labelled_grid(rows)
    height = drawn.height // 2
    # Wide enough for the words, of which there are more beside the longer label.
    assert drawn.width > 2 * 16 + 60
    inks = []
    for place, colour in enumerate(colours.values()):
        picture = drawn.crop((0, (place + 1) * height - 20, 38, (place + 1) * height))
        assert picture.getpixel((10, 10)) == picture.getpixel((28, 10)) == tuple(round(255 * part) for part in colour)
        label = drawn.crop((0, place * height, drawn.width, (place + 1) * height - 20)).convert("L")
        inks.append(sum(value < 128 for value in label.tobytes()))
    assert inks[0] > inks[1] > 20


METRICS = ["--validation_metrics", "--num_validation_observations", 3, "--num_validation_samples", 2]


@pytest.fixture
def few_evaluations(monkeypatch):
    monkeypatch.setattr(laws, "LEVELS", (0.5, 1.0))
    monkeypatch.setattr(laws, "REFERENCE_STEPS", 3)
    monkeypatch.setattr(laws, "TEACHERS", dict([*laws.TEACHERS.items()][:1]))


def test_figures_are_shown_change_nothing_and_are_those_of_an_unbroken_run(options, few_evaluations):
    shared = ["--loss", "progressive", "--checkpointing_steps", 2, "--ema_decay", 0.5, "--learning_rate", 0.01]
    plain = Trainer(options(*shared, output="plain"))
    plain.run()
    given = options(*shared, *METRICS, "--validation_steps", 1, "--report_to", "tensorboard", output="judged")
    judged = Trainer(given)
    judged.run()
    assert_same(weights_of(plain), weights_of(judged))

    folder = given.output.output_dir
    training = read_map_config(folder)["training"]
    found = training["accuracy"]
    assert (found["num_observations"], found["num_samples"], found["reference_steps"]) == (3, 2, 3)
    samplers = [law["sampler"] for law in found["laws"] if law["level"] == 0.5]
    assert samplers == ["map, 1 step", "map, 2 steps", "GLASS, 4 steps"]
    assert all(math.isfinite(figure) for law in found["laws"] for name, figure in law.items() if name != "sampler")
    card = (folder / "README.md").read_text()
    assert "## How near it is to its teacher" in card and "| accuracy |" not in card
    assert "teacher's GLASS in 3 steps, 2 for each of 3 rows" in card and "|  | t = 0.5 | t = 1 |" in card
    first = found["laws"][0]
    assert f"| map, 1 step | {first['energy_distance']:.3g} ± {first['energy_distance_error']:.1g} |" in card
    assert training["rows"] == 5 and training["hours"] > 0 and training["hardware"].startswith("CPU")

    steps = [json.loads((folder / "validation" / f"step-{step}.json").read_text()) for step in (1, 2, 3)]
    assert steps[2] == found
    # It learns, and its teacher stays.
    by_sampler = [{law["sampler"]: law["deviation_ratio"] for law in step["laws"]} for step in steps]
    assert by_sampler[0]["map, 1 step"] != by_sampler[2]["map, 1 step"]
    assert by_sampler[0]["GLASS, 4 steps"] == by_sampler[2]["GLASS, 4 steps"]
    events = b"".join(file.read_bytes() for file in (folder / "logs").rglob("events*"))
    assert b"validation/energy_distance/map_1_step/t0.5" in events
    assert not list((folder / "validation").glob("*-1.png"))

    kept = [file.stat().st_mtime_ns for file in sorted((folder / "cache").iterdir())]
    resumed = Trainer(options(*shared, *METRICS, "--resume_from_checkpoint", "latest", output="judged"))
    assert resumed.step == 2 and resumed.effort.seconds > 0
    before = resumed.effort.seconds
    resumed.run()
    assert read_map_config(folder)["training"]["accuracy"] == found
    assert [file.stat().st_mtime_ns for file in sorted((folder / "cache").iterdir())] == kept and len(kept) == 1
    assert resumed.effort.seconds > before


def test_rows_that_are_taken_for_it_decide_a_run(options):
    given, machine = options(*METRICS), Accelerator()
    assert "num_validation_observations" not in decisive_options(given, machine)
    assert decisive_options(given, machine, 3)["num_validation_observations"] == "3"


def test_too_many_observations_are_refused_before_the_base_is_loaded(options, monkeypatch):
    monkeypatch.setattr(Trainer, "_build_map", lambda self: pytest.fail("loaded the base"))
    with pytest.raises(TrainingError, match=r"is 293, but the miniature's world holds 292 captions out; lower it"):
        Trainer(options("--validation_metrics", "--num_validation_observations", 293))


@pytest.mark.slow
def test_held_out_prompts_are_drawn_by_the_teacher(options, few_evaluations, prompts_file):
    prompts_file.write_text("a ring\na star\na heart\na cross\na ring\n")
    given = replace(
        options("--loss", "progressive", *METRICS[:2], 2, *METRICS[3:]),
        data=DataOptions(prompts_file=prompts_file),
        preparation=PreparationOptions(teacher_num_inference_steps=1),
    )
    run = Trainer(given)
    prompts = [{row.captions for row in rows} for rows in (run.rows.training, run.rows.held_out)]
    assert [len(texts) for texts in prompts] == [2, 2] and not set.intersection(*prompts)
    run.run()
    assert read_map_config(given.output.output_dir)["training"]["accuracy"]["num_observations"] == 2


WAYS = {
    "replicas": lambda: Accelerator(cpu=True),
    "shards": lambda: sharding_accelerator("FluxTransformerBlock", "FluxSingleTransformerBlock"),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_two_processes_find_what_one_does(options, few_evaluations, way):
    """Of three observations one has two and the other one, which it judges twice."""
    shared = ["--loss", "progressive", "--ema_decay", 0, *METRICS]
    given = options(*shared, output="two")

    def perturbed(run: Trainer) -> Trainer:
        with torch.no_grad():
            for number, weight in enumerate(run.parameters):
                local = weight.to_local() if hasattr(weight, "to_local") else weight
                local.add_(0.02 * (-1) ** number)
        return run

    def child() -> None:
        accelerator = WAYS[way]()
        accelerator.end_training = lambda: None
        run = perturbed(Trainer(given, accelerator))
        run.validation.prepare(run.module)
        validated = run._validate("a ring")
        if accelerator.is_main_process:
            kept = given.output.output_dir / "found.json"
            kept.write_text(json.dumps([law.energy_distance for law in validated.accuracy.laws]))

    in_two_processes(child)
    run = perturbed(Trainer(options(*shared, output="one")))
    run.validation.prepare(run.module)
    expected = torch.tensor([law.energy_distance for law in run._validate(None).accuracy.laws])
    found = torch.tensor(json.loads((given.output.output_dir / "found.json").read_text()))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
