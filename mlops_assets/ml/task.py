"""Whether a target is predicted as classes or as a number."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlops_assets.errors import DataError
from mlops_assets.ml.schema import type_of
from mlops_assets.spec import Task

if TYPE_CHECKING:
    import pandas as pd

_MOST_NUMERIC_CLASSES = 20


def infer_task(target: pd.Series) -> Task:
    """Tell a classification from a regression by the target's values.

    Text and booleans are classes. So are whole numbers if there are two of them, or at most 20
    which each occur 20 times on average. All other numbers are quantities.
    """
    values = target.dropna()
    if type_of(target) != "number":
        return "classification"
    distinct = values.nunique()
    repeats = distinct <= 2 or len(values) >= 20 * distinct
    is_class = (values % 1 == 0).all() and distinct <= _MOST_NUMERIC_CLASSES and repeats
    return "classification" if is_class else "regression"


def suited_task(target: pd.Series, task: Task | None) -> Task:
    """Return the task, inferred from the target if it is None, when the target suits it.

    Raises
    ------
    DataError
        A time is to be predicted, or classes by a regression, or quantities by a classification.
    """
    task = task or infer_task(target)
    kind = type_of(target)
    if kind == "datetime":
        raise DataError(
            f"data.target: {target.name} is a time, which cannot be predicted; choose a column of "
            "numbers or classes"
        )
    if task == "regression" and kind != "number":
        raise DataError(
            f"data.target: {target.name} is of the type {kind}, but a regression predicts numbers; "
            "choose a classifier as model.estimator, or another target"
        )
    if task == "classification" and kind == "number" and _is_continuous(target):
        raise DataError(
            f"data.target: {target.name} has {target.nunique()} different numbers, which are no "
            "classes; choose a regressor as model.estimator, or declare the column in "
            f"data.columns as {target.name}: category"
        )
    return task


def _is_continuous(target: pd.Series) -> bool:
    values = target.dropna()
    many = values.nunique() > max(_MOST_NUMERIC_CLASSES, len(values) / 10)
    return bool((values % 1 != 0).any() or many)
