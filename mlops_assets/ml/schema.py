"""The five types of a column, and how to tell them by the dtype. Reading them is `read`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlops_assets.spec import ColumnType

if TYPE_CHECKING:
    import pandas as pd


def schema_of(frame: pd.DataFrame) -> dict[str, ColumnType]:
    """Type of each column, in the words of a pipeline file's `data.columns`."""
    return {str(name): type_of(column) for name, column in frame.items()}


def type_of(column: pd.Series) -> ColumnType:
    """Type of a column with one of the dtypes of `read`."""
    from pandas.api import types

    if types.is_bool_dtype(column.dtype):
        return "boolean"
    if types.is_numeric_dtype(column.dtype):
        return "number"
    if types.is_datetime64_any_dtype(column.dtype):
        return "datetime"
    return "category" if column.dtype == "category" else "text"
