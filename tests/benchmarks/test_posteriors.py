"""Posterior samplers are told apart by their laws and by the values that they give, against closed forms."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor
from typer.testing import CliRunner

from benchmarks.posteriors.__main__ import app
from benchmarks.posteriors.comparison import (
    REFERENCE,
    PosteriorBenchmark,
    Settings,
    compare_posteriors,
    grouped_values,
    standard_samplers,
)
from benchmarks.posteriors.observations import (
    keyed_noise,
    rendered_latents,
    sampled_latents,
    shuffled_captions,
    tilted_law,
)
from benchmarks.posteriors.rank_correlation import rank_correlation
from diamond_diffusers import DiamondMapPipeline, DiamondPosterior, GlassPosterior
from diamond_diffusers.alignment.law import Law
from diamond_diffusers.core.glass import INNER_SOLVERS
from diamond_diffusers.core.sample_statistics import energy_distance, total_deviation
from diamond_diffusers.maps.diamond_map import DiamondMap
from diamond_diffusers.maps.storage import save_diamond_map
from diamond_diffusers.miniature.judge import judge
from diamond_diffusers.pipelines.loading import EMBEDDED_MODEL
from diamond_diffusers.posteriors.base import PosteriorSamples

from ..core.mixture import make_mixture, seeded, standard_error
from ..core.mixture_model import LINEAR, MixtureMapFamily, MixtureModel, at_rows, law_of, make_map_law, unconditional
from ..core.test_diamond import DiamondMixture

MIXTURE = make_mixture(3)
LEVELS = (0.3, 0.6, 1.0)
NUM_OBSERVATIONS, NUM_SAMPLES = 16, 32


def mean_norm(dimension: int) -> float:
    """`E|X|` of a standard normal."""
    return math.sqrt(2) * math.gamma((dimension + 1) / 2) / math.gamma(dimension / 2)


@pytest.mark.parametrize("widths", [(1.0, 1.0), (1.0, 1.6)])
def test_the_energy_distance_of_small_sets_is_that_of_two_normals_on_average(widths: tuple[float, float]) -> None:
    first, second = (
        width * torch.randn(6000, count, 3, generator=seeded(count), dtype=torch.float64)
        for width, count in zip(widths, (5, 3), strict=True)
    )
    exact = mean_norm(3) * (2 * math.hypot(*widths) - math.sqrt(2) * sum(widths))
    estimates = energy_distance(first, second)
    tolerance = 4 * standard_error(estimates).item()
    assert estimates.mean().item() == pytest.approx(exact, abs=tolerance)
    # What the distances of samples to themselves would add.
    assert tolerance < 0.1 * mean_norm(3) * math.sqrt(2) * (widths[0] / 5 + widths[1] / 3)


def test_sets_of_the_same_noise_are_compared_without_bias_and_with_less_variance() -> None:
    noise = torch.randn(6000, 5, 3, generator=seeded(1), dtype=torch.float64)
    first, second = noise, 1.2 * noise[:, :3]
    exact = mean_norm(3) * (2 * math.hypot(1, 1.2) - math.sqrt(2) * 2.2)
    paired = energy_distance(first, second, share_noise=True)
    independent = energy_distance(first, second[torch.randperm(6000, generator=seeded(2))])
    tolerance = 4 * standard_error(paired).item()
    assert paired.mean().item() == pytest.approx(exact, abs=tolerance)
    # What the pairs would add.
    assert tolerance < 0.2 * (energy_distance(first, second).mean() - exact).abs()
    assert paired.std() < 0.75 * independent.std()
    assert energy_distance(noise, noise, share_noise=True).abs().max() < 1e-12


def test_one_sample_stands_for_a_point() -> None:
    samples = torch.randn(4000, 4, 3, generator=seeded(1), dtype=torch.float64)
    estimates = energy_distance(torch.zeros(4000, 1, 3, dtype=torch.float64), samples)
    exact = (2 - math.sqrt(2)) * mean_norm(3)
    assert estimates.mean().item() == pytest.approx(exact, abs=4 * standard_error(estimates).item())
    assert total_deviation(samples[:, :1]) == 0


def test_the_total_deviation_is_the_root_of_the_trace() -> None:
    widths = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    samples = 7 + widths * torch.randn(4000, 3, 3, generator=seeded(1), dtype=torch.float64)
    assert total_deviation(samples).item() == pytest.approx(widths.norm().item(), rel=0.02)


def test_rank_correlation() -> None:
    first, second = torch.randn(2, 9, generator=seeded(1))
    second[3] = second[5]
    assert rank_correlation(first, second) == pytest.approx(spearmanr(first, second).statistic)
    assert rank_correlation(first, first.exp()) == pytest.approx(1)
    assert rank_correlation(first, -first) == pytest.approx(-1)
    assert rank_correlation(first, torch.ones(9)) is None


class HalvedMixture(DiamondMixture):
    """A map whose samples are half as far from the mean as they should be."""

    def diamond_map(self, xbar, s, r, x, noise_to_signal, conditions):
        end = super().diamond_map(xbar, s, r, x, noise_to_signal, conditions)
        return (end + self.predict(x, noise_to_signal, conditions)) / 2


def clean_latents(count: int = NUM_OBSERVATIONS) -> Tensor:
    return MIXTURE.sample(count, seeded(3)).float()


def mixture_model(kind: type[MixtureModel] = DiamondMixture, num_images: int = NUM_OBSERVATIONS) -> Law:
    return law_of(kind(MIXTURE), unconditional(num_images), [""] * num_images, LINEAR)


@pytest.fixture(scope="module")
def result() -> PosteriorBenchmark:
    """Of all samplers on the mixture with its exact map."""
    return compare_posteriors(mixture_model(), clean_latents(), Settings(LEVELS, NUM_SAMPLES, seed=1))


def test_laws_are_told_apart(result: PosteriorBenchmark) -> None:
    distances = {(one.sampler, one.level): one for one in result.distances}
    names = [name for name in standard_samplers(NUM_SAMPLES) if not name.startswith("Weighted")]
    assert list(distances) == [(name, level) for level in LEVELS for name in (REFERENCE, *names)]
    for level in LEVELS:
        point, coarse, fine = (
            distances[name, level] for name in ("denoiser point", "GLASS, 2 steps", "GLASS, 8 steps")
        )
        # Without the correction for small sets it would be about 2/16 of a mean distance, a third of the point's.
        assert abs(distances[REFERENCE, level].energy_distance) < point.energy_distance / 10
        # The relative standard error of a standard deviation of twice 16 x 16 samples is 0.05.
        assert distances[REFERENCE, level].deviation_ratio == pytest.approx(1, abs=0.1)
        for exact in ("Diamond, 1 step", "Diamond, 2 steps"):
            # It follows the same paths as the reference, which 64 steps integrate to about 0.5 %.
            assert abs(distances[exact, level].energy_distance) < 1e-4 * point.energy_distance
            assert distances[exact, level].deviation_ratio == pytest.approx(1, abs=0.01)
        assert point.deviation_ratio == 0
        assert point.energy_distance > 10 * point.standard_error
        assert point.energy_distance > coarse.energy_distance
        assert fine.energy_distance < coarse.energy_distance / 5
        assert fine.energy_distance > 5 * fine.standard_error


@pytest.mark.parametrize("level", [0.3, pytest.param(0.9, marks=pytest.mark.slow)])
def test_of_all_solvers_that_of_the_reference_comes_closest_to_many_more_steps(level: float) -> None:
    samplers = {solver: GlassPosterior(64, 8, solver) for solver in INNER_SOLVERS}
    settings = Settings((level,), 8, reference_steps=256)
    result = compare_posteriors(mixture_model(num_images=2), clean_latents(2), settings, samplers)
    distances = {one.sampler: one.energy_distance for one in result.distances}
    assert min(samplers, key=lambda solver: distances[solver]) == Settings().reference.solver


def test_a_map_of_the_wrong_width_is_seen() -> None:
    samplers = {"map": DiamondPosterior(NUM_SAMPLES)}
    settings = Settings((0.6,), NUM_SAMPLES)
    exact, halved = (
        compare_posteriors(mixture_model(kind), clean_latents(), settings, samplers).distances[1]
        for kind in (DiamondMixture, HalvedMixture)
    )
    assert halved.deviation_ratio == pytest.approx(exact.deviation_ratio / 2, rel=1e-4)
    assert halved.energy_distance > 10 * halved.standard_error


def test_errors_of_values_are_those_of_means_of_weights(result: PosteriorBenchmark) -> None:
    """`E (V_K - V)^2 = var(w) / K + O(K^-2)` with `w = exp(r) / E[exp r]`; the reference adds that of its samples."""
    overall = {(one.sampler, one.num_look_aheads): one for one in result.values if one.level is None}
    errors = [overall["Diamond, 1 step", count].error for count in (1, 2, 4, 8, 16)]
    assert errors == sorted(errors, reverse=True)
    at_level = {(one.sampler, one.level, one.num_look_aheads): one.error for one in result.values}
    x = MIXTURE.observation(0.3 / 0.7).sample(4000, seeded(1))
    law = MIXTURE.posterior(x, 0.3 / 0.7)
    (_, once), (_, twice) = LINEAR.tilt(law), LINEAR.tilt(law, scale=2.0)
    variance = (torch.exp(twice - 2 * once) - 1).mean().item()
    for count in (4, 16):
        expected = math.sqrt(variance / count + variance / NUM_SAMPLES)
        assert at_level["Diamond, 1 step", 0.3, count] == pytest.approx(expected, rel=0.3)
    assert at_level[REFERENCE, 0.3, NUM_SAMPLES] == pytest.approx(math.sqrt(variance / NUM_SAMPLES), rel=0.35)


def test_weights_count_in_groups_of_look_aheads() -> None:
    weights = torch.tensor([[1.0, 3.0, 2.0, 2.0, 9.0]], dtype=torch.float64)
    rewards = torch.tensor([[0.5, -1.0, 2.0, 0.0, 7.0]], dtype=torch.float64)
    drawn = PosteriorSamples(torch.zeros(1, 5, 2), weights.log())
    first = math.log((math.exp(0.5) + 3 * math.exp(-1)) / 4)
    second = math.log((math.exp(2) + 1) / 2)
    assert grouped_values(rewards, drawn, 2).tolist() == [pytest.approx([first, second])]


def test_estimates_rank_observations_like_the_reference(result: PosteriorBenchmark) -> None:
    correlations = {
        (one.sampler, one.num_look_aheads): one.rank_correlation for one in result.values if one.level == 0.3
    }
    assert correlations["Diamond, 1 step", 16] > 0.9
    assert correlations["Diamond, 1 step", 1] < correlations["Diamond, 1 step", 16]


def test_costs_are_those_of_a_run(result: PosteriorBenchmark) -> None:
    costs = {(one.sampler, one.num_look_aheads): one.network_evaluations for one in result.values if one.level == 0.6}
    assert costs["denoiser point", 1] == 1
    assert [costs[f"flow-map point, {steps}", 1] for steps in ("1 step", "4 steps")] == [1, 4]
    for count in (1, 2, 4, 8, 16):
        for steps in (2, 4, 8):
            assert costs[f"GLASS, {steps} steps", count] == 1 + count * (steps - 1)
        assert costs["Diamond, 1 step", count] == count
        assert costs["Diamond, 2 steps", count] == 2 * count
    # The map and the score of each look-ahead, and the score of the observation.
    assert costs["Weighted, 1 step", 4] == 4 + 4 + 1
    assert costs["Weighted, 4 steps", 4] == 4 * 4 + 4 + 1
    assert not result.left_out


def test_a_model_without_a_map_has_no_samplers_of_one_step() -> None:
    law = mixture_model(MixtureModel, 2)
    result = compare_posteriors(law, clean_latents(2), Settings((0.6,), 4, reference_steps=4))
    assert list(result.left_out) == [
        "flow-map point, 1 step", "Diamond, 1 step", "Diamond, 2 steps", "Weighted, 1 step"
    ]  # fmt: skip
    assert "not a few-step flow map" in result.left_out["Weighted, 1 step"]
    costs = {(one.sampler, one.num_look_aheads): one.network_evaluations for one in result.values}
    assert costs["flow-map point, 4 steps", 1] == 4
    assert costs["Weighted, 4 steps", 4] == 4 * 4 + 1


def test_guidance_costs_twice_but_is_baked_into_a_map() -> None:
    conditions = unconditional(2)
    guided = type(conditions)(conditions.features, conditions.features, 3.0)
    family = DiamondMixture(MIXTURE)
    law = law_of(family, guided, [""] * 2, LINEAR)
    samplers = {"glass": GlassPosterior(4, 2), "map": DiamondPosterior(2)}
    seen: list[int] = []
    settings = Settings((0.5, 0.9), 4, reference_steps=3)
    result = compare_posteriors(law, clean_latents(2), settings, samplers, seen.append)
    costs = {(one.sampler, one.num_look_aheads): one.network_evaluations for one in result.values if one.level is None}
    assert costs == {(REFERENCE, 4): 18, ("glass", 1): 8, ("glass", 2): 14, ("map", 1): 1, ("map", 2): 2}
    assert seen == [1, 2]
    # Of each of two observations at two levels: the prediction, the reference, and twice both samplers.
    assert family.evaluations == law.cost.network_evaluations == 4 * (2 + 2 * 4 * 2 + 2 * (2 * 2 * 3 + 2))


def test_a_few_step_model_has_weighted_look_aheads_and_no_map() -> None:
    samplers = {name: sampler for name, sampler in standard_samplers(4).items() if "4 steps" not in name}
    result = compare_posteriors(
        make_map_law(MIXTURE, LINEAR, 2, num_steps=4), clean_latents(2), Settings((0.5,), 4), samplers
    )
    assert sorted(result.left_out) == ["Diamond, 1 step", "Diamond, 2 steps"]
    costs = {(one.sampler, one.num_look_aheads): one.network_evaluations for one in result.values}
    assert costs["Weighted, 1 step", 2] == 2 + 2 + 1
    assert costs["GLASS, 8 steps", 1] == 1 + 8


def test_draws_at_a_level_do_not_depend_on_other_levels_or_observations() -> None:
    samplers = {"glass": GlassPosterior(2, 4), "map": DiamondPosterior(4)}
    options = {"num_samples": 4, "reference_steps": 4}
    both, alone = (
        compare_posteriors(mixture_model(num_images=3), clean_latents(3), Settings(levels, **options), samplers)
        for levels in ((0.3, 0.8), (0.8,))
    )
    assert [one for one in both.distances if one.level == 0.8] == alone.distances
    assert [one for one in both.values if one.level == 0.8] == [one for one in alone.values if one.level == 0.8]
    latents = clean_latents(3)
    assert torch.equal(keyed_noise("key", latents, 2)[:4], keyed_noise("key", latents[:2], 2))
    assert not torch.equal(keyed_noise("key", latents, 2), keyed_noise("other", latents, 2))


def test_without_a_reward_only_laws_are_compared() -> None:
    law = law_of(DiamondMixture(MIXTURE), unconditional(2), [""] * 2)
    result = compare_posteriors(law, clean_latents(2), Settings((0.5,), 4, reference_steps=2))
    assert result.values == []
    assert len(result.distances) == 9


def test_bad_settings_are_one_sentence() -> None:
    for levels in ((), (0.0,), (1.1,), (0.5, 0.5)):
        with pytest.raises(ValueError, match="levels is "):
            Settings(levels)
    for count in (2, 5):
        with pytest.raises(ValueError, match=f"num_samples is {count}; give an even number of at least 4"):
            Settings(num_samples=count)
    with pytest.raises(ValueError, match="clean holds 1 latents for 1 images"):
        compare_posteriors(mixture_model(num_images=1), clean_latents(1))
    with pytest.raises(ValueError, match="'map' with num_samples=5, but the reference draws 4"):
        compare_posteriors(
            mixture_model(num_images=2), clean_latents(2), Settings(num_samples=4), {"map": DiamondPosterior(5)}
        )
    few_step = law_of(MixtureMapFamily(MIXTURE), unconditional(2), [""] * 2)
    with pytest.raises(ValueError, match="GlassPosterior needs the posterior mean"):
        compare_posteriors(few_step, clean_latents(2))
    with pytest.raises(ValueError, match="num_observations is 301; give at most 300"):
        shuffled_captions(301)


@pytest.fixture(scope="module")
def miniature() -> DiamondMapPipeline:
    pipe = DiamondMapPipeline.from_pretrained()
    pipe.set_progress_bar_config(disable=True)
    pipe.unload_diamond_map()
    return pipe


def test_renders_are_observed_as_the_model_sees_them(miniature: DiamondMapPipeline) -> None:
    captions = shuffled_captions(8)
    latents = rendered_latents(miniature, captions)
    with tilted_law(miniature, [caption.text for caption in captions]) as law:
        images = at_rows(law, 1).decode(latents)
    assert judge(images, captions).sum() >= 7
    assert latents.std().item() == pytest.approx(1, abs=0.1)
    assert torch.equal(rendered_latents(miniature, captions[:3]), latents[:3])
    assert not torch.equal(rendered_latents(miniature, captions[:3], seed=1), latents[:3])


def test_samples_of_the_model_are_observed_as_it_draws_them(tiny_pipe: DiamondMapPipeline) -> None:
    latents = sampled_latents(tiny_pipe, ["a star", "a ring"], seed=2, particle_batch_size=1)
    drawn = tiny_pipe("a ring", generator=torch.Generator().manual_seed(2_000_001), output_type="pt").images
    with tilted_law(tiny_pipe, ["a star", "a ring"], particle_batch_size=1) as law:
        torch.testing.assert_close(at_rows(law, 1).decode(latents)[1:], drawn, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="64 pixels high; this model draws 16: name prompts"):
        rendered_latents(tiny_pipe, shuffled_captions(2))


def save_map(pipe: DiamondMapPipeline, folder: Path) -> Path:
    """A map with random weights."""
    diamond_map = DiamondMap(pipe.family, rank=2)
    weights = {
        name: torch.randn(weight.shape, generator=seeded(1)) / 20 for name, weight in diamond_map.weights().items()
    }
    save_diamond_map(folder, diamond_map, {}, {}, base_model=EMBEDDED_MODEL, weights=weights)
    diamond_map.remove()
    return folder


def run(*arguments: object) -> str:
    call = [*(str(argument) for argument in arguments), "--device", "cpu"]
    result = CliRunner().invoke(app, call, env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.output


@pytest.mark.slow
def test_the_command_on_the_miniature(miniature: DiamondMapPipeline, tmp_path: Path) -> None:
    folder = save_map(miniature, tmp_path / "map")
    sizes = ("--num-observations", 2, "--num-samples", 4, "--levels", "0.5")
    printed = run("--model", folder, *sizes, "--seed", 3, "--output", tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["settings"]["reference"] == {
        "name": "glass",
        "num_inner_steps": 64,
        "num_samples": 4,
        "solver": "exponential",
    }
    assert results["settings"]["prompts"] == [caption.text for caption in shuffled_captions(2, 3)]
    assert results["settings"]["reward"] == "miniature"
    assert {one["sampler"] for one in results["values"]} == {REFERENCE, *standard_samplers(4)}
    # A look-ahead of GLASS with 8 steps is guided, one of the map has its guidance baked in.
    costs = {(one["sampler"], one["num_look_aheads"]): one["network_evaluations"] for one in results["values"]}
    assert (costs["GLASS, 8 steps", 4], costs["Diamond, 1 step", 4]) == (2 * (1 + 4 * 7), 4)
    for name in ("distances", "values"):
        with (tmp_path / f"{name}.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [row["sampler"] for row in rows] == [one["sampler"] for one in results[name]]
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    assert (tmp_path / "tables.md").read_text().count("| Diamond, 1 step |") == 5
    assert "Energy distance of look-aheads to GLASS of 64 steps (exponential)" in printed
    for text in ("Diamond, 2 steps", REFERENCE, "Weighted, 1 step"):
        assert text in printed


@pytest.mark.slow
def test_the_command_on_another_model(tiny_folder: Path, redness_reward: str, tmp_path: Path) -> None:
    sizes = ("--num-observations", 3, "--num-samples", 4, "--levels", "0.4, 1")
    call = ("--model", tiny_folder, *sizes, "--prompt", "a star", "--prompt", "a ring", "--output", tmp_path)
    printed = run(*call, "--reward", redness_reward, "--reward-scale", 2)
    settings = json.loads((tmp_path / "results.json").read_text())["settings"]
    assert settings["prompts"] == ["a star", "a ring", "a star"]
    assert (settings["reward_scale"], settings["levels"]) == (2.0, [0.4, 1.0])
    assert "needs a Diamond Map" in printed
    assert "Values are not compared" in run(*call, "--levels", "1", "--num-observations", 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--levels", "0.3,half"], "--levels is '0.3,half'"),
        (["--levels", "2"], "levels is [2.0]"),
        (["--num-samples", "5"], "num_samples is 5"),
        (["--num-observations", "999"], "num_observations is 999"),
        (["--reward", "no_such"], "no_such"),
    ],
)
def test_bad_options_are_one_sentence(options: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["--output", str(tmp_path), *options])
    assert result.exit_code == 2
    assert message in result.output
