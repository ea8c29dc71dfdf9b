"""Which compression and encoding each column gets: what makes a sample of it smaller."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from mlops_assets.errors import StoreError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


class Way(NamedTuple):
    """How a column is written."""

    compression: str = "NONE"
    dictionary: bool = False
    differences: bool = False  # from one integer to the next


ARROW_SCHEMA = b"ARROW:schema"  # where Arrow keeps what Parquet's own schema lacks
SAMPLE_ROWS = 16_384
_WAYS = (  # beside the plain one, the cheapest first
    Way(differences=True),
    Way(dictionary=True),
    Way("ZSTD"),
    Way("ZSTD", dictionary=True),
)
_WORTHWHILE = 0.8  # size over that of a cheaper way from which on it isn't worth its time


def best_ways(table: pa.Table) -> dict[str, Way]:
    """How each column, named by its path, is best written."""
    sample = table.slice(0, SAMPLE_ROWS)
    plain = _written(sample, {})
    chosen = dict.fromkeys(plain, Way())
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


def _written(table: pa.Table, ways: Mapping[str, Way]) -> dict[str, pq.ColumnChunkMetaData]:
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    with storable():
        pq.write_table(table, buffer, **writer_options(ways, table.schema))
    group = pq.ParquetFile(buffer).metadata.row_group(0)
    columns = (group.column(index) for index in range(group.num_columns))
    return {column.path_in_schema: column for column in columns}


def writer_options(ways: Mapping[str, Way], schema: pa.Schema) -> dict[str, Any]:
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


@contextmanager
def storable() -> Iterator[None]:
    """Say what Arrow cannot write as something that the table's owner can mend."""
    import pyarrow as pa

    try:
        yield
    except pa.ArrowException as error:
        raise StoreError(f"the table cannot be stored as Parquet: {error}") from error


def is_text(kind: pa.DataType) -> bool:
    """Whether a type is one of Arrow's two kinds of text."""
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
