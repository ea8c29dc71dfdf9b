"""Predictions of files: the model's own, in every format; what is refused, and where."""

from __future__ import annotations

import gzip
import io
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlops_assets.errors import DataError
from mlops_assets.ml import batches, score
from mlops_assets.ml.inbox import files_of_day
from mlops_assets.ml.model import TrainedModel
from mlops_assets.ml.read import read
from mlops_assets.ml.score import Tally, probability_columns, score_batches
from mlops_assets.ml.train import train
from mlops_assets.spec import DataSpec, ModelSpec
from mlops_assets_tests.ml.test_read import latin_1_name, latin_1_text
from mlops_assets_tests.store.conftest import BUCKET, s3_client

DAY = "2026-01-05"
TREE = ModelSpec(
    estimator="sklearn.tree.DecisionTreeClassifier", params={"max_depth": 4, "random_state": 0}
)
TYPES = {
    "size": "number",
    "color": "category",
    "flag": "boolean",
    "seen": "datetime",
}
DATA = DataSpec(uri="train.csv", target="kind", missing_values=["?"])


def table(rows: int) -> pd.DataFrame:
    random = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "size": random.normal(size=rows).round(3),
            "color": random.choice(["red", "green", "blue"], rows),
            "flag": random.random(rows) < 0.5,
            "seen": pd.Timestamp("2026-01-01") + pd.to_timedelta(random.integers(0, 90, rows), "D"),
        }
    )
    frame.loc[::7, "size"] = np.nan
    return frame


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    folder = tmp_path_factory.mktemp("train")
    frame = table(200)
    frame["kind"] = np.where(
        (frame["size"] > 0) ^ frame["flag"] ^ (frame["seen"] > "2026-02-15"), "a", frame["color"]
    )
    frame.to_csv(folder / "train.csv", index=False)
    return train(read(DATA, folder), TREE, target="kind")


def predict(
    model: TrainedModel, folder: Path, files: dict[str, bytes], data: DataSpec = DATA, **more: Any
) -> pd.DataFrame:
    """Score files of one day, given by their names and contents."""
    inbox = folder / DAY
    inbox.mkdir(exist_ok=True)
    for path in inbox.iterdir():
        path.unlink()
    for name, content in files.items():
        (inbox / name).write_bytes(content)
    suffix = next(iter(files)).partition(".")[2]
    found = files_of_day(f"{{date}}/*.{suffix}", folder, DAY)
    options = {"model_version": "v1", "known": [data.target], **more}
    return score_batches(model, found, data, **options).read_all().to_pandas()


def as_csv(frame: pd.DataFrame) -> bytes:
    return frame.to_csv(index=False).encode()


def as_jsonl(frame: pd.DataFrame) -> bytes:
    return frame.to_json(orient="records", lines=True, date_format="iso").encode()


def as_parquet(frame: pd.DataFrame) -> bytes:
    sink = io.BytesIO()
    frame.to_parquet(sink, row_group_size=37)
    return sink.getvalue()


FORMATS: dict[str, Callable[[pd.DataFrame], bytes]] = {
    "csv": as_csv,
    "csv.gz": lambda frame: gzip.compress(as_csv(frame)),
    "jsonl": as_jsonl,
    "jsonl.gz": lambda frame: gzip.compress(as_jsonl(frame)),
    "parquet": as_parquet,
}


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_is_scored_as_the_model_scores_its_own_data(
    model: TrainedModel, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "BATCH_ROWS", 40)
    monkeypatch.setattr(batches, "_CSV_BLOCK", 2000)
    frame = table(101)
    content = FORMATS[suffix](frame)
    tally = Tally()
    found = predict(model, tmp_path, {f"a.{suffix}": content, f"b.{suffix}": content}, tally=tally)

    expected = model.predict(frame.astype({"color": "category"}))
    shares = model.predict_proba(frame)
    assert found["prediction"].tolist() == expected.tolist() * 2
    for label in ("a", "blue", "green", "red"):
        assert found[f"probability_{label}"].tolist() == shares[label].tolist() * 2
    assert (
        found["source_file"].tolist() == [f"{DAY}/a.{suffix}"] * 101 + [f"{DAY}/b.{suffix}"] * 101
    )
    assert found["row"].tolist() == [*range(101)] * 2
    assert set(found["model_version"]) == {"v1"}
    assert tally.rows == 202
    assert tally.classes == found["prediction"].value_counts().to_dict()


