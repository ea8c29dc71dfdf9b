"""Any frame is stored exactly or refused; any file is read, trained on and scored, or refused."""

from __future__ import annotations

import gzip
import io
import re
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import event, given
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

from mlops_assets.errors import StoreError, UserError
from mlops_assets.ml.checks import broken_rules, class_balance
from mlops_assets.ml.distribution import Bins
from mlops_assets.ml.evaluate import evaluate
from mlops_assets.ml.inbox import files_of_day
from mlops_assets.ml.model import conform
from mlops_assets.ml.model_card import model_card
from mlops_assets.ml.read import read
from mlops_assets.ml.schema import schema_of
from mlops_assets.ml.score import Tally, score_batches
from mlops_assets.ml.split import overlap, repeated_rows, split
from mlops_assets.ml.task import suited_task
from mlops_assets.ml.train import train
from mlops_assets.spec import DataSpec, PipelineSpec
from mlops_assets.store.codecs import CODECS
from mlops_assets_tests.store.test_codecs import content_of

from .strategies import Dataset, csv_files, datasets, examples, frames, jsonl_files, parquet_files

DAY = "2026-01-05"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the examples of a property share."""
    return tmp_path_factory.mktemp("fuzz")


def there_and_back(frame: pd.DataFrame, folder: Path) -> Any:
    path = folder / "frame.parquet"
    path.write_bytes(content_of(frame))
    return CODECS["parquet"].read(path, None)


@examples(120)
@given(frame=frames())
def test_any_frame_comes_back_exactly_or_is_refused(frame: pd.DataFrame, folder: Path) -> None:
    file = io.BytesIO()
    try:
        CODECS["parquet"].write(frame, file)
    except StoreError as error:
        event(f"refused: {_without_values(error)}")
        return
    event("stored")
    back = there_and_back(frame, folder)
    assert_frame_equal(back, _as_documented(frame), check_exact=True, check_freq=False)
    assert content_of(back) == file.getvalue()


def _as_documented(frame: pd.DataFrame) -> pd.DataFrame:
    """Make None of what is missing among objects, unless all of it is NaN."""
    expected = frame.copy()
    for name in frame.select_dtypes(object):
        missing = frame[name][frame[name].isna()]
        if not all(isinstance(value, float) for value in missing):
            expected[name] = frame[name].where(frame[name].notna(), None)
    return expected


FILES = st.one_of(
    st.tuples(st.just("csv"), csv_files()),
    st.tuples(st.just("csv.gz"), csv_files().map(gzip.compress)),
    st.tuples(st.just("jsonl"), jsonl_files()),
    st.tuples(st.just("parquet"), parquet_files()),
    st.tuples(st.sampled_from(["csv", "csv.gz", "jsonl", "jsonl.gz", "parquet"]), parquet_files()),
)
COLUMNS = st.dictionaries(
    st.sampled_from(["kind", "x"]),
    st.sampled_from(["number", "category", "boolean", "datetime", "text"]),
    max_size=1,
)


@examples(120)
@given(file=FILES, columns=COLUMNS)
def test_any_file_is_a_typed_table_or_a_documented_error(
    file: tuple[str, bytes], columns: dict[str, str], folder: Path
) -> None:
    suffix, content = file
    data = DataSpec(uri=f"source.{suffix}", target="kind", columns=columns)
    (folder / data.uri).write_bytes(content)
    try:
        frame = read(data, folder)
    except UserError as error:
        event(f"refused: {_without_values(error)}")
        return
    event("read")
    assert set(schema_of(frame).values()) <= {"number", "category", "boolean", "datetime", "text"}
    assert_frame_equal(there_and_back(frame, folder), frame, check_exact=True)


@examples(40)
@given(dataset=datasets())
def test_any_table_is_a_model_and_predictions_or_a_documented_error(
    dataset: Dataset, folder: Path
) -> None:
    spec = PipelineSpec(
        name="fuzz",
        folder=folder,
        data={"uri": f"source.{dataset.suffix}", "target": "kind"},
        model={"estimator": dataset.estimator},
        split=dataset.split,
    )
    (folder / spec.data.uri).write_bytes(dataset.to_train)
    (folder / DAY).mkdir(exist_ok=True)
    with warnings.catch_warnings(action="ignore"):
        try:
            trained = _train(spec, folder)
        except UserError as error:
            event(f"not trained: {_without_values(error)}")
            return
        event("trained")
        for content in (dataset.to_train, dataset.to_score):
            (folder / DAY / f"batch.{dataset.suffix}").write_bytes(content)
            try:
                _score(trained, spec, dataset.suffix)
                event("scored")
            except UserError as error:
                event(f"not scored: {_without_values(error)}")


def _without_values(error: UserError) -> str:
    """Return what a message says of all files; fails for one that says nothing."""
    words = re.findall(r"[a-z]{3,}", str(error))
    assert words
    return " ".join(words[:12])


def _train(spec: PipelineSpec, folder: Path) -> Any:
    """Do what the assets of a pipeline do, on the functions below them."""
    frame = read(spec.data, folder)
    broken_rules(frame, spec.data)
    task = suited_task(frame[spec.data.target], spec.model.known_task)
    parts = split(frame, spec.split, target=spec.data.target, task=task)
    assert not overlap(parts, spec.split)
    repeated_rows(parts)
    class_balance(parts.train, spec.data.target)
    drop = [spec.split.group] if spec.split.group else []
    trained = train(parts.train, spec.model, target=spec.data.target, drop=drop)
    content_of(trained)
    evaluation = evaluate(trained, parts.test)
    content_of(evaluation)
    model_card(spec, trained, evaluation)
    features = conform(parts.train, trained.features)
    for name, type_ in trained.features.items():
        bins = Bins.of(features[name], type_)
        assert Bins.from_json(bins.as_json()).count(features[name]).sum() == len(features)
    return trained


def _score(trained: Any, spec: PipelineSpec, suffix: str) -> None:
    files = files_of_day(f"{{date}}/*.{suffix}", spec.folder, DAY)
    known = ["kind", *([spec.split.group] if spec.split.group else [])]
    tally = Tally()
    predictions = score_batches(
        trained, files, spec.data, model_version="v", known=known, tally=tally
    )
    content_of(predictions)
    assert tally.rows
    tally.summary()
