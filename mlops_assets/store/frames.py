"""Tables as Parquet: pandas frames, Arrow tables and streams of record batches.

Which encodings a column gets, how a frame's index, categories and types survive, and what is
refused. A frame comes back exactly, or is refused when it is written:

- Column names are text and unique. Index: a range is kept as metadata, other indexes as columns;
  levels are unnamed or named by text that is no column's name. The `freq` of a time index is
  derived from its values and not kept.
- Integers, floats, booleans, the nullable types, ``string``, datetimes (any unit and time zone),
  timedeltas, periods, intervals and Arrow-backed types are kept. Categories keep their order,
  their type and those that no row uses.
- Columns of Python objects hold text, bytes or dates. Missing values in them come back as NaN when
  all of them were NaN, else as None.
"""

from __future__ import annotations

import base64
import datetime
import io
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from mlops_assets.errors import StoreError
from mlops_assets.memory import too_much

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

_METADATA = b"mlops_assets"
_GROUP_BYTES = 32 * 1024 * 1024  # of a row group, uncompressed: what streaming keeps in memory
_GROUP_ROWS = (1024, 1024 * 1024)
_READ_BYTES = 16 * 1024 * 1024  # of a frame, up to which it is read as a whole
_READERS = 2  # threads, each with a part of a large frame
_VARIABLE_WIDTH = 32  # bytes: a guess for text and nested values
_SAMPLE_ROWS = 16_384
_WAYS = (("NONE", False), ("NONE", True), ("ZSTD", False), ("ZSTD", True))  # the cheapest first
_WORTHWHILE = 0.8  # size over that of a cheaper way from which on it isn't worth its time
_PREVIEW_ROWS = 5
_PREVIEW_COLUMNS = 50
_PREVIEW_TEXT = 100  # characters


class ParquetCodec:
    """Parquet files."""

    extension = "parquet"

    def write(self, value: Any, file: IO[bytes]) -> dict[str, Any]:
        """Write a DataFrame, a Table, a RecordBatchReader or an iterator of RecordBatch.

        A column is written plainly, or with a dictionary, Zstandard or both, when that makes a
        sample of it at least a fifth smaller: on random floats both cost time and gain nothing.

        Returns
        -------
        dict
            ``rows``, ``columns`` (name to type) and ``preview`` (the first rows, plain JSON).
        """
        import pandas as pd
        import pyarrow as pa

        if isinstance(value, pd.DataFrame):
            columns = {str(name): str(dtype) for name, dtype in value.dtypes.items()}
            return {**_write_batches(*_from_pandas(value), file), "columns": columns}
        if isinstance(value, pa.Table):
            return _write_batches(value.schema, value.to_batches(), file)
        return _write_batches(*_checked_stream(value), file)

    def read(self, file: Path, as_: Literal["frame", "table", "batches"] | None) -> Any:
        """Read a table as a DataFrame (the default), a Table or a RecordBatchReader."""
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
            return (
                parquet.read().cast(schema)
                if as_ == "table"
                else _read_frame(parquet, schema, file)
            )
        except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
            raise StoreError(f"is no Parquet file that can be read: {error}") from error


