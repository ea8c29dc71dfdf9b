"""From a training frame and a `ModelSpec` to a `TrainedModel`.

Decides what kind of problem it is, what the classes are, and fits. How columns become numbers is
`features`; which class the estimator is, `estimators`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mlops_assets.errors import DataError, ModelError
from mlops_assets.ml.accelerate import Used, accelerated
from mlops_assets.ml.estimators import build_estimator, estimator_task, refusals_explained
from mlops_assets.ml.features import build_features
from mlops_assets.ml.model import ClassLabel, TrainedModel, conform, encode, problem_kind
from mlops_assets.ml.schema import schema_of, type_of
from mlops_assets.ml.task import suited_task
from mlops_assets.spec import ModelSpec, Task

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["problem_kind", "train", "train_and_tell"]


def train(
    frame: pd.DataFrame,
    model: ModelSpec,
    *,
    target: str,
    positive_class: str | int | bool | None = None,
    drop: Sequence[str] = (),
    seed: int = 42,
) -> TrainedModel:
    """Fit the features and the estimator of a `ModelSpec` on the training set.

    See `train_and_tell`, which also tells what it was trained on.
    """
    return train_and_tell(
        frame, model, target=target, positive_class=positive_class, drop=drop, seed=seed
    )[0]


def train_and_tell(
    frame: pd.DataFrame,
    model: ModelSpec,
    *,
    target: str,
    positive_class: str | int | bool | None = None,
    drop: Sequence[str] = (),
    seed: int = 42,
) -> tuple[TrainedModel, Used]:
    """Fit the features and the estimator of a `ModelSpec` on the training set.

    Parameters
    ----------
    frame
        Training rows with the dtypes of `read`; those without a target are left out.
    model
        What to train. Without a `task` it is what the estimator is made for. It is trained on a
        GPU if `compute.gpu` asks for one and there is one.
    target
        Column to predict.
    positive_class
        Of two classes the one that metrics are about; by default the last in sorted order, as
        True, 1 and "yes" are.
    drop
        Columns that are not features.
    seed
        For the estimator's `random_state`, if the pipeline file does not set it.

    Returns
    -------
    model : TrainedModel
        The same wherever it was trained, as far as the estimator computes the same there.
    used : Used
        The device, and how busy it was.

    Raises
    ------
    DataError
        The target or the features do not suit the task.
    ModelError
        The estimator refuses its parameters or the data.
    DeviceError
        A GPU is required, and the estimator cannot be given one.
    """
    from sklearn.pipeline import Pipeline

    if target not in frame.columns:
        raise DataError(f"data.target: the training set has no column {target}")
    rows = frame[frame[target].notna()]
    estimator = build_estimator(model, seed)
    task = _task(model, estimator, rows[target])
    classes = None if task == "regression" else _classes(rows[target], positive_class)
    _encode_class_weight(estimator, classes)
    features = rows.drop(columns=[target, *(name for name in drop if name in rows.columns)])
    types = schema_of(features)
    conformed = conform(features, types)
    transformer = build_features(features, model, estimator)
    pipeline = Pipeline([("features", transformer), ("estimator", estimator)])
    answers = encode(rows[target], classes)
    with accelerated(estimator, model) as used, refusals_explained(model):
        pipeline.fit(conformed, answers)
    return TrainedModel(pipeline, task, target, classes, types, train_rows=len(rows)), used


def _task(model: ModelSpec, estimator: Any, target: pd.Series) -> Task:
    """Choose the task and make sure that the estimator and the target both suit it."""
    made_for = estimator_task(model, estimator)
    if made_for is not None and model.task not in (made_for, None):
        kinds = {"classification": "classifier", "regression": "regressor", None: ""}
        raise ModelError(
            f"model.estimator: {model.estimator} is a {kinds[made_for]}, but model.task is "
            f"{model.task}; choose a {kinds[model.task]} or change the task"
        )
    return suited_task(target, model.task or made_for)


def _encode_class_weight(estimator: Any, classes: Sequence[ClassLabel] | None) -> None:
    """Weights are given by the classes of the data; the estimator learns their positions."""
    weights = estimator.get_params().get("class_weight")
    if classes is None or not isinstance(weights, dict):
        return
    unknown = [label for label in weights if label not in classes]
    if unknown:
        raise ModelError(
            f"model.params.class_weight: {unknown[0]!r} is not among the classes "
            f"{', '.join(map(repr, classes[:20]))}{_quoting_hint(classes, unknown[0])}"
        )
    by_position = {classes.index(label): weight for label, weight in weights.items()}
    estimator.set_params(class_weight=by_position)


def _classes(target: pd.Series, positive: str | int | bool | None) -> list[ClassLabel]:
    """List the classes in sorted order, except that of two the positive one is the last."""
    import numpy as np

    values = np.unique(target.to_numpy(dtype=object))
    is_number = type_of(target) == "number"
    classes: list[ClassLabel] = [int(value) if is_number else value for value in values.tolist()]
    listed = ", ".join(map(repr, classes[:20]))
    if len(classes) < 2:
        raise DataError(
            f"data.target: all {len(target)} training rows have {target.name} = {listed or 'none'};"
            " a classification needs two classes"
        )
    if positive is None:
        return classes
    if len(classes) > 2:
        raise DataError(
            f"data.positive_class: {target.name} has {len(classes)} classes ({listed}); a positive "
            "class exists only among two, remove the field"
        )
    if not any(type(label) is type(positive) and label == positive for label in classes):
        raise DataError(
            f"data.positive_class: {positive!r} is not among the classes {listed}"
            + _quoting_hint(classes, positive)
        )
    return sorted(classes, key=lambda label: label == positive)


def _quoting_hint(classes: Sequence[ClassLabel], positive: str | int | bool) -> str:
    if isinstance(positive, bool):
        meant = {True: {"yes", "true", "on", "y"}, False: {"no", "false", "off", "n"}}[positive]
        for label in classes:
            if str(label).lower() in meant:
                return f'; YAML reads an unquoted {label} as {positive}: write "{label}" in quotes'
    for label in classes:
        if str(label) == str(positive):
            quotes = "in quotes" if isinstance(label, str) else "without quotes"
            return f"; write {label} {quotes}"
    return ""
