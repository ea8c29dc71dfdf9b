"""What reads damaged files here: the codecs of the store, the readers of sources, pipeline files.

A target has seeds, which are real files, and a function that does with the content of a file what
the product does. Whatever is accepted must also be of use: a frame is stored and comes back, a
model answers, a pipeline can be asked for its assets.
"""

from __future__ import annotations

import functools
import gzip
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import mlops_assets

from .mutations import Mutate, damaged, damaged_gzip, damaged_zip

DAY = "2026-01-05"
SHIPPED = Path(mlops_assets.__file__).parent / "pipelines"


class Target(NamedTuple):
    """Something that reads files."""

    name: str
    seeds: Callable[[], list[bytes]]
    decode: Callable[[bytes, Path], object]
    """Takes the content of a file, and a folder to write it to."""
    mutate: Mutate = damaged
    cases: int = 200
    """How many of them are usual."""


# --- the store's codecs -------------------------------------------------------------------------


def stored(value: Any) -> bytes:
    """Return the bytes that a value is stored as."""
    from mlops_assets.store.codecs import codec_for

    file = io.BytesIO()
    codec_for(value).write(value, file)
    return file.getvalue()


def _read_as(extension: str, *kinds: Any) -> Callable[[bytes, Path], Any]:
    def decode(content: bytes, folder: Path) -> Any:
        from mlops_assets.store.codecs import codec_of_extension

        file = folder / f"artefact.{extension}"
        file.write_bytes(content)
        value = None
        for kind in kinds or (None,):
            value = codec_of_extension(extension).read(file, kind)
            if kind == "batches":
                value = list(value)
        return value

    return decode


def customers(rows: int = 60) -> Any:
    """Return a frame with a column of every type, and a target."""
    import numpy as np
    import pandas as pd

    random = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "age": random.integers(18, 90, rows),
            "size": random.normal(size=rows).round(3),
            "color": random.choice(["red", "green", "blue"], rows),
            "flag": random.random(rows) < 0.5,
            "seen": pd.Timestamp("2026-01-01") + pd.to_timedelta(random.integers(0, 90, rows), "D"),
            "note": [f"a note, with a comma {row}" for row in range(rows)],
        }
    )
    frame.loc[::7, "size"] = np.nan
    frame["kind"] = np.where((frame["age"] > 50) ^ frame["flag"], "a", frame["color"])
    return frame


def _frames() -> list[bytes]:
    import pandas as pd

    frame = customers()
    nested = pd.DataFrame(
        {
            "n": pd.array([1, None, 3], "Int64"),
            "c": pd.Categorical(["b", None, "a"], ["c", "b", "a"], ordered=True),
            "z": pd.to_datetime(["2024-01-01", None, "2024-03-01"]).tz_localize("Europe/Berlin"),
            "kind": ["1", "2", None],
        },
    )
    nested = pd.concat([nested] * 9).set_axis(pd.Index(range(100, 127), name="row"))
    return [
        stored(frame),
        stored(frame.assign(color=frame["color"].astype("category"))),
        stored(nested),
        stored(pd.DataFrame({"x": range(2000), "kind": ["the same text"] * 1999 + ["one"]})),
    ]


@functools.cache
def _model() -> Any:
    """Return a trained model."""
    from mlops_assets.ml.train import train
    from mlops_assets.spec import ModelSpec

    estimator = "sklearn.linear_model.LogisticRegression"
    return train(_typed(), ModelSpec(estimator=estimator), target="kind")


def _typed() -> Any:
    frame = customers()
    return frame.assign(color=frame["color"].astype("category"))


def _models() -> list[bytes]:
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier

    numbers = customers()[["age", "flag"]].astype("float64")
    classes = (numbers["age"] > 50).astype(int)
    return [
        stored(_model()),
        stored(RandomForestClassifier(3, max_depth=3, random_state=0).fit(numbers, classes)),
        stored(HistGradientBoostingClassifier(max_iter=3).fit(numbers, classes)),
    ]


@functools.cache
def _xgboost() -> tuple[Any, Any]:
    import xgboost

    features = customers()[["age", "size"]].astype("float64")
    model = xgboost.XGBClassifier(n_estimators=3, max_depth=3, n_jobs=1)
    return model.fit(features, features["age"] > 50), features


def _boosters() -> list[bytes]:
    return [bytes(_xgboost()[0].get_booster().save_raw("ubj"))]


def _predict_with_booster(content: bytes, _: Path) -> None:
    from mlops_assets.errors import ModelError
    from mlops_assets.store.boosters import load_booster

    model, features = _xgboost()
    model._Booster = load_booster(content)
    try:
        model.predict(features)
    except ValueError as error:  # as `TrainedModel` explains it
        raise ModelError(str(error)) from error


def _jsons() -> list[bytes]:
    return [
        stored({"metrics": {"roc_auc": 0.84, "n": 12}, "kind": "binary", "points": [1, 2.5, None]}),
        stored([]),
        stored("text"),
    ]


def _figures(kind: str) -> Callable[[], list[bytes]]:
    def seeds() -> list[bytes]:
        from matplotlib.figure import Figure

        sink = io.BytesIO()
        Figure(figsize=(1, 1)).savefig(sink, format=kind)
        return [sink.getvalue()]

    return seeds


# --- sources ------------------------------------------------------------------------------------


def _as(suffix: str) -> bytes:
    frame = customers()
    if suffix == "parquet":
        sink = io.BytesIO()
        frame.to_parquet(sink, row_group_size=25)
        return sink.getvalue()
    if suffix.startswith("jsonl"):
        text: str = frame.to_json(orient="records", lines=True, date_format="iso")
    else:
        text = frame.to_csv(index=False)
    return gzip.compress(text.encode()) if suffix.endswith(".gz") else text.encode()


