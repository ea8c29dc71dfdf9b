"""Declared rules: which rows break them."""

from __future__ import annotations

import pandas as pd
import pytest

from mlops_assets.errors import DataError
from mlops_assets.ml.checks import broken_rules, class_balance
from mlops_assets.spec import DataChecks, DataSpec


def _spec(**checks: object) -> DataSpec:
    return DataSpec(uri="data.csv", target="y", checks=DataChecks(**checks))


@pytest.fixture
def frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "id": [1, 2, 2, 4],
            "age": [10.0, None, -5.0, 300.0],
            "y": pd.Categorical(["a", None, "b", "a"]),
        }
    ).rename_axis("row")


def test_rules_that_hold_are_not_reported(frame: pd.DataFrame) -> None:
    assert broken_rules(frame, _spec(unique=["age"], between={"id": (1, 4)})) == []


def test_every_broken_rule_names_its_rows(frame: pd.DataFrame) -> None:
    spec = _spec(unique=["id"], not_null=["age", "y"], between={"age": (0, 120)})
    broken = {(one.rule, one.column): one for one in broken_rules(frame, spec)}
    assert {key: one.examples for key, one in broken.items()} == {
        ("unique", "id"): [1, 2],
        ("not_null", "age"): [1],
        ("not_null", "y"): [1],
        ("between", "age"): [2, 3],
    }
    assert broken["between", "age"].count == 2
    assert broken["between", "age"].message == (
        "column age has values outside 0 to 120: 2 rows, such as 2, 3"
    )


def test_rows_are_named_by_their_number_in_the_raw_data(frame: pd.DataFrame) -> None:
    (broken,) = broken_rules(frame.loc[[3, 0]], _spec(between={"age": (0, 120)}))
    assert broken.examples == [3]


def test_a_missing_value_breaks_not_null_only(frame: pd.DataFrame) -> None:
    twice = pd.concat([frame, frame], ignore_index=True).drop(columns="id").loc[[1, 5, 0]]
    spec = _spec(unique=["age"], between={"age": (0, 120)})
    assert broken_rules(twice, spec) == []


def test_a_target_without_any_value_is_reported(frame: pd.DataFrame) -> None:
    (broken,) = broken_rules(frame.assign(y=None), _spec())
    assert (broken.rule, broken.column, broken.count) == ("target", "y", 4)


def test_a_range_of_what_is_no_number_is_refused(frame: pd.DataFrame) -> None:
    with pytest.raises(DataError, match=r"data\.checks\.between: column y is not a number"):
        broken_rules(frame, _spec(between={"y": (0, 1)}))


def test_the_balance_counts_rows_with_a_target(frame: pd.DataFrame) -> None:
    assert class_balance(frame, "y") == pytest.approx({"a": 2 / 3, "b": 1 / 3})
