"""Measuring a trained model on a test set: metrics, curves, importances, as a JSON-able dict.

Computing only: `figures` draws the result, `promote` compares it, `model_card` tells it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from mlops_assets.errors import DataError, ModelError
from mlops_assets.ml.model import TrainedModel, conform, encode, problem_kind
from mlops_assets.scorers import SCORERS, default_metrics, serves

if TYPE_CHECKING:
    import pandas as pd

_CURVE_POINTS = 200
_CURVE_CLASSES = 10
_SCATTER_POINTS = 1_000
_IMPORTANCE_ROWS = 2_000
_IMPORTANCE_REPEATS = 5
# not defined for every prediction, so that a permuted column may have none
_PARTIAL_METRICS = {
    "neg_mean_gamma_deviance",
    "neg_mean_poisson_deviance",
    "neg_mean_squared_log_error",
    "neg_negative_likelihood_ratio",
    "neg_root_mean_squared_log_error",
    "positive_likelihood_ratio",
}


def evaluate(
    model: TrainedModel, test: pd.DataFrame, metrics: Sequence[str] = (), *, seed: int = 42
) -> dict[str, Any]:
    """Measure a model on the test set.

    Parameters
    ----------
    model
        What to measure.
    test
        Rows with the features and the target.
    metrics
        Names of scikit-learn scorers, all greater-is-better; by default those of the kind of
        problem. Feature importances are measured with the first one, if it is defined for any
        prediction.
    seed
        For the rows and permutations behind feature importances and scatter points.

    Returns
    -------
    dict
        Plain values only, none of them NaN or infinite:

        ``kind``, ``task``, ``target``, ``rows``, ``classes``
            What was measured; `classes` is None for a regression.
        ``metrics``
            Name -> value.
        ``feature_importance``, ``importance_metric``
            ``{"column", "mean", "std"}`` per original column, the most important first: the loss of
            the metric when the column's values are permuted.
        ``confusion_matrix``, ``per_class``, ``roc``, ``precision_recall``, ``calibration``
            Classification. Rows of the matrix are true classes. Curves are lists of
            ``{"class", "x", "y"}``, at most 200 points each: of the positive class, or of each of
            the first 10 classes against the rest; empty where the estimator ranks nothing.
        ``residuals``, ``points``
            Regression: a summary of actual minus predicted, and at most 1,000 rows.

    Raises
    ------
    DataError
        The test set is empty, differs from the training data, or lacks what a metric needs.
    ModelError
        A metric does not fit the kind of problem or the estimator, or this has no answer for some
        row.
    """
    if test.empty:
        raise DataError("the test set has no rows; a larger split.test_size is needed")
    features = conform(test, model.features)
    target = encode(test[model.target], model.classes)
    kind = problem_kind(model.task, model.classes)
    defaults = default_metrics(kind, _methods(model))
    names = list(metrics) or defaults
    model.predict(test)  # an estimator without an answer is not the metrics' fault
    values = {name: measure(model, features, target, name) for name in names}
    important = next(name for name in [*names, *defaults] if name not in _PARTIAL_METRICS)
    result = {
        "kind": kind,
        "task": model.task,
        "target": model.target,
        "rows": len(test),
        "classes": model.classes,
        "metrics": values,
        "feature_importance": _importances(model, features, target, important, seed),
        "importance_metric": important,
    }
    details = _regression if model.classes is None else _classification
    return result | details(model, features, target, seed)


def score(model: TrainedModel, frame: pd.DataFrame, metric: str) -> float:
    """Measure a model with a single metric; errors as of `evaluate`."""
    target = encode(frame[model.target], model.classes)
    return measure(model, conform(frame, model.features), target, metric)


def measure(model: TrainedModel, features: Any, target: Any, metric: str) -> float:
    """Measure a model on what its pipeline is fitted on, encoded; errors as of `evaluate`."""
    from sklearn.exceptions import UndefinedMetricWarning
    from sklearn.metrics import get_scorer

    _require_applicable(model, metric)
    try:
        # what it warns about is that the value is not finite
        with warnings.catch_warnings(action="ignore", category=UndefinedMetricWarning):
            value = float(get_scorer(metric)(model.pipeline, features, target))
    except ValueError as error:
        raise _not_computable(model, target, metric, " ".join(str(error).split())) from error
    if not math.isfinite(value):
        raise _not_computable(model, target, metric, f"the result is {value}")
    return value


def _require_applicable(model: TrainedModel, metric: str) -> None:
    kind = problem_kind(model.task, model.classes)
    methods = _methods(model)
    fitting = [
        name for name, scorer in SCORERS.items() if kind in scorer.kinds and serves(methods, name)
    ]
    if metric in fitting:
        return
    averaged = [f"{metric}_{way}" for way in ("ovr", "macro")]
    nearest = [name for name in averaged if name in fitting] or get_close_matches(metric, fitting)
    remedy = f"use {' or '.join(nearest)}" if nearest else f"there are {', '.join(fitting)}"
    if metric not in SCORERS:
        what = f"{metric} is no metric for a prediction"
    elif kind not in SCORERS[metric].kinds:
        problem = kind if model.classes is None else f"classification of {len(model.classes)}"
        classes = "" if model.classes is None else " classes"
        what = f"{metric} does not measure a {problem}{classes}"
    else:
        needed = " or ".join(SCORERS[metric].methods)
        what = f"{metric} needs {needed}, which {type(model.pipeline[-1]).__name__} does not have"
    raise ModelError(f"evaluate.metrics: {what}; {remedy}")


def _not_computable(model: TrainedModel, target: Any, metric: str, reason: str) -> DataError:
    absent = [
        repr(label) for code, label in enumerate(model.classes or []) if code not in set(target)
    ]
    without = f"; it has no row of class {', '.join(absent)}" if absent else ""
    return DataError(
        f"evaluate.metrics: {metric} cannot be computed on the test set of {len(target)} rows"
        f"{without}: {reason}; choose another metric or another split"
    )


def _methods(model: TrainedModel) -> list[str]:
    methods = ("predict", "predict_proba", "decision_function")
    return [name for name in methods if hasattr(model.pipeline, name)]


def _importances(
    model: TrainedModel, features: pd.DataFrame, target: Any, metric: str, seed: int
) -> list[dict[str, Any]]:
    """Measure how much of a metric is lost when a column's values are permuted (Breiman, 2001)."""
    import numpy as np
    import pandas as pd
    from sklearn.metrics import get_scorer

    rows = _sample(len(features), _IMPORTANCE_ROWS, seed)
    if model.classes is not None:
        # a metric may need every class, however small the sample
        rows = np.union1d(rows, np.unique(target, return_index=True)[1])
    sample, truth = features.iloc[rows], target[rows]
    rng = np.random.default_rng(seed)
    orders = np.concatenate([rng.permutation(len(rows)) for _ in range(_IMPORTANCE_REPEATS)])
    # all repeats pass the transformers at once, as most of their time goes by the call
    repeated = pd.concat([sample] * _IMPORTANCE_REPEATS)
    transform, estimator = model.pipeline[:-1].transform, model.pipeline[-1]
    scorer = get_scorer(metric)
    best = scorer(estimator, transform(sample), truth)
    importances = []
    for column in features:
        permuted = repeated.copy()
        permuted[column] = sample[column].to_numpy()[orders]
        inputs = transform(permuted)
        starts = range(0, len(repeated), len(rows))
        losses = [best - scorer(estimator, inputs[i : i + len(rows)], truth) for i in starts]
        mean, std = _short(np.mean(losses)), _short(np.std(losses))
        importances.append({"column": column, "mean": mean, "std": std})
    return sorted(importances, key=lambda one: (-one["mean"], one["column"]))


