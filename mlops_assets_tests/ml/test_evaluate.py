"""Measuring: right, plain and repeatable numbers, and what is said when there are none."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, roc_auc_score

from mlops_assets.errors import DataError, ModelError
from mlops_assets.ml.evaluate import evaluate, score
from mlops_assets.ml.model import TrainedModel
from mlops_assets.ml.train import train
from mlops_assets.scorers import SCORERS
from mlops_assets.spec import ModelSpec

LOGISTIC = ModelSpec(estimator="sklearn.linear_model.LogisticRegression")


@pytest.fixture
def binary(mixed: pd.DataFrame) -> pd.DataFrame:
    grown = np.where(mixed["amount"] > mixed["amount"].median(), "yes", "no")
    grown[::7] = "no"
    return mixed.drop(columns=["level", "amount"]).assign(grown=pd.Categorical(grown))


@pytest.fixture
def binary_model(binary: pd.DataFrame) -> TrainedModel:
    return train(binary, LOGISTIC, target="grown")


def test_metrics_are_those_of_scikit_learn(
    binary: pd.DataFrame, binary_model: TrainedModel
) -> None:
    metrics = evaluate(binary_model, binary, ["accuracy", "roc_auc"])["metrics"]
    truth, shares = binary["grown"] == "yes", binary_model.predict_proba(binary)["yes"]
    assert metrics["accuracy"] == accuracy_score(truth, shares > 0.5)
    assert metrics["roc_auc"] == roc_auc_score(truth, shares)


def test_the_positive_class_decides_what_metrics_are_about(binary: pd.DataFrame) -> None:
    values = [
        score(train(binary, LOGISTIC, target="grown", positive_class=label), binary, "recall")
        for label in ("yes", "no")
    ]
    model = train(binary, LOGISTIC, target="grown")
    per_class = {one["class"]: one for one in evaluate(model, binary)["per_class"]}
    assert values == pytest.approx([per_class["yes"]["recall"], per_class["no"]["recall"]])


def test_an_evaluation_is_plain_and_repeatable(
    binary: pd.DataFrame, binary_model: TrainedModel
) -> None:
    one, other = (evaluate(binary_model, binary, seed=3) for _ in range(2))
    assert one == other
    assert json.loads(json.dumps(one, allow_nan=False)) == one
    assert one["kind"] == "binary"
    assert one["rows"] == len(binary)
    assert np.sum(one["confusion_matrix"]) == len(binary)


def test_curves_are_those_of_the_positive_class(
    binary: pd.DataFrame, binary_model: TrainedModel
) -> None:
    result = evaluate(binary_model, binary)
    for name in ("roc", "precision_recall", "calibration"):
        (curve,) = result[name]
        assert curve["class"] == "yes"
        assert len(curve["x"]) == len(curve["y"]) > 2
    area = np.trapezoid(result["roc"][0]["y"], result["roc"][0]["x"])
    assert area == pytest.approx(result["metrics"]["roc_auc"], abs=1e-4)


def test_several_classes_have_a_curve_each(mixed: pd.DataFrame) -> None:
    model = train(mixed, LOGISTIC, target="level", drop=["amount"])
    result = evaluate(model, mixed)
    assert [curve["class"] for curve in result["roc"]] == ["high", "low", "mid"]


def test_curves_are_bounded_however_many_rows_and_classes() -> None:
    rng = np.random.default_rng(0)
    rows = 4_000
    frame = pd.DataFrame({"x": rng.random(rows), "y": rng.integers(0, 14, rows)}).astype(
        {"y": "str"}
    )
    model = train(frame, LOGISTIC, target="y")
    result = evaluate(model, frame)
    assert len(result["roc"]) == 10
    assert max(len(curve["x"]) for curve in result["roc"]) == 200
    assert len(result["per_class"]) == 14


def test_an_estimator_that_ranks_nothing_has_no_curves(mixed: pd.DataFrame) -> None:
    from sklearn.multiclass import OutputCodeClassifier
    from sklearn.tree import DecisionTreeClassifier

    model = train(mixed, LOGISTIC, target="level", drop=["amount"])
    pipeline = model.pipeline
    pipeline.set_params(estimator=OutputCodeClassifier(DecisionTreeClassifier(), random_state=0))
    inputs = mixed[list(model.features)].assign(active=mixed["active"].astype("float64"))
    pipeline.fit(inputs.astype({"color": object}), mixed["level"].cat.codes)
    result = evaluate(model, mixed)
    assert result["roc"] == result["precision_recall"] == result["calibration"] == []


def test_the_column_that_decides_is_the_most_important_one(mixed: pd.DataFrame) -> None:
    model = train(mixed, LOGISTIC, target="level", drop=["amount"])
    importance = evaluate(model, mixed)["feature_importance"]
    assert importance[0]["column"] == "count"
    columns = {"weight", "count", "color", "seen", "active", "note"}
    assert {one["column"] for one in importance} == columns
    assert next(one["mean"] for one in importance if one["column"] == "note") == 0


def test_importance_is_measured_even_if_a_class_is_rare_in_a_large_test_set() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.random(5_000), "y": ["a", "b"] * 2_500})
    frame.loc[[4_990, 4_991], "y"] = "c"
    model = train(frame, LOGISTIC, target="y")
    result = evaluate(model, frame, ["roc_auc_ovr"])
    assert [one["column"] for one in result["feature_importance"]] == ["x"]


def test_a_regression_has_residuals_and_points(mixed: pd.DataFrame) -> None:
    frame = mixed.drop(columns="level")
    model = train(frame, ModelSpec(estimator="sklearn.linear_model.Ridge"), target="amount")
    result = evaluate(model, frame)
    assert result["kind"] == "regression"
    assert next(iter(result["metrics"])) == "r2"
    residuals = frame["amount"] - model.predict(frame)
    assert result["residuals"]["mean"] == pytest.approx(residuals.mean(), abs=1e-6)
    assert result["residuals"]["largest"] == pytest.approx(residuals.abs().max(), rel=1e-5)
    assert result["points"]["actual"] == pytest.approx(frame["amount"].tolist(), rel=1e-5)


@pytest.mark.parametrize(
    ("target", "metric", "words"),
    [
        ("level", "roc_auc", ["classification of 3 classes", "use roc_auc_ovr"]),
        ("level", "f1", ["classification of 3 classes", "use f1_macro"]),
        ("level", "r2", ["r2 does not measure", "accuracy"]),
        ("amount", "accuracy", ["does not measure a regression", "r2"]),
        ("level", "acuracy", ["no metric", "use accuracy"]),
    ],
)
def test_a_metric_that_does_not_fit_is_explained(
    target: str, metric: str, words: list[str], mixed: pd.DataFrame
) -> None:
    estimator = "Ridge" if target == "amount" else "LogisticRegression"
    spec = ModelSpec(estimator=f"sklearn.linear_model.{estimator}")
    model = train(mixed, spec, target=target, drop=["amount", "level"])
    with pytest.raises(ModelError) as error:
        evaluate(model, mixed, [metric])
    for word in ["evaluate.metrics", *words]:
        assert word in str(error.value)


def test_a_metric_of_probabilities_needs_an_estimator_that_has_them(binary: pd.DataFrame) -> None:
    model = train(binary, ModelSpec(estimator="sklearn.svm.LinearSVC"), target="grown")
    with pytest.raises(ModelError, match="neg_log_loss needs predict_proba, which LinearSVC"):
        evaluate(model, binary, ["neg_log_loss"])
    assert evaluate(model, binary, ["roc_auc"])["calibration"] == []


def test_a_class_without_a_test_row_is_named_if_a_metric_needs_it(mixed: pd.DataFrame) -> None:
    model = train(mixed, LOGISTIC, target="level", drop=["amount"])
    some = mixed[mixed["level"] != "low"]
    with pytest.raises(DataError, match=r"roc_auc_ovr cannot be computed .* no row of class 'low'"):
        evaluate(model, some, ["roc_auc_ovr"])
    assert evaluate(model, some, ["accuracy"])["per_class"][1]["support"] == 0


def test_no_metric_is_ever_nan(binary: pd.DataFrame, binary_model: TrainedModel) -> None:
    only_yes = binary[binary["grown"] == "yes"]
    for metric in [name for name, scorer in SCORERS.items() if "binary" in scorer.kinds]:
        try:
            assert np.isfinite(score(binary_model, only_yes, metric))
        except DataError as error:
            message = str(error)
            assert metric in message
            assert "'no'" in message


@pytest.mark.parametrize(
    "metric",
    [name for name, scorer in SCORERS.items() if "regression" in scorer.kinds],
)
def test_importances_are_measured_though_permuted_rows_have_no_such_metric(metric: str) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.uniform(0, 9, 60), "z": rng.uniform(-9, 0, 60)})
    frame["y"] = 3 * frame["x"] + 3 * frame["z"] + rng.random(60)
    frame = frame[frame["y"] > 1]
    ridge = train(frame, ModelSpec(estimator="sklearn.linear_model.Ridge"), target="y")
    evaluation = evaluate(ridge, frame, [metric])
    assert list(evaluation["metrics"]) == [metric]
    assert all(np.isfinite(one["mean"]) for one in evaluation["feature_importance"])


def test_an_estimator_without_an_answer_is_not_the_metrics_fault(binary: pd.DataFrame) -> None:
    estimator = "sklearn.neighbors.RadiusNeighborsClassifier"
    model = train(
        binary[1:], ModelSpec(estimator=estimator, params={"radius": 0.01}), target="grown"
    )
    with pytest.raises(ModelError, match=r"^RadiusNeighborsClassifier cannot predict.*larger rad"):
        evaluate(model, binary)


@pytest.mark.filterwarnings("error")
def test_a_metric_without_a_value_is_told_once(
    binary: pd.DataFrame, binary_model: TrainedModel
) -> None:
    with pytest.raises(DataError, match="roc_auc cannot be computed"):
        evaluate(binary_model, binary[binary["grown"] == "yes"])


def test_a_class_that_training_never_saw_is_named(
    binary: pd.DataFrame, binary_model: TrainedModel
) -> None:
    other = binary.assign(grown=binary["grown"].astype(str).where(binary.index != 4, "perhaps"))
    with pytest.raises(DataError, match=r"class 'perhaps' in 1 rows, such as row 4.*no, yes"):
        evaluate(binary_model, other)


def test_an_empty_test_set_is_refused(binary: pd.DataFrame, binary_model: TrainedModel) -> None:
    with pytest.raises(DataError, match="no rows"):
        evaluate(binary_model, binary.iloc[:0])
