"""Splitting: what is in which side, and what is said when there cannot be two."""

from __future__ import annotations

import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mlops_assets.errors import DataError
from mlops_assets.ml.split import Split, overlap, repeated_rows, split
from mlops_assets.spec import SplitSpec, Task


def _frame(**columns: list[object]) -> pd.DataFrame:
    frame = pd.DataFrame(columns)
    return frame.set_index(pd.RangeIndex(len(frame), name="row"))


def test_the_test_set_has_its_share_of_each_class(mixed: pd.DataFrame) -> None:
    parts = split(mixed, SplitSpec(test_size=0.3), target="level", task="classification")
    assert len(parts.test) == 27
    shares = [part["level"].value_counts(normalize=True) for part in (mixed, parts.test)]
    assert (shares[0] - shares[1]).abs().max() < 0.02


def test_rows_keep_their_numbers_order_and_types(mixed: pd.DataFrame) -> None:
    parts = split(mixed, SplitSpec(), target="level", task="classification")
    for part in parts:
        assert part.index.name == "row"
        assert part.index.is_monotonic_increasing
        pd.testing.assert_frame_equal(part, mixed.loc[part.index])


def test_another_seed_draws_other_rows(mixed: pd.DataFrame) -> None:
    drawn = {
        tuple(split(mixed, SplitSpec(seed=seed), target="level", task="classification").test.index)
        for seed in (1, 1, 2)
    }
    assert len(drawn) == 2


def test_a_regression_is_not_stratified() -> None:
    frame = _frame(x=list(range(10)), y=[float(row) for row in range(10)])
    assert len(split(frame, SplitSpec(), target="y", task="regression").test) == 2


def test_rows_without_a_target_are_on_neither_side() -> None:
    frame = _frame(y=["a", None, "b", None, "a", "b", "a", "b"])
    parts = split(frame, SplitSpec(test_size=0.5), target="y", task="classification")
    assert sorted([*parts.train.index, *parts.test.index]) == [0, 2, 4, 5, 6, 7]


def test_the_latest_rows_are_the_test_set() -> None:
    frame = _frame(t=[5, 1, 4, 2, 3], y=[1.5, 2.5, 3.5, 4.5, 5.5])
    parts = split(frame, SplitSpec(test_size=0.4, by_time="t"), target="y", task="regression")
    assert parts.test["t"].tolist() == [5, 4]


def test_rows_of_one_time_are_on_one_side() -> None:
    frame = _frame(t=pd.to_datetime(["2024-01-01"] * 3 + ["2024-01-02"] * 2), y=[1.0] * 5)
    spec = SplitSpec(test_size=0.2, by_time="t")
    assert split(frame, spec, target="y", task="regression").test.index.tolist() == [3, 4]
    spec = SplitSpec(test_size=0.7, by_time="t")
    assert split(frame, spec, target="y", task="regression").test.index.tolist() == [3, 4]


@pytest.mark.parametrize(
    ("frame", "spec", "words"),
    [
        (_frame(y=["a"]), {}, ["1 of 1 rows", "at least 2"]),
        (_frame(y=[None, None]), {}, ["0 of 2 rows"]),
        (_frame(y=list("aaab")), {}, ["split.stratify", "y = b", "stratify: false"]),
        (_frame(y=list("aabbccdd")), {"test_size": 0.1}, ["split.test_size", "classes (4)"]),
        (_frame(y=["a", "b"], t=[1, 1]), {"by_time": "t"}, ["split.by_time", "same t"]),
        (_frame(y=["a", "b"], t=["x", "y"]), {"by_time": "t"}, ["declare", "t: datetime"]),
        (_frame(y=["a", "b"], t=[1, None]), {"by_time": "t"}, ["missing in 1 rows", "row 1"]),
        (_frame(y=["a", "b"], time=[1, 2]), {"by_time": "tim"}, ["did you mean 'time'"]),
        (_frame(y=["a", "b"], g=["x", "x"]), {"group": "g"}, ["split.group", "same g"]),
        (_frame(y=["a", "b"], g=["x", None]), {"group": "g"}, ["missing in 1 rows", "row 1"]),
    ],
)
def test_what_cannot_be_split_is_explained(
    frame: pd.DataFrame, spec: dict[str, object], words: list[str]
) -> None:
    with pytest.raises(DataError) as error:
        split(frame, SplitSpec(**spec), target="y", task="classification")
    for word in words:
        assert word in str(error.value)


_rows = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 4), st.sampled_from(["p", "q", "r", "s"])),
    min_size=2,
    max_size=40,
)


@settings(max_examples=150)
@given(
    rows=_rows,
    test_size=st.floats(0.05, 0.95),
    seed=st.integers(0, 5),
    way=st.sampled_from([{}, {"stratify": False}, {"by_time": "time"}, {"group": "group"}]),
    task=st.sampled_from(["classification", "regression"]),
)
def test_every_split_is_whole_separate_and_repeatable(
    rows: list[tuple[str, int, str]],
    test_size: float,
    seed: int,
    way: dict[str, object],
    task: Task,
) -> None:
    frame = pd.DataFrame(rows, columns=["y", "time", "group"]).rename_axis("row")
    spec = SplitSpec(test_size=test_size, seed=seed, **way)
    try:
        parts = split(frame, spec, target="y", task=task)
    except DataError:
        assume(False)
    assert len(parts.train) > 0
    assert len(parts.test) > 0
    assert sorted([*parts.train.index, *parts.test.index]) == list(range(len(frame)))
    assert overlap(parts, spec) == []
    again = split(frame.copy(), spec, target="y", task=task)
    assert again.test.index.equals(parts.test.index)


def test_what_train_and_test_share_is_found() -> None:
    frame = _frame(t=[1, 2, 3], g=["a", "b", "a"])
    parts = Split(train=frame.iloc[[0, 1]], test=frame.iloc[[1, 2]])
    assert overlap(parts, SplitSpec()) == ["1 rows are in both train and test, such as row 1"]
    assert len(overlap(parts, SplitSpec(by_time="t"))) == 2
    parts = Split(train=frame.iloc[[0, 1]], test=frame.iloc[[2]])
    assert overlap(parts, SplitSpec(group="g")) == [
        "1 values of g are in both train and test, such as a"
    ]


def test_rows_of_equal_content_are_counted() -> None:
    frame = _frame(x=[1.0, None, 1.0, None, 2.0], c=["a", None, "a", None, "a"])
    frame["c"] = frame["c"].astype("category")
    assert repeated_rows(Split(train=frame.iloc[:2], test=frame.iloc[2:])) == 2
