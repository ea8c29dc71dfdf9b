"""Into which bins values are sorted, whatever the values."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

from mlops_assets.ml.distribution import MOST_CATEGORIES, QUANTILES, Bins
from mlops_assets.ml.divergence import kolmogorov_smirnov

FLOATS = arrays.arrays(
    "float64",
    st.integers(1, 400),
    elements=st.floats(-1e150, 1e150) | st.just(float("nan")) | st.sampled_from([0.0, 1.0, 2.0]),
)
TEXTS = st.lists(st.text(max_size=3) | st.none(), min_size=1, max_size=80)


def series(values: object) -> pd.Series:
    return pd.Series(values, name="x")


def labels_and_counts(bins: Bins, values: pd.Series) -> dict[str, int]:
    counts = bins.count(values)
    groups, labels = bins.groups(counts)
    return dict(zip(labels, np.bincount(groups, weights=counts).astype(int).tolist(), strict=True))


@given(FLOATS, FLOATS)
def test_the_distance_of_two_samples_is_right_to_a_hundredth(
    before: np.ndarray, after: np.ndarray
) -> None:
    bins = Bins.of(series(before), "number")
    counts, later = bins.count(series(before)), bins.count(series(after))
    found = kolmogorov_smirnov(counts[:-1], later[:-1])

    present = [values[~np.isnan(values)] for values in (before, after)]
    if not all(len(values) for values in present):
        assert found is None
        return
    assert found is not None
    with np.errstate(divide="ignore"):  # in SciPy's p-value, of samples of one row
        exact = stats.ks_2samp(*present, method="asymp").statistic
    assert exact - 1 / QUANTILES - 1 / len(present[0]) - 1e-9 <= found.statistic <= exact + 1e-9


@given(FLOATS, FLOATS)
def test_every_number_is_counted_once_however_it_is_divided(
    before: np.ndarray, after: np.ndarray
) -> None:
    bins = Bins.of(series(before), "number")
    restored = Bins.from_json(json.loads(json.dumps(bins.as_json())))

    whole = restored.count(series(after))
    halves = np.array_split(after, 2)

    assert whole.sum() == len(after)
    assert whole[-1] == np.isnan(after).sum()
    assert (whole == sum(bins.count(series(half)) for half in halves)).all()


@given(TEXTS, TEXTS)
def test_every_category_is_counted_once(before: list[str | None], after: list[str | None]) -> None:
    bins = Bins.of(series(before).astype(object), "category")
    values = series(after).astype(object)
    counts = bins.count(values)

    known = {text for text in before if text is not None}
    assert set(bins.categories) == known
    assert counts.sum() == len(after)
    assert counts[-1] == after.count(None)
    assert counts[-2] == sum(text is not None and text not in known for text in after)
    assert set(bins.unknown(values)) == {text for text in after if text is not None} - known


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0] * 50, {"< 1": 0, "1": 50, "> 1": 0, "missing": 0}),
        ([np.nan] * 3, {"any value": 0, "missing": 3}),
        (
            [0.0] * 60 + list(range(1, 41)),
            {"< 0": 0, "0": 60, "0 to 10": 10, "10 to 20": 10, "20 to 30": 10, "> 30": 10}
            | {"missing": 0},
        ),
    ],
)
def test_groups_of_numbers_are_named_for_people(
    values: list[float], expected: dict[str, int]
) -> None:
    column = series(values)
    assert labels_and_counts(Bins.of(column, "number"), column) == expected


def test_numbers_are_grouped_by_tenths_of_the_reference() -> None:
    column = series(np.random.default_rng(0).normal(size=10_000))
    counts = list(labels_and_counts(Bins.of(column, "number"), column).values())

    assert len(counts) == 11
    assert all(abs(count - 1000) <= 1 for count in counts[:-1])


def test_a_value_just_below_the_only_one_is_told_from_it() -> None:
    bins = Bins.of(series([5.0] * 10), "number")
    assert labels_and_counts(bins, series([4.999, 5.0, 5.001])) == {
        "< 5": 1,
        "5": 1,
        "> 5": 1,
        "missing": 0,
    }


def test_booleans_have_two_bins_and_one_for_missing_values() -> None:
    column = series([1.0, 1.0, 0.0, np.nan])
    assert labels_and_counts(Bins.of(column, "boolean"), column) == {
        "true": 2,
        "false": 1,
        "other": 0,
        "missing": 1,
    }


def test_times_are_ranges_named_by_their_ends() -> None:
    days = pd.Series(pd.date_range("2026-01-01", periods=100), name="x")
    days[3] = None
    found = labels_and_counts(Bins.of(days, "datetime"), days)

    assert sum(found.values()) == 100
    assert found["missing"] == 1
    assert next(iter(found)).startswith("≤ 2026-01-1")


def test_text_is_only_told_from_missing_text() -> None:
    column = series(["a note", None, "another"]).astype(object)
    assert labels_and_counts(Bins.of(column, "text"), column) == {"any text": 2, "missing": 1}
    assert Bins.of(column, "text").unknown(series(["new"]).astype(object)) == []


def test_of_very_many_categories_nobody_says_which_are_new() -> None:
    many = series([f"id {number}" for number in range(MOST_CATEGORIES + 1)]).astype(object)
    bins = Bins.of(many, "category")

    assert len(bins.categories) == MOST_CATEGORIES
    assert bins.unknown(series(["never seen"]).astype(object)) == []
    assert labels_and_counts(bins, many)["other"] == MOST_CATEGORIES + 1 - 19
