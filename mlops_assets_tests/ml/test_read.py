"""Reading: the types that columns get, and what is said about broken files."""

from __future__ import annotations

import functools
import gzip
import http.server
import io
import json
import os
import pickle
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pyarrow.parquet import ParquetFile

from mlops_assets.errors import DataError
from mlops_assets.ml.read import identity, read, schema_of
from mlops_assets.spec import DataChecks, DataSpec

from .conftest import CHURN, Reader


def test_every_type_is_inferred_from_a_csv_file(read_csv: Reader) -> None:
    frame = read_csv(
        "x,ratio,flag,day,at,color\n"
        "1,0.5,true,2024-01-31,2024-01-31T12:00:00Z,red\n"
        "2,1e3,False,2024-02-01,2024-02-01 12:00,blue\n"
    )
    assert schema_of(frame) == {
        "x": "number",
        "ratio": "number",
        "flag": "boolean",
        "day": "datetime",
        "at": "datetime",
        "color": "category",
    }
    assert frame.dtypes.astype(str).tolist() == [
        *("int64", "float64", "bool", "datetime64[ns]", "datetime64[ns]", "category")
    ]
    assert frame["color"].cat.categories.tolist() == ["blue", "red"]
    assert frame.index.name == "row"
    assert frame.index.dtype == "int64"


def test_missing_values_keep_the_type_of_the_column(read_csv: Reader) -> None:
    frame = read_csv(
        "x,ratio,flag,day,color,empty\n"
        "1,,true,2024-01-31,red,\n"
        "2,NA, ,  ,null, \n"
        '3,1.5,false,2024-02-01,"",\n'
    )
    assert frame.dtypes.astype(str).to_dict() == {
        "x": "int64",
        "ratio": "float64",
        "flag": "boolean",
        "day": "datetime64[ns]",
        "color": "category",
        "empty": "float64",
    }
    assert frame.isna().sum().to_dict() == {
        "x": 0,
        "ratio": 2,
        "flag": 1,
        "day": 1,
        "color": 2,
        "empty": 3,
    }


def test_blank_text_in_a_column_of_numbers_is_missing(read_csv: Reader) -> None:
    assert read_csv("x,y\n1.5,a\n   ,b\n")["x"].isna().tolist() == [False, True]


def test_mostly_distinct_text_is_free_text(read_csv: Reader) -> None:
    lines = [f"name {row},{'ab'[row % 2]}" for row in range(120)]
    frame = read_csv("x,y\n" + "\n".join(lines) + "\n,a\n")
    assert schema_of(frame) == {"x": "text", "y": "category"}
    assert frame["x"].iloc[-1] is None


def test_declared_types_win_over_inferred_ones(read_csv: Reader) -> None:
    frame = read_csv(
        "x,zip,flag,code,day\n1,01234,yes,7,2024-01-31\n2,98765,No,8,\n",
        columns={"zip": "text", "flag": "boolean", "code": "category", "day": "datetime"},
    )
    assert frame["zip"].tolist() == ["01234", "98765"]
    assert frame["flag"].tolist() == [True, False]
    assert frame["code"].cat.categories.tolist() == ["7", "8"]


def test_numbers_declared_as_category_read_the_same_from_csv_and_parquet(
    read_csv: Reader, tmp_path: Path
) -> None:
    for number in (int, float):
        pd.DataFrame({"x": [number(0), number(1)]}).to_parquet(tmp_path / "data.parquet")
        spec = DataSpec(uri="data.parquet", target="x", columns={"x": "category"})
        from_csv = read_csv("x\n0\n1\n", columns={"x": "category"})
        pd.testing.assert_frame_equal(read(spec, tmp_path), from_csv)


def test_declared_missing_values_are_missing(read_csv: Reader) -> None:
    frame = read_csv("x,y\n1,a\n?,b\n-999,?\n", missing_values=["?", "-999"])
    assert frame["x"].isna().tolist() == [False, True, True]
    assert frame["y"].isna().tolist() == [False, False, True]


def test_integers_beyond_64_bits_become_floats(read_csv: Reader) -> None:
    assert read_csv("x\n99999999999999999999\n1\n")["x"].tolist() == [1e20, 1.0]


