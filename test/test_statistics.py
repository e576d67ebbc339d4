"""Intervals and paired comparisons, against published values and by their coverage."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hapo_ros.statistics import mcnemar, mean_over_seeds, paired_difference, wilson


def arms(both, only_first, only_second, neither):
    first = [True] * (both + only_first) + [False] * (only_second + neither)
    second = [True] * both + [False] * only_first + [True] * only_second + [False] * neither
    return first, second


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_limits_that_newcombe_published(successes, n, low, high):
    # R. G. Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3.
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_what_is_no_proportion(successes, n):
    with pytest.raises(ValueError, match="no proportion"):
        wilson(successes, n)


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [
        ((36, 12, 2, 0), 0.0569, 0.3404),  # Newcombe, Stat. Med. 17 (1998) 2635-2650, method 10
        ((1, 1, 7, 12), -0.507, -0.026),  # Fagerland et al., Stat. Med. 33 (2014) 2850-2875
    ],
)
def test_a_paired_difference_has_the_published_interval(table, low, high):
    result = paired_difference(*arms(*table))
    assert (result.low, result.high) == pytest.approx((low, high), abs=5e-4)


def test_a_paired_difference_counts_the_seeds_that_differ():
    result = paired_difference(*arms(5, 4, 1, 10))
    assert (result.n, result.first, result.second) == (20, 0.45, 0.3)
    assert result.difference == pytest.approx(0.15)
    assert (result.only_first, result.only_second) == (4, 1)
    assert result.p_value == mcnemar(4, 1)


@pytest.mark.parametrize(
    ("table", "verdict"),
    [
        ((20, 15, 2, 13), "the first is better"),
        ((20, 2, 15, 13), "the second is better"),
        ((20, 6, 4, 20), "no difference shown"),
        ((0, 0, 0, 1), "no difference shown"),
    ],
)
def test_the_verdict_names_a_difference_only_where_the_interval_leaves_out_zero(table, verdict):
    assert paired_difference(*arms(*table)).verdict == verdict


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_swapping_the_arms_mirrors_the_difference(pairs):
    first, second = zip(*pairs, strict=True)
    there, back = paired_difference(first, second), paired_difference(second, first)
    assert -1 <= there.low <= there.difference <= there.high <= 1
    assert (back.low, back.high) == pytest.approx((-there.high, -there.low))
    assert back.p_value == there.p_value


@pytest.mark.parametrize(("a", "b"), [([], []), ([1], [1, 0])])
def test_unpaired_arms_are_refused(a, b):
    with pytest.raises(ValueError, match="not paired"):
        paired_difference(a, b)


def test_an_outcome_that_is_no_truth_value_is_refused():
    with pytest.raises(ValueError, match="true or false"):
        paired_difference([0.5], [1])


def test_mcnemar_is_the_sign_test_of_the_discordant_pairs():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 0) == 2 / 2**5
    assert mcnemar(12, 2) == pytest.approx(0.01294, abs=5e-6)  # 2 * (1 + 14 + 91) / 2**14
    assert mcnemar(3, 3) == 1.0


@pytest.mark.parametrize("n", [20, 120])
def test_the_paired_interval_covers_the_truth_about_as_often_as_it_says(n):
    rng = np.random.default_rng(n)
    cells = np.array([0.35, 0.25, 0.10, 0.30])  # both, only first, only second, neither
    covered = 0
    for counts in rng.multinomial(n, cells, size=2000):
        result = paired_difference(*arms(*counts))
        covered += result.low <= 0.15 <= result.high
    assert 0.935 <= covered / 2000 <= 0.98


def test_the_mean_over_training_seeds_has_students_interval():
    result = mean_over_seeds([0.4, 0.5, 0.6])
    assert (result.n, result.mean) == (3, pytest.approx(0.5))
    # t(0.975, 2 degrees of freedom) = 4.3027
    assert (result.low, result.high) == pytest.approx((0.5 - 0.24841, 0.5 + 0.24841), abs=1e-4)


@pytest.mark.parametrize(("n", "t"), [(2, 12.7062), (5, 2.7764), (6, 2.5706), (31, 2.0423)])
def test_students_quantiles_are_those_of_the_tables(n, t):
    values = [0.0] * (n - 1) + [1.0]
    result = mean_over_seeds(values)
    assert (result.high - result.mean) / (np.std(values, ddof=1) / math.sqrt(n)) == pytest.approx(
        t, abs=5e-5
    )


def test_a_single_training_seed_has_no_interval():
    result = mean_over_seeds([0.7])
    assert result.mean == 0.7
    assert math.isnan(result.low)
    assert math.isnan(result.high)