def _classification(
    model: TrainedModel, features: pd.DataFrame, target: Any, seed: int
) -> dict[str, Any]:
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    labels = model.classes or []
    codes = range(len(labels))
    predicted = model.pipeline.predict(features)
    columns = precision_recall_fscore_support(target, predicted, labels=codes, zero_division=0)
    return {
        "confusion_matrix": confusion_matrix(target, predicted, labels=codes).tolist(),
        "per_class": [
            {
                "class": str(label),
                "precision": _short(precision),
                "recall": _short(recall),
                "f1": _short(f1),
                "support": int(support),
            }
            for label, precision, recall, f1, support in zip(labels, *columns, strict=True)
        ],
        **_curves(model, features, target),
    }


def _curves(model: TrainedModel, features: pd.DataFrame, target: Any) -> dict[str, Any]:
    """Draw the positive class, or each class against the rest, by the scores it gets."""
    from sklearn.calibration import calibration_curve
    from sklearn.metrics import precision_recall_curve, roc_curve

    curves: dict[str, list[dict[str, Any]]] = {"roc": [], "precision_recall": [], "calibration": []}
    for code, scores in _scores(model, features).items():
        truth = target == code
        if truth.all() or not truth.any():
            continue
        label = (model.classes or [])[code]
        false_rate, true_rate, _ = roc_curve(truth, scores)
        precision, recall, _ = precision_recall_curve(truth, scores)
        curves["roc"].append(_curve(label, false_rate, true_rate))
        curves["precision_recall"].append(_curve(label, recall[::-1], precision[::-1]))
        if hasattr(model.pipeline, "predict_proba"):
            share, mean = calibration_curve(truth, scores, n_bins=10, strategy="quantile")
            curves["calibration"].append(_curve(label, mean, share))
    return curves