NUMBERS = ["1", "-2.5", "+3", " 4 ", "", "NA", "?", "1e3", "9007199254740993", ".5", "7."]
COLORS = ["red", " green ", "", "?", "violet", "é", '"a ""quoted"", one"', "1"]
FLAGS = ["true", "False", "", "yes", "0", "?"]
TIMES = ["2026-01-31", "2026-01-31T12:00:00Z", "2026-01-31 12:00:00+02:00", "", "?"]
ROWS = st.lists(
    st.tuples(*(st.sampled_from(values) for values in (NUMBERS, COLORS, FLAGS, TIMES))),
    min_size=1,
    max_size=12,
)


@given(rows=ROWS)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_csv_scores_exactly_as_it_would_have_been_trained_on(
    model: TrainedModel, tmp_path: Path, rows: list[tuple[str, ...]]
) -> None:
    text = "".join(",".join(row) + "\n" for row in [("size", "color", "flag", "seen"), *rows])
    found = predict(model, tmp_path, {"a.csv": text.encode()})

    declared = DataSpec(uri="same.csv", target="a", columns=TYPES, missing_values=["?"])
    (tmp_path / "same.csv").write_text(
        "\n".join(
            f"{line},{'a' if number == 0 else 1}" for number, line in enumerate(text.splitlines())
        )
    )
    expected = read(declared, tmp_path)
    assert found["prediction"].tolist() == model.predict(expected).tolist()
    assert found["probability_a"].tolist() == model.predict_proba(expected)["a"].tolist()


# --- what is refused ----------------------------------------------------------------------------

HEADER = "size,color,flag,seen\n"


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"a.csv": "size,color,flag\n1,red,true\n"}, "a.csv lacks the column seen"),
        (
            {"a.csv": "size,colour,flag,seen\n"},
            r"lacks the column color \(did you mean 'colour'\?\)",
        ),
        (
            {"a.csv": HEADER + "1,red,true,\n", "b.csv": "size,color,flag\n"},
            "b.csv lacks the column seen",
        ),
        ({"a.csv": "size,color,flag,seen,x\n1,red,true,,1\n"}, "not trained on: x; leave them"),
        ({"a.csv": HEADER + "1,red,true,\nx,red,true,\n"}, "size is not a number .*'x' in row 1"),
        ({"a.csv": HEADER + "inf,red,true,\n"}, "size is infinite"),
        ({"a.csv": HEADER + "1,red,maybe,\n"}, "flag is not true or false .*'maybe' in row 0"),
        ({"a.csv": HEADER + "1,red,true,soon\n"}, "seen is not a time .*'soon' in row 0"),
        ({"a.csv": HEADER}, "there is no row in .*a.csv"),
        ({"a.csv": HEADER.rstrip()}, "there is no row in .*a.csv"),
        (
            {"a.jsonl": '{"size": 1, "color": "red", "flag": true}\n'},
            "a.jsonl lacks the column seen",
        ),
        ({"a.jsonl": '{"size": "1", "color": "a", "flag": true, "seen": null}\n'}, "size was of"),
        ({"a.jsonl": '{"size": 1, "new": 1}\n'}, "a.jsonl has columns .* not trained on: new"),
        ({"a.jsonl": '{"size": 1\n'}, "a.jsonl: line 1 is not JSON"),
        ({"a.jsonl": '{"size": 1, "\\ud800": 1}\n'}, "a.jsonl has half of a surrogate pair"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(
    model: TrainedModel, tmp_path: Path, files: dict[str, str], told: str
) -> None:
    with pytest.raises(DataError, match=told):
        predict(model, tmp_path, {name: text.encode() for name, text in files.items()})


@pytest.mark.parametrize(
    ("column", "values", "told"),
    [
        ("size", ["1"], "size was of the type number when .* and is now (large_)?string"),
        ("size", [True], "size was of the type number .* and is now bool"),
        ("color", [1], "color was of the type category .* and is now int64"),
        ("flag", [1], "flag was of the type boolean .* and is now int64"),
        ("seen", [1.5], "seen was of the type datetime .* and is now double"),
        ("size", [[1]], "size was of the type number .* and is now list"),
    ],
)
def test_a_parquet_column_of_another_type_is_refused_before_anything_is_scored(
    model: TrainedModel, tmp_path: Path, column: str, values: list[Any], told: str
) -> None:
    good = table(1)
    bad = good.assign(**{column: values})
    with pytest.raises(DataError, match=f"b.parquet: column {told}"):
        predict(model, tmp_path, {"a.parquet": as_parquet(good), "b.parquet": as_parquet(bad)})


@pytest.mark.parametrize("content", [latin_1_text(), latin_1_name()], ids=["text", "name"])
def test_parquet_text_that_is_not_utf_8_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / DAY).mkdir()
    (tmp_path / DAY / "a.parquet").write_bytes(content)
    (file,) = files_of_day("{date}/*.parquet", tmp_path, DAY)
    with pytest.raises(DataError, match=r"a\.parquet is not a complete Parquet file: .*(?i:utf)"):
        list(batches.batches_of(file, ["x"]))