def test_times_with_offsets_are_converted_to_utc(read_csv: Reader) -> None:
    frame = read_csv("x\n2024-01-01T02:00:00+02:00\n2024-01-01T00:00:00Z\n2024-01-01\n")
    assert frame["x"].nunique() == 1


def test_dates_that_do_not_exist_stay_text(read_csv: Reader) -> None:
    assert schema_of(read_csv("x\n2024-02-31\n9999-12-31\n")) == {"x": "category"}


def test_hexadecimal_codes_stay_text(read_csv: Reader) -> None:
    assert schema_of(read_csv("x\n0x10\n0x11\n")) == {"x": "category"}


def test_values_may_hold_line_breaks_quotes_and_a_byte_order_mark(read_csv: Reader) -> None:
    frame = read_csv(b'\xef\xbb\xbf x ,y\r\n1,"two\r\nlines, ""quoted"""\r\n')
    assert frame.columns.tolist() == ["x", "y"]
    assert frame["y"].tolist() == ['two\r\nlines, "quoted"']


def test_a_nameless_column_gets_a_name(read_csv: Reader) -> None:
    assert read_csv(",x\n0,1\n1,2\n").columns.tolist() == ["unnamed_0", "x"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["data.csv", "empty"]),
        (b"\n \n", ["data.csv", "empty"]),
        (b"x,y\n", ["data.csv", "no rows"]),
        (b"x,y", ["data.csv", "no rows"]),
        (b"x,x\n1,2\n", ["more than one column", "x"]),
        (b"x;y\n1;2\n", ["';'", "comma"]),
        (b"x\ty\n1\t2\n", ["comma"]),
        (b"x,y\n1,2\n1\n", ["row 1", "1 values", "header has 2"]),
        (b"x,y\n1,2\n1,2,3\n", ["row 1", "3 values", "double quotes"]),
        (b'x,y\n1,"2\n3,4\n', ["double quote", "never closed"]),
        (b"x,y\n1,a\n2,\xe9\n", ["UTF-8", "line 3", "0xe9", "save"]),
        ("x,y\n1,2\n".encode("utf-16"), ["UTF-8", "line 1", "save"]),
        (b"PK\x03\x04....", ["zip"]),
        (pickle.dumps({"x": 1}), ["pickle"]),
        (b"PAR1....PAR1", ["Parquet"]),
        (gzip.compress(b"x\n1\n", mtime=0), ["gzip", ".gz"]),
        (b"x\n1\n2\nold\n", ["column x", "2 numbers", "'old' in row 2", "data.missing_values"]),
        (b"x\n1\ninf\n", ["column x", "infinite", "row 1"]),
        (b"x\n1\n2\n" + b"y" * 10_000, ["2 numbers", "yyy\u2026' in row 2"]),
        (b"x\n1\n1e999\n", ["column x", "infinite", "row 1"]),
        (b"x\n1\n-1e151\n", ["column x", "beyond 1e+150", "'-1e+151' in row 1"]),
        (b"y\n1\n", ["data.target", "no column x", "y"]),
    ],
)
def test_a_broken_csv_file_is_explained(content: bytes, words: list[str], read_csv: Reader) -> None:
    with pytest.raises(DataError) as error:
        read_csv(content)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("kind", "bad"), [("number", "abc"), ("boolean", "maybe"), ("datetime", "31.01.2024")]
)
def test_a_value_that_is_not_of_its_declared_type_is_named(
    kind: str, bad: str, read_csv: Reader
) -> None:
    with pytest.raises(DataError, match=f"column y is not .* in 1 of 3 rows.*{bad}.* in row 1"):
        read_csv(f"x,y\n1,\n2,{bad}\n3,\n", columns={"y": kind})


def test_a_declared_time_out_of_range_is_named(read_csv: Reader) -> None:
    with pytest.raises(DataError, match=r"9999-12-31.* in row 1"):
        read_csv("x\n2024-01-31\n9999-12-31\n", columns={"x": "datetime"})


def test_every_column_that_is_not_there_is_named_with_the_nearest_one(read_csv: Reader) -> None:
    with pytest.raises(DataError) as error:
        read_csv(
            "tenure,x\n1,2\n",
            columns={"tenur": "number"},
            drop=["id"],
            checks=DataChecks(unique=["u"], not_null=["n"], between={"b": (0, 1)}),
        )
    message = str(error.value)
    assert "data.columns" in message
    assert "did you mean 'tenure'" in message
    for field in ("data.drop", "checks.unique", "checks.not_null", "checks.between"):
        assert field in message


