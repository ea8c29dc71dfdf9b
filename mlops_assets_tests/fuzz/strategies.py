"""Strange but honest input: frames, files and pipeline files as people and programs make them."""

from __future__ import annotations

import datetime
import gzip
import io
import json
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

SECONDS = float(os.environ.get("MLOPS_TEST_FUZZ_SECONDS", "0"))
"""How long each target and property is tried, about; 0 for some seconds, the same cases always."""

_USUAL_SECONDS = 5.0


def examples(count: int, *, shrink: bool = True) -> settings:
    """Try so many examples, or as many more as the time allows that was asked for.

    Without `shrink` for examples that take long: a failing one is shown as it was found.
    """
    phases = (Phase.explicit, Phase.generate, *([Phase.shrink] if shrink else []))
    return settings(
        phases=phases,
        max_examples=max(count, round(count * SECONDS / _USUAL_SECONDS)),
        derandomize=not SECONDS,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


# --- values -------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
ODD_TEXTS = [
    "", " ", "NA", "nan", "None", "true", "no", "1", "-0", "1e999", "0x1", "١٢", "1_000", "1,5",
    "2024-01-31", "2024-02-30", "0000-00-00", "9999-12-31T23:59:60Z", "inf", "\0", "\r\n", '"',
    "'", "\ufeff", "\u2028", "é" * 3, "😀", "=1+1", "a" * 300, "\t", "\\N", "<b>", "{x}", "%s",
]  # fmt: skip
odd_texts = st.sampled_from(ODD_TEXTS) | texts
NAMES = [
    "x", "kind", "x ", "row", "date", "index", "0", "a.b", "a b", "a,b", "É", "prediction",
    "__index_level_0__", "class", "{date}", "%", "'", '"', "\\", "a\nb", "[x]", "<x>", "X",
    "source_file", "target", "size", "name", "dtype", "None", "nan",
]  # fmt: skip
names = st.sampled_from(NAMES) | texts
numbers = st.floats() | st.integers(-(2**70), 2**70) | st.sampled_from([0, 1, -1, 1e150, 1e-320])
datetimes = st.datetimes(datetime.datetime(1, 1, 1), datetime.datetime(9999, 12, 31))
near_datetimes = st.datetimes(datetime.datetime(1678, 1, 1), datetime.datetime(2261, 1, 1))
decimals = st.decimals(allow_nan=False, allow_infinity=False, places=2, min_value=-(10**9),
                       max_value=10**9)  # fmt: skip


# --- frames -------------------------------------------------------------------------------------

_PANDAS: dict[str, st.SearchStrategy[Any]] = {
    **{kind: st.integers(0, 100) for kind in ("int8", "uint8", "int16", "uint64", "int32")},
    "int64": st.integers(-(2**63), 2**63 - 1),
    "float16": st.floats(width=16),
    "float32": st.floats(width=32),
    "float64": st.floats(),
    "complex128": st.complex_numbers(),
    "bool": st.booleans(),
    "Int64": st.none() | st.integers(-(2**63), 2**63 - 1),
    "UInt8": st.none() | st.integers(0, 255),
    "Float64": st.none() | st.floats(allow_nan=False),
    "boolean": st.none() | st.booleans(),
    "string": st.none() | odd_texts,
    "category": st.none() | odd_texts | st.integers(0, 3) | near_datetimes,
    "datetime64[ns]": st.none() | near_datetimes,
    "datetime64[ns, Europe/Berlin]": st.none() | near_datetimes,
    "datetime64[s]": st.none() | datetimes,
    "datetime64[us, UTC]": st.none() | near_datetimes,
    "timedelta64[ns]": st.none() | st.timedeltas(
        datetime.timedelta(days=-10000), datetime.timedelta(days=10000)
    ),
    "period[D]": st.none() | near_datetimes,
    "Sparse[int]": st.integers(0, 2),
    "Sparse[float]": st.floats(),
    "int64[pyarrow]": st.none() | st.integers(-(2**63), 2**63 - 1),
    "string[pyarrow]": st.none() | odd_texts,
    "large_string[pyarrow]": st.none() | odd_texts,
    "double[pyarrow]": st.none() | st.floats(),
    "bool[pyarrow]": st.none() | st.booleans(),
    "timestamp[us][pyarrow]": st.none() | near_datetimes,
    "date32[day][pyarrow]": st.none() | st.dates(),
}  # fmt: skip
_OBJECTS = st.one_of(
    st.none(),
    odd_texts,
    st.booleans(),
    st.integers(),
    st.floats(),
    st.binary(max_size=3),
    st.dates(),
    datetimes,
    st.times(),
    st.timedeltas(),
    decimals,
    st.uuids(),
    st.complex_numbers(),
    st.fractions(),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(texts, st.integers(), max_size=2),
    st.frozensets(st.integers(), max_size=2),
    st.just(pd.NA),
    st.just(pd.NaT),
    st.just(pd.Interval(0, 1)),
    st.text(max_size=3),  # with halves of surrogate pairs
    st.builds(object),
)


@st.composite
def _column(draw: st.DrawFn, rows: int) -> pd.Series:
    kind = draw(st.sampled_from(["objects", "one kind of objects", *_PANDAS]))
    if kind in _PANDAS:
        values = draw(st.lists(_PANDAS[kind], min_size=rows, max_size=rows))
        try:
            return pd.Series(values, dtype=kind)
        except (ValueError, TypeError, OverflowError, pa.ArrowException):
            return pd.Series(values, dtype=object)  # pandas itself refuses these values
    cells = _OBJECTS if kind == "objects" else draw(st.sampled_from(_OBJECTS.original_strategies))
    values = draw(st.lists(cells, min_size=rows, max_size=rows))
    column = pd.Series([None] * rows, dtype=object)
    for row, value in enumerate(values):
        column.iat[row] = value
    return column


@st.composite
def frames(draw: st.DrawFn) -> pd.DataFrame:
    """Make a frame with anything that pandas can hold, and labels of any kind."""
    rows = draw(st.integers(0, 5))
    columns = draw(st.lists(_column(rows), max_size=4))
    frame = pd.concat(columns, axis=1) if columns else pd.DataFrame(index=range(rows))
    labels = draw(
        st.lists(names, min_size=len(columns), max_size=len(columns))
        | st.lists(names | st.integers() | st.none() | st.floats() | st.tuples(names, names),
                   min_size=len(columns), max_size=len(columns))
    )  # fmt: skip
    frame.columns = pd.Index(labels, dtype=object) if labels else frame.columns
    if draw(st.booleans()):
        levels = draw(st.lists(_column(rows), min_size=1, max_size=2))
        titles = draw(st.lists(st.none() | names | st.integers(), min_size=len(levels),
                               max_size=len(levels)))  # fmt: skip
        try:
            index = pd.MultiIndex.from_arrays(levels) if len(levels) > 1 else pd.Index(levels[0])
            frame.index = index.set_names(titles)
        except (TypeError, ValueError, NotImplementedError):
            pass  # pandas itself refuses them as an index
    return frame


# --- Parquet ------------------------------------------------------------------------------------

_ARROW: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.null(), st.none()),
    (pa.bool_(), st.booleans()),
    (pa.int8(), st.integers(-128, 127)),
    (pa.uint64(), st.integers(0, 2**64 - 1)),
    (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    (pa.float16(), st.floats(width=16)),
    (pa.float32(), st.floats(width=32)),
    (pa.float64(), st.floats()),
    (pa.decimal128(20, 2), decimals),
    (pa.decimal256(50, 2), decimals),
    (pa.string(), odd_texts),
    (pa.large_string(), odd_texts),
    (pa.string_view(), odd_texts),
    (pa.binary(), st.binary(max_size=5)),
    (pa.binary(3), st.binary(min_size=3, max_size=3)),
    (pa.date32(), st.dates()),
    (pa.date64(), st.dates()),
    (pa.time32("s"), st.times().map(lambda time: time.replace(microsecond=0))),
    (pa.time64("us"), st.times()),
    (pa.timestamp("s"), datetimes.map(lambda time: time.replace(microsecond=0))),
    (pa.timestamp("us"), datetimes),
    (pa.timestamp("ns"), near_datetimes),
    (pa.timestamp("us", "Europe/Berlin"), near_datetimes),
    (pa.duration("us"), st.timedeltas(
        datetime.timedelta(days=-9999), datetime.timedelta(days=9999)
    )),
    (pa.dictionary(pa.int32(), pa.string()), odd_texts),
    (pa.dictionary(pa.int8(), pa.int64()), st.integers(0, 9)),
    (pa.list_(pa.int64()), st.lists(st.integers(0, 9), max_size=3)),
    (pa.list_(pa.float32(), 2), st.lists(st.floats(width=32), min_size=2, max_size=2)),
    (pa.struct({"a": pa.int64()}), st.fixed_dictionaries({"a": st.integers(0, 9)})),
    (pa.map_(pa.string(), pa.int64()), st.lists(st.tuples(texts, st.integers(0, 9)), max_size=2)),
    (pa.uuid(), st.uuids().map(lambda uuid: uuid.bytes)),
    (pa.json_(pa.string()), st.just("{}")),
    (pa.bool8(), st.booleans().map(int)),
]  # fmt: skip


