"""Frames to Arrow tables and back, with what Arrow alone would lose."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from mlops_assets.errors import StoreError
from mlops_assets.store.tables.encodings import Way, is_text
from mlops_assets.store.tables.refusals import (
    LOOK_ROWS,
    check_labels,
    check_names,
    check_objects,
    explained,
)

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

_METADATA = b"mlops_assets"


def from_pandas(
    frame: pd.DataFrame,
) -> tuple[pa.Schema, Callable[[int, int, pa.Schema], pa.Table]]:
    """Schema, with what Arrow would lose in its metadata, and what converts some of the rows.

    They are converted row group by row group: a frame of one NumPy array would be copied else. Text
    becomes a dictionary array where the schema that is asked for says so.
    """
    import pyarrow as pa

    check_labels(frame)
    objects = {name: frame[name] for name in frame if frame[name].dtype == object}
    by_nan = [name for name, column in objects.items() if check_objects(f"column {name!r}", column)]
    levels = [frame.index.get_level_values(number) for number in range(frame.index.nlevels)]
    object_levels = [level for level in levels if level.dtype == object]
    for level in object_levels:
        check_objects("the index", level)
    with explained(frame):
        converted = _schema(frame, [*objects.values(), *object_levels])
    extra: dict[str, Any] = {"nan": by_nan, "categories": {}, "zones": {}}
    schema = converted
    for index, field in enumerate(converted):
        if pa.types.is_dictionary(field.type) and field.name in frame:
            extra["categories"][field.name] = _encode_categories(frame[field.name].dtype)
            schema = schema.set(index, field.with_type(field.type.value_type))
    check_names(schema.names)  # those of unnamed levels of the index are among them
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
        with explained(frame):
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


def with_dictionaries(frame: pd.DataFrame, schema: pa.Schema, ways: Mapping[str, Way]) -> pa.Schema:
    """Schema with dictionaries of the text that Parquet would have to make them of."""
    import numpy as np
    import pandas as pd
    import pyarrow as pa

    for index, field in enumerate(schema):
        if is_text(field.type) and field.name in frame and ways[field.name].dictionary:
            dtype = frame[field.name].dtype
            if isinstance(dtype, (np.dtype, pd.CategoricalDtype)):
                kind = pa.dictionary(pa.int32(), field.type)
                schema = schema.set(index, field.with_type(kind))
    return schema


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

    for start in range(0, len(values), LOOK_ROWS):
        present = np.asarray(values[start : start + LOOK_ROWS].notna())
        if present.any():
            return start + int(np.argmax(present))
    return 0


def _check_types(frame: pd.DataFrame, schema: pa.Schema, extra: dict[str, Any]) -> None:
    """Take the frame without its rows there and back, and refuse types that come back changed."""
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(_with_extra(schema, extra).empty_table(), buffer)
    back = to_pandas(pq.ParquetFile(buffer).read())
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


def to_pandas(table: pa.Table) -> pd.DataFrame:
    """Make a frame of a table, with what the schema's metadata says that Arrow has lost."""
    import numpy as np
    import pyarrow as pa

    extra = kept_metadata(table.schema)
    for name in _named(extra, "categories", table):
        index = table.schema.get_field_index(name)
        spec = extra["categories"][name]
        known = category_values(spec)
        codes = category_codes(table.column(index), known)
        column = pa.DictionaryArray.from_arrays(codes, known, ordered=spec["ordered"])
        table = table.set_column(index, name, column)
    frame: pd.DataFrame = table.to_pandas()
    for name in _named(extra, "nan", table):
        frame[name] = frame[name].where(frame[name].notna(), np.nan)
    zones = {name: extra["zones"][name] for name in _named(extra, "zones", table)}
    return frame.astype(zones) if zones else frame


def kept_metadata(schema: pa.Schema) -> dict[str, Any]:
    """What Arrow would have lost of a frame, as `from_pandas` has put it into the schema."""
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


def category_values(spec: dict[str, Any]) -> pa.Array:
    """Categories of a column from the schema's metadata, those that no row uses included."""
    import pyarrow as pa

    content = pa.py_buffer(base64.b64decode(spec["categories"]))
    categories = pa.ipc.open_stream(content).read_next_batch().column(0)
    categories.validate(full=True)  # Arrow follows the offsets of damaged ones out of memory
    return categories


def category_codes(column: pa.ChunkedArray, categories: pa.Array) -> pa.Array:
    """Positions of values, which may be dictionary arrays, among the categories."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_dictionary(column.type):
        return pc.index_in(column, value_set=categories).combine_chunks()
    return pa.chunked_array(
        [pc.index_in(it.dictionary, value_set=categories).take(it.indices) for it in column.chunks],
        pa.int32(),
    ).combine_chunks()
