"""Promotion: gates first, then the comparison on the same test set, with a paired bootstrap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.compose import TransformedTargetRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from mlops_assets.errors import DataError
from mlops_assets.ml import promote
from mlops_assets.ml.evaluate import score
from mlops_assets.ml.figures import comparison_figure
from mlops_assets.ml.model import TrainedModel
from mlops_assets.ml.promote import Comparison, Decision, compare, decide, failed_gates, judge
from mlops_assets.scorers import SCORERS
from mlops_assets.spec import Gate

GATES = [Gate.parse("roc_auc", ">= 0.8"), Gate.parse("accuracy", "> 0.7")]
METRICS = {"roc_auc": 0.84, "accuracy": 0.8}
NOTHING: np.ndarray = np.array([])


def compared(
    champion: float, differences: Sequence[float] = (0.0,), challenger: float = 0.84
) -> Comparison:
    return Comparison("roc_auc", challenger, champion, np.array(differences), 0)


def _decide(
    champion: float | None, metrics: dict[str, float] = METRICS, min_improvement: float = 0.0
) -> Decision:
    return decide(
        metrics,
        GATES,
        by="roc_auc",
        comparison=None if champion is None else compared(champion),
        min_improvement=min_improvement,
    )


def test_the_first_model_that_passes_its_gates_is_promoted() -> None:
    assert _decide(None) == Decision(True, "the first champion: roc_auc is 0.84")


@pytest.mark.parametrize(
    ("metrics", "reason"),
    [
        (METRICS | {"roc_auc": 0.79}, "gate roc_auc >= 0.8 failed: roc_auc is 0.79"),
        (METRICS | {"accuracy": 0.7}, "gate accuracy > 0.7 failed: accuracy is 0.7"),
        ({"roc_auc": 0.9}, "gate accuracy > 0.7 failed: accuracy was not measured"),
    ],
)
def test_a_failed_gate_keeps_a_model_from_promotion(metrics: dict[str, float], reason: str) -> None:
    assert _decide(None, metrics) == Decision(False, reason)
    assert _decide(0.1, metrics) == Decision(False, reason)
    assert failed_gates(metrics, GATES) == [reason]


@pytest.mark.parametrize(
    ("champion", "min_improvement", "promoted"),
    [
        (0.83, 0.0, True),
        (0.84, 0.0, True),
        (0.85, 0.0, False),
        (0.82, 0.02, True),  # 0.84 - 0.82 is less than 0.02 in floating point
        (0.83, 0.02, False),
        (-0.5, 0.0, True),
    ],
)
def test_a_model_is_promoted_unless_it_is_worse(
    champion: float, min_improvement: float, promoted: bool
) -> None:
    decision = _decide(champion, min_improvement=min_improvement)
    assert decision.promote is promoted
    assert "0.84" in decision.reason
    assert f"{champion:.4g}" in decision.reason


def test_the_reason_tells_the_interval_which_does_not_decide() -> None:
    comparison = compared(0.83, np.linspace(-0.02, 0.04, 601).tolist())
    decision = decide(METRICS, [], by="roc_auc", comparison=comparison)

    assert decision.promote
    assert comparison.interval == pytest.approx((-0.0185, 0.0385))
    assert "difference +0.01 (95 % interval -0.0185 to +0.0385)" in decision.reason
    assert decision.comparison is comparison


# --- the paired bootstrap -----------------------------------------------------------------------


def rows(count: int = 200, seed: int = 0, classes: Sequence[str] = ("no", "yes")) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"a": rng.normal(size=count), "b": rng.normal(size=count)})
    noisy = frame["a"] + rng.normal(size=count)
    frame["y"] = np.array(classes)[pd.qcut(noisy, len(classes), labels=False)]
    frame["z"] = np.exp(noisy)
    return frame


def classifier(
    frame: pd.DataFrame, columns: Sequence[str] = ("a",), estimator: Any = None
) -> TrainedModel:
    classes: list[Any] = sorted(frame["y"].unique())
    pipeline = make_pipeline(FunctionTransformer(), estimator or LogisticRegression())
    pipeline.fit(frame[list(columns)], frame["y"].map(classes.index))
    features: Any = dict.fromkeys(columns, "number")
    return TrainedModel(pipeline, "classification", "y", classes, features, len(frame))


def regression(frame: pd.DataFrame, columns: Sequence[str] = ("a",)) -> TrainedModel:
    # some metrics need positive predictions
    estimator = TransformedTargetRegressor(LinearRegression(), func=np.log, inverse_func=np.exp)
    pipeline = make_pipeline(FunctionTransformer(), estimator).fit(frame[list(columns)], frame["z"])
    features: Any = dict.fromkeys(columns, "number")
    return TrainedModel(pipeline, "regression", "z", None, features, len(frame))


@pytest.mark.parametrize("metric", SCORERS)
def test_a_judged_model_scores_like_its_scorer_on_any_rows(metric: str) -> None:
    kinds = SCORERS[metric].kinds
    test = rows(60, 1, ("high", "low", "mid") if "binary" not in kinds else ("no", "yes"))
    model = regression(rows()) if "regression" in kinds else classifier(test, ("a", "b"))
    judged = judge(model, test, metric)
    draws = np.random.default_rng(3).integers(0, 60, (5, 60))

    assert judged.score == score(model, test, metric)
    for drawn, value in zip(draws, judged.resampled(draws), strict=True):
        assert value == pytest.approx(score(model, test.iloc[drawn], metric), rel=1e-9)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=2, max_size=30),
    st.integers(0, 100),
)
def test_the_area_under_the_curve_of_all_resamples_is_scikit_learns(
    pairs: list[tuple[int, bool]], seed: int
) -> None:
    scores = np.array([one for one, _ in pairs], dtype=float)
    truth = np.array([int(one) for _, one in pairs])
    draws = np.random.default_rng(seed).integers(0, len(pairs), (4, len(pairs)))
    values = promote._roc_auc(scores, truth, promote._counts(draws))

    for drawn, value in zip(draws, values, strict=True):
        if len(set(truth[drawn])) == 2:
            assert value == pytest.approx(roc_auc_score(truth[drawn], scores[drawn]))
        else:
            assert np.isnan(value)


def test_each_model_predicts_once() -> None:
    asked = []

    class Counting(LogisticRegression):  # type: ignore[misc]
        def decision_function(self, features: Any) -> Any:
            asked.append(len(features))
            return super().decision_function(features)

    test = rows()
    counting = judge(classifier(test, estimator=Counting()), test, "average_precision")
    compare(counting, judge(classifier(test, "b"), test, "average_precision"), seed=1, resamples=20)

    assert asked == [200]


def test_the_comparison_is_decided_by_its_seed_and_paired() -> None:
    test = rows()
    good, poor = (judge(classifier(test, (name,)), test, "roc_auc") for name in "ab")
    once, again, other = (compare(good, poor, seed=seed) for seed in (1, 1, 2))
    same = compare(good, good, seed=1)

    assert once.interval == again.interval != other.interval
    assert len(once.differences) == promote.RESAMPLES
    assert once.interval is not None
    assert once.interval[0] < once.difference < once.interval[1]
    assert once.difference == pytest.approx(good.score - poor.score)
    assert same.interval == (0.0, 0.0)


def test_the_interval_narrows_with_the_rows_that_are_tested() -> None:
    train = rows(2000, 9)
    models = [classifier(train, columns) for columns in (("a",), ("a", "b"))]
    widths = {}
    for count in (100, 1600):
        test = rows(count, 4)
        interval = compare(*(judge(model, test, "accuracy") for model in models), seed=1).interval
        assert interval is not None
        widths[count] = interval[1] - interval[0]

    assert widths[1600] < widths[100] / 2


@pytest.mark.parametrize("metric", ["roc_auc", "roc_auc_ovo"])
def test_resamples_on_which_the_metric_is_undefined_are_left_out_and_counted(metric: str) -> None:
    test = pd.DataFrame({"a": [1.0, 2, 3, 4, 5], "b": 0.0, "y": ["no", "no", "no", "no", "yes"]})
    judged = judge(classifier(rows()), test, metric)
    comparison = compare(judged, judge(classifier(rows(), "b"), test, metric), seed=1)

    assert 200 < comparison.undefined < 450  # (4/5)^5 is a third
    assert len(comparison.differences) + comparison.undefined == promote.RESAMPLES
    assert comparison.interval is not None


def test_there_is_no_interval_where_most_resamples_have_no_value() -> None:
    comparison = Comparison("roc_auc", 0.8, 0.7, np.array([0.1]), 99)

    assert comparison.interval is None
    assert "no interval: undefined on 99 resamples" in str(comparison)


def test_large_test_sets_get_fewer_resamples() -> None:
    test = rows(10_000)
    judged = judge(classifier(test), test, "accuracy")

    assert len(compare(judged, judged, seed=1).differences) == 500


def test_a_champion_that_cannot_be_measured_on_the_rows_is_refused_with_the_reason() -> None:
    model = classifier(rows())
    with pytest.raises(DataError, match="lacks columns"):
        judge(model, rows().rename(columns={"a": "c"}), "roc_auc")
    with pytest.raises(DataError, match="maybe"):
        judge(model, rows(classes=("maybe", "yes")), "roc_auc")
    with pytest.raises(DataError, match="no row of class"):
        judge(model, rows().assign(y="no"), "roc_auc")


def test_models_whose_classes_are_in_another_order_are_compared_by_the_same_truth() -> None:
    test = rows()
    model = classifier(test)
    assert model.classes is not None
    turned = classifier(test.assign(y=test["y"].map({"no": "b", "yes": "a"})))
    named = TrainedModel(
        turned.pipeline, "classification", "y", ["yes", "no"], turned.features, turned.train_rows
    )
    by = "accuracy"

    assert compare(judge(model, test, by), judge(named, test, by), seed=1).interval == (0, 0)


@pytest.mark.parametrize(
    "comparison",
    [
        compared(0.83, np.random.default_rng(1).normal(size=1000).tolist()),
        compared(0.84),
        compared(1e17, [1e17, 1e17, np.nextafter(1e17, 2e17)], challenger=2e17),
        Comparison("roc_auc", 0.8, 0.7, NOTHING, 200),
    ],
    ids=["usual", "equal", "huge", "undefined"],
)
def test_any_comparison_can_be_drawn(comparison: Comparison) -> None:
    assert comparison_figure(comparison).startswith(b"\x89PNG")
