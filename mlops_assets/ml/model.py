"""What a trained model is: a fitted pipeline that knows what it expects and what it answers.

Only predicting. Making one is `train`, measuring one is `evaluate`, storing one is the store's
affair: all attributes are plain values or scikit-learn's objects, so that skops can hold them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mlops_assets.errors import DataError, ModelError
from mlops_assets.spec import ColumnType, Task
from mlops_assets.wording import listed, shown

if TYPE_CHECKING:
    import pandas as pd

ClassLabel = str | int | float | bool
ProblemKind = Literal["binary", "multiclass", "regression"]


@dataclass(frozen=True)
class TrainedModel:
    """A fitted pipeline, together with what it expects and what its answers mean."""

    pipeline: Any
    """Fitted sklearn Pipeline of the steps ``features`` and ``estimator``; in a classification it
    predicts positions in `classes`."""
    task: Task
    target: str
    classes: list[ClassLabel] | None
    """Classes in the order of the estimator's outputs; of two, the second is the positive one.
    None for a regression."""
    features: dict[str, ColumnType]
    """Columns that the model was trained on, with their types."""
    train_rows: int

    def predict(self, frame: pd.DataFrame) -> pd.Series:
        """Predict the target in its own terms.

        Parameters
        ----------
        frame
            Rows with at least the columns of `features`; others are ignored, and so is the target.
            Categories that training never saw are allowed.

        Returns
        -------
        pandas.Series
            Named like the target, with the index of `frame`: classes (object, int64 or bool) or
            numbers (float64).

        Raises
        ------
        DataError
            A column is missing or of another type than in training.
        ModelError
            The estimator has no answer for some row.
        """
        import numpy as np
        import pandas as pd

        answers = np.asarray(self._ask("predict", frame) if len(frame) else [])
        if self.classes is None:
            values = answers.astype("float64").reshape(len(frame))
        else:
            values = pd.Series(self.classes).to_numpy()[answers.astype("int64")]
        return pd.Series(values, frame.index, name=self.target)

    def predict_proba(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Predict the probability of each class.

        Returns
        -------
        pandas.DataFrame
            One column (float64) per class, named by its text, with the index of `frame`.

        Raises
        ------
        DataError
            As of `predict`.
        ModelError
            The model is a regression, or its estimator knows no probabilities, or none for some
            row.
        """
        import numpy as np
        import pandas as pd

        if self.classes is None or not hasattr(self.pipeline, "predict_proba"):
            estimator = type(self.pipeline[-1]).__name__
            raise ModelError(f"model.estimator: {estimator} gives no probabilities")
        columns = [str(label) for label in self.classes]
        shares = self._ask("predict_proba", frame) if len(frame) else np.empty((0, len(columns)))
        return pd.DataFrame(shares, frame.index, columns)

    def answer(self, frame: pd.DataFrame) -> tuple[Any, Any]:
        """Predict and give probabilities at once, which makes the features only once.

        Returns
        -------
        predictions : numpy.ndarray
            Positions in `classes` (int64), or numbers (float64) without classes.
        probabilities : numpy.ndarray or None
            One column (float64) per class; None where the model gives none.

        Raises
        ------
        DataError, ModelError
            As of `predict`.
        """
        import numpy as np

        features = conform(frame, self.features)
        estimator = self.pipeline[-1]
        with self._explained():
            transformed = self.pipeline[:-1].transform(features)
            answers = np.asarray(estimator.predict(transformed)).reshape(len(frame))
            shares = None
            if self.classes is not None and hasattr(estimator, "predict_proba"):
                shares = np.asarray(estimator.predict_proba(transformed), dtype="float64")
        return answers.astype("float64" if self.classes is None else "int64"), shares

    def _ask(self, method: str, frame: pd.DataFrame) -> Any:
        features = conform(frame, self.features)
        with self._explained():
            return getattr(self.pipeline, method)(features)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            estimator = type(self.pipeline[-1]).__name__
            message = " ".join(str(error).split())[:500]
            raise ModelError(f"{estimator} cannot predict these rows: {message}") from error


def problem_kind(task: Task, classes: Sequence[object] | None) -> ProblemKind:
    """Name the kind of problem, which decides what metrics apply."""
    if task == "regression":
        return "regression"
    return "binary" if classes is not None and len(classes) == 2 else "multiclass"


def conform(frame: pd.DataFrame, features: Mapping[str, ColumnType]) -> pd.DataFrame:
    """Select the features and give them the dtypes that a model's pipeline is fitted on.

    Returns
    -------
    pandas.DataFrame
        Numbers and booleans as float64 (missing NaN), datetimes as datetime64[ns], categories and
        texts as object of str (missing NaN).

    Raises
    ------
    DataError
        A feature is missing or of another type.
    """
    import pandas as pd

    missing = [name for name in features if name not in frame.columns]
    if missing:
        raise DataError(f"the data lacks columns that the model was trained on: {listed(missing)}")
    columns = {name: _conformed(frame[name], wanted) for name, wanted in features.items()}
    return pd.DataFrame(columns, index=frame.index)


def encode(target: pd.Series, classes: Sequence[ClassLabel] | None) -> Any:
    """Turn a target into what the pipeline predicts.

    Returns
    -------
    numpy.ndarray
        Positions in `classes` (int64), or the numbers themselves (float64) without classes.

    Raises
    ------
    DataError
        A value is missing, is none of the classes or no number.
    """
    if classes is None:
        return _conformed(target, "number").to_numpy()
    codes = target.astype("object").map({label: code for code, label in enumerate(classes)})
    unknown = target[codes.isna()]
    if len(unknown):
        known = listed([str(label) for label in classes])
        raise DataError(
            f"column {target.name} has the class {shown(unknown.iloc[0])} in {len(unknown)} rows, "
            f"such as row {unknown.index[0]}, which the model was not trained on; it knows {known}"
        )
    return codes.to_numpy(dtype="int64")


def _conformed(column: pd.Series, wanted: ColumnType) -> pd.Series:
    import numpy as np
    from pandas.api import types

    is_missing = bool(column.isna().all())
    if wanted in ("number", "boolean"):
        if types.is_numeric_dtype(column.dtype) or types.is_bool_dtype(column.dtype):
            return column.astype("float64")
        if is_missing:
            return column.astype("object").where(column.notna(), np.nan).astype("float64")
    elif wanted == "datetime":
        if types.is_datetime64_dtype(column.dtype) or is_missing:
            return column.astype("datetime64[ns]")
    elif is_missing or types.infer_dtype(column, skipna=True) in ("string", "categorical"):
        values = column.astype("object")
        return values.where(column.notna(), np.nan)
    raise DataError(
        f"column {column.name} was of the type {wanted} when the model was trained and is now "
        f"{column.dtype}; declare it in data.columns as {column.name}: {wanted}"
    )
