"""One file as a stream of Arrow batches: csv as text, jsonl and Parquet with their own types.

The counterpart of `tables` for files that are larger than memory; a file is never held whole. What
is broken is told with the file's name. What the values mean is `read`.
"""

from __future__ import annotations

import gzip
import io
import itertools
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

from mlops_assets.errors import DataError
from mlops_assets.ml.files import mendable
from mlops_assets.ml.inbox import InboxFile
from mlops_assets.ml.tables import (
    MISSING_IN_CSV,
    csv_header,
    json_column,
    json_row,
    require_distinct,
    require_own_content,
    suffixes,
)

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

Content = IO[bytes] | gzip.GzipFile
BATCH_ROWS = 131_072
_CSV_BLOCK = 16 * 1024 * 1024  # bytes that are parsed at a time, and the longest row
_HEAD = 1024 * 1024  # bytes that hold the header
_PAGE_BUFFER = 1024 * 1024  # bytes that are read of each column at a time
_BOM = b"\xef\xbb\xbf"
_PANDAS_INDEX = re.compile(r"__index_level_\d+__")  # nameless: says nothing about a row


def columns_of(file: InboxFile) -> dict[str, pa.DataType] | None:
    """Return the columns of a file with their types; None for jsonl, where each row has its own.

    Raises
    ------
    DataError
        The file is empty, incomplete or not what its name says.
    OSError
        It cannot be read now.
    """
    import pyarrow as pa

    with _opened(file) as content:
        if _format(file) == ".parquet":
            schema = _parquet(content, file.name).schema_arrow
            return {
                field.name: field.type.value_type
                if pa.types.is_dictionary(field.type)
                else field.type
                for field in schema
                if not _PANDAS_INDEX.fullmatch(field.name)
            }
        head = _head(content, file.name)
        if _format(file) == ".csv":
            return dict.fromkeys(_header(head, file.name), pa.large_string())
        line, end, _ = head.partition(b"\n")
        if end:
            json_row(_decoded(line, file.name, 1), f"{file.name}: line 1")
        return None


def batches_of(
    file: InboxFile, columns: Sequence[str], missing_values: Sequence[str] = ()
) -> Iterator[pa.RecordBatch]:
    """Read some columns of a file.

    Parameters
    ----------
    file
        What to read.
    columns
        Those that are needed. Of csv and Parquet all must be there; a batch of jsonl has those that
        one of its rows has, and all others that are in it too.
    missing_values
        Texts that stand for a missing value in csv, beside the usual ones.

    Yields
    ------
    pyarrow.RecordBatch
        The same ones whenever the content is the same. The text of csv is untrimmed.

    Raises
    ------
    DataError, OSError
        As of `columns_of`, and for a row that cannot be parsed.
    """
    with _opened(file) as content:
        if _format(file) == ".parquet":
            yield from _parquet_batches(content, file.name, columns)
        elif _format(file) == ".csv":
            nulls = ["", *MISSING_IN_CSV, *missing_values]
            yield from _csv_batches(content, file.name, columns, nulls)
        else:
            yield from _jsonl_batches(content, file.name)


def _format(file: InboxFile) -> str:
    return suffixes(file.name)[0]


@contextmanager
def _opened(file: InboxFile) -> Iterator[Content]:
    """Open a file, decompressed; what is wrong with it as a whole is explained."""
    with mendable(file.name, "score.uri"), file.open() as content:
        if not file.name.lower().endswith(".gz"):
            yield content
            return
        try:
            with gzip.GzipFile(fileobj=content) as decompressed:
                yield decompressed
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(f"{file.name} is not a complete gzip file: {error}") from error


def _head(content: Content, name: str) -> bytes:
    """Return the beginning of a file of text, without what is before the first row."""
    head = content.read(_HEAD)
    require_own_content(head, name)
    return head.removeprefix(_BOM).lstrip(b"\r\n")


def _decoded(line: bytes, name: str, number: int) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name} is not UTF-8: line {number} has the byte 0x{line[error.start]:02x}; save the "
            "file as UTF-8"
        ) from error


# --- csv ----------------------------------------------------------------------------------------


def _header(head: bytes, name: str) -> list[str]:
    try:
        return csv_header(head, name)
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not UTF-8: {error}; save the file as UTF-8") from error


