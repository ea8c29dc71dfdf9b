"""Reading a pipeline's source into one typed frame.

The files become Arrow tables (csv as text, jsonl and parquet with the types they have), and each
column then gets one of five types:

========  ===============================================  =========================================
type      values                                           dtype
========  ===============================================  =========================================
number    whole numbers without a missing value            int64
number    others                                           float64, missing NaN
boolean   without / with a missing value                   bool / boolean
datetime  ISO 8601; times with an offset in UTC            datetime64[ns], missing NaT
category  text that repeats                                category of sorted str, missing NaN
text      free text: more than 50 distinct values which    object of str, missing None
          are more than half of all
========  ===============================================  =========================================

Types are those declared in `data.columns`, otherwise those of the whole column, never of a sample.
Text is trimmed; blank text is missing. Whether the values make sense is `checks`; which files there
are is `files`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mlops_assets.errors import DataError
from mlops_assets.ml.files import BUNDLED, find, identity
from mlops_assets.ml.schema import schema_of
from mlops_assets.ml.tables import Source, bundled_source, source_of
from mlops_assets.spec import ColumnType, DataSpec
from mlops_assets.wording import listed, nearest, shown

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

__all__ = ["identity", "read", "schema_of", "typed"]

_NUMBER = r"(?i)^[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|inf|infinity)$"
_INTEGER = r"^[+-]?\d+$"
_DATETIME = (
    r"^\d{4}-\d{2}-\d{2}(?:[T ]\d{2}:\d{2}(?::\d{2}(?:\.\d{1,9})?)?(?:Z|[+-]\d{2}:?\d{2})?)?$"
)
_BOOLEAN = r"(?i)^(?:true|false)$"
_DECLARED_BOOLEAN = r"(?i)^(?:true|false|yes|no|t|f|y|n|1|0)$"
_TRUE = r"(?i)^(?:true|yes|t|y|1)$"
_FREE_TEXT_DISTINCT = 50
# above it squares, and so variances, overflow
_LARGEST_NUMBER = 1e150


def read(
    data: DataSpec, folder: Path, storage_options: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Read the raw data and give every column its type.

    Parameters
    ----------
    data
        Where the data is and what is declared about it. A column of `data.drop` that is of none of
        the types is left out, unless something else is declared about it.
    folder
        What a relative `data.uri` is relative to.
    storage_options
        As of `files.find`.

    Returns
    -------
    pandas.DataFrame
        All columns, with the dtypes that this module's docstring lists; the index ``row`` (int64;
        ``row_`` if a column has that name) counts rows from 0, over all files in sorted order.
        Bundled data sets have snake_case names; their target column is ``species`` for iris,
        otherwise ``target``.

    Raises
    ------
    DataError
        The source is missing, damaged or empty, or its content is not what is declared.
    """
    if data.uri.startswith(BUNDLED):
        source = bundled_source(data.uri.removeprefix(BUNDLED))
    else:
        source = source_of(find(data.uri, folder, storage_options))
    return typed(source, data)


def typed(source: Source, data: DataSpec) -> pd.DataFrame:
    """Give every column of a source its type; the frame and the errors are those of `read`."""
    if not source.table.num_rows:
        raise DataError(f"{source.name} has a header but no rows")
    _require_columns(data, source)
    return _typed_frame(source, data)


def _require_columns(data: DataSpec, source: Source) -> None:
    names = source.table.column_names
    wanted = {
        "data.target": [data.target],
        "data.columns": list(data.columns),
        "data.drop": data.drop,
        "data.checks.unique": data.checks.unique,
        "data.checks.not_null": data.checks.not_null,
        "data.checks.between": list(data.checks.between),
    }
    there_are = f" (there are {listed(names)})"
    problems = [
        f"{field}: {source.name} has no column {column}{nearest(column, names) or there_are}"
        for field, columns in wanted.items()
        for column in columns
        if column not in names
    ]
    if problems:
        raise DataError("; ".join(problems))


def _typed_frame(source: Source, data: DataSpec) -> pd.DataFrame:
    import pandas as pd

    checks = data.checks
    declared = {*data.columns, *checks.unique, *checks.not_null, *checks.between}
    ignorable = set(data.drop) - declared
    index_name = "row"
    while index_name in source.table.column_names:
        index_name += "_"
    index = pd.RangeIndex(source.table.num_rows, name=index_name)
    columns = {}
    for name, values in zip(source.table.column_names, source.table.columns, strict=True):
        column = Column(name, source, data.columns.get(name), data.missing_values)
        # a column that nobody uses must not stop a pipeline
        with suppress(DataError) if name in ignorable else nullcontext():
            columns[name] = pd.Series(typed_column(values, column), index)
    return pd.DataFrame(columns, index)


class Column(NamedTuple):
    """What is known about a column besides its values."""

    name: str
    source: Source
    declared: ColumnType | None
    missing_values: Sequence[str]

    def problem(self, what: str, values: pa.ChunkedArray, bad: Any, remedy: str) -> DataError:
        """Make an error that counts the rows where `bad` is true and shows the first of them."""
        import numpy as np

        rows = np.flatnonzero(np.asarray(bad))
        examples = listed(
            f"{shown(values[row].as_py())} in {self.source.place(row)}" for row in rows[:3].tolist()
        )
        return DataError(
            f"{self.source.name}: column {self.name} {what} in {len(rows)} of {len(values)} rows, "
            f"such as {examples}; {remedy}"
        )


