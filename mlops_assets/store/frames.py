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
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, cast

from mlops_assets.errors import StoreError
from mlops_assets.memory import too_much

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

T = TypeVar("T")


class _Way(NamedTuple):
    """How a column is written."""

    compression: str = "NONE"
    dictionary: bool = False
    differences: bool = False  # from one integer to the next


_METADATA = b"mlops_assets"
_SCHEMA = b"ARROW:schema"  # where Arrow keeps what Parquet's own schema lacks
_GROUP_BYTES = 32 * 1024 * 1024  # of a row group, uncompressed: what streaming keeps in memory
_GROUP_ROWS = (1024, 1024 * 1024)
_BUFFER_BYTES = 1024 * 1024  # bytes that are written at once
_READ_BYTES = 16 * 1024 * 1024  # of a frame, up to which it is read as a whole
_READERS = 2  # threads, each with a part of a large frame
_VARIABLE_WIDTH = 32  # bytes: a guess for text and nested values
_SAMPLE_ROWS = 16_384
_WAYS = (  # beside the plain one, the cheapest first
    _Way(differences=True),
    _Way(dictionary=True),
    _Way("ZSTD"),
    _Way("ZSTD", dictionary=True),
)
_WORTHWHILE = 0.8  # size over that of a cheaper way from which on it isn't worth its time
_OBJECTS = ("string", "bytes", "date")  # what columns of Python objects may hold
_PREVIEW_ROWS = 5
_PREVIEW_COLUMNS = 50
_PREVIEW_TEXT = 100  # characters


class ParquetCodec:
    """Parquet files."""

    extension = "parquet"

    def write(self, value: Any, file: IO[bytes]) -> dict[str, Any]:
        """Write a DataFrame, a Table, a RecordBatchReader or an iterator of RecordBatch.

        A column is written plainly, or as differences, with a dictionary, Zstandard or both, when
        that makes a sample of it at least a fifth smaller: on random floats all of it costs time
        and gains nothing.

        Returns
        -------
        dict
            ``rows``, ``columns`` (name to type) and ``preview`` (the first rows, plain JSON).
        """
        import pandas as pd
        import pyarrow as pa

        if isinstance(value, pd.DataFrame):
            columns = {str(name): str(dtype) for name, dtype in value.dtypes.items()}
            return {**_write_frame(value, file), "columns": columns}
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

    _check_names(schema.names)
    for field in schema:
        if pa.types.is_dictionary(field.type) and not _is_text(field.type.value_type):
            raise StoreError(
                f"column {field.name!r} is a dictionary of {field.type.value_type}; Parquet has "
                "dictionaries of text only: use dictionary_decode()"
            )
    groups = _row_groups(schema, batches)
    first = next(groups, schema.empty_table())
    chained = itertools.chain([first], groups)
    return _write_groups(schema, first, _ways(first), schema, chained, file)


def _write_frame(frame: pd.DataFrame, file: IO[bytes]) -> dict[str, Any]:
    """Convert a row group of a large frame while the one before is encoded."""
    schema, rows_of = _from_pandas(frame)
    head = rows_of(0, _SAMPLE_ROWS, schema)
    ways = _ways(head)
    converted = _with_dictionaries(frame, schema, ways)
    size = _group_rows(schema)
    starts = range(0, len(frame), size) or [0]
    groups = (rows_of(start, start + size, converted) for start in starts)
    made = _made_ahead(groups) if len(starts) > 1 else groups
    return _write_groups(schema, head, ways, converted, made, file)


def _with_dictionaries(
    frame: pd.DataFrame, schema: pa.Schema, ways: Mapping[str, _Way]
) -> pa.Schema:
    """Schema with dictionaries of the text that Parquet would have to make them of."""
    import numpy as np
    import pandas as pd
    import pyarrow as pa

    for index, field in enumerate(schema):
        if _is_text(field.type) and field.name in frame and ways[field.name].dictionary:
            dtype = frame[field.name].dtype
            if isinstance(dtype, (np.dtype, pd.CategoricalDtype)):
                kind = pa.dictionary(pa.int32(), field.type)
                schema = schema.set(index, field.with_type(kind))
    return schema


