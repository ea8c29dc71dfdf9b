"""The iris job as a plain script: what the pipeline is measured against.

The same work as `mlops_assets/pipelines/iris.yaml` asks for, as one would write it without this
project: no caching, no versions, no lineage. Nothing of `mlops_assets` or Dagster is imported.

    MLFLOW_TRACKING_URI=sqlite:///mlflow.db python benchmarks/bare_iris.py FOLDER
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import skops.io
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from sklearn.calibration import calibration_curve
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.inspection import permutation_importance
from sklearn.metrics import (
    confusion_matrix,
    get_scorer,
    precision_recall_curve,
    precision_recall_fscore_support,
    roc_curve,
)
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline

TARGET = "species"
PARAMS = {"n_estimators": 100, "random_state": 42}
METRICS = ("accuracy", "f1_macro", "roc_auc_ovr")
GATE = 0.90  # least accuracy of a champion
TRUSTED = ["numpy.dtype", "sklearn.tree._tree.Tree"]  # what skops does not trust by itself


def load() -> pd.DataFrame:
    """Load the flowers and check them."""
    iris = load_iris()
    names = [name.removesuffix(" (cm)").replace(" ", "_") for name in iris.feature_names]
    frame = pd.DataFrame(iris.data, columns=pd.Index(names))
    frame[TARGET] = pd.Categorical(iris.target_names[iris.target])
    assert frame[TARGET].notna().any()
    assert all(frame[name].dtype == "float64" for name in names)
    return frame.rename_axis("row")


def split(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Divide the rows, in their order, and check the parts."""
    parts = train_test_split(frame, test_size=0.2, random_state=42, stratify=frame[TARGET])
    train, test = (part.sort_index() for part in parts)
    assert train.index.intersection(test.index).empty
    repeated = test.merge(train.drop_duplicates(), how="inner")
    if len(repeated) >= 0.05 * len(test):
        print(f"{len(repeated)} test rows have the content of a training row", file=sys.stderr)
    assert train[TARGET].value_counts(normalize=True).min() >= 0.01
    return train, test


def fit(train: pd.DataFrame) -> Pipeline:
    """Train the model."""
    features = train.drop(columns=TARGET)
    imputer = SimpleImputer(strategy="median", add_indicator=True)
    model = Pipeline(
        [
            ("features", ColumnTransformer([("number", imputer, list(features.columns))])),
            ("estimator", RandomForestClassifier(**PARAMS)),
        ]
    )
    return model.fit(features, train[TARGET].astype(str))


def evaluate(model: Pipeline, test: pd.DataFrame) -> dict[str, Any]:
    """Measure the model: metrics, importances, curves."""
    features, truth = test.drop(columns=TARGET), test[TARGET].astype(str)
    classes = list(model.classes_)
    predicted, shares = model.predict(features), model.predict_proba(features)
    importance = permutation_importance(
        model, features, truth, scoring=METRICS[0], n_repeats=5, random_state=42
    )
    order = np.argsort(-importance.importances_mean)
    per_class = precision_recall_fscore_support(truth, predicted, labels=classes, zero_division=0)
    result: dict[str, Any] = {
        "metrics": {name: float(get_scorer(name)(model, features, truth)) for name in METRICS},
        "classes": classes,
        "rows": len(test),
        "feature_importance": [
            {
                "column": features.columns[i],
                "mean": float(importance.importances_mean[i]),
                "std": float(importance.importances_std[i]),
            }
            for i in order
        ],
        "confusion_matrix": confusion_matrix(truth, predicted, labels=classes).tolist(),
        "per_class": [
            {"class": label, "precision": p, "recall": r, "f1": f1, "support": int(support)}
            for label, p, r, f1, support in zip(classes, *per_class, strict=True)
        ],
        "roc": [],
        "precision_recall": [],
        "calibration": [],
    }
    for position, label in enumerate(classes):
        is_class, score = truth == label, shares[:, position]
        false_rate, true_rate, _ = roc_curve(is_class, score)
        precision, recall, _ = precision_recall_curve(is_class, score)
        share, mean = calibration_curve(is_class, score, n_bins=10, strategy="quantile")
        for name, x, y in (
            ("roc", false_rate, true_rate),
            ("precision_recall", recall[::-1], precision[::-1]),
            ("calibration", mean, share),
        ):
            result[name].append({"class": label, "x": x.tolist(), "y": y.tolist()})
    return result