def test_compressed_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"x\n1\n"))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"x": 1}\n'))
    for uri in ("a.csv.gz", "a.jsonl.gz"):
        assert read(DataSpec(uri=uri, target="x"), tmp_path)["x"].tolist() == [1]


def test_a_truncated_compressed_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"x\n1\n")[:-4])
    with pytest.raises(DataError, match=r"a\.csv\.gz is not a complete gzip file"):
        read(DataSpec(uri="a.csv.gz", target="x"), tmp_path)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (['{"x": 1}', '{"x": '], ["line 2", "not JSON"]),
        (['{"x": 1}', "[1]"], ["line 2", "object"]),
        (['{"x": [1]}'], ["line 1", "column x", "nested"]),
        (['{"x": {"a": 1}}'], ["line 1", "column x", "nested"]),
        (['{"x": 1, "x": 2}'], ["line 1", "x"]),
        (['{"x": 1}', '{"x": 2}', '{"x": "a"}'], ["2 numbers", "'a' in row 2"]),
        (['{"x": Infinity}'], ["infinite", "row 0"]),
        (['{"x": ' + "9" * 5000 + "}"], ["line 1"]),
        (["[" * 100_000], ["line 1"]),
        (['{"x": "\\ud800"}'], ["surrogate"]),
    ],
)
def test_a_broken_jsonl_file_is_explained(
    lines: list[str], words: list[str], tmp_path: Path
) -> None:
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError) as error:
        read(DataSpec(uri="data.jsonl", target="x"), tmp_path)
    for word in ["data.jsonl", *words]:
        assert word in str(error.value)


def test_jsonl_values_keep_their_types(tmp_path: Path) -> None:
    rows = [
        {"x": 1, "y": 2.5, "flag": True, "code": "01", "day": "2024-01-31", "big": 10**30},
        {"x": 2, "y": 3, "flag": None, "code": "02", "day": None, "big": 1},
    ]
    text = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "data.jsonl").write_text(text)
    frame = read(DataSpec(uri="data.jsonl", target="x"), tmp_path)
    assert frame.dtypes.astype(str).to_dict() == {
        "x": "int64",
        "y": "float64",
        "flag": "boolean",
        "code": "category",
        "day": "datetime64[ns]",
        "big": "float64",
    }


def test_parquet_types_become_the_five_types(tmp_path: Path) -> None:
    table = pa.table(
        {
            "x": pa.array([1, 2], pa.uint8()),
            "small": pa.array([0.5, None], pa.float32()),
            "price": pa.array([1, 2], pa.decimal128(9, 2)),
            "huge": pa.array([2**64 - 1, 1], pa.uint64()),
            "flag": pa.array([True, None]),
            "day": pa.array([0, 1], pa.date32()),
            "at": pa.array([0, None], pa.timestamp("ms", "Europe/Berlin")),
            "color": pa.array(["red", "blue"]).dictionary_encode(),
            "code": pa.array(["01", "02"]),
            "view": pa.array(["a", None], pa.string_view()),
            "nothing": pa.nulls(2),
        }
    )
    pq.write_table(table, tmp_path / "data.parquet")
    frame = read(DataSpec(uri="data.parquet", target="x"), tmp_path)
    assert frame.dtypes.astype(str).to_dict() == {
        "x": "int64",
        "small": "float64",
        "price": "float64",
        "huge": "float64",
        "flag": "boolean",
        "day": "datetime64[ns]",
        "at": "datetime64[ns]",
        "color": "category",
        "code": "category",
        "view": "category",
        "nothing": "float64",
    }


def test_a_frame_survives_parquet_exactly(read_csv: Reader, tmp_path: Path) -> None:
    names = "\n".join(f"{row},{row / 7},,2024-01-31,t{row},a" for row in range(60))
    frame = read_csv(f"x,y,flag,day,free,color\n1,,true,,,\n2,1.5,false,,,b\n{names}\n")
    assert set(schema_of(frame).values()) == {"number", "boolean", "datetime", "text", "category"}
    for rows in (frame, frame.iloc[[5, 3, 40]]):
        rows.to_parquet(tmp_path / "stored.parquet")
        stored = ParquetFile(tmp_path / "stored.parquet").read().to_pandas()
        pd.testing.assert_frame_equal(stored, rows, check_exact=True)


