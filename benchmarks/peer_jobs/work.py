"""The iris job that every tool is given: plain functions, so that only the orchestration differs.

The work of `benchmarks/bare_iris.py` without MLflow, on a file instead of scikit-learn's own copy.
Each function imports what it needs, so that a step in a process of its own imports no more. What
has run is written to the file `$PEERS_TRACE`, a line for each step.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from sklearn.pipeline import Pipeline

TARGET = "species"
PARAMS = {"n_estimators": 100, "random_state": 42}
METRICS = ("accuracy", "f1_macro", "roc_auc_ovr")


def load(path: str) -> pd.DataFrame:
    """Read the flowers and check them."""
    import pandas as pd

    _tell("load")
    frame = pd.read_csv(path)
    assert frame[TARGET].notna().all()
    assert all(frame[name].dtype == "float64" for name in frame.columns.drop(TARGET))
    return frame


def split(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Divide the rows, in their order."""
    from sklearn.model_selection import train_test_split

    _tell("split")
    parts = train_test_split(frame, test_size=0.2, random_state=42, stratify=frame[TARGET])
    train, test = (part.sort_index() for part in parts)
    return train, test


def train(frame: pd.DataFrame) -> Pipeline:
    """Train the model."""
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import Pipeline

    _tell("train")
    features = frame.drop(columns=TARGET)
    imputer = SimpleImputer(strategy="median", add_indicator=True)
    model = Pipeline(
        [
            ("features", ColumnTransformer([("number", imputer, list(features.columns))])),
            ("estimator", RandomForestClassifier(**PARAMS)),
        ]
    )
    return model.fit(features, frame[TARGET])


def evaluate(model: Pipeline, test: pd.DataFrame, figures: Path | str) -> dict[str, Any]:
    """Measure the model, and draw what was measured."""
    import numpy as np
    from sklearn.calibration import calibration_curve
    from sklearn.inspection import permutation_importance
    from sklearn.metrics import (
        confusion_matrix,
        get_scorer,
        precision_recall_curve,
        precision_recall_fscore_support,
        roc_curve,
    )

    features, truth = test.drop(columns=TARGET), test[TARGET]
    classes = list(model.classes_)
    predicted, shares = model.predict(features), model.predict_proba(features)
    importance = permutation_importance(
        model, features, truth, scoring=METRICS[0], n_repeats=5, random_state=42
    )
    per_class = precision_recall_fscore_support(truth, predicted, labels=classes, zero_division=0)
    curves: dict[str, Any] = {"roc": {}, "precision_recall": {}, "calibration": {}}
    for label, score in zip(classes, shares.T, strict=True):
        is_class = truth == label
        false_rate, true_rate, _ = roc_curve(is_class, score)
        precision, recall, _ = precision_recall_curve(is_class, score)
        share, mean = calibration_curve(is_class, score, n_bins=10, strategy="quantile")
        curves["roc"][label] = [false_rate.tolist(), true_rate.tolist()]
        curves["precision_recall"][label] = [recall[::-1].tolist(), precision[::-1].tolist()]
        curves["calibration"][label] = [mean.tolist(), share.tolist()]
    evaluation = {
        "metrics": {name: float(get_scorer(name)(model, features, truth)) for name in METRICS},
        "classes": classes,
        "feature_importance": {
            features.columns[i]: [
                float(importance.importances_mean[i]),
                float(importance.importances_std[i]),
            ]
            for i in np.argsort(-importance.importances_mean)
        },
        "confusion_matrix": confusion_matrix(truth, predicted, labels=classes).tolist(),
        "per_class": [numbers.tolist() for numbers in per_class],
        **curves,
    }
    _draw(evaluation, Path(figures))
    _tell("evaluate", accuracy=evaluation["metrics"]["accuracy"])
    print(json.dumps(evaluation["metrics"]))
    return evaluation


def _draw(evaluation: dict[str, Any], folder: Path) -> None:
    import numpy as np
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)

    def figure(name: str) -> tuple[Any, Any]:
        figure = Figure(figsize=(6, 4.5), dpi=100, layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(name)
        return figure, axes

    canvas, axes = figure("feature_importance")
    columns, numbers = zip(*reversed(evaluation["feature_importance"].items()), strict=True)
    means, deviations = zip(*numbers, strict=True)
    axes.barh(columns, means, xerr=deviations)
    canvas.savefig(folder / "feature_importance.png")
    canvas, axes = figure("confusion_matrix")
    counts, classes = np.asarray(evaluation["confusion_matrix"]), evaluation["classes"]
    axes.imshow(counts, cmap="Blues")
    axes.set_xticks(range(len(classes)), classes)
    axes.set_yticks(range(len(classes)), classes)
    for (row, column), count in np.ndenumerate(counts):
        axes.text(column, row, str(count), ha="center", va="center")
    canvas.savefig(folder / "confusion_matrix.png")
    for name in ("roc", "precision_recall", "calibration"):
        canvas, axes = figure(name)
        for label, (x, y) in evaluation[name].items():
            axes.plot(x, y, label=label)
        axes.grid()
        axes.legend(title="class", loc="center left", bbox_to_anchor=(1, 0.5))
        canvas.savefig(folder / f"{name}.png")


def _tell(step: str, **more: float) -> None:
    if trace := os.environ.get("PEERS_TRACE"):
        with Path(trace).open("a") as file:
            file.write(json.dumps({"step": step, **more}) + "\n")