def _made_ahead(items: Iterator[T]) -> Iterator[T]:
    """Make each item in a thread while the one before is used."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


def _write_groups(
    schema: pa.Schema,
    head: pa.Table,
    ways: Mapping[str, _Way],
    written: pa.Schema,
    groups: Iterable[pa.Table],
    file: IO[bytes],
) -> dict[str, Any]:
    """Write a row group of each table; `schema` is what the file says that they were."""
    import pyarrow.parquet as pq

    described = {**(schema.metadata or {}), _SCHEMA: base64.b64encode(schema.serialize())}
    options = _options(ways, written)
    rows = 0
    with (
        _storable(),
        _buffered(file) as sink,
        pq.ParquetWriter(sink, written, store_schema=False, **options) as writer,
    ):
        writer.add_key_value_metadata(described)
        for group in groups:
            writer.write_table(group, row_group_size=max(1, group.num_rows))
            rows += group.num_rows
    columns = {field.name: str(field.type) for field in schema}
    return {"rows": rows, "columns": columns, "preview": _preview(head)}


@contextmanager
def _storable() -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except pa.ArrowException as error:
        raise StoreError(f"the table cannot be stored as Parquet: {error}") from error


@contextmanager
def _buffered(file: IO[bytes]) -> Iterator[pa.NativeFile]:
    """Have Arrow's many writes be few: each waits until no other thread runs Python."""
    import pyarrow as pa

    output = _Output(file)
    sink = pa.BufferedOutputStream(pa.PythonFile(output, "w"), _BUFFER_BYTES)
    try:
        yield sink
        sink.flush()
    finally:
        output.end()