def test_the_nameless_index_of_pandas_is_no_column(tmp_path: Path) -> None:
    pd.DataFrame({"x": [1, 2]}, index=[7, 8]).to_parquet(tmp_path / "data.parquet")
    frame = read(DataSpec(uri="data.parquet", target="x"), tmp_path)
    assert frame.columns.tolist() == ["x"]
    assert frame.index.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"x,y\n1,2\n", ["complete Parquet file"]),
        (b"PAR1" + b"\0" * 50, ["complete Parquet file"]),
        (pickle.dumps([1]), ["pickle"]),
    ],
)
def test_what_is_no_parquet_file_is_refused(
    content: bytes, words: list[str], tmp_path: Path
) -> None:
    (tmp_path / "data.parquet").write_bytes(content)
    with pytest.raises(DataError) as error:
        read(DataSpec(uri="data.parquet", target="x"), tmp_path)
    for word in ["data.parquet", *words]:
        assert word in str(error.value)


def latin_1_text() -> bytes:
    """A Parquet file with text that its writer has not made UTF-8."""
    sink = io.BytesIO()
    pq.write_table(pa.table({"x": pa.array([b"a", "é".encode("latin-1")]).view(pa.string())}), sink)
    return sink.getvalue()


def latin_1_name() -> bytes:
    """The same with the name of a column."""
    sink = io.BytesIO()
    pq.write_table(pa.table({"x": [1], "é": [2]}), sink, store_schema=False)
    return sink.getvalue().replace("é".encode(), "é ".encode("latin-1"))


@pytest.mark.parametrize("content", [latin_1_text(), latin_1_name()], ids=["text", "name"])
def test_parquet_text_that_is_not_utf_8_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "data.parquet").write_bytes(content)
    with pytest.raises(
        DataError, match=r"data\.parquet is not a complete Parquet file: .*(?i:utf)"
    ):
        read(DataSpec(uri="data.parquet", target="x"), tmp_path)


@pytest.mark.parametrize(
    "column",
    [pa.array([[1]]), pa.array([{"a": 1}]), pa.array([b"x"]), pa.array([1], pa.time64("us"))],
)
def test_a_parquet_column_of_another_type_is_named(column: pa.Array, tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1], "odd": column}), tmp_path / "data.parquet")
    with pytest.raises(DataError, match=r"data\.parquet: column odd is of the type"):
        read(DataSpec(uri="data.parquet", target="x"), tmp_path)


def test_a_dropped_column_of_another_type_does_not_stop_a_pipeline(tmp_path: Path) -> None:
    table = pa.table({"x": [1, 2], "vector": [[1], [2]], "kept": ["a", "b"]})
    pq.write_table(table, tmp_path / "data.parquet")
    data = DataSpec(uri="data.parquet", target="x", drop=["vector", "kept"])
    assert list(read(data, tmp_path)) == ["x", "kept"]
    checked = data.model_copy(update={"checks": DataChecks(not_null=["vector"])})
    with pytest.raises(DataError, match="vector is of the type list"):
        read(checked, tmp_path)


def test_a_dropped_column_may_mix_numbers_and_text(read_csv: Reader) -> None:
    assert list(read_csv("x,id\n1,1\n2,a\n3,3\n", drop=["id"])) == ["x"]


def test_a_column_may_have_the_name_of_the_index(read_csv: Reader, tmp_path: Path) -> None:
    frame = read_csv("x,row,index\n1,7,a\n2,8,b\n")
    assert frame["row"].tolist() == [7, 8]
    assert frame.index.name == "row_"


