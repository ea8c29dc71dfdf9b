"""Frames that would not come back as they are, and why: what is refused before it is written."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mlops_assets.errors import StoreError

if TYPE_CHECKING:
    import pandas as pd

_OBJECTS = ("string", "bytes", "date")  # what columns of Python objects may hold
LOOK_ROWS = 16_384  # of a column, at a time


def check_labels(frame: pd.DataFrame) -> None:
    """Refuse names of columns and of the index that Parquet cannot keep."""
    odd = [name for name in frame.columns if not isinstance(name, str)]
    if odd or (len(frame.columns) and frame.columns.dtype != object):
        found = repr(odd[0]) if odd else f"of type {frame.columns.dtype}"
        raise StoreError(
            f"column names must be plain text, not {found}; "
            "set frame.columns = [str(name) for name in frame.columns]"
        )
    check_names(frame.columns)
    for name in frame.index.names:
        if name is not None and (not isinstance(name, str) or name in frame):
            raise StoreError(
                f"the index is named {name!r}; its name must be text that is no column's name"
            )
    if frame.columns.empty and len(frame):
        raise StoreError(f"the frame has {len(frame)} rows and no column; there is nothing to keep")


def check_names(names: Iterable[str]) -> None:
    """Refuse a name that occurs twice."""
    repeated = sorted(name for name, times in Counter(names).items() if times > 1)
    if repeated:
        raise StoreError(f"column names occur more than once: {repeated}; rename them")


def check_objects(where: str, column: pd.Series | pd.Index) -> bool:
    """Refuse Python objects that Arrow cannot hold, or would silently change.

    Returns
    -------
    bool
        Whether values are missing, and all of them are NaN.
    """
    from pandas.api.types import infer_dtype

    kind, complete = infer_dtype(column, skipna=False), True
    if kind not in _OBJECTS:
        kind, complete = infer_dtype(column, skipna=True), False
    if kind == "date" and {type(value) for value in column.dropna()} != {datetime.date}:
        kind = "dates and datetimes"
    if kind not in (*_OBJECTS, "empty"):
        raise StoreError(
            f"{where} holds Python objects ({kind}); text, bytes or dates alone are stored: "
            "convert it, for example with astype"
        )
    return not complete and _misses_by_nan(column)


def _misses_by_nan(column: pd.Series | pd.Index) -> bool:
    found = False
    for start in range(0, len(column), LOOK_ROWS):  # the first None decides
        rows = column[start : start + LOOK_ROWS]
        missing = rows[rows.isna()]
        if not all(isinstance(value, float) for value in missing):
            return False
        found = found or len(missing) > 0
    return found


@contextmanager
def explained(frame: pd.DataFrame) -> Iterator[None]:
    """Say which column it is that Arrow cannot convert."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise StoreError(f"{_culprit(frame)} cannot be stored: {_text(error)}") from error


def _text(error: Exception) -> str:
    import pyarrow as pa

    return "; ".join(map(str, error.args)) if isinstance(error, pa.ArrowException) else str(error)


def _culprit(frame: pd.DataFrame) -> str:
    """Which part of a frame Arrow refuses, for the message."""
    import pyarrow as pa

    for name in frame:
        try:
            pa.Array.from_pandas(frame[name])
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            return f"column {name!r} of type {frame[name].dtype}"
    return "the index of the frame"
