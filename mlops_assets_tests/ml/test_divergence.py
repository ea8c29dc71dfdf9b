"""The measures, against their formulas and SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from mlops_assets.ml.divergence import chi_squared, kolmogorov_smirnov, stability_index

HISTOGRAMS = st.lists(
    st.tuples(st.integers(0, 500), st.integers(0, 500)), min_size=1, max_size=30
).map(lambda pairs: np.array(pairs).T)


def test_the_stability_index_is_the_sum_of_the_textbook() -> None:
    index = stability_index(np.array([500, 300, 200]), np.array([40, 30, 30]))

    terms = [(0.4 - 0.5, 0.4 / 0.5), (0.3 - 0.3, 1), (0.3 - 0.2, 0.3 / 0.2)]
    assert index == pytest.approx(sum(change * math.log(ratio) for change, ratio in terms))


def test_a_bin_that_was_empty_counts_as_half_a_row() -> None:
    index = stability_index(np.array([100, 0]), np.array([90, 10]))

    expected = (0.9 - 1) * math.log(0.9) + (0.1 - 0.005) * math.log(0.1 / 0.005)
    assert index == pytest.approx(expected)


@given(HISTOGRAMS)
def test_the_stability_index_is_never_negative_and_without_direction(counts: np.ndarray) -> None:
    assume(counts.sum(axis=1).all())
    index = stability_index(*counts)

    assert index >= 0
    assert math.isfinite(index)
    assert index == pytest.approx(stability_index(counts[1], counts[0]))
    assert stability_index(counts[0], counts[0]) == 0


@given(HISTOGRAMS)
def test_chi_squared_is_scipys_where_every_bin_is_large_enough(counts: np.ndarray) -> None:
    counts = counts + 10
    expected = stats.chi2_contingency(counts, correction=False)
    assume(expected.expected_freq.min() >= 5)
    assume(counts.shape[1] > 1)

    found = chi_squared(*counts)

    assert found == pytest.approx((expected.statistic, expected.dof, expected.pvalue))


@given(HISTOGRAMS)
def test_chi_squared_never_trusts_a_bin_with_few_expected_rows(counts: np.ndarray) -> None:
    assume(counts.sum(axis=1).all())
    statistic, dof, p_value = chi_squared(*counts)

    smaller = counts.sum(axis=1).min()
    assert dof <= smaller / 5
    assert statistic >= 0
    assert 0 <= p_value <= 1


def test_chi_squared_says_nothing_of_a_single_bin() -> None:
    assert chi_squared(np.array([50, 0]), np.array([20, 0])) == (0, 0, 1)
    assert chi_squared(np.array([1, 1]), np.array([2, 0])) == (0, 0, 1)


def test_kolmogorov_smirnov_is_scipys_when_every_value_has_its_range() -> None:
    rng = np.random.default_rng(0)
    values, others = rng.integers(0, 40, 500), rng.integers(3, 44, 300)
    expected = stats.ks_2samp(values, others, method="asymp")

    found = kolmogorov_smirnov(np.bincount(values, minlength=44), np.bincount(others, minlength=44))

    assert found == pytest.approx((expected.statistic, expected.pvalue))


def test_kolmogorov_smirnov_of_an_empty_sample_is_none() -> None:
    assert kolmogorov_smirnov(np.array([0, 0]), np.array([1, 2])) is None