@st.composite
def _arrow_column(draw: st.DrawFn, rows: int) -> pa.Array:
    kind, cells = draw(st.sampled_from(_ARROW))
    values = draw(st.lists(st.none() | cells, min_size=rows, max_size=rows))
    if isinstance(kind, pa.ExtensionType):
        return pa.ExtensionArray.from_storage(kind, pa.array(values, kind.storage_type))
    if pa.types.is_dictionary(kind):
        return pa.array(values, kind.value_type).dictionary_encode().cast(kind)
    return pa.array(values, kind)


@st.composite
def parquet_files(draw: st.DrawFn, target: str = "kind") -> bytes:
    """Make a Parquet file of columns of any type, one of them the target."""
    rows = draw(st.sampled_from([0, 1, 2, 5, 30]))
    labels = draw(st.lists(names, max_size=3))
    columns = [draw(_arrow_column(rows)) for _ in [*labels, target]]
    table = pa.Table.from_arrays(columns, names=[*labels, target])
    sink = io.BytesIO()
    options = {
        "compression": draw(st.sampled_from(["NONE", "SNAPPY", "ZSTD", "GZIP"])),
        "version": draw(st.sampled_from(["1.0", "2.4", "2.6"])),
        "data_page_version": draw(st.sampled_from(["1.0", "2.0"])),
        "row_group_size": draw(st.sampled_from([1, 7, 100])),
        "store_schema": draw(st.booleans()),
        "use_deprecated_int96_timestamps": draw(st.booleans()),
    }
    try:
        pq.write_table(table, sink, **options)
    except (pa.ArrowException, ValueError):  # Parquet of this version has no such type
        return b"PAR1"
    return sink.getvalue()