def _scores(model: TrainedModel, features: pd.DataFrame) -> dict[int, Any]:
    """Score the rows for the positive one of two classes, or for each of the first classes."""
    import numpy as np

    methods = [name for name in ("predict_proba", "decision_function") if name in _methods(model)]
    if not methods:
        return {}
    scores = np.asarray(getattr(model.pipeline, methods[0])(features))
    classes = len(model.classes or [])
    if classes == 2:
        return {1: scores if scores.ndim == 1 else scores[:, 1]}
    # SVC(decision_function_shape="ovo") compares pairs of classes and has no score for each
    is_by_class = scores.shape == (len(features), classes)
    return {code: scores[:, code] for code in range(min(classes, _CURVE_CLASSES)) if is_by_class}


def _curve(label: object, x: Any, y: Any) -> dict[str, Any]:
    import numpy as np

    kept = np.unique(np.linspace(0, len(x) - 1, _CURVE_POINTS).astype(int))
    return {"class": str(label), "x": _shorts(x[kept]), "y": _shorts(y[kept])}


def _regression(
    model: TrainedModel, features: pd.DataFrame, target: Any, seed: int
) -> dict[str, Any]:
    import numpy as np

    predicted = np.asarray(model.pipeline.predict(features), dtype="float64").reshape(len(target))
    residuals = target - predicted
    rows = _sample(len(target), _SCATTER_POINTS, seed)
    low, middle, high = np.quantile(residuals, [0.05, 0.5, 0.95])
    return {
        "residuals": {
            "mean": _short(residuals.mean()),
            "std": _short(residuals.std()),
            "q05": _short(low),
            "median": _short(middle),
            "q95": _short(high),
            "largest": _short(np.abs(residuals).max()),
        },
        "points": {"predicted": _shorts(predicted[rows]), "actual": _shorts(target[rows])},
    }


def _sample(rows: int, most: int, seed: int) -> Any:
    import numpy as np

    if rows <= most:
        return np.arange(rows)
    return np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))


def _short(value: float) -> float:
    """Keep 6 digits: what follows them is noise that would make the file larger."""
    return float(f"{value:.6g}")


def _shorts(values: Iterable[float]) -> list[float]:
    return [_short(value) for value in values]