def draw(evaluation: dict[str, Any], folder: Path) -> None:
    """Draw the evaluation, one PNG for each view."""
    folder.mkdir(exist_ok=True)

    def figure(name: str) -> tuple[Figure, Axes]:
        figure = Figure(figsize=(6, 4.5), dpi=100, layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(name)
        return figure, axes

    canvas, axes = figure("feature_importance")
    importance = evaluation["feature_importance"][::-1]
    axes.barh(
        [one["column"] for one in importance],
        [one["mean"] for one in importance],
        xerr=[one["std"] for one in importance],
    )
    axes.set_xlabel(f"loss of {METRICS[0]} when the column is permuted")
    canvas.savefig(folder / "feature_importance.png")

    canvas, axes = figure("confusion_matrix")
    counts, classes = np.asarray(evaluation["confusion_matrix"]), evaluation["classes"]
    axes.imshow(counts, cmap="Blues")
    axes.set_xticks(range(len(classes)), classes)
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="predicted", ylabel="actual")
    for (row, column), count in np.ndenumerate(counts):
        axes.text(column, row, str(count), ha="center", va="center")
    canvas.savefig(folder / "confusion_matrix.png")

    for name, x, y in (
        ("roc", "false positive rate", "true positive rate"),
        ("precision_recall", "recall", "precision"),
        ("calibration", "predicted probability", "actual share"),
    ):
        canvas, axes = figure(name)
        for curve in evaluation[name]:
            axes.plot(curve["x"], curve["y"], label=curve["class"])
        axes.set(xlabel=x, ylabel=y)
        axes.grid()
        axes.legend(title="class", loc="center left", bbox_to_anchor=(1, 0.5))
        canvas.savefig(folder / f"{name}.png")


def model_card(evaluation: dict[str, Any], train_rows: int) -> str:
    """Describe the model for people."""
    metrics = "\n".join(f"| {name} | {v:.4g} |" for name, v in evaluation["metrics"].items())
    classes = "\n".join(
        f"| {one['class']} | {one['precision']:.4g} | {one['recall']:.4g} | {one['f1']:.4g} |"
        for one in evaluation["per_class"]
    )
    return (
        f"# iris\n\nRandomForestClassifier with {PARAMS}, {train_rows} rows to learn from, "
        f"{evaluation['rows']} to be judged on.\n\n| metric | value |\n|---|---|\n{metrics}\n\n"
        f"| class | precision | recall | f1 |\n|---|---|---|---|\n{classes}\n"
    )


def is_better(evaluation: dict[str, Any], champion: Path, test: pd.DataFrame) -> bool:
    """Whether the new model passes its gate and is not worse than the champion on this test set."""
    accuracy = evaluation["metrics"]["accuracy"]
    if accuracy < GATE or not champion.exists():
        return bool(accuracy >= GATE)
    current = skops.io.load(champion, trusted=TRUSTED)
    features, truth = test.drop(columns=TARGET), test[TARGET].astype(str)
    return bool(accuracy >= get_scorer("accuracy")(current, features, truth))


def track(
    folder: Path, evaluation: dict[str, Any], card: str, version: str, *, promoted: bool
) -> None:
    """Log the model to MLflow, and register it with its alias."""
    client = MlflowClient()
    experiment = client.get_experiment_by_name("iris")
    experiment_id = (
        experiment.experiment_id
        if experiment is not None
        else client.create_experiment("iris", (folder / "mlartifacts").as_uri())
    )
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
    ).stdout.strip()
    tags = {"model_version": version, **({"mlflow.source.git.commit": commit} if commit else {})}
    run = client.create_run(experiment_id, tags=tags, run_name=f"iris-{version[:8]}")
    run_id, at = run.info.run_id, run.info.start_time
    params = {"estimator": "sklearn.ensemble.RandomForestClassifier", **PARAMS}
    client.log_batch(
        run_id,
        params=[Param(name, str(value)) for name, value in params.items()],
        metrics=[Metric(name, value, at, 0) for name, value in evaluation["metrics"].items()],
        tags=[RunTag("promoted", str(promoted))],
    )
    client.log_artifacts(run_id, str(folder / "figures"), "figures")
    client.log_text(run_id, card, "model_card.md")
    client.log_text(run_id, json.dumps({"target": TARGET, "params": PARAMS}), "pipeline.json")
    client.log_dict(run_id, {"url": str(folder / "model.skops"), "sha256": version}, "model.json")
    if not client.search_registered_models("name = 'iris'"):
        client.create_registered_model("iris")
    entry = client.create_model_version("iris", f"runs:/{run_id}/model.json", run_id, tags)
    alias = "champion" if promoted else "challenger"
    client.set_registered_model_alias("iris", alias, entry.version)
    client.set_terminated(run_id)


def main(folder: Path) -> None:
    """Do the whole job; everything is written below the folder."""
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    raw = load()
    raw.to_parquet(folder / "raw.parquet")
    train, test = split(raw)
    train.to_parquet(folder / "train.parquet")
    test.to_parquet(folder / "test.parquet")
    model = fit(train)
    skops.io.dump(model, folder / "model.skops")
    version = hashlib.sha256((folder / "model.skops").read_bytes()).hexdigest()[:16]
    evaluation = evaluate(model, test)
    (folder / "metrics.json").write_text(json.dumps(evaluation))
    draw(evaluation, folder / "figures")
    card = model_card(evaluation, len(train))
    champion = folder / "champion.skops"
    promoted = is_better(evaluation, champion, test)
    if promoted:
        shutil.copyfile(folder / "model.skops", champion)
    track(folder, evaluation, card, version, promoted=promoted)
    print(json.dumps(evaluation["metrics"]))


if __name__ == "__main__":
    os.environ.setdefault(
        "MLFLOW_TRACKING_URI", f"sqlite:///{Path(sys.argv[1]).absolute()}/mlflow.db"
    )
    main(Path(sys.argv[1]))