# --- text files ---------------------------------------------------------------------------------

ENCODINGS = ["utf-8"] * 6 + ["utf-8-sig", "utf-16", "utf-16-le", "latin-1", "cp1252", "utf-32"]
_SEPARATORS = [","] * 8 + [";", "\t", "|", ", "]
_ENDS = ["\n", "\n", "\r\n", "\r", "\n\n"]


def _encoded(draw: st.DrawFn, text: str) -> bytes:
    content = text.encode(draw(st.sampled_from(ENCODINGS)), "replace")
    wrapped: Callable[[bytes], bytes] = draw(
        st.sampled_from([*[bytes] * 9, gzip.compress, lambda it: b"\xef\xbb\xbf" + it])
    )
    cut = draw(st.none() | st.none() | st.none() | st.integers(0, 200))
    return wrapped(content)[:cut]


@st.composite
def csv_files(draw: st.DrawFn, target: str = "kind") -> bytes:
    """Make a csv file: ragged, quoted in odd ways, of other encodings, cut."""
    header = [*draw(st.lists(names, max_size=3)), target]
    cells = st.one_of(
        st.integers(-9, 9).map(str), st.sampled_from(["a", "b"]), odd_texts, numbers.map(str)
    )
    columns = [draw(st.sampled_from([cells, *cells.original_strategies])) for _ in header]
    rows = [[draw(column) for column in columns] for _ in range(draw(st.integers(0, 8)))]
    rows *= draw(st.sampled_from([1, 1, 5]))
    if rows and draw(st.integers(0, 9)) == 0:
        rows[-1] = rows[-1][:-1] if draw(st.booleans()) else [*rows[-1], "more"]
    style = draw(st.sampled_from(["as needed", "as needed", "always", "never"]))
    separator, end = draw(st.sampled_from(_SEPARATORS)), draw(st.sampled_from(_ENDS))

    def quoted(cell: str) -> str:
        needed = any(mark in cell for mark in '",\r\n')
        if style == "never" or (style == "as needed" and not needed):
            return cell
        return '"' + cell.replace('"', '""') + '"'

    lines = [separator.join(map(quoted, row)) for row in [header, *rows]]
    return _encoded(draw, end.join(lines) + draw(st.sampled_from(["", end])))