def _write_batches(
    schema: pa.Schema, batches: Iterable[pa.RecordBatch], file: IO[bytes]
) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    repeated = sorted(name for name, times in Counter(schema.names).items() if times > 1)
    if repeated:
        raise StoreError(f"column names occur more than once: {repeated}; rename them")
    for field in schema:
        if pa.types.is_dictionary(field.type) and not _is_text(field.type.value_type):
            raise StoreError(
                f"column {field.name!r} is a dictionary of {field.type.value_type}; Parquet has "
                "dictionaries of text only: use dictionary_decode()"
            )
    groups = _row_groups(schema, batches)
    first = next(groups, schema.empty_table())
    rows = 0
    try:
        with pq.ParquetWriter(file, schema, **_encodings(first)) as writer:
            for group in itertools.chain([first], groups):
                writer.write_table(group, row_group_size=max(1, group.num_rows))
                rows += group.num_rows
    except pa.ArrowException as error:
        raise StoreError(f"the table cannot be stored as Parquet: {error}") from error
    columns = {field.name: str(field.type) for field in schema}
    return {"rows": rows, "columns": columns, "preview": _preview(first)}


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _checked_stream(value: Any) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Schema and batches of a reader or of an iterator whose batches are all alike."""
    import pyarrow as pa

    if isinstance(value, pa.RecordBatchReader):
        return value.schema, value
    first = next(value, None)
    if first is None:
        raise StoreError("the iterator gave nothing; give at least one batch, which may be empty")

    def batches() -> Iterator[pa.RecordBatch]:
        for number, batch in enumerate(itertools.chain([first], value)):
            if not isinstance(batch, pa.RecordBatch):
                raise StoreError(
                    f"item {number} of the iterator is of type {type(batch).__name__}; a stream is "
                    "made of pyarrow.RecordBatch (of a frame: RecordBatch.from_pandas)"
                )
            if not batch.schema.equals(first.schema):
                raise StoreError(
                    f"batch {number} of the stream has other columns than the first one: "
                    f"{_columns(batch.schema)} instead of {_columns(first.schema)}"
                )
            yield batch

    checked = batches()
    head = next(checked)
    return head.schema, itertools.chain([head], checked)


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)


def _row_groups(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Tables of one chunk and equal length, so that bytes don't depend on the batches' lengths."""
    import pyarrow as pa

    size = _group_rows(schema)
    pending: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        while batch.num_rows:
            part = batch.slice(0, size - rows)
            batch = batch.slice(part.num_rows)
            pending.append(part)
            rows += part.num_rows
            if rows == size:
                yield pa.Table.from_batches(pending, schema).combine_chunks()
                pending, rows = [], 0
    if pending:
        yield pa.Table.from_batches(pending, schema).combine_chunks()