def test_the_files_of_a_glob_are_read_in_sorted_order(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text("y,x\nbeta,3\n")
    (tmp_path / "a.csv").write_text("x,y\n1.5,alpha\n")
    frame = read(DataSpec(uri="*.csv", target="x"), tmp_path)
    assert frame["x"].tolist() == [1.5, 3.0]
    assert frame["y"].tolist() == ["alpha", "beta"]
    assert frame.index.tolist() == [0, 1]


def test_a_bad_value_is_located_in_its_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x\n1\n2\n")
    (tmp_path / "b.csv").write_text("x\n3\nfour\n")
    with pytest.raises(DataError, match=r"'four' in row 3 \(row 1 of .*b\.csv\)"):
        read(DataSpec(uri="*.csv", target="x"), tmp_path)


def test_files_with_different_columns_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    (tmp_path / "b.csv").write_text("x,z\n1,2\n")
    with pytest.raises(DataError, match=r"b\.csv does not fit .*a\.csv: only one of them has y, z"):
        read(DataSpec(uri="*.csv", target="x"), tmp_path)


def test_files_with_different_types_are_named(tmp_path: Path) -> None:
    for name, values in {"a": [None], "b": [1], "c": [2.5], "d": ["text"]}.items():
        pq.write_table(pa.table({"x": values}), tmp_path / f"{name}.parquet")
    assert read(DataSpec(uri="[a-c].parquet", target="x"), tmp_path)["x"].tolist()[1:] == [1, 2.5]
    with pytest.raises(DataError, match=r"d\.parquet does not fit .*a\.parquet: .*x"):
        read(DataSpec(uri="*.parquet", target="x"), tmp_path)


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("data.csvv.csv", ["data.csvv.csv", "does not exist", "did you mean 'data.csv'"]),
        ("nowhere/data.csv", ["no folder", "nowhere"]),
        ("none*.csv", ["no file matches", "none*.csv"]),
        ("folder.csv", ["folder.csv", "is a folder"]),
    ],
)
def test_a_missing_source_is_explained(uri: str, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("x\n1\n")
    (tmp_path / "folder.csv").mkdir()
    for ask in (read, identity):
        with pytest.raises(DataError) as error:
            ask(DataSpec(uri=uri, target="x"), tmp_path)
        for word in ["data.uri", *words]:
            assert word in str(error.value)


def test_a_file_that_may_not_be_read_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data.csv").write_text("x\n1\n")

    def refuse(*args: object) -> None:  # root may read any file, whatever its mode
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("io.open", refuse)
    with pytest.raises(DataError, match=r"data\.csv may not be read: permission denied"):
        read(DataSpec(uri="data.csv", target="x"), tmp_path)


@pytest.mark.parametrize(
    ("name", "target", "rows", "kind"),
    [
        ("iris", "species", 150, "category"),
        ("wine", "target", 178, "category"),
        ("breast_cancer", "target", 569, "category"),
        ("diabetes", "target", 442, "number"),
        ("digits", "target", 1797, "number"),
    ],
)
def test_bundled_data_sets_are_read(
    name: str, target: str, rows: int, kind: str, tmp_path: Path
) -> None:
    frame = read(DataSpec(uri=f"sklearn://{name}", target=target), tmp_path)
    assert len(frame) == rows
    assert schema_of(frame)[target] == kind
    assert all(column.isidentifier() and column.islower() for column in frame)


def test_iris_has_the_documented_columns(tmp_path: Path) -> None:
    frame = read(DataSpec(uri="sklearn://iris", target="species"), tmp_path)
    measures = ["sepal_length", "sepal_width", "petal_length", "petal_width"]
    assert frame.columns.tolist() == [*measures, "species"]
    assert frame["species"].cat.categories.tolist() == ["setosa", "versicolor", "virginica"]


def test_the_churn_data_is_read_with_its_blank_charges_missing() -> None:
    frame = read(DataSpec(uri=CHURN.name, target="churn"), CHURN.parent)
    assert len(frame) == 7043
    assert frame["total_charges"].dtype == np.float64
    assert frame["total_charges"].isna().sum() == 11


# ---------------------------------------------------------------------------------- identity ----


def test_the_identity_follows_content_and_names_only(tmp_path: Path) -> None:
    spec = DataSpec(uri="*.csv", target="x")
    (tmp_path / "a.csv").write_text("x\n1\n")
    (tmp_path / "b.csv").write_text("x\n2\n")
    first = identity(spec, tmp_path)
    assert len(first) == 16
    os.utime(tmp_path / "a.csv", (0, 0))
    assert identity(spec, tmp_path) == first
    (tmp_path / "a.csv").write_text("x\n2\n")
    (tmp_path / "b.csv").write_text("x\n1\n")
    assert identity(spec, tmp_path) != first


def test_the_identity_does_not_depend_on_where_the_folder_is(tmp_path: Path) -> None:
    spec = DataSpec(uri="*.csv", target="x")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.csv").write_text("x\n1\n")
    assert identity(spec, tmp_path / "one") == identity(spec, tmp_path / "two")


def test_bundled_sets_have_an_identity_each(tmp_path: Path) -> None:
    names = ("iris", "wine")
    specs = [DataSpec(uri=f"sklearn://{name}", target="x") for name in names]
    assert len({identity(spec, tmp_path) for spec in specs}) == 2


def test_an_identity_is_found_without_heavy_imports(tmp_path: Path) -> None:
    import subprocess
    import sys

    (tmp_path / "a.csv").write_text("x\n1\n")
    code = (
        "import sys; from pathlib import Path\n"
        "from mlops_assets.ml.read import identity, read\n"
        "from mlops_assets.spec import DataSpec\n"
        "identity(DataSpec(uri='a.csv', target='x'), Path('.'))\n"
        "identity(DataSpec(uri='sklearn://iris', target='x'), Path('.'))\n"
        "heavy = {'pandas', 'numpy', 'sklearn', 'pyarrow', 'fsspec', 'obstore'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


# ------------------------------------------------------------------------------ remote files ----


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    """Start an S3-compatible server."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Fill a bucket with two csv files; gives the options of its client."""
    import boto3

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    client = boto3.client("s3", endpoint_url=s3_url, region_name="us-east-1")
    client.create_bucket(Bucket="inbox")
    client.put_object(Bucket="inbox", Key="in/a b.csv", Body=b"x\n1\n")
    client.put_object(Bucket="inbox", Key="in/c.csv", Body=b"x\n2\n")
    return {"endpoint": s3_url}


def test_objects_of_a_bucket_are_read(bucket: dict[str, str], tmp_path: Path) -> None:
    found = {"in/*.csv": [1, 2], "in/a b.csv": [1], "in/?.csv": [2], "in/**/*.csv": [1, 2]}
    for path, values in found.items():
        spec = DataSpec(uri=f"s3://inbox/{path}", target="x")
        assert read(spec, tmp_path, bucket)["x"].tolist() == values


def test_the_identity_of_objects_follows_their_content(
    bucket: dict[str, str], tmp_path: Path
) -> None:
    import boto3

    client = boto3.client("s3", endpoint_url=bucket["endpoint"], region_name="us-east-1")
    spec = DataSpec(uri="s3://inbox/new/*.csv", target="x")
    client.put_object(Bucket="inbox", Key="new/a.csv", Body=b"x\n1\n")
    first = identity(spec, tmp_path, bucket)
    client.put_object(Bucket="inbox", Key="new/a.csv", Body=b"x\n1\n")
    assert identity(spec, tmp_path, bucket) == first
    client.put_object(Bucket="inbox", Key="new/a.csv", Body=b"x\n2\n")
    assert identity(spec, tmp_path, bucket) != first


def test_missing_credentials_are_explained(s3_url: str, tmp_path: Path) -> None:
    options = {"endpoint": s3_url, "metadata_endpoint": "http://127.0.0.1:9"}
    with pytest.raises(DataError, match="no credentials"):
        read(DataSpec(uri="s3://inbox/a.csv", target="x"), tmp_path, options)


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("s3://inbox/none.csv", ["s3://inbox/none.csv", "does not exist"]),
        ("s3://inbox/none/*.csv", ["no file matches s3://inbox/none/*.csv"]),
        ("s3://nobucket/*.csv", ["no such bucket"]),
        ("s3:///a.csv", ["names no bucket"]),
    ],
)
def test_a_missing_object_is_explained(
    uri: str, words: list[str], bucket: dict[str, str], tmp_path: Path
) -> None:
    for ask in (read, identity):
        with pytest.raises(DataError) as error:
            ask(DataSpec(uri=uri, target="x"), tmp_path, bucket)
        for word in words:
            assert word in str(error.value)