@st.composite
def jsonl_files(draw: st.DrawFn, target: str = "kind") -> bytes:
    """Make a file of JSON lines: other types from row to row, missing keys, lines of rubbish."""
    values = st.one_of(
        st.none(), st.booleans(), numbers, odd_texts, st.text(max_size=3),
        st.lists(st.integers(), max_size=2), st.dictionaries(texts, st.integers(), max_size=1),
    )  # fmt: skip
    columns = [*draw(st.lists(names, max_size=3)), target]
    kinds = {
        name: draw(st.sampled_from([values, *values.original_strategies[:4]])) for name in columns
    }
    rows = [
        {name: draw(kinds[name]) for name in columns if draw(st.integers(0, 9))}
        for _ in range(draw(st.integers(0, 8)))
    ] * draw(st.sampled_from([1, 1, 5]))
    escaped = draw(st.booleans())
    lines = [json.dumps(row, ensure_ascii=escaped) for row in rows]
    if draw(st.integers(0, 4)) == 0:
        lines.insert(0, draw(st.sampled_from(["[]", "{", "1", "null", "//", '{"x":1,"x":2}', ""])))
    text = draw(st.sampled_from(_ENDS)).join(lines)
    return _encoded(draw, text.encode("utf-8", "replace").decode())


# --- tables that can be trained on --------------------------------------------------------------

_FEATURES: list[st.SearchStrategy[Any]] = [
    st.integers(-5, 5),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(-10, 10),
    st.floats(allow_nan=False, allow_infinity=False, min_value=-1e150, max_value=1e150),
    st.sampled_from([0.0, 1e-320, 1e150, -1e150]),
    st.booleans(),
    st.just("constant"),
    st.just(7),
    st.none(),
    st.sampled_from(["a", "b", "c"]),
    st.sampled_from(ODD_TEXTS),
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=8),
    near_datetimes.map(lambda time: time.isoformat()),
    st.dates(datetime.date(2024, 1, 1), datetime.date(2024, 3, 1)).map(str),
]
_CLASSES: list[st.SearchStrategy[Any]] = [
    st.sampled_from(["yes", "no"]),
    st.sampled_from(["yes", "no", None]),
    st.sampled_from(["a", "b", "c"]),
    st.sampled_from(ODD_TEXTS),
    st.booleans(),
    st.integers(0, 1),
    st.integers(0, 4),
]
_QUANTITIES: list[st.SearchStrategy[Any]] = [
    st.integers(-(2**40), 2**40),
    st.floats(-10, 10),
    st.sampled_from([-1e150, 0.0, 1e150]),
    st.sampled_from([1e-320, 0.0, None]),
    st.floats(allow_nan=False, allow_infinity=False, min_value=-1e150, max_value=1e150),
]
_CLASSIFIERS = [
    "sklearn.dummy.DummyClassifier",
    "sklearn.linear_model.LogisticRegression",
    "sklearn.tree.DecisionTreeClassifier",
    "sklearn.naive_bayes.CategoricalNB",
    "sklearn.neighbors.KNeighborsClassifier",
]
_REGRESSORS = [
    "sklearn.linear_model.Ridge",
    "sklearn.ensemble.HistGradientBoostingRegressor",
    "sklearn.linear_model.PoissonRegressor",
]


class Dataset(NamedTuple):
    """Two files with the same columns, one of them `kind`, the target, and what to make of them."""

    suffix: str
    to_train: bytes
    to_score: bytes
    estimator: str
    split: dict[str, Any]


@st.composite
def datasets(draw: st.DrawFn) -> Dataset:
    """Make a table with columns of any kind, most of which can be trained on."""
    labels = draw(st.lists(names.filter("kind".__ne__), max_size=3, unique=True))
    targets, estimators = draw(
        st.sampled_from([(_CLASSES, _CLASSIFIERS), (_QUANTITIES, _REGRESSORS)])
    )
    cells = {name: draw(st.sampled_from(_FEATURES)) for name in dict.fromkeys([*labels, "x"])}
    cells["kind"] = draw(st.sampled_from(targets))
    share = draw(st.sampled_from([0, 0, 5]))  # of missing values: one in so many

    def frame(rows: int) -> pd.DataFrame:
        chance = draw(st.randoms(use_true_random=False))
        columns = {}
        for name, values in cells.items():
            known = draw(st.lists(values, min_size=6, max_size=6))
            column = [chance.choice(known) for _ in range(rows)]
            if share and name != "kind":
                column = [None if chance.randrange(share) == 0 else cell for cell in column]
            columns[name] = column
        return pd.DataFrame(columns, dtype=object)

    suffix = draw(st.sampled_from(["csv", "jsonl", "parquet"]))
    write = {"csv": _as_csv, "jsonl": _as_jsonl, "parquet": _as_parquet}[suffix]
    splits: list[dict[str, Any]] = [{}, {"stratify": False}, {"by_time": "x"}, {"group": "x"}]
    return Dataset(
        suffix,
        write(frame(draw(st.sampled_from([12, 60])))),
        write(frame(5)),
        draw(st.sampled_from(estimators)),
        draw(st.sampled_from([*splits[:2] * 2, *splits])),
    )