class _Text(io.RawIOBase):
    """Text of which the beginning has been read already; counts the double quotes."""

    def __init__(self, head: bytes, rest: Content) -> None:
        self._head = head
        self._rest = rest
        self.quotes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = self._head[: len(buffer)] or self._rest.read(len(buffer))
        self._head = self._head[len(part) :]
        buffer[: len(part)] = part
        self.quotes += part.count(b'"')
        return len(part)


def _csv_batches(
    content: Content, name: str, columns: Sequence[str], nulls: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    head = _head(content, name)
    names = _header(head, name)
    if not head.count(b"\n") + head.count(b"\r"):  # Arrow wants a line to end
        return
    text = _Text(head, content)
    row = 0
    try:
        # the buffer gives blocks of full length, whatever is below it
        reader = arrow_csv.open_csv(
            io.BufferedReader(text, _HEAD),
            arrow_csv.ReadOptions(
                use_threads=False,
                block_size=_CSV_BLOCK,
                column_names=names,
                skip_rows_after_names=1,
            ),
            arrow_csv.ParseOptions(newlines_in_values=True),
            arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.large_string()),
                include_columns=list(columns),
                strings_can_be_null=True,
                null_values=list(nulls),
            ),
        )
        for batch in reader:
            row += batch.num_rows
            yield batch
    except pa.ArrowInvalid as error:
        raise _csv_mistake(name, str(error), row, text) from error
    if text.quotes % 2:
        raise DataError(_unclosed(name))


def _csv_mistake(name: str, error: str, row: int, text: _Text) -> DataError:
    ragged = re.search(r"Row #(\d+): Expected (\d+) columns, got (\d+)", error)
    if ragged:
        line, expected, found = (int(number) for number in ragged.groups())
        return DataError(
            f"{name}: row {line - 2} has {found} values, but the header has {expected}; put a "
            "value that contains a comma in double quotes"
        )
    if "UTF8" in error:
        return DataError(f"{name} is not UTF-8, after row {row}; save the file as UTF-8")
    if "straddl" in error:
        long = f"after row {row} comes one of more than {_CSV_BLOCK >> 20} MiB"
        return DataError(f"{name}: {long}, or {_unclosed('it')}")
    return DataError(f"{name} is not a csv file, after row {row}: {error}")


def _unclosed(name: str) -> str:
    return (
        f"{name} has a double quote that is never closed; a quote inside a value is written twice, "
        'in a value in quotes: "5"" pipe"'
    )


# --- jsonl --------------------------------------------------------------------------------------


def _jsonl_batches(content: Content, name: str) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    head = _head(content, name)
    lines = enumerate(io.BufferedReader(_Text(head, content), _HEAD), start=1)
    while rows := list(itertools.islice(_json_rows(lines, name), BATCH_ROWS // 4)):
        columns = list(dict.fromkeys(column for row in rows for column in row))
        try:
            arrays = [json_column([row.get(column) for row in rows]) for column in columns]
            batch = pa.RecordBatch.from_arrays(arrays, columns)
        except UnicodeEncodeError as error:
            raise DataError(f"{name} has half of a surrogate pair in a text: {error}") from error
        yield batch


def _json_rows(lines: Iterator[tuple[int, bytes]], name: str) -> Iterator[dict[str, Any]]:
    for number, line in lines:
        if line.strip():
            yield json_row(_decoded(line, name, number), f"{name}: line {number}")


# --- Parquet ------------------------------------------------------------------------------------


def _parquet(content: Content, name: str) -> pq.ParquetFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    require_own_content(content.read(8), name)
    content.seek(0)
    with _complete(name):
        # buffered: of a row group, however large, only pages are in memory
        file = pq.ParquetFile(pa.PythonFile(content), pre_buffer=False, buffer_size=_PAGE_BUFFER)
        names = file.schema_arrow.names
    require_distinct(names, name)
    return file


def _parquet_batches(
    content: Content, name: str, columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    batches = _parquet(content, name).iter_batches(BATCH_ROWS, columns=list(columns))
    while True:
        with _complete(name):
            batch = next(batches, None)
            if batch is None:
                return
            batch.validate(full=True)  # reading alone takes any bytes for text
        yield batch


@contextmanager
def _complete(name: str) -> Iterator[None]:
    """Tell a damaged Parquet file from one that cannot be read now."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        # Arrow's own have no number, those of the operating system do; networks have subclasses
        is_arrows = type(error) is OSError and error.errno is None
        if isinstance(error, OSError) and not is_arrows:
            raise
        raise DataError(f"{name} is not a complete Parquet file: {error}") from error
