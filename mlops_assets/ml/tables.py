"""The content of a source as one Arrow table: csv as text, jsonl and parquet with their own types.

What is broken in a file is told here, with its name and the row or line. What type a column has in
the end is `read`; which files there are is `files`.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from mlops_assets.errors import DataError
from mlops_assets.memory import limit, too_much
from mlops_assets.ml.files import BUNDLED, SourceFile
from mlops_assets.wording import listed, size

if TYPE_CHECKING:
    import pyarrow as pa

# what pandas takes for missing in csv files, which is what people are used to
MISSING_IN_CSV = (
    "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>",
    "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null",
)  # fmt: skip
_PART = 1024 * 1024  # bytes
_FOREIGN_CONTENT = {
    b"PAR1": "a Parquet file",
    b"PK\x03\x04": "a zip archive (an Excel workbook is one, too)",
    b"\x1f\x8b": "compressed with gzip (name it .gz)",
    b"\x80\x02": "a pickle", b"\x80\x03": "a pickle",
    b"\x80\x04": "a pickle", b"\x80\x05": "a pickle",
}  # fmt: skip


DAY = "date"
"""Column with the day that a row of a daily asset is about."""


class Source(NamedTuple):
    """A table of untyped columns, and what is needed to say where a value lies."""

    name: str
    table: pa.Table
    rows_of_files: list[tuple[str, int]]
    plain_text: bool
    """Numbers are written as text, as csv does."""
    first_row: int = 0
    """Of a part of a file: the number of its first row."""

    def place(self, row: int) -> str:
        """Say where a row is, in its file as well if there are several."""
        if len(self.rows_of_files) == 1:
            return f"row {self.first_row + row}"
        before = row
        for name, rows in self.rows_of_files:
            if before < rows:
                return f"row {row} (row {before} of {name})"
            before -= rows
        raise IndexError(row)


def bundled_source(name: str) -> Source:
    """Load a data set that comes with scikit-learn; see `read` for its columns' names."""
    import numpy as np
    import pyarrow as pa
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")()
    columns = {
        _snake_case(str(feature)): values
        for feature, values in zip(bunch.feature_names, bunch.data.T, strict=True)
    }
    is_named = name in {"iris", "wine", "breast_cancer"}
    target = np.asarray(bunch.target_names)[bunch.target] if is_named else bunch.target
    columns["species" if name == "iris" else "target"] = target
    uri = BUNDLED + name
    return Source(uri, pa.table(columns), [(uri, len(target))], plain_text=False)


def _snake_case(name: str) -> str:
    without_unit = re.sub(r"\(.*?\)", "", name).strip().lower()
    return re.sub(r"[^a-z0-9]+", "_", without_unit)


def source_of(files: Sequence[SourceFile]) -> Source:
    """Parse files of one format and put their rows together.

    Raises
    ------
    DataError
        A file is damaged or empty, not what its name says, or has other columns than the first.
    """
    suffix = suffixes(files[0].name)[0]
    parse = {".csv": _parse_csv, ".jsonl": _parse_jsonl, ".parquet": _parse_parquet}[suffix]
    tables = [parse(_content(file), file.name) for file in files]
    merged = tables[0]
    for file, table in zip(files[1:], tables[1:], strict=True):
        merged = _appended(merged, table, f"{file.name} does not fit {files[0].name}")
    rows = [(file.name, table.num_rows) for file, table in zip(files, tables, strict=True)]
    name = files[0].name if len(files) == 1 else f"{files[0].name} and {len(files) - 1} more"
    return Source(name, merged, rows, plain_text=suffix == ".csv")


def source_of_days(name: str, days: Mapping[str, pa.Table]) -> Source:
    """Put the tables of days together, in order, with the day of each row in a column `date`.

    Raises
    ------
    DataError
        There is no day, a day has other columns than the first, or a column is named `date`.
    """
    import pyarrow as pa

    sources = []
    for day, table in sorted(days.items()):
        if DAY in table.column_names:
            raise DataError(
                f"{name} of {day} has a column {DAY!r} of its own, which is where the day would be "
                "written; give it another name"
            )
        dates = pa.array([date.fromisoformat(day)] * table.num_rows, pa.date32())
        sources.append(source_of_table(f"{name} of {day}", table.append_column(DAY, dates)))
    if not sources:
        raise DataError(f"{name} has not been made for any day")
    merged = sources[0].table
    for source in sources[1:]:
        merged = _appended(merged, source.table, f"{source.name} does not fit {sources[0].name}")
    rows = [(source.name, source.table.num_rows) for source in sources]
    return Source(name, merged, rows, plain_text=False)