def _as_csv(frame: pd.DataFrame) -> bytes:
    return frame.to_csv(index=False).encode("utf-8", "replace")


def _as_jsonl(frame: pd.DataFrame) -> bytes:
    rows = frame.to_dict("records")
    return "\n".join(json.dumps(row) for row in rows).encode()


def _as_parquet(frame: pd.DataFrame) -> bytes:
    sink = io.BytesIO()
    frame.columns = frame.columns.astype(str)
    frame.convert_dtypes(convert_floating=False).to_parquet(sink, index=False)
    return sink.getvalue()


# --- pipeline files -----------------------------------------------------------------------------

_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(10**30, 10**60),
    st.floats(),
    odd_texts,
    st.dates(),
    datetimes,
    st.binary(max_size=3),
    st.sampled_from(["../x.csv", "s3://b/{date}/*.csv", "sklearn://iris", "@daily", ">= 1", "5s"]),
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_SCALARS, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def changed(draw: st.DrawFn, tree: Any) -> Any:
    """Make a copy of a tree of maps and lists in which one value, somewhere, is another one."""
    if not isinstance(tree, dict | list) or not tree or draw(st.integers(0, 5)) == 0:
        return draw(_VALUES)
    places = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
    place = draw(st.sampled_from(places))
    result: Any = tree.copy()
    how = draw(st.integers(0, 9))
    if how == 0:
        del result[place]
    elif how == 1 and isinstance(result, dict):
        result[draw(_SCALARS)] = result.pop(place)
    elif how == 2 and isinstance(result, list):
        result.append(result[place])
    else:
        result[place] = draw(changed(tree[place]))
    return result


def as_json(tree: Any) -> bytes:
    """Write a tree as JSON; what that does not have becomes text."""

    def plain(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {str(key): plain(value) for key, value in tree.items()}
        if isinstance(tree, list):
            return [plain(value) for value in tree]
        return tree if isinstance(tree, int | float | str | None) else str(tree)

    return json.dumps(plain(tree)).encode()


def as_yaml(draw: st.DrawFn, tree: Any) -> bytes:
    """Write a tree in one of the ways that YAML has."""
    style = draw(st.sampled_from([None, None, True, False]))
    width = draw(st.sampled_from([80, 10, 10**6]))
    text = yaml.safe_dump(tree, default_flow_style=style, width=width, allow_unicode=True)
    return text.encode()


@st.composite
def pipeline_files(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """Make a pipeline file with some values exchanged, in any layout, sometimes with an attack."""
    tree = yaml.safe_load(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 2))):
        tree = draw(changed(tree))
    content = as_yaml(draw, tree)
    return draw(st.sampled_from([*[content] * 6, *(odd(content) for odd in _ODDITIES)]))


def _bomb(content: bytes) -> bytes:
    lines = [b"a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    for n in range(1, 12):
        lines.append(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]".encode())
    return b"\n".join([*lines, content])


_ODDITIES: list[Callable[[bytes], bytes]] = [
    _bomb,
    lambda it: it + it,
    lambda it: it + b"\n---\n" + it,
    lambda it: it.replace(b"  ", b"\t"),
    lambda it: it.replace(b"\n", b"\r"),
    lambda it: it.decode("utf-8", "replace").encode("utf-16"),
    lambda it: it + b"\nx: \xff",
    lambda it: it + b"\nx: " + b"[" * 5000,
    lambda it: it + b"\n" + b"".join(b" " * n + b"k:\n" for n in range(300)),
    lambda it: it + b"\nx: " + b"9" * 9000,
    lambda it: it + b"\n? [a, b]\n: c\n",
    lambda it: it + b"\n<<: {data: 1}\n",
    lambda it: it + b"\nx: !!python/object/apply:os.system [true]\n",
    lambda it: b"%YAML 9.9\n---\n" + it,
    lambda it: it + b"\n" + b"#" * 300_000,
]
