"""From values to files and back: the registry of formats, and the small formats themselves.

A codec is deterministic: equal values give equal bytes, in any process. Tables are in `tables`,
models in `models`. Nothing is ever unpickled; a value of a kind that isn't listed here is refused.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, Protocol

from mlops_assets.errors import StoreError
from mlops_assets.store.models import SkopsCodec, is_model
from mlops_assets.store.tables import ParquetCodec

Kind = Literal["frame", "table", "batches"]

SUPPORTED = (
    "tables (pandas.DataFrame, pyarrow.Table, pyarrow.RecordBatchReader or an iterator of "
    "pyarrow.RecordBatch), scikit-learn models, plain JSON values (dict, list, str, int, float, "
    "bool, None) and the bytes of a PNG or SVG figure"
)

_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"
_MOST_NUMBERS = 100


class Codec(Protocol):
    """One file format."""

    @property
    def extension(self) -> str:
        """Extension of the format's files, without the dot."""

    def write(self, value: Any, file: IO[bytes]) -> dict[str, Any]:
        """Write a value to a file that is only appended to, and return facts about it.

        Facts are light and plain JSON: rows, columns and a preview of a table, the class of a
        model, the numbers of a JSON value. Raises `StoreError` when the value cannot be stored.
        """

    def read(self, file: Path, as_: Kind | None) -> Any:
        """Read a value; raises `StoreError` when the file isn't of this format."""


def codec_for(value: object) -> Codec:
    """Codec of a value's kind.

    Raises
    ------
    StoreError
        When values of this kind are never stored; lists those that are.
    """
    if isinstance(value, (dict, list, tuple, str, int, float)) or value is None:
        return CODECS["json"]
    if isinstance(value, bytes):
        if value.startswith(_PNG_START):
            return CODECS["png"]
        if _is_svg(value):
            return CODECS["svg"]
        raise StoreError(f"these {len(value)} bytes are no PNG or SVG; supported: {SUPPORTED}")
    if _is_table(value) or isinstance(value, Iterator):
        return CODECS["parquet"]
    if is_model(value):
        return CODECS["skops"]
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        return CODECS["json"]
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    raise StoreError(f"values of type {kind} are not stored; supported: {SUPPORTED}")


def codec_of_extension(extension: str) -> Codec:
    """Codec of a file's extension; raises `StoreError` when there is none."""
    if extension not in CODECS:
        raise StoreError(f".{extension} is no format of the store; it has: {', '.join(CODECS)}")
    return CODECS[extension]


class JsonCodec:
    """Plain JSON with sorted keys, UTF-8.

    Tuples are stored as lists and NumPy scalars as numbers. NaN, infinities, keys other than text
    and every other type are refused.
    """

    extension = "json"

    def write(self, value: Any, file: IO[bytes]) -> dict[str, Any]:
        """See `Codec`; the facts are the numbers, by dotted name."""
        try:
            plain = _plain(value, "")
            file.write(json.dumps(plain, sort_keys=True, ensure_ascii=False).encode())
        except RecursionError:
            raise StoreError(
                "the value is nested too deeply for JSON, or contains itself"
            ) from None
        except UnicodeEncodeError as error:
            raise StoreError(f"the value holds text that is no valid Unicode: {error}") from error
        except ValueError as error:
            raise StoreError(f"the value does not fit JSON: {error}") from error
        return dict(_numbers(plain, "")[:_MOST_NUMBERS])

    def read(self, file: Path, as_: Kind | None) -> Any:
        """See `Codec`."""
        _refuse_kind(as_, self.extension)
        try:
            return json.loads(file.read_bytes())
        except (ValueError, RecursionError) as error:
            raise StoreError(f"is no JSON file: {error}") from error


@dataclass(frozen=True)
class FigureCodec:
    """The bytes of a figure, as they are."""

    extension: str  # png or svg

    def write(self, value: bytes, file: IO[bytes]) -> dict[str, Any]:
        """See `Codec`; there are no facts."""
        self._check(value, "these bytes")
        file.write(value)
        return {}

    def read(self, file: Path, as_: Kind | None) -> bytes:
        """See `Codec`."""
        _refuse_kind(as_, self.extension)
        content = file.read_bytes()
        self._check(content, "the file")
        return content

    def _check(self, content: bytes, name: str) -> None:
        complete = (
            content.startswith(_PNG_START) and content.endswith(_PNG_END)
            if self.extension == "png"
            else _is_svg(content)
        )
        if not complete:
            raise StoreError(f"{name} are no complete {self.extension.upper()} figure")


CODECS: dict[str, Codec] = {
    "parquet": ParquetCodec(),
    "json": JsonCodec(),
    "skops": SkopsCodec(),
    "png": FigureCodec("png"),
    "svg": FigureCodec("svg"),
}


def _is_table(value: object) -> bool:
    # A value can only be of a library's type when the library has been imported.
    pandas, pyarrow = sys.modules.get("pandas"), sys.modules.get("pyarrow")
    return (pandas is not None and isinstance(value, pandas.DataFrame)) or (
        pyarrow is not None and isinstance(value, (pyarrow.Table, pyarrow.RecordBatchReader))
    )


def _is_svg(content: bytes) -> bool:
    start = content[:1000].lstrip(b"\xef\xbb\xbf \t\r\n")
    return (
        start.startswith((b"<svg", b"<?xml", b"<!DOCTYPE svg"))
        and b"<svg" in start
        and content.rstrip().endswith(b"</svg>")
    )


def _refuse_kind(as_: Kind | None, extension: str) -> None:
    if as_ is not None:
        raise StoreError(f"holds .{extension}, which cannot be loaded as {as_}: that is for tables")


def _plain(value: Any, where: str) -> Any:
    """`value` with NumPy scalars and tuples replaced; refuses what JSON cannot hold."""
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        value = value.item()
    if value is None or isinstance(value, (str, int)):  # bool is an int
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise StoreError(f"the key {key!r} in {where or 'the value'} must be text for JSON")
        return {key: _plain(item, f"{where}.{key}".lstrip(".")) for key, item in value.items()}
    what = value if isinstance(value, float) else f"of type {type(value).__name__}"
    raise StoreError(f"{where or 'the value'} is {what}, which JSON does not have")


def _numbers(value: Any, name: str) -> list[tuple[str, float]]:
    if isinstance(value, dict):
        return [
            found
            for key in sorted(value)
            for found in _numbers(value[key], f"{name}.{key}".lstrip("."))
        ]
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return [(name or "value", value)] if is_number else []
