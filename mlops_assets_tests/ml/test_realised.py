"""Stored answers joined to labels: the same metrics as scikit-learn's, and every misfit told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_assets.errors import DataError
from mlops_assets.ml.drift import compare, profiles, reference, stored_scores
from mlops_assets.ml.inbox import files_of_day
from mlops_assets.ml.model import TrainedModel, encode
from mlops_assets.ml.realised import judged, read_labels, realised
from mlops_assets.ml.score import score_batches
from mlops_assets.ml.train import train
from mlops_assets.spec import DataSpec, DriftSpec, Levels, ModelSpec
from mlops_assets_tests.ml.test_drift import TARGETS, rows, trained

DATA = DataSpec(uri="x.csv", target="bought")
METRICS = {
    "amount": ["r2", "neg_mean_absolute_error"],
    "bought": ["roc_auc", "average_precision", "accuracy", "f1", "neg_log_loss"],
    "grade": ["accuracy", "roc_auc_ovr"],
    "loyal": ["roc_auc", "accuracy"],
    "level": ["accuracy", "balanced_accuracy", "f1_macro", "roc_auc_ovr"],
}


def answers(
    model: TrainedModel, frame: pd.DataFrame, folder: Path, ids: list[str]
) -> list[pa.RecordBatch]:
    """Score a frame as `p/predictions` does."""
    frame[[*ids, *model.features]].to_parquet(folder / "2026-01-01.parquet")
    files = files_of_day("{date}.parquet", folder, "2026-01-01")
    return list(score_batches(model, files, DATA, model_version="0" * 16, ids=ids))


@pytest.mark.parametrize("target", TARGETS)
def test_metrics_are_those_of_the_model_asked_again(target: str, tmp_path: Path) -> None:
    from mlops_assets.ml.evaluate import score

    frame = rows(600, seed=0).assign(id=np.arange(600))
    model = trained(frame[:400].drop(columns="id"), target)
    day = frame[400:]
    shuffled = day[["id", target]].sample(frac=1, random_state=0).astype({"id": str})

    found = realised(
        model, answers(model, day, tmp_path, ["id"]), shuffled, ["id"], METRICS[target]
    )

    assert found["rows"] == 200
    assert found["undefined"] == {}
    assert found["metrics"] == pytest.approx(
        {name: score(model, day, name) for name in METRICS[target]}, rel=1e-5
    )


@pytest.mark.parametrize("target", TARGETS)
def test_stored_scores_are_counted_as_those_of_the_reference(target: str, tmp_path: Path) -> None:
    frame = rows(600, seed=0).assign(id=np.arange(600))
    model = trained(frame[:400].drop(columns="id"), target)
    day = frame[400:]
    made = reference(model, frame[:400], day)
    _, scores = profiles(made)
    for batch in answers(model, day, tmp_path, ["id"]):
        scores.add(stored_scores(batch, model))

    assert [one["psi"] for one in compare(made["scores"], scores)] == [0] * len(scores.bins)


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainedModel, list[pa.RecordBatch]]:
    """Ten rows with the ids 0 to 9, and a second id that is the same for all."""
    frame = rows(200, seed=0).assign(id=np.arange(200), shop="north")
    model = trained(frame.drop(columns=["id", "shop"]), "bought")
    folder = tmp_path_factory.mktemp("scored")
    return model, answers(model, frame[:10], folder, ["id", "shop"])


def labels(ids: list[str], values: list[str | None]) -> pd.DataFrame:
    return pd.DataFrame({"id": ids, "shop": "north", "bought": values})


@given(st.lists(st.integers(0, 30), unique=True), st.data())
@settings(max_examples=50)
def test_every_label_and_every_answer_is_accounted_for(
    scored: tuple[TrainedModel, list[pa.RecordBatch]], ids: list[int], data: st.DataObject
) -> None:
    model, batches = scored
    values = [data.draw(st.sampled_from(["yes", "no", None])) for _ in ids]
    known = [number for number, value in zip(ids, values, strict=True) if value]

    found = realised(
        model, batches, labels([str(i) for i in ids], values), ["id", "shop"], ["roc_auc"]
    )

    assert found["rows"] == sum(number < 10 for number in known)
    assert found["without_answer"] == sum(number >= 10 for number in known)
    assert found["rows"] + found["without_label"] == 10
    assert set(found["metrics"]) | set(found["undefined"]) == (
        {"roc_auc"} if found["rows"] else set()
    )


def test_a_metric_without_a_value_says_why(
    scored: tuple[TrainedModel, list[pa.RecordBatch]],
) -> None:
    model, batches = scored
    one_class = labels(["1", "2"], ["yes", "yes"])
    found = realised(model, batches, one_class, ["id", "shop"], ["roc_auc", "accuracy"])

    assert list(found["metrics"]) == ["accuracy"]
    assert found["undefined"] == {"roc_auc": "has no value on these 2 rows"}


def test_a_metric_that_needs_more_than_was_stored_says_so(tmp_path: Path) -> None:
    frame = rows(200, seed=0).assign(id=np.arange(200))
    spec = ModelSpec(estimator="sklearn.svm.LinearSVC")
    model = train(frame, spec, target="bought", drop=["id", "amount", "level"])
    truth = frame[["id", "bought"]].astype({"id": str})
    stored = answers(model, frame, tmp_path, ["id"])
    found = realised(model, stored, truth, ["id"], ["roc_auc", "accuracy"])

    assert list(found["metrics"]) == ["accuracy"]
    assert found["undefined"]["roc_auc"].startswith("needs other answers")


def test_a_label_that_is_no_class_is_named(
    scored: tuple[TrainedModel, list[pa.RecordBatch]],
) -> None:
    model, batches = scored
    with pytest.raises(DataError, match="the class 'maybe' in 1 rows"):
        realised(model, batches, labels(["1", "2"], ["yes", "maybe"]), ["id", "shop"], [])


def test_a_label_that_is_no_class_is_named_as_the_file_has_it() -> None:
    target = pd.Series(np.array([10, 99]), name="y")
    with pytest.raises(DataError, match=r"the class '99' in 1 rows, such as row 1,"):
        encode(target, [10, 20])


def test_repeated_ids_are_named(scored: tuple[TrainedModel, list[pa.RecordBatch]]) -> None:
    model, batches = scored
    twice = labels(["1", "1"], ["yes", "no"])
    with pytest.raises(DataError, match=r"several of the labels .* id, shop, such as \('1', 'no"):
        realised(model, batches, twice, ["id", "shop"], [])
    once = labels(["1", "2"], ["yes", "no"])
    with pytest.raises(DataError, match="several of the predictions have the same"):
        realised(model, [*batches, *batches], once, ["id", "shop"], [])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,bough\n1,yes\n", r"has no column bought \(did you mean 'bough'\?\)"),
        ("ident,bought\n1,yes\n", "has no column id"),
        ("id,bought\n", "has a header but no rows"),
        ("", "is empty"),
        ("id,bought\n1\n", "row 0 has 1 values"),
        ("PAR1", "it is a Parquet file"),
    ],
)
def test_files_of_labels_that_cannot_be_read_are_named(
    scored: tuple[TrainedModel, list[pa.RecordBatch]], tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "2026-01-01.csv").write_text(content)
    files = files_of_day("{date}.csv", tmp_path, "2026-01-01")
    with pytest.raises(DataError, match=message):
        read_labels(files, ["id"], scored[0], DATA)


def test_ids_are_read_as_they_are_written(
    scored: tuple[TrainedModel, list[pa.RecordBatch]], tmp_path: Path
) -> None:
    (tmp_path / "2026-01-01.csv").write_text("id,when,bought\n007, 3,yes\n0.5,4,no\n")
    files = files_of_day("{date}.csv", tmp_path, "2026-01-01")
    found = read_labels(files, ["id"], scored[0], DATA)

    assert found["id"].tolist() == ["007", "0.5"]
    assert list(found.columns) == ["id", "bought"]


def test_a_loss_is_judged_by_the_limits_of_its_metric() -> None:
    found: dict[str, Any] = {
        "rows": 500,
        "without_label": 0,
        "without_answer": 0,
        "metrics": {"roc_auc": 0.8, "accuracy": 0.5},
        "undefined": {},
    }
    before = {"roc_auc": 0.83, "accuracy": 0.9}
    limits = {"roc_auc": Levels(warn=0.02, error=0.05), "f1": Levels(warn=0.1)}

    result = judged(found, before, DriftSpec(metrics=limits))

    assert result["metrics"]["roc_auc"] == {
        "now": 0.8,
        "at_promotion": 0.83,
        "loss": 0.03,
        "level": "warn",
    }
    assert result["metrics"]["accuracy"]["level"] == "ok"
    assert result["metrics"]["f1"]["level"] == "warn"
    assert result["level"] == "warn"
    few = judged({**found, "rows": 99}, before, DriftSpec(metrics=limits))
    assert few["level"] == "ok"
