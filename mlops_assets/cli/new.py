"""`mlops new`: a first pipeline file, made from what the data look like."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import yaml
from pydantic import ValidationError

from mlops_assets.errors import DataError, SettingsError
from mlops_assets.ml.model import ProblemKind, problem_kind
from mlops_assets.ml.read import read, schema_of
from mlops_assets.ml.task import infer_task
from mlops_assets.pipeline_file import SUFFIXES, load_pipeline
from mlops_assets.scorers import default_metrics
from mlops_assets.settings import Settings
from mlops_assets.spec import DataSpec, ModelSpec, PipelineSpec

if TYPE_CHECKING:
    import pandas as pd

ESTIMATORS = {
    "classification": "sklearn.ensemble.HistGradientBoostingClassifier",
    "regression": "sklearn.ensemble.HistGradientBoostingRegressor",
}
"""They take missing values and numbers of any scale, and are among the best on tables of all sizes
(Grinsztajn et al., 2022, doi:10.48550/arXiv.2207.08815)."""


def new_pipeline(name: str, uri: str, target: str) -> Path:
    """Write `<name>.yaml` among the pipeline files.

    Parameters
    ----------
    name : str
        The pipeline's name.
    uri : str
        As `data.uri`, except that a relative path is relative to the working directory.
    target : str
        The column to predict.

    Returns
    -------
    Path
        The new file. It is complete, and can be run as it is.

    Raises
    ------
    UserError
        The name is taken or not allowed, or the data cannot be read or have no such column.
    """
    folder = _folder(Settings.from_environment().pipelines)
    for suffix in SUFFIXES:
        if (taken := folder / f"{name}{suffix}").exists():
            raise SettingsError(f"there is a pipeline {name} already: {taken}")
    try:
        data = DataSpec(uri=_as_in_file(uri, folder), target=target)
        # the name, too, is checked before minutes may go into reading the data
        PipelineSpec(name=name, data=data, model=ModelSpec(estimator=ESTIMATORS["classification"]))
    except ValidationError as error:
        raise SettingsError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error
    text = pipeline_text(data, read(data, folder))
    with TemporaryDirectory() as scratch:
        draft = Path(scratch, f"{name}.yaml")
        draft.write_text(text, encoding="utf-8")
        load_pipeline(draft)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.yaml"
    with path.open("x", encoding="utf-8") as file:
        file.write(text)
    return path


def pipeline_text(data: DataSpec, frame: pd.DataFrame) -> str:
    """Return the pipeline file for a raw frame as `read` returns it.

    Raises
    ------
    DataError
        The target has no value or one only, or there is nothing to predict it from.
    """
    target = frame[data.target].dropna()
    if target.empty:
        raise DataError(f"--target: {data.target} has no value in any row")
    task = infer_task(target)
    classes = target.value_counts()
    if len(classes) < 2:
        raise DataError(f"--target: {data.target} has the same value in every row")
    kind = problem_kind(task, list(classes.index))
    metrics = default_metrics(kind)
    rarest = classes.index[-1]
    positive = rarest.item() if hasattr(rarest, "item") else rarest
    ids = [column for column in frame if column != data.target and _is_id(frame[column])]
    if len(ids) + 1 == len(frame.columns):
        told = f" ({', '.join(map(str, ids))} only tells rows apart)" if ids else ""
        raise DataError(f"--data: there is nothing to predict {data.target} from{told}")
    lines = [
        "# Written by `mlops new` from the data: everything may be changed. `mlops schema` prints",
        "# what is allowed.",
        f"description: {_scalar(f'Predicts {data.target}')}",
        "data:",
        f"  uri: {_scalar(data.uri)}",
        f"  target: {_scalar(data.target)}",
        *(
            [f"  positive_class: {_scalar(positive)} # the rarer one: metrics are about it"]
            if kind == "binary"
            else []
        ),
        "  columns: # as they were read; a file that does not fit is refused",
        *(f"    {_scalar(column)}: {type_}" for column, type_ in schema_of(frame).items()),
        *(
            [f"  drop: [{', '.join(map(_scalar, ids))}] # one value for each row: ids, it seems"]
            if ids
            else []
        ),
        *(
            [f"  checks: {{not_null: [{_scalar(data.target)}]}}"]
            if len(target) == len(frame)
            else []
        ),
        f"split: {{test_size: 0.2, seed: 42{_unstratified(kind, classes)}}}",
        "model:",
        f"  task: {task}",
        f"  estimator: {ESTIMATORS[task]}",
        "  params: {}",
        "evaluate:",
        f"  metrics: [{', '.join(metrics)}] # the first one decides on promotion",
        f"  gates: {_gate(kind, len(classes))}",
    ]
    return "\n".join(lines) + "\n"


def _folder(pipelines: str) -> Path:
    """Return the folder of the pipeline files, which may be given as a glob."""
    location = Path(pipelines)
    return location if location.is_dir() or location.suffix not in SUFFIXES else location.parent


def _as_in_file(uri: str, folder: Path) -> str:
    if "://" in uri:
        return uri
    path = Path(uri).expanduser().absolute()
    near = path.is_relative_to(folder.parent)
    return os.path.relpath(path, folder) if near else str(path)


def _is_id(column: pd.Series) -> bool:
    """Say whether a column only tells rows apart."""
    from pandas.api import types

    if len(column) < 20 or not column.is_unique or column.isna().any():
        return False
    if types.is_integer_dtype(column.dtype):
        named = re.search(r"(?i)(^|_)(id|key|number|no|index|row)$|Id$|ID$", str(column.name))
        return bool(named)
    return bool(not types.is_numeric_dtype(column.dtype) and not types.is_datetime64_dtype(column))


def _unstratified(kind: ProblemKind, classes: pd.Series) -> str:
    rare = kind != "regression" and classes.min() < 2
    return ", stratify: false" if rare else ""


def _gate(kind: ProblemKind, classes: int) -> str:
    """Return a gate that any model better than guessing passes, and no other."""
    gates = {
        "binary": '{roc_auc: ">= 0.55"} # guessing has 0.5',
        "multiclass": f'{{balanced_accuracy: ">= {1.1 / classes:.3g}"}} '
        f"# guessing has {1 / classes:.3g}",
        "regression": '{r2: ">= 0.05"} # the mean has 0',
    }
    return f"{gates[kind]}; ask for what is useful"


_PLAIN = r"(\.\./)*[\w/~]([\w./~-]|:(?=\S))*( [\w./~-]+)*"
"""Texts that YAML may read as they are. With a `:`, `-` or `...` elsewhere it may not parse."""


def _scalar(value: object) -> str:
    """Write a value so that YAML reads it as it is."""
    plain = isinstance(value, str) and re.fullmatch(_PLAIN, value, re.ASCII)
    if plain and yaml.safe_load(str(value)) == value:
        return str(value)
    quoted = json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in quoted)