def source_of_table(name: str, table: pa.Table) -> Source:
    """Take a table that is read already; categories become text again."""
    plain = _without_dictionaries(table)
    return Source(name, plain, [(name, plain.num_rows)], plain_text=False)


def _appended(table: pa.Table, more: pa.Table, problem: str) -> pa.Table:
    import pyarrow as pa

    names = table.column_names
    if differences := sorted(set(names) ^ set(more.column_names)):
        raise DataError(f"{problem}: only one of them has {listed(differences)}")
    try:
        return pa.concat_tables([table, more.select(names)], promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(f"{problem}: {error}") from error


def suffixes(name: str) -> list[str]:
    """Return the endings of a file's name, without a URL's query: [".csv", ".gz"]."""
    path = urlsplit(name).path if name.startswith("http") else name
    format_and_gz = re.search(r"(\.[a-z]+)(\.gz)?$", path.lower())
    return [ending for ending in format_and_gz.groups() if ending] if format_and_gz else []


def _content(file: SourceFile) -> bytes:
    content = file.read()
    _, *compression = suffixes(file.name)
    if compression:
        try:
            content = _decompressed(content, file.name)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{file.name} is not a complete gzip file: {error}") from error
    require_own_content(content, file.name)
    return content


def _decompressed(content: bytes, name: str) -> bytes:
    most = limit() // 2  # as much again is for the table that is made of it
    parts, total = [], 0
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
        while part := file.read(_PART):
            parts.append(part)
            if (total := total + len(part)) > most:
                raise DataError(
                    f"{name} holds more than {size(most)}, which is half of the memory that is "
                    "allowed here: divide it, or use Parquet"
                )
    return b"".join(parts)


def require_own_content(content: bytes, name: str) -> None:
    """Refuse a file that is empty or of another format than its name says, by how it begins."""
    if not content or content.isspace():
        raise DataError(f"{name} is empty")
    for start, what in _FOREIGN_CONTENT.items():
        if content.startswith(start) and not (start == b"PAR1" and suffixes(name) == [".parquet"]):
            raise DataError(f"{name} is not what its name says: it is {what}")


def _parse_csv(content: bytes, name: str) -> pa.Table:
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    _require_utf8(content, name)
    content = content.removeprefix(b"\xef\xbb\xbf").strip(b"\r\n") + b"\n"
    if content.count(b'"') % 2:
        raise DataError(
            f"{name} has a double quote that is never closed; a quote inside a value is written "
            'twice, in a value in quotes: "5"" pipe"'
        )
    names = csv_header(content, name)
    try:
        return arrow_csv.read_csv(
            io.BytesIO(content),
            # one block: a value may be of any length and a message has the row's number
            arrow_csv.ReadOptions(
                use_threads=False,
                block_size=min(len(content), 2**31 - 1),
                column_names=names,
                skip_rows_after_names=1,
            ),
            arrow_csv.ParseOptions(newlines_in_values=True),
            arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.large_string()),
                strings_can_be_null=True,
                null_values=["", *MISSING_IN_CSV],
            ),
        )
    except pa.ArrowInvalid as error:
        ragged = re.search(r"Row #(\d+): Expected (\d+) columns, got (\d+)", str(error))
        if not ragged:
            raise DataError(f"{name} is not a csv file: {error}") from error
        row, expected, found = (int(number) for number in ragged.groups())
        raise DataError(
            f"{name}: row {row - 2} has {found} values, but the header has {expected}; put a value "
            "that contains a comma in double quotes"
        ) from error


def _require_utf8(content: bytes, name: str) -> None:
    try:
        content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{name} is not UTF-8: byte {error.start} in line {line} is "
            f"0x{content[error.start]:02x}; save the file as UTF-8"
        ) from error