def typed_column(values: pa.ChunkedArray, column: Column) -> Any:
    """Give a column its type: an array or a Series that pandas takes as it is.

    Raises
    ------
    DataError
        A value does not fit the type; tells which, and in which row.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    own = own_type(values.type)
    if own is None:
        raise DataError(
            f"{column.source.name}: column {column.name} is of the type {values.type}, which is no "
            "number, text, boolean, date or timestamp; convert it, give each value its own column, "
            "or list it under data.drop"
        )
    if own != "text" and column.declared in (None, own):
        return {"boolean": _booleans, "number": _numbers, "datetime": _datetimes}[own](
            values, column
        )
    texts = pc.utf8_trim_whitespace(values.cast(pa.large_string()))
    missing = pa.array(["", *column.missing_values], pa.large_string())
    return _from_text(pc.if_else(pc.is_in(texts, missing), None, texts), column)


def own_type(kind: pa.DataType) -> ColumnType | None:
    """Return what a column is before anything is declared or inferred; None for other types."""
    import pyarrow as pa

    if pa.types.is_boolean(kind):
        return "boolean"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "number"
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return "datetime"
    texts = (pa.string(), pa.large_string(), pa.string_view(), pa.null())
    return "text" if kind in texts else None


def _from_text(texts: pa.ChunkedArray, column: Column) -> Any:
    declared = column.declared or _inferred(texts, column)
    if declared == "number":
        return _parsed_numbers(texts, column)
    if declared == "boolean":
        return _parsed_booleans(texts, column)
    if declared == "datetime":
        return _parsed_datetimes(texts, column)
    if declared == "category":
        import pandas as pd

        return pd.Categorical(texts.to_pandas())
    return texts.to_pandas().to_numpy(dtype=object)


def _inferred(texts: pa.ChunkedArray, column: Column) -> ColumnType:
    """Type that all values of a text column have in common."""
    present = len(texts) - texts.null_count
    numeric = _matches(texts, _NUMBER)
    numbers = int(numeric.sum())
    if numbers == present and (column.source.plain_text or not present):
        return "number"
    if _matches(texts, _BOOLEAN).sum() == present:
        return "boolean"
    if _matches(texts, _DATETIME).sum() == present and _times(texts).notna().sum() == present:
        return "datetime"
    if present > numbers >= present / 2:
        raise column.problem(
            f"mixes {numbers} numbers with text: it is not a number",
            texts,
            ~numeric & texts.is_valid().to_numpy(),
            "list such values under data.missing_values, or declare the column as category "
            "under data.columns",
        )
    distinct = len(texts.unique()) - bool(texts.null_count)
    return "text" if distinct > max(_FREE_TEXT_DISTINCT, present / 2) else "category"


def _matches(texts: pa.ChunkedArray, pattern: str) -> Any:
    """Where a present value matches a pattern: an array of bool."""
    import pyarrow.compute as pc

    return pc.match_substring_regex(texts, pattern).fill_null(False).to_numpy()


def _times(texts: pa.ChunkedArray) -> Any:
    import pandas as pd

    times = pd.to_datetime(texts.to_pandas(), format="ISO8601", utc=True, errors="coerce")
    return times.dt.tz_localize(None).astype("datetime64[ns]")


def _require_all(matching: Any, texts: pa.ChunkedArray, column: Column, what: str) -> None:
    bad = ~matching & texts.is_valid().to_numpy()
    if bad.any():
        raise column.problem(
            f"is not {what}",
            texts,
            bad,
            "correct the values, list them under data.missing_values, or change the type under "
            "data.columns",
        )


def _parsed_numbers(texts: pa.ChunkedArray, column: Column) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    _require_all(_matches(texts, _NUMBER), texts, column, "a number")
    texts = pc.replace_substring_regex(texts, r"^\+", "")
    if _matches(texts, _INTEGER).sum() == len(texts):
        try:
            return _numbers(texts.cast(pa.int64()), column)
        except pa.ArrowInvalid:  # beyond int64: a float holds it, rounded
            pass
    return _numbers(texts.cast(pa.float64()), column)


def _parsed_booleans(texts: pa.ChunkedArray, column: Column) -> Any:
    import pyarrow.compute as pc

    _require_all(_matches(texts, _DECLARED_BOOLEAN), texts, column, "true or false")
    return _booleans(pc.match_substring_regex(texts, _TRUE), column)


def _parsed_datetimes(texts: pa.ChunkedArray, column: Column) -> Any:
    times = _times(texts)
    valid = _matches(texts, _DATETIME) & times.notna().to_numpy()
    _require_all(valid, texts, column, "a time from 1678 to 2261 such as 2024-01-31T12:00:00")
    return times.to_numpy()


def _booleans(values: pa.ChunkedArray, column: Column) -> Any:
    return values.to_pandas().astype("boolean" if values.null_count else "bool")


def _numbers(values: pa.ChunkedArray, column: Column) -> Any:
    import numpy as np
    import pyarrow as pa

    if pa.types.is_integer(values.type) and not values.null_count:
        try:
            return values.cast(pa.int64()).to_numpy()
        except pa.ArrowInvalid:  # unsigned and beyond int64
            pass
    numbers = values.cast(pa.float64(), safe=False).to_numpy().astype("float64")
    too_large = np.abs(numbers) > _LARGEST_NUMBER
    if too_large.any():
        what = f"is infinite or beyond {_LARGEST_NUMBER:g}"
        remedy = "correct the values, or list them under data.missing_values"
        raise column.problem(what, values, too_large, remedy)
    return numbers


def _datetimes(values: pa.ChunkedArray, column: Column) -> Any:
    import pyarrow as pa

    try:
        return values.cast(pa.timestamp("ns")).to_pandas().to_numpy()
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{column.source.name}: column {column.name} has a time outside the years 1678 to "
            "2261; make it missing in the file"
        ) from error
