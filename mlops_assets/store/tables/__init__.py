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

from pathlib import Path
from typing import IO, Any, Literal


class ParquetCodec:
    """Parquet files; what makes them is imported when there is something to do."""

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
        from mlops_assets.store.tables.writing import write

        return write(value, file)

    def read(self, file: Path, as_: Literal["frame", "table", "batches"] | None) -> Any:
        """Read a table as a DataFrame (the default), a Table or a RecordBatchReader."""
        from mlops_assets.store.tables.reading import read

        return read(file, as_)