class _Output(io.RawIOBase):
    """A file until its end, when Arrow closes what it writes to, and tries again what failed."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file: IO[bytes] | None = file

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self._file.write(data) if self._file is not None else len(data)

    def end(self) -> None:
        self._file = None


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


def _ways(table: pa.Table) -> dict[str, _Way]:
    """How each column, named by its path, is best written."""
    sample = table.slice(0, _SAMPLE_ROWS)
    plain = _written(sample, {})
    chosen = dict.fromkeys(plain, _Way())
    least = {path: column.total_compressed_size for path, column in plain.items()}
    for way in _WAYS:
        able = {
            path: way
            for path, column in plain.items()
            if not way.differences or column.physical_type in ("INT32", "INT64")
        }
        for path, column in _written(sample, able).items():
            size = column.total_compressed_size
            if path in able and size < _WORTHWHILE * least[path]:
                chosen[path], least[path] = way, size
    return chosen


def _written(table: pa.Table, ways: Mapping[str, _Way]) -> dict[str, pq.ColumnChunkMetaData]:
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    with _storable():
        pq.write_table(table, buffer, **_options(ways, table.schema))
    group = pq.ParquetFile(buffer).metadata.row_group(0)
    columns = (group.column(index) for index in range(group.num_columns))
    return {column.path_in_schema: column for column in columns}


def _options(ways: Mapping[str, _Way], schema: pa.Schema) -> dict[str, Any]:
    """Arguments of ParquetWriter."""
    import pyarrow as pa

    # The least and greatest value of a dictionary array cost more than all else about it.
    without_statistics = {field.name for field in schema if pa.types.is_dictionary(field.type)}
    encoding = {path: "DELTA_BINARY_PACKED" for path, way in ways.items() if way.differences}
    return {
        "compression": {path: way.compression for path, way in ways.items()} or "NONE",
        "use_dictionary": [path for path, way in ways.items() if way.dictionary] or False,
        "column_encoding": encoding or None,
        "write_statistics": [path for path in ways if path not in without_statistics],
    }


def _original_schema(parquet: pq.ParquetFile) -> pa.Schema:
    """The schema that was written, since Parquet itself has no seconds."""
    import pyarrow as pa

    stored = (parquet.metadata.metadata or {}).get(_SCHEMA)
    if stored is None:
        return parquet.schema_arrow
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(stored)))


def _from_pandas(
    frame: pd.DataFrame,
) -> tuple[pa.Schema, Callable[[int, int, pa.Schema], pa.Table]]:
    """Schema, with what Arrow would lose in its metadata, and what converts some of the rows.

    They are converted row group by row group: a frame of one NumPy array would be copied else. Text
    becomes a dictionary array where the schema that is asked for says so.
    """
    import pyarrow as pa

    _check_labels(frame)
    objects = {name: frame[name] for name in frame if frame[name].dtype == object}
    by_nan = [
        name for name, column in objects.items() if _check_objects(f"column {name!r}", column)
    ]
    levels = [frame.index.get_level_values(number) for number in range(frame.index.nlevels)]
    object_levels = [level for level in levels if level.dtype == object]
    for level in object_levels:
        _check_objects("the index", level)
    with _explained(frame):
        converted = _schema(frame, [*objects.values(), *object_levels])
    extra: dict[str, Any] = {"nan": by_nan, "categories": {}, "zones": {}}
    schema = converted
    for index, field in enumerate(converted):
        if pa.types.is_dictionary(field.type) and field.name in frame:
            extra["categories"][field.name] = _encode_categories(frame[field.name].dtype)
            schema = schema.set(index, field.with_type(field.type.value_type))
    _check_names(schema.names)  # those of unnamed levels of the index are among them
    _check_types(frame, schema, extra)
    schema = _with_extra(schema, extra)

    strided = _is_strided(frame)

    def rows_of(start: int, stop: int, asked: pa.Schema) -> pa.Table:
        rows = frame.iloc[start:stop]
        if strided:
            rows = rows.copy()
        fields = [
            field for field in converted if not pa.types.is_dictionary(asked.field(field.name).type)
        ]
        with _explained(frame):
            described = pa.schema(fields, converted.metadata)
            table = pa.Table.from_pandas(rows, described, nthreads=1)
            plain = iter(table.columns)
            arrays = [
                _dictionary(rows[field.name], field.type)
                if pa.types.is_dictionary(field.type)
                else _dense(next(plain))
                for field in asked
            ]
            return pa.Table.from_arrays(arrays, schema=asked)

    return schema, rows_of


def _is_strided(frame: pd.DataFrame) -> bool:
    """Whether columns lie between each other: Arrow takes thrice as long for them as for a copy."""
    import numpy as np

    columns = (frame[name] for name in frame)
    plain = (column.to_numpy() for column in columns if isinstance(column.dtype, np.dtype))
    return not all(values.flags.c_contiguous for values in plain)


def _dense(array: pa.Array | pa.ChunkedArray) -> pa.Array:
    import pyarrow as pa

    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _dictionary(text: pd.Series, kind: pa.DictionaryType) -> pa.DictionaryArray:
    """Text, or categories of text, with a dictionary of what occurs, in order of appearance."""
    import pandas as pd
    import pyarrow as pa

    codes, found = pd.factorize(text)
    indices = pa.array(codes, kind.index_type, mask=codes < 0)
    return pa.DictionaryArray.from_arrays(indices, _dense(pa.array(found)).cast(kind.value_type))


def _schema(frame: pd.DataFrame, objects: Iterable[pd.Series | pd.Index]) -> pa.Schema:
    """Schema of a frame with pandas' metadata, without converting all of its objects.

    The type of objects is that of the first one that isn't missing.
    """
    import pandas as pd
    import pyarrow as pa

    telling = {0} | {_first_present(values) for values in objects}
    rows = frame.iloc[sorted(row for row in telling if row < len(frame))]
    if not isinstance(frame.index, pd.RangeIndex):
        return pa.Schema.from_pandas(rows)
    schema = pa.Schema.from_pandas(rows.set_axis(frame.index[: len(rows)]))
    described = schema.pandas_metadata
    described["index_columns"][0]["stop"] = frame.index.stop
    return schema.with_metadata({**schema.metadata, b"pandas": json.dumps(described).encode()})


def _first_present(values: pd.Series | pd.Index) -> int:
    """Position of the first value that isn't missing; 0 if all are."""
    import numpy as np

    for start in range(0, len(values), _SAMPLE_ROWS):
        present = np.asarray(values[start : start + _SAMPLE_ROWS].notna())
        if present.any():
            return start + int(np.argmax(present))
    return 0


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
    _check_names(frame.columns)
    for name in frame.index.names:
        if name is not None and (not isinstance(name, str) or name in frame):
            raise StoreError(
                f"the index is named {name!r}; its name must be text that is no column's name"
            )
    if frame.columns.empty and len(frame):
        raise StoreError(f"the frame has {len(frame)} rows and no column; there is nothing to keep")