def _group_rows(schema: pa.Schema) -> int:
    lowest, highest = _GROUP_ROWS
    return min(max(_GROUP_BYTES // max(1, _row_width(schema)), lowest), highest)


def _row_width(schema: pa.Schema) -> int:
    width = 0
    for field in schema:
        try:
            width += max(1, field.type.bit_width // 8)
        except ValueError:  # a type without a fixed width
            width += _VARIABLE_WIDTH
    return width


def _encodings(group: pa.Table) -> dict[str, Any]:
    """Arguments of ParquetWriter: compression and dictionaries for the columns that gain."""
    sample = group.slice(0, _SAMPLE_ROWS)
    chosen: dict[str, tuple[str, bool]] = {}
    least: dict[str, int] = {}
    for way in _WAYS:
        compression, use_dictionary = way
        sizes = _column_sizes(sample, compression=compression, use_dictionary=use_dictionary)
        for path, size in sizes.items():
            if path not in chosen or size < _WORTHWHILE * least[path]:
                chosen[path], least[path] = way, size
    return {
        "compression": {path: way[0] for path, way in chosen.items()} or "NONE",
        "use_dictionary": [path for path, way in chosen.items() if way[1]] or False,
    }


def _column_sizes(table: pa.Table, **options: Any) -> dict[str, int]:
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    group = pq.ParquetFile(buffer).metadata.row_group(0)
    columns = (group.column(index) for index in range(group.num_columns))
    return {column.path_in_schema: column.total_compressed_size for column in columns}


def _original_schema(parquet: pq.ParquetFile) -> pa.Schema:
    """The schema that was written, since Parquet itself has no seconds."""
    import pyarrow as pa

    stored = (parquet.metadata.metadata or {}).get(b"ARROW:schema")
    if stored is None:
        return parquet.schema_arrow
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(stored)))


def _from_pandas(frame: pd.DataFrame) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Schema, with what Arrow would lose in its metadata, and batches of the rows of a frame.

    The rows are converted row group by row group: a frame of one NumPy array would be copied else.
    """
    import pyarrow as pa

    _check_labels(frame)
    objects = {name: frame[name] for name in frame if frame[name].dtype == object}
    for name, column in objects.items():
        _check_objects(f"column {name!r}", column)
    levels = [frame.index.get_level_values(number) for number in range(frame.index.nlevels)]
    object_levels = [level for level in levels if level.dtype == object]
    for level in object_levels:
        _check_objects("the index", level)
    with _explained(frame):
        converted = _schema(frame, [*objects.values(), *object_levels])
    extra: dict[str, Any] = {
        "nan": [name for name, column in objects.items() if _misses_by_nan(column)],
        "categories": {},
        "zones": {},
    }
    schema = converted
    for index, field in enumerate(converted):
        if pa.types.is_dictionary(field.type) and field.name in frame:
            extra["categories"][field.name] = _encode_categories(frame[field.name].dtype)
            schema = schema.set(index, field.with_type(field.type.value_type))
    _check_types(frame, schema, extra)
    schema = _with_extra(schema, extra)

    def batches() -> Iterator[pa.RecordBatch]:
        size = _group_rows(schema)
        for start in range(0, len(frame), size):
            with _explained(frame):
                table = pa.Table.from_pandas(frame.iloc[start : start + size], converted)
            for index, field in enumerate(schema):
                if field.name in extra["categories"]:
                    column = table.column(index).combine_chunks().dictionary_decode()
                    table = table.set_column(index, field, column)
            yield from table.replace_schema_metadata(schema.metadata).to_batches()

    return schema, batches()


def _schema(frame: pd.DataFrame, objects: Iterable[pd.Series | pd.Index]) -> pa.Schema:
    """Schema of a frame with pandas' metadata, without converting all of its objects.

    The type of objects is that of the first one that isn't missing.
    """
    import pandas as pd
    import pyarrow as pa

    telling = {0} | {int(values.notna().argmax()) for values in objects if len(values)}
    rows = frame.iloc[sorted(row for row in telling if row < len(frame))]
    if not isinstance(frame.index, pd.RangeIndex):
        return pa.Schema.from_pandas(rows)
    schema = pa.Schema.from_pandas(rows.set_axis(frame.index[: len(rows)]))
    described = schema.pandas_metadata
    described["index_columns"][0]["stop"] = frame.index.stop
    return schema.with_metadata({**schema.metadata, b"pandas": json.dumps(described).encode()})


@contextmanager
def _explained(frame: pd.DataFrame) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise StoreError(f"{_culprit(frame)} cannot be stored: {_text(error)}") from error


def _check_labels(frame: pd.DataFrame) -> None:
    odd = [name for name in frame.columns if not isinstance(name, str)]
    if odd or (len(frame.columns) and frame.columns.dtype != object):
        found = repr(odd[0]) if odd else f"of type {frame.columns.dtype}"
        raise StoreError(
            f"column names must be plain text, not {found}; "
            "set frame.columns = [str(name) for name in frame.columns]"
        )
    repeated = sorted(set(frame.columns[frame.columns.duplicated()]))
    if repeated:
        raise StoreError(f"column names occur more than once: {repeated}; rename them")
    for name in frame.index.names:
        if name is not None and (not isinstance(name, str) or name in frame):
            raise StoreError(
                f"the index is named {name!r}; its name must be text that is no column's name"
            )
    if frame.columns.empty and len(frame):
        raise StoreError(f"the frame has {len(frame)} rows and no column; there is nothing to keep")


def _check_objects(where: str, column: pd.Series | pd.Index) -> None:
    """Refuse Python objects that Arrow cannot hold, or would silently change."""
    from pandas.api.types import infer_dtype

    kind = infer_dtype(column, skipna=True)
    if kind == "date" and {type(value) for value in column.dropna()} != {datetime.date}:
        kind = "dates and datetimes"
    if kind not in ("string", "bytes", "date", "empty"):
        raise StoreError(
            f"{where} holds Python objects ({kind}); text, bytes or dates alone are stored: "
            "convert it, for example with astype"
        )


def _misses_by_nan(column: pd.Series) -> bool:
    missing = column[column.isna()]
    return len(missing) > 0 and all(isinstance(value, float) for value in missing)


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


def _check_types(frame: pd.DataFrame, schema: pa.Schema, extra: dict[str, Any]) -> None:
    """Take the frame without its rows there and back, and refuse types that come back changed."""
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(_with_extra(schema, extra).empty_table(), buffer)
    back = _to_pandas(pq.ParquetFile(buffer).read())
    for name, dtype in frame.dtypes.items():
        if dtype != back[name].dtype and dtype.kind == "M":
            # An offset comes back as another object of the same name, which is another type.
            extra["zones"][name] = str(dtype)
            back = back.astype({name: str(dtype)})
        if dtype != back[name].dtype:
            raise StoreError(
                f"column {name!r} of type {dtype!r} would come back as {back[name].dtype!r}; "
                "convert it with astype"
            )
    _check_index(frame.index, back.index)


def _check_index(index: pd.Index, back: pd.Index) -> None:
    import pandas as pd

    if isinstance(index, pd.RangeIndex):  # metadata, which is dropped for a frame without rows
        return
    types = [index.get_level_values(number).dtype for number in range(index.nlevels)]
    back_types = [back.get_level_values(number).dtype for number in range(back.nlevels)]
    if types != back_types or index.names != back.names:
        raise StoreError(
            f"the index of type {', '.join(map(str, types))} would come back changed; "
            "keep it as a column with reset_index()"
        )


def _read_frame(parquet: pq.ParquetFile, schema: pa.Schema, file: Path) -> pd.DataFrame:
    """Read a part of a large frame at a time, so that Arrow's copy is never there as a whole.

    It is faster, too: memory that was used for the part before costs the system no new pages.
    """
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    size = parquet.metadata.num_rows * _row_width(schema)
    described = (schema.pandas_metadata or {}).get("index_columns", [])
    names = [name for name in schema.names if name not in described]
    if size <= _READ_BYTES or not names:
        return _to_pandas(parquet.read().cast(schema))

    def read(names: list[str]) -> pd.DataFrame:
        parquet = pq.ParquetFile(file, pre_buffer=False)  # one is not for several threads
        part = pa.schema([schema.field(name) for name in names], schema.metadata)
        # "a" stands for the column "a.b", too.
        return _to_pandas(parquet.read(columns=names).select(names).cast(part))

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
    empty = _to_pandas(schema.empty_table())
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
    part = pa.schema([schema.field(name)], schema.metadata)

    def read(group: int) -> pd.Series:
        table = parquet.read_row_group(group, columns=[name])
        return _to_pandas(table.select([name]).cast(part))[name]

    columns = map(read, range(parquet.num_row_groups))
    first = next(columns)
    if not isinstance(first.dtype, np.dtype):
        return pd.concat([first, *columns]).array
    values, end = np.empty(parquet.metadata.num_rows, first.dtype), 0
    for column in itertools.chain([first], columns):
        if column.dtype != values.dtype:  # such as integers, of which some are missing
            return None
        start, end = end, end + len(column)
        values[start:end] = column
    return values


def _to_pandas(table: pa.Table) -> pd.DataFrame:
    import numpy as np

    extra = json.loads((table.schema.metadata or {}).get(_METADATA, b"{}"))
    for name in _named(extra, "categories", table):
        index = table.schema.get_field_index(name)
        column = _decode_categories(table.column(index), extra["categories"][name])
        table = table.set_column(index, name, column)
    frame: pd.DataFrame = table.to_pandas()
    for name in _named(extra, "nan", table):
        frame[name] = frame[name].where(frame[name].notna(), np.nan)
    zones = {name: extra["zones"][name] for name in _named(extra, "zones", table)}
    return frame.astype(zones) if zones else frame


def _named(extra: dict[str, Any], what: str, table: pa.Table) -> list[str]:
    return [name for name in extra.get(what, ()) if name in table.column_names]


def _with_extra(schema: pa.Schema, extra: dict[str, Any]) -> pa.Schema:
    metadata = {**schema.metadata, _METADATA: json.dumps(extra, sort_keys=True).encode()}
    return schema.with_metadata(metadata)


def _encode_categories(dtype: pd.CategoricalDtype) -> dict[str, Any]:
    """Categories for the metadata: Parquet itself keeps neither their order nor unused ones."""
    import pyarrow as pa

    categories = pa.record_batch([pa.Array.from_pandas(dtype.categories)], names=["categories"])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, categories.schema) as writer:
        writer.write_batch(categories)
    content = base64.b64encode(sink.getvalue()).decode()
    return {"ordered": bool(dtype.ordered), "categories": content}


def _decode_categories(column: pa.ChunkedArray, spec: dict[str, Any]) -> pa.Array:
    import pyarrow as pa
    import pyarrow.compute as pc

    content = pa.py_buffer(base64.b64decode(spec["categories"]))
    categories = pa.ipc.open_stream(content).read_next_batch().column(0)
    categories.validate(full=True)  # Arrow follows the offsets of damaged ones out of memory
    codes = pc.index_in(column, value_set=categories).combine_chunks()
    return pa.DictionaryArray.from_arrays(codes, categories, ordered=spec["ordered"])


def _preview(table: pa.Table) -> list[dict[str, Any]]:
    head = table.slice(0, _PREVIEW_ROWS).select(table.column_names[:_PREVIEW_COLUMNS])
    return [{name: _cell(value) for name, value in row.items()} for row in head.to_pylist()]


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return str(value)[:_PREVIEW_TEXT]
