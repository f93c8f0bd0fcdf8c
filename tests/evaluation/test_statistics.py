import math

import pytest

from diamond_diffusers.evaluation.scoring.statistics import mean, means_by_group, paired_difference, proportion


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
