"""Tables are read; large frames a part at a time, so that nothing is there twice."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from mlops_assets.errors import StoreError
from mlops_assets.memory import too_much
from mlops_assets.store.tables.batches import row_width
from mlops_assets.store.tables.conversion import (
    category_codes,
    category_values,
    kept_metadata,
    to_pandas,
)
from mlops_assets.store.tables.encodings import ARROW_SCHEMA, is_text

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

_READ_BYTES = 16 * 1024 * 1024  # of a frame, up to which it is read as a whole
_READERS = 2  # threads, each with a part of a large frame


def read(file: Path, as_: Literal["frame", "table", "batches"] | None) -> Any:
    """See `mlops_assets.store.tables.ParquetCodec.read`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Not read_table: with pyarrow 25 it can abort the process at exit.
        parquet = pq.ParquetFile(file, pre_buffer=False)
        schema = _original_schema(parquet)
        if as_ == "batches":
            batches = (batch.cast(schema) for batch in parquet.iter_batches())
            return pa.RecordBatchReader.from_batches(schema, batches)
        if why := too_much(schema, parquet.metadata.num_rows):
            raise StoreError(f"cannot be read as a whole: {why}")
        return parquet.read().cast(schema) if as_ == "table" else _read_frame(parquet, schema, file)
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        raise StoreError(f"is no Parquet file that can be read: {error}") from error


def _original_schema(parquet: pq.ParquetFile) -> pa.Schema:
    """The schema that was written, since Parquet itself has no seconds."""
    import pyarrow as pa

    stored = (parquet.metadata.metadata or {}).get(ARROW_SCHEMA)
    if stored is None:
        return parquet.schema_arrow
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(stored)))


def _read_frame(parquet: pq.ParquetFile, schema: pa.Schema, file: Path) -> pd.DataFrame:
    """Read a part of a large frame at a time, so that Arrow's copy is never there as a whole.

    It is faster, too: memory that was used for the part before costs the system no new pages.
    """
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    size = parquet.metadata.num_rows * row_width(schema)
    described = (schema.pandas_metadata or {}).get("index_columns", [])
    names = [name for name in schema.names if name not in described]
    if size <= _READ_BYTES or not names:
        return to_pandas(parquet.read().cast(schema))

    def read(names: list[str]) -> pd.DataFrame:
        parquet = pq.ParquetFile(file, pre_buffer=False)  # one is not for several threads
        part = pa.schema([schema.field(name) for name in names], schema.metadata)
        # "a" stands for the column "a.b", too.
        return to_pandas(parquet.read(columns=names).select(names).cast(part))

    at_once = len(names) * _READ_BYTES // size
    starts = range(0, len(names), max(1, at_once))

    def columns_from(start: int) -> dict[str, Any]:
        if not at_once and (values := _read_by_groups(file, schema, names[start])) is not None:
            return {names[start]: values}
        part = read(names[start : start + max(1, at_once)])
        return {str(name): column.array for name, column in part.items()}

    columns: dict[str, Any] = {}
    with ThreadPoolExecutor(_READERS) as threads:
        for found in threads.map(columns_from, starts):
            columns |= found
    levels = [name for name in schema.names if name in described]
    index = read(levels).index if levels else _range_index(described, parquet.metadata.num_rows)
    frame = pd.DataFrame(columns, index, copy=False)  # concat would copy all of it once more
    empty = to_pandas(schema.empty_table())
    frame.columns, frame.attrs = empty.columns, empty.attrs
    return frame


def _range_index(described: list[Any], rows: int) -> pd.RangeIndex:
    import pandas as pd

    for it in described:
        index = pd.RangeIndex(it["start"], it["stop"], it["step"], name=it["name"])
        if len(index) == rows:
            return index
    return pd.RangeIndex(rows)  # rows were taken away or added since there was a frame


def _read_by_groups(file: Path, schema: pa.Schema, name: str) -> Any:
    """Values of a long column, read row group by row group; None when their types differ."""
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    parquet = pq.ParquetFile(file, pre_buffer=False)
    if repetitive := is_text(schema.field(name).type) and _has_dictionaries(parquet, name):
        parquet = pq.ParquetFile(file, pre_buffer=False, read_dictionary=[name])
    rows, groups = parquet.metadata.num_rows, range(parquet.num_row_groups)
    part = pa.schema([schema.field(name)], schema.metadata)
    empty = to_pandas(part.empty_table())[name]
    extra = kept_metadata(schema)

    def read(group: int) -> pa.Table:
        return parquet.read_row_group(group, columns=[name], use_threads=False).select([name])

    if name in extra.get("categories", ()):
        known = category_values(extra["categories"][name])
        codes = np.empty(rows, empty.cat.codes.to_numpy().dtype)
        for_all = (category_codes(read(group).column(0), known) for group in groups)
        _fill(codes, (some.fill_null(-1).to_numpy().astype(codes.dtype) for some in for_all))
        return pd.Categorical.from_codes(cast("Any", codes), dtype=empty.array.dtype)
    if repetitive and empty.dtype == object:
        missing = np.nan if name in extra.get("nan", ()) else None
        values = np.empty(rows, object)
        _fill_with_text(values, (read(group).column(0) for group in groups), missing)
        return values
    columns = (_values(read(group).cast(part), empty.dtype) for group in groups)
    first = next(columns)
    if not isinstance(first.dtype, np.dtype):
        return pd.concat([first, *columns]).array
    values = np.empty(rows, first.dtype)
    return values if _fill(values, itertools.chain([first], columns)) else None


def _has_dictionaries(parquet: pq.ParquetFile, name: str) -> bool:
    group = parquet.metadata.row_group(0)
    columns = (group.column(index) for index in range(group.num_columns))
    return any(it.path_in_schema == name and it.has_dictionary_page for it in columns)


def _values(table: pa.Table, dtype: Any) -> Any:
    """Values of the one column of a table; without pandas if it would take them as they are."""
    import pyarrow as pa

    [column] = table.columns
    if column.num_chunks == 1 and not column.null_count and pa.types.is_primitive(column.type):
        values = column.chunk(0).to_numpy(zero_copy_only=False)
        if values.dtype == dtype:
            return values
    return to_pandas(table)[table.column_names[0]]


def _fill(values: np.ndarray, parts: Iterable[Any]) -> bool:
    """Fill an array with its parts; False when one of them is of another type."""
    end = 0
    for part in parts:
        if part.dtype != values.dtype:  # such as integers, of which some are missing
            return False
        start, end = end, end + len(part)
        values[start:end] = part
    return True


def _fill_with_text(
    values: np.ndarray, columns: Iterable[pa.ChunkedArray], missing: float | None
) -> None:
    """Fill an array with Python objects from dictionary arrays; each text is made once."""
    import numpy as np

    end = 0
    for chunk in itertools.chain.from_iterable(column.chunks for column in columns):
        chunk.validate(full=True)  # what follows doesn't look whether an index is in the dictionary
        texts = np.array([*chunk.dictionary.to_pylist(), missing], dtype=object)
        indices = chunk.indices.fill_null(len(texts) - 1).to_numpy()
        start, end = end, end + len(chunk)
        texts.take(indices, out=values[start:end], mode="clip")  # other modes copy once more