def test_a_declared_type_is_read_from_whatever_a_file_has(
    model: TrainedModel, tmp_path: Path
) -> None:
    frame = table(30)
    text = frame.assign(size=frame["size"].astype("string"), flag=frame["flag"].astype(int))
    declared = DataSpec(uri="x.csv", target="kind", columns=TYPES)
    found = predict(model, tmp_path, {"a.parquet": as_parquet(text)}, declared)
    assert found["prediction"].tolist() == model.predict(frame).tolist()


def test_dictionaries_nulls_and_smaller_types_are_no_other_type(
    model: TrainedModel, tmp_path: Path
) -> None:
    frame = table(30)
    other = pa.table(
        {
            "seen": pa.nulls(30),
            "size": pa.array(frame["size"].round(), pa.float32()),
            "color": pa.array(frame["color"]).dictionary_encode(),
            "flag": pa.array(frame["flag"]),
        }
    )
    sink = io.BytesIO()
    pq.write_table(other, sink)
    found = predict(model, tmp_path, {"a.parquet": sink.getvalue()})
    same = frame.assign(seen=pd.Series(pd.NaT, range(30)), size=frame["size"].round())
    assert found["prediction"].tolist() == model.predict(same).tolist()


@pytest.mark.parametrize("suffix", ["csv.gz", "parquet", "jsonl.gz"])
def test_a_half_written_file_is_refused_wherever_it_ends(
    model: TrainedModel, tmp_path: Path, suffix: str
) -> None:
    content = FORMATS[suffix](table(300))
    for end in (0, 1, 8, len(content) // 2, len(content) - 1):
        with pytest.raises(DataError, match=rf"a\.{suffix} is (not a complete|empty)"):
            predict(model, tmp_path, {f"a.{suffix}": content[:end]})


@pytest.mark.parametrize("suffix", FORMATS)
@given(content=st.binary(max_size=200))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rubbish_is_refused_in_words(
    model: TrainedModel, tmp_path: Path, suffix: str, content: bytes
) -> None:
    with pytest.raises(DataError, match=rf"a\.{suffix}"):
        predict(model, tmp_path, {f"a.{suffix}": content})


# --- ids and totals -----------------------------------------------------------------------------


def test_ids_keep_their_type_in_parquet_and_are_text_elsewhere(
    model: TrainedModel, tmp_path: Path
) -> None:
    frame = table(3).assign(customer=[7, 8, 7], when="2026-01-05")
    ids = ["customer", "when"]
    for suffix, expected in {"parquet": [7, 8, 7], "csv": ["7", "8", "7"]}.items():
        tally = Tally()
        content = {f"a.{suffix}": FORMATS[suffix](frame)}
        found = predict(model, tmp_path, content, ids=ids, tally=tally)
        assert found["customer"].tolist() == expected
        assert list(found)[:3] == ["customer", "when", "prediction"]
        assert tally.repeated_ids() == 1


def test_ids_of_another_type_in_one_file_are_refused(model: TrainedModel, tmp_path: Path) -> None:
    first, second = table(1).assign(customer=[7]), table(1).assign(customer=["seven"])
    files = {"a.parquet": as_parquet(first), "b.parquet": as_parquet(second)}
    with pytest.raises(DataError, match=r"b\.parquet: column customer of score\.id is of the type"):
        predict(model, tmp_path, files, ids=["customer"])


def test_an_id_may_be_a_feature_but_no_column_of_the_output(
    model: TrainedModel, tmp_path: Path
) -> None:
    content = {"a.csv": as_csv(table(2))}
    assert list(predict(model, tmp_path, content, ids=["color"]))[:2] == ["color", "prediction"]
    content = {"a.csv": as_csv(table(2).assign(probability_a="x"))}
    with pytest.raises(DataError, match="probability_a is a column of the output"):
        predict(model, tmp_path, content, ids=["probability_a"])


@pytest.mark.parametrize("suffix", ["csv.gz", "jsonl", "parquet"])
def test_files_are_streamed_from_a_bucket(
    model: TrainedModel, tmp_path: Path, s3_endpoint: str, suffix: str
) -> None:
    frame, prefix = table(50), uuid.uuid4().hex
    s3_client(s3_endpoint).put_object(
        Bucket=BUCKET, Key=f"{prefix}/{DAY}/a.{suffix}", Body=FORMATS[suffix](frame)
    )
    uri = f"s3://{BUCKET}/{prefix}/{{date}}/*.{suffix}"
    files = files_of_day(uri, tmp_path, DAY, {"endpoint": s3_endpoint})
    found = score_batches(model, files, DATA, model_version="v1").read_all().to_pandas()
    assert found["prediction"].tolist() == model.predict(frame).tolist()


def test_progress_is_told_with_file_rows_and_speed(
    model: TrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score, "_REPORT_SECONDS", -1.0)
    told: list[str] = []
    content = as_csv(table(5))
    predict(model, tmp_path, {"a.csv": content, "b.csv": content}, report=told.append)
    assert [line.partition(" rows scored, ")[0] for line in told] == [
        "file 1 of 2: 5",
        "file 2 of 2: 10",
    ]


def test_of_two_classes_only_the_positive_one_has_a_probability(tmp_path: Path) -> None:
    frame = table(60).assign(kind=lambda frame: frame["flag"])
    two = train(frame.drop(columns=["seen", "flag"]), TREE, target="kind")
    assert probability_columns(two) == {"probability_True": 1}
    found = predict(two, tmp_path, {"a.csv": as_csv(table(5)[["size", "color"]])})
    assert found["prediction"].dtype == bool


def test_numbers_are_summarised_by_their_range_and_mean(tmp_path: Path) -> None:
    frame = table(60)[["flag"]].assign(kind=lambda frame: frame["flag"] * 10.5)
    tree = ModelSpec(estimator="sklearn.tree.DecisionTreeRegressor")
    tally = Tally()
    number = train(frame, tree, target="kind")
    found = predict(number, tmp_path, {"a.csv": b"flag\ntrue\nfalse\n"}, tally=tally)
    assert found["prediction"].tolist() == [10.5, 0.0]
    assert tally.summary() == {"lowest": 0.0, "mean": 5.25, "highest": 10.5}
    assert probability_columns(number) == {}
