"""Tables are written row group by row group."""

from __future__ import annotations

import base64
import io
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, TypeVar

from mlops_assets.errors import StoreError
from mlops_assets.store.tables.batches import checked_stream, group_rows, row_groups
from mlops_assets.store.tables.conversion import from_pandas, with_dictionaries
from mlops_assets.store.tables.encodings import (
    ARROW_SCHEMA,
    SAMPLE_ROWS,
    Way,
    best_ways,
    is_text,
    storable,
    writer_options,
)
from mlops_assets.store.tables.refusals import check_names

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

_BUFFER_BYTES = 1024 * 1024  # bytes that are written at once
_PREVIEW_ROWS = 5
_PREVIEW_COLUMNS = 50
_PREVIEW_TEXT = 100  # characters
T = TypeVar("T")


def write(value: Any, file: IO[bytes]) -> dict[str, Any]:
    """See `mlops_assets.store.tables.ParquetCodec.write`."""
    import pandas as pd
    import pyarrow as pa

    if isinstance(value, pd.DataFrame):
        columns = {str(name): str(dtype) for name, dtype in value.dtypes.items()}
        return {**_write_frame(value, file), "columns": columns}
    if isinstance(value, pa.Table):
        return _write_batches(value.schema, value.to_batches(), file)
    return _write_batches(*checked_stream(value), file)


def _write_batches(
    schema: pa.Schema, batches: Iterable[pa.RecordBatch], file: IO[bytes]
) -> dict[str, Any]:
    import pyarrow as pa

    check_names(schema.names)
    for field in schema:
        if pa.types.is_dictionary(field.type) and not is_text(field.type.value_type):
            raise StoreError(
                f"column {field.name!r} is a dictionary of {field.type.value_type}; Parquet has "
                "dictionaries of text only: use dictionary_decode()"
            )
    groups = row_groups(schema, batches)
    first = next(groups, schema.empty_table())
    chained = itertools.chain([first], groups)
    return _write_groups(schema, first, best_ways(first), schema, chained, file)


def _write_frame(frame: pd.DataFrame, file: IO[bytes]) -> dict[str, Any]:
    """Convert a row group of a large frame while the one before is encoded."""
    schema, rows_of = from_pandas(frame)
    head = rows_of(0, SAMPLE_ROWS, schema)
    ways = best_ways(head)
    converted = with_dictionaries(frame, schema, ways)
    size = group_rows(schema)
    starts = range(0, len(frame), size) or [0]
    groups = (rows_of(start, start + size, converted) for start in starts)
    made = _made_ahead(groups) if len(starts) > 1 else groups
    return _write_groups(schema, head, ways, converted, made, file)


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
    ways: Mapping[str, Way],
    written: pa.Schema,
    groups: Iterable[pa.Table],
    file: IO[bytes],
) -> dict[str, Any]:
    """Write a row group of each table; `schema` is what the file says that they were."""
    import pyarrow.parquet as pq

    described = {**(schema.metadata or {}), ARROW_SCHEMA: base64.b64encode(schema.serialize())}
    options = writer_options(ways, written)
    rows = 0
    with (
        storable(),
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


def _preview(table: pa.Table) -> list[dict[str, Any]]:
    head = table.slice(0, _PREVIEW_ROWS).select(table.column_names[:_PREVIEW_COLUMNS])
    return [{name: _cell(value) for name, value in row.items()} for row in head.to_pylist()]


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return str(value)[:_PREVIEW_TEXT]