def _sources(suffix: str) -> Callable[[], list[bytes]]:
    def seeds() -> list[bytes]:
        seeds = [_as(suffix)]
        if suffix == "csv":
            seeds += [
                b'x,kind\r\n"a ""quoted"", value\nof two lines",1\r\n,2\r\n' + b"b,1\r\nc,2\r\n" * 9
            ]
        if suffix == "parquet":
            seeds += _frames()
        return seeds

    return seeds


def _train_on(suffix: str) -> Callable[[bytes, Path], Any]:
    """Read a source, check and divide it, and store what came out."""

    def decode(content: bytes, folder: Path) -> Any:
        from mlops_assets.ml.checks import broken_rules
        from mlops_assets.ml.read import read
        from mlops_assets.ml.split import split
        from mlops_assets.spec import DataSpec, SplitSpec

        (folder / f"source.{suffix}").write_bytes(content)
        data = DataSpec(uri=f"source.{suffix}", target="kind")
        frame = read(data, folder)
        broken_rules(frame, data)
        stored(frame)
        return split(frame, SplitSpec(stratify=False), target="kind", task="classification")

    return decode


def _score_with(suffix: str) -> Callable[[bytes, Path], Any]:
    def decode(content: bytes, folder: Path) -> Any:
        from mlops_assets.ml.inbox import files_of_day
        from mlops_assets.ml.score import score_batches
        from mlops_assets.spec import DataSpec

        (folder / DAY).mkdir(exist_ok=True)
        (folder / DAY / f"batch.{suffix}").write_bytes(content)
        files = files_of_day(f"{{date}}/*.{suffix}", folder, DAY)
        data = DataSpec(uri="source.csv", target="kind")
        known = ["kind", "note"]
        return stored(
            score_batches(_model(), files, data, model_version="v", known=known, ids=["note"])
        )

    return decode


def _batches(suffix: str) -> Callable[[], list[bytes]]:
    def seeds() -> list[bytes]:
        _model()
        return [_as(suffix)]

    return seeds


def _way_to_damage(suffix: str) -> Mutate:
    return damaged_gzip if suffix.endswith(".gz") else damaged


# --- pipeline files -----------------------------------------------------------------------------

RICH = b"""\
description: Which customers will leave
data:
  uri: ../data/telco_churn.csv
  target: churn
  positive_class: "Yes"
  columns: {senior_citizen: category}
  drop: [id]
  missing_values: ["?"]
  checks: {unique: [id], not_null: [churn], between: {tenure: [0, 120]}}
split: {test_size: 0.2, seed: 42, by_time: seen}
model:
  estimator: sklearn.linear_model.LogisticRegression
  params: {max_iter: 1000, class_weight: {"Yes": 2, "No": 1}}
  compute: {cpu: 1, memory: 2Gi, gpu: 0}
tune: {trials: 3, space: {C: {low: 0.01, high: 10, log: true}, penalty: [l1, l2]}}
evaluate:
  metrics: [roc_auc, accuracy]
  gates: {roc_auc: ">= 0.80"}
promote: {by: roc_auc, min_improvement: 0.01}
score:
  uri: s3://bucket/inbox/{date}/*.parquet
  schedule: "0 6 * * *"
  id: [customer]
  start: 2026-01-01
train: {schedule: "@daily", timezone: Europe/Berlin, on_new_data: true}
retries: {max: 3, delay: 5s, backoff: exponential, jitter: true}
owners: [team:ml, a@example.org]
"""
STEPS = b"""\
steps:
  fetch:
    command: [curl, -o, data.csv, "https://example.org"]
    compute: {cpu: 2, memory: 512Mi}
    files: [report.py, sql/*.sql]
  train:
    needs: [fetch, other/model]
    image: docker.io/library/busybox:1.37
    command: |
      echo "$FETCH" > out
    env: {A: "1"}
    checks: [rows]
    timeout: 10m
retries: {max: 2, delay: 1m}
"""


PIPELINES = [RICH, STEPS, *(path.read_bytes() for path in sorted(SHIPPED.glob("*.yaml")))]


def _load_pipeline(content: bytes, folder: Path) -> Any:
    from mlops_assets.pipeline_file import load_pipeline

    path = folder / "rubbish.yaml"
    path.write_bytes(content)
    spec = load_pipeline(path)
    return spec.upstreams, spec.made_once, spec.model_dump_json()


TARGETS = {
    target.name: target
    for target in (
        Target("parquet", _frames, _read_as("parquet", None, "table", "batches")),
        Target("json", _jsons, _read_as("json")),
        Target("skops", _models, _read_as("skops"), damaged_zip),
        Target("ubj", _boosters, _predict_with_booster),
        Target("png", _figures("png"), _read_as("png")),
        Target("svg", _figures("svg"), _read_as("svg")),
        *(
            Target(
                f"source.{suffix}", _sources(suffix), _train_on(suffix), _way_to_damage(suffix), 50
            )
            for suffix in ("csv", "csv.gz", "jsonl", "jsonl.gz", "parquet")
        ),
        *(
            Target(
                f"score.{suffix}", _batches(suffix), _score_with(suffix), _way_to_damage(suffix), 50
            )
            for suffix in ("csv", "csv.gz", "jsonl", "jsonl.gz", "parquet")
        ),
        Target("pipeline", PIPELINES.copy, _load_pipeline),
    )
}
