"""Streams of record batches, and row groups of equal length made of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from mlops_assets.errors import StoreError

if TYPE_CHECKING:
    import pyarrow as pa

_GROUP_BYTES = 32 * 1024 * 1024  # of a row group, uncompressed: what streaming keeps in memory
_GROUP_ROWS = (1024, 1024 * 1024)
_VARIABLE_WIDTH = 32  # bytes: a guess for text and nested values


def checked_stream(value: Any) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
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


def row_groups(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Tables of one chunk and equal length, so that bytes don't depend on the batches' lengths."""
    import pyarrow as pa

    size = group_rows(schema)
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


def group_rows(schema: pa.Schema) -> int:
    """Rows of a row group, as many as streaming may keep in memory."""
    lowest, highest = _GROUP_ROWS
    return min(max(_GROUP_BYTES // max(1, row_width(schema)), lowest), highest)


def row_width(schema: pa.Schema) -> int:
    """Bytes of a row, of which text is a guess."""
    width = 0
    for field in schema:
        try:
            width += max(1, field.type.bit_width // 8)
        except ValueError:  # a type without a fixed width
            width += _VARIABLE_WIDTH
    return width