def csv_header(content: bytes, name: str) -> list[str]:
    """Return the names of the columns, by the content of a file or the beginning of it."""
    text = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8", newline="")
    try:
        header = [column.strip() for column in next(csv.reader(text))]
    except csv.Error as error:
        raise DataError(f"{name}: the header cannot be read: {error}") from error
    if len(header) == 1 and (separator := next((s for s in ";\t|" if s in header[0]), None)):
        raise DataError(f"{name} separates its columns by {separator!r}; a comma is needed")
    names = [column or f"unnamed_{position}" for position, column in enumerate(header)]
    require_distinct(names, name)
    return names


def require_distinct(names: Iterable[str], where: str) -> None:
    """Refuse columns of one name."""
    repeated = [column for column, count in Counter(names).items() if count > 1]
    if repeated:
        raise DataError(f"{where} has more than one column named {listed(repeated)}")


def _parse_jsonl(content: bytes, name: str) -> pa.Table:
    import pyarrow as pa

    _require_utf8(content, name)
    rows = [
        json_row(line, f"{name}: line {number}")
        # not splitlines(): it also breaks at characters that JSON allows in a text
        for number, line in enumerate(content.decode("utf-8-sig").split("\n"), start=1)
        if line.strip()
    ]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    try:
        return pa.table({c: json_column([row.get(c) for row in rows]) for c in columns})
    except UnicodeEncodeError as error:
        raise DataError(f"{name} has half of a surrogate pair in a text: {error}") from error


def json_row(line: str, where: str) -> dict[str, Any]:
    """Return the values of a line by column."""

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        require_distinct((key for key, _ in pairs), where)
        return dict(pairs)

    try:
        row = json.loads(line, object_pairs_hook=distinct)
    except (ValueError, RecursionError) as error:
        # the message of the decoder counts lines of its own
        reason = getattr(error, "msg", error)
        raise DataError(f"{where} is not JSON: {reason}") from error
    if not isinstance(row, dict):
        raise DataError(f'{where} is not a JSON object such as {{"column": 1}}')
    for column, value in row.items():
        if isinstance(value, dict | list):
            raise DataError(f"{where}: column {column} is nested; give each value its own column")
    return row


def json_column(values: list[Any]) -> pa.Array:
    """Make a column of one type; a mixture becomes text, which is judged when it is typed."""
    import pyarrow as pa

    kinds = {type(value) for value in values if value is not None}
    if kinds <= {bool} or kinds <= {str}:
        return pa.array(values, pa.large_string() if kinds == {str} else None)
    if kinds <= {int, float}:
        return _json_numbers(values)
    texts = [value if isinstance(value, str) else json.dumps(value) for value in values]
    return pa.array(
        [None if value is None else text for value, text in zip(values, texts, strict=True)],
        pa.large_string(),
    )


def _json_numbers(values: list[Any]) -> pa.Array:
    import pyarrow as pa

    try:
        return pa.array(values, None if all(type(v) is int for v in values) else pa.float64())
    except (OverflowError, pa.ArrowInvalid):  # beyond int64
        return pa.array([None if v is None else float(str(v)) for v in values], pa.float64())


def _parse_parquet(content: bytes, name: str) -> pa.Table:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        # Not read_table: with pyarrow 25 it can abort the process at exit.
        file = parquet.ParquetFile(pa.BufferReader(content), pre_buffer=False)
        if why := too_much(file.schema_arrow, file.metadata.num_rows):
            raise DataError(f"{name} cannot be read: {why}")
        table = file.read()
        table.validate(full=True)  # reading alone takes any bytes for text
        require_distinct(table.column_names, name)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{name} is not a complete Parquet file: {error}") from error
    return _without_dictionaries(table)


def _without_dictionaries(table: pa.Table) -> pa.Table:
    import pyarrow as pa

    columns = {
        name: column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
        for name, column in zip(table.column_names, table.columns, strict=True)
        # pandas' nameless index, which says nothing about a row
        if not re.match(r"__index_level_\d+__", name)
    }
    return pa.table(columns)