def test_a_file_is_read_over_http(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("x\n1\n")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        spec = DataSpec(uri=f"http://127.0.0.1:{server.server_port}/data.csv", target="x")
        assert read(spec, tmp_path)["x"].tolist() == [1]
        assert identity(spec, tmp_path) == identity(spec, tmp_path)
        with pytest.raises(DataError, match="does not exist"):
            read(spec.model_copy(update={"uri": spec.uri.replace("data", "other")}), tmp_path)
        server.shutdown()


def test_a_named_host_with_a_port_is_no_scheme(tmp_path: Path) -> None:
    with http.server.ThreadingHTTPServer(("localhost", 0), _NotFound) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        uri = f"http://localhost:{server.server_port}/data.csv"
        with pytest.raises(DataError, match=f"{uri} does not exist"):
            read(DataSpec(uri=uri, target="x"), tmp_path)
        server.shutdown()


def test_a_server_that_does_not_answer_may_do_so_later(tmp_path: Path) -> None:
    uri = "http://localhost:1/data.csv"
    with pytest.raises(OSError, match=rf"^data\.uri: {uri}: .*HTTP error.*$") as error:
        read(DataSpec(uri=uri, target="x"), tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [
        (404, DataError, "exist"),
        (401, DataError, "read"),
        (403, DataError, "read"),
        (503, OSError, "503"),
    ],
)
def test_only_an_answer_that_may_change_is_worth_asking_again(
    tmp_path: Path, status: int, kind: type[Exception], said: str
) -> None:
    class Answers(_NotFound):
        def do_GET(self) -> None:
            self.send_error(status)

        do_HEAD = do_GET

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        # with a query it is fsspec that asks, and calls whatever it is answered a missing file
        uri = f"http://127.0.0.1:{server.server_port}/data.csv?version=1"
        with pytest.raises(kind, match=said):
            identity(DataSpec(uri=uri, target="x"), tmp_path)
        server.shutdown()


class _NotFound(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *args: object) -> None:
        pass


def test_any_file_system_of_fsspec_is_read(tmp_path: Path) -> None:
    import fsspec

    fsspec.filesystem("memory").pipe_file("/ml/in/a.csv", b"x\n1\n")
    assert read(DataSpec(uri="memory://ml/in/*.csv", target="x"), tmp_path)["x"].tolist() == [1]


# --------------------------------------------------------------------------------- arbitrary ----


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the examples of a property share."""
    return tmp_path_factory.mktemp("scratch")


_cells = st.one_of(
    st.text(max_size=5),
    st.sampled_from(["1", "-2.5", "true", "NA", "", " ", '"', "inf", "2024-01-31", "0x1", "1e999"]),
)
_csv_texts = st.one_of(
    st.text(max_size=40),
    st.lists(st.lists(_cells, min_size=1, max_size=3), min_size=1, max_size=5).map(
        lambda rows: "x,y,z\n" + "\n".join(",".join(row) for row in rows)
    ),
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(
    text=_csv_texts,
    kind=st.sampled_from(["number", "category", "boolean", "datetime", "text", None]),
)
@example(text="x\n-0", kind="number")
@example(text="x\n0000-00-00", kind=None)
def test_any_text_is_read_or_refused_with_a_data_error(
    text: str, kind: str | None, scratch: Path
) -> None:
    (scratch / "data.csv").write_bytes(text.encode("utf-8", "surrogatepass"))
    columns = {} if kind is None else {"x": kind}
    try:
        frame = read(DataSpec(uri="data.csv", target="x", columns=columns), scratch)
    except DataError:
        pass
    else:
        assert kind is None or schema_of(frame)["x"] == kind
        assert len(frame) > 0


_json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=4,
)


@settings(max_examples=100)
@given(
    rows=st.lists(st.dictionaries(st.sampled_from(["x", "y", "\u2028"]), _json_values), max_size=4)
)
def test_any_json_lines_are_read_or_refused_with_a_data_error(
    rows: list[dict[str, object]], scratch: Path
) -> None:
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (scratch / "data.jsonl").write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        frame = read(DataSpec(uri="data.jsonl", target="x"), scratch)
    except DataError:
        pass
    else:
        assert len(frame) == len(rows)


@settings(max_examples=60)
@given(
    content=st.binary(max_size=60), suffix=st.sampled_from(["parquet", "csv.gz", "jsonl", "csv"])
)
def test_any_bytes_are_read_or_refused_with_a_data_error(
    content: bytes, suffix: str, scratch: Path
) -> None:
    (scratch / f"data.{suffix}").write_bytes(content)
    with suppress(DataError):
        assert len(read(DataSpec(uri=f"data.{suffix}", target="x"), scratch)) > 0
