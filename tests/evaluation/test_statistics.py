import math

import pytest

from diamond_diffusers.evaluation.scoring.statistics import (
    clustered_mean,
    mean,
    mean_of_group_means,
    means_by_group,
    paired_difference,
    pooled_mean,
    proportion,
)


def test_wilson_interval_of_a_textbook_case():
    estimate = proportion([True] * 81 + [False] * 182)
    assert estimate.mean == pytest.approx(0.3080, abs=1e-4)
    # Newcombe (1998), table I, method 3.
    assert (estimate.lower, estimate.upper) == pytest.approx((0.2553, 0.3662), abs=1e-4)


def test_wilson_interval_at_the_ends():
    z2 = 1.959963984540054**2
    assert proportion([False] * 10).upper == pytest.approx(z2 / (10 + z2))
    assert proportion([True] * 10).upper == pytest.approx(1.0)
    with pytest.raises(ValueError, match="outcomes is empty"):
        proportion([])


def test_bootstrap_of_two_pairs_has_a_known_law():
    # Differences 0 and 1: the mean is 0, 1/2 or 1 with probabilities 1/4, 1/2 and 1/4.
    estimate = paired_difference([1, 5], [1, 4])
    assert (estimate.mean, estimate.lower, estimate.upper) == (0.5, 0.0, 1.0)


def test_bootstrap_agrees_with_the_normal_interval():
    differences = [1.0, 0.0, 0.0, -1.0, 1.0] * 100
    estimate = paired_difference(differences, [0.0] * 500)
    half = 1.96 * math.sqrt(0.56 / 500)
    assert estimate.mean == pytest.approx(0.2)
    assert (estimate.lower, estimate.upper) == pytest.approx((0.2 - half, 0.2 + half), abs=0.006)


def test_mean_of_two_values_has_a_known_law():
    # Resamples of 0 and 1 have the mean 0, 1/2 or 1 with probabilities 1/4, 1/2 and 1/4.
    estimate = mean([0.0, 1.0])
    assert (estimate.mean, estimate.lower, estimate.upper) == (0.5, 0.0, 1.0)
    with pytest.raises(ValueError, match="values is empty"):
        mean([])


def test_pairs_are_kept_together():
    common = [float(i) for i in range(50)]
    estimate = paired_difference([value + 1 for value in common], common)
    assert (estimate.lower, estimate.upper) == (1.0, 1.0)


def test_bootstrap_is_seeded():
    first, second = [0.1, 0.7, 0.4, 0.9], [0.3, 0.2, 0.4, 0.1]
    assert paired_difference(first, second) == paired_difference(first, second)
    assert paired_difference(first, second, num_resamples=7) != paired_difference(first, second, 1, num_resamples=7)


def test_unpaired_numbers_are_refused():
    with pytest.raises(ValueError, match="first holds 2 and second 1"):
        paired_difference([1, 2], [1])


def test_means_by_group():
    assert means_by_group([True, False, True], ["b", "a", "b"]) == {"b": 1.0, "a": 0.0}


def test_images_of_one_prompt_are_resampled_together():
    outcomes = [1, 1, 0, 0, 1, 1, 0, 0]
    assert clustered_mean(outcomes, list("abcdefgh")) == proportion([bool(outcome) for outcome in outcomes])
    # Pairs that agree say no more than one image of each.
    assert clustered_mean(outcomes, list("aabbccdd")) == mean([1, 0, 1, 0])
    # Scores that are no outcomes have no binomial law.
    assert clustered_mean([0.25, 0.75], ["a", "b"]) == mean([0.25, 0.75])


def test_pooled_values_of_two_clusters_have_a_known_law():
    # Of the first cluster alone 1, of both 1/3, of the second alone 0: with probabilities 1/4, 1/2 and 1/4.
    estimate = pooled_mean([[1.0], [0.0, 0.0], []])
    assert (estimate.mean, estimate.lower, estimate.upper) == (pytest.approx(1 / 3), 0.0, 1.0)
    with pytest.raises(ValueError, match="values is empty"):
        pooled_mean([[]])


def test_pooled_single_values_are_a_mean():
    values = [1.0, 0.0, 0.0, -1.0, 1.0] * 100
    half = 1.96 * math.sqrt(0.56 / 500)
    estimate = pooled_mean([[value] for value in values])
    assert (estimate.lower, estimate.upper) == pytest.approx((0.2 - half, 0.2 + half), abs=0.006)


def test_groups_count_alike_and_are_resampled_for_themselves():
    values, groups = [0.0, 1.0] * 200 + [1.0] * 10, ["a"] * 400 + ["b"] * 10
    estimate = mean_of_group_means(values, groups)
    # The second group does not vary; half the standard error of the first.
    half = 1.96 * 0.5 / math.sqrt(400) / 2
    assert estimate.mean == pytest.approx(0.75)
    assert (estimate.lower, estimate.upper) == pytest.approx((0.75 - half, 0.75 + half), abs=0.004)
    with pytest.raises(ValueError, match="values is empty"):
        mean_of_group_means([], [])
