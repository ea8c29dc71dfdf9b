"""References and profiles: what counts as a shift, and how often chance is taken for one."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlops_assets.errors import DataError
from mlops_assets.ml.drift import (
    Profile,
    compare,
    judge,
    profiles,
    reference,
    require_features,
    worst,
)
from mlops_assets.ml.model import TrainedModel
from mlops_assets.ml.train import train
from mlops_assets.spec import ColumnDriftSpec, DriftSpec, ModelSpec

LOGISTIC = ModelSpec(estimator="sklearn.linear_model.LogisticRegression")
RIDGE = ModelSpec(estimator="sklearn.linear_model.Ridge")


def rows(count: int, seed: int, columns: int = 4) -> pd.DataFrame:
    """Return columns of all kinds, `columns` of them numbers, and targets of all kinds."""
    rng = np.random.default_rng(seed)
    numbers = rng.normal(size=(count, columns))
    frame = pd.DataFrame(numbers, columns=[f"n{i}" for i in range(columns)])
    frame["zero"] = np.where(rng.random(count) < 0.7, 0.0, rng.exponential(size=count))
    frame["gaps"] = np.where(rng.random(count) < 0.1, np.nan, rng.exponential(size=count))
    frame["color"] = pd.Categorical(rng.choice(list("abcdefgh"), count, p=SHARES))
    frame["active"] = rng.random(count) < 0.3
    frame["seen"] = pd.Timestamp("2026-01-01") + pd.to_timedelta(rng.integers(0, 90, count), "D")
    frame["one"] = 1.0
    frame["amount"] = frame["n0"] * 3 + rng.normal(size=count)
    frame["bought"] = pd.Categorical(np.where(frame["amount"] > 0, "yes", "no"))
    frame["level"] = pd.cut(frame["amount"], [-99, -2, 2, 99], labels=["low", "mid", "high"])
    frame["grade"] = np.clip(frame["amount"].round(), -1, 1).astype("int64")
    frame["loyal"] = frame["amount"] > 1
    return frame


SHARES = [0.5, 0.2, 0.1, 0.1, 0.05, 0.03, 0.01, 0.01]
TARGETS = ["amount", "bought", "level", "grade", "loyal"]


def trained(frame: pd.DataFrame, target: str) -> TrainedModel:
    others = [name for name in TARGETS if name != target]
    model = RIDGE if target == "amount" else LOGISTIC
    return train(frame, model, target=target, drop=others)


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    """Reference of a model of two classes, as it comes back from the store."""
    frame = rows(3000, seed=0)
    model = trained(frame[:2000], "bought")
    return dict(json.loads(json.dumps(reference(model, frame[:2000], frame[2000:]))))


def found(made: dict[str, Any], day: pd.DataFrame, **spec: Any) -> list[dict[str, Any]]:
    profile, _ = profiles(made)
    profile.add(day)
    return judge(compare(made["features"], profile), DriftSpec(**spec), profile.rows)


def test_a_frame_compared_with_itself_has_not_shifted_at_all(made: dict[str, Any]) -> None:
    for column in found(made, rows(3000, seed=0)[:2000]):
        assert column["psi"] == 0
        assert column["chi_squared"]["p_value"] == pytest.approx(1)
        assert column["level"] == "ok"


def test_days_without_a_shift_hardly_ever_raise_an_alarm(made: dict[str, Any]) -> None:
    alarms = [worst(found(made, rows(200, seed))) != "ok" for seed in range(1, 61)]
    by_index_alone = [
        worst(found(made, rows(200, seed), p_value=None)) != "ok" for seed in range(1, 21)
    ]

    assert sum(alarms) <= 3  # one in a hundred is what p_value allows
    assert sum(by_index_alone) > 5  # what the test is for


@pytest.mark.parametrize(
    ("column", "change"),
    [
        ("n0", lambda values: values + 0.8),
        ("n1", lambda values: values * 3),
        ("n2", lambda values: values * np.nan),
        ("zero", lambda values: values - 0.001),
        ("gaps", lambda values: values.fillna(0)),
        ("color", lambda values: values.astype(object).where(values.index % 5 > 0, "pink")),
        ("active", lambda values: ~values),
        ("seen", lambda values: values + pd.Timedelta(days=60)),
        ("one", lambda values: values + 1),
    ],
)
def test_the_column_that_shifted_comes_first(
    made: dict[str, Any], column: str, change: Any
) -> None:
    day = rows(500, seed=3)
    day[column] = change(day[column])
    columns = found(made, day)

    assert [one["column"] for one in columns if one["level"] != "ok"] == [column]
    assert columns[0]["level"] == "error"


def test_90_columns_have_no_more_false_alarms_and_one_shift_is_found() -> None:
    frame = rows(2000, seed=0, columns=90)
    many = reference(trained(frame, "bought"), frame, frame[:500])
    days = [rows(150, seed, columns=90) for seed in range(1, 11)]

    assert sum(worst(found(many, day)) != "ok" for day in days) <= 2
    days[0]["n50"] += 1
    assert found(many, days[0])[0]["column"] == "n50"


@pytest.mark.parametrize("target", TARGETS)
def test_scores_of_every_kind_of_model_are_compared(target: str) -> None:
    frame = rows(2000, seed=0)
    model = trained(frame[:1500], target)
    made = reference(model, frame[:1500], frame[1500:])

    expected = {
        "amount": {"prediction": "number"},
        "bought": {"prediction": "category", "probability_yes": "number"},
        "level": {"prediction": "category"}
        | dict.fromkeys(["probability_high", "probability_low", "probability_mid"], "number"),
        "grade": {"prediction": "category"}
        | dict.fromkeys(["probability_-1", "probability_0", "probability_1"], "number"),
        "loyal": {"prediction": "category", "probability_True": "number"},
    }
    bins = [column["bins"] for column in made["scores"]["columns"]]
    assert {one["column"]: one["type"] for one in bins} == expected[target]
    assert made["scores"]["rows"] == 500


def test_batches_count_as_the_whole(made: dict[str, Any]) -> None:
    day = rows(1000, seed=3)
    whole, parts = profiles(made)[0], profiles(made)[0]
    whole.add(day)
    for start in range(0, 1000, 130):
        parts.add(day[start : start + 130])

    assert compare(made["features"], parts) == compare(made["features"], whole)


def test_new_categories_are_counted_to_a_thousand(made: dict[str, Any]) -> None:
    day = rows(3000, seed=3)
    day["color"] = [f"new {number}" for number in range(3000)]
    profile, _ = profiles(made)
    for start in range(0, 3000, 100):
        profile.add(day[start : start + 100])
    new = next(one for one in compare(made["features"], profile) if one["column"] == "color")["new"]

    assert new["rows"] == 3000
    assert 1000 <= new["categories"] < 1100
    assert new["examples"][:2] == ["new 0", "new 1"]


def test_a_day_with_a_column_of_another_type_is_refused(made: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="column n0 was of the type number"):
        profiles(made)[0].add(rows(10, seed=0).assign(n0="text"))


def test_few_rows_have_an_index_and_no_level(made: dict[str, Any]) -> None:
    columns = found(made, rows(99, seed=1).assign(n0=9.0))

    assert columns[0]["psi"] > 1
    assert worst(columns) == "ok"
    assert worst(found(made, rows(100, seed=1).assign(n0=9.0))) == "error"


def test_a_column_may_have_limits_of_its_own(made: dict[str, Any]) -> None:
    day = rows(500, seed=3)
    day["n0"] += 0.8

    def level(**own: Any) -> object:
        return worst(found(made, day, columns={"n0": own}))

    assert level(psi={"warn": 0.1}) == "warn"
    assert level(psi={}) == "ok"
    assert level(p_value=1e-300) == "ok"


def test_columns_that_drift_names_must_be_features() -> None:
    spec = DriftSpec(ignore=["agee"], columns={"plan": ColumnDriftSpec()})
    with pytest.raises(
        DataError, match=r"drift.columns: .* no feature plan; drift.ignore: .*'age'"
    ):
        require_features(spec, ["age", "income"])


def test_no_column_at_all_is_no_shift() -> None:
    assert worst(judge(compare({"columns": []}, Profile([])), DriftSpec(), 500)) == "ok"
