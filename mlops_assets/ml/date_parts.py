"""The one transformer of our own: it stands alone because its base class needs scikit-learn.

Imported only where features are made or a stored model is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

if TYPE_CHECKING:
    import pandas as pd

PARTS = ("year", "month", "day_of_week", "hour", "seconds")


class DateParts(TransformerMixin, BaseEstimator):  # type: ignore[misc] # scikit-learn is untyped
    """Turn each datetime column into numbers.

    The parts are year, month (1 to 12), day of the week (Monday is 0), hour, and seconds since
    1970; all are NaN for a missing time.

    Attributes
    ----------
    feature_names_in_ : ndarray of str
        The datetime columns.
    """

    def fit(self, X: pd.DataFrame, y: object = None) -> Self:
        """Remember the columns' names."""
        self.feature_names_in_ = np.asarray(X.columns, dtype=object)
        self.n_features_in_ = X.shape[1]
        return self

    def transform(self, X: pd.DataFrame) -> Any:
        """Compute the parts: float64 of shape (rows, 5 * columns)."""
        check_is_fitted(self)
        parts = [part for name in self.feature_names_in_ for part in _parts(X[name])]
        return np.column_stack(parts)

    def get_feature_names_out(self, input_features: Sequence[str] | None = None) -> Any:
        """Name the parts, such as ``signed_up_year``."""
        names = [f"{name}_{part}" for name in self.feature_names_in_ for part in PARTS]
        return np.asarray(names, dtype=object)


def _parts(times: pd.Series) -> list[Any]:
    seconds = times.astype("datetime64[s]").astype("int64").astype("float64")
    seconds[times.isna()] = np.nan
    return [
        part.to_numpy(dtype="float64")
        for part in (times.dt.year, times.dt.month, times.dt.dayofweek, times.dt.hour, seconds)
    ]