def _check_names(names: Iterable[str]) -> None:
    repeated = sorted(name for name, times in Counter(names).items() if times > 1)
    if repeated:
        raise StoreError(f"column names occur more than once: {repeated}; rename them")


def _check_objects(where: str, column: pd.Series | pd.Index) -> bool:
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
    for start in range(0, len(column), _SAMPLE_ROWS):  # the first None decides
        rows = column[start : start + _SAMPLE_ROWS]
        missing = rows[rows.isna()]
        if not all(isinstance(value, float) for value in missing):
            return False
        found = found or len(missing) > 0
    return found


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
    if repetitive := _is_text(schema.field(name).type) and _has_dictionaries(parquet, name):
        parquet = pq.ParquetFile(file, pre_buffer=False, read_dictionary=[name])
    rows, groups = parquet.metadata.num_rows, range(parquet.num_row_groups)
    part = pa.schema([schema.field(name)], schema.metadata)
    empty = _to_pandas(part.empty_table())[name]
    extra = _extra(schema)

    def read(group: int) -> pa.Table:
        return parquet.read_row_group(group, columns=[name], use_threads=False).select([name])

    if name in extra.get("categories", ()):
        known = _categories(extra["categories"][name])
        codes = np.empty(rows, empty.cat.codes.to_numpy().dtype)
        for_all = (_codes(read(group).column(0), known) for group in groups)
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
    return _to_pandas(table)[table.column_names[0]]


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


def _to_pandas(table: pa.Table) -> pd.DataFrame:
    import numpy as np
    import pyarrow as pa

    extra = _extra(table.schema)
    for name in _named(extra, "categories", table):
        index = table.schema.get_field_index(name)
        spec = extra["categories"][name]
        known = _categories(spec)
        codes = _codes(table.column(index), known)
        column = pa.DictionaryArray.from_arrays(codes, known, ordered=spec["ordered"])
        table = table.set_column(index, name, column)
    frame: pd.DataFrame = table.to_pandas()
    for name in _named(extra, "nan", table):
        frame[name] = frame[name].where(frame[name].notna(), np.nan)
    zones = {name: extra["zones"][name] for name in _named(extra, "zones", table)}
    return frame.astype(zones) if zones else frame


def _extra(schema: pa.Schema) -> dict[str, Any]:
    extra: dict[str, Any] = json.loads((schema.metadata or {}).get(_METADATA, b"{}"))
    return extra


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


def _categories(spec: dict[str, Any]) -> pa.Array:
    import pyarrow as pa

    content = pa.py_buffer(base64.b64decode(spec["categories"]))
    categories = pa.ipc.open_stream(content).read_next_batch().column(0)
    categories.validate(full=True)  # Arrow follows the offsets of damaged ones out of memory
    return categories


def _codes(column: pa.ChunkedArray, categories: pa.Array) -> pa.Array:
    """Positions of values, which may be dictionary arrays, among the categories."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_dictionary(column.type):
        return pc.index_in(column, value_set=categories).combine_chunks()
    return pa.chunked_array(
        [pc.index_in(it.dictionary, value_set=categories).take(it.indices) for it in column.chunks],
        pa.int32(),
    ).combine_chunks()


def _preview(table: pa.Table) -> list[dict[str, Any]]:
    head = table.slice(0, _PREVIEW_ROWS).select(table.column_names[:_PREVIEW_COLUMNS])
    return [{name: _cell(value) for name, value in row.items()} for row in head.to_pylist()]


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return str(value)[:_PREVIEW_TEXT]
