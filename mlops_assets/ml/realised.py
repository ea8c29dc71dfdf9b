"""How right a model's stored answers turned out to be: joined to labels, and measured.

Nothing is predicted again. What a model is worth on the test set is `evaluate`; where labels come
from is the caller's affair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from mlops_assets.errors import DataError, ModelError
from mlops_assets.ml.drift import Level, worst
from mlops_assets.ml.evaluate import measure
from mlops_assets.ml.files import SourceFile
from mlops_assets.ml.inbox import InboxFile
from mlops_assets.ml.model import TrainedModel, encode
from mlops_assets.ml.read import typed
from mlops_assets.ml.score import PREDICTION, probability_columns
from mlops_assets.ml.tables import source_of
from mlops_assets.spec import ColumnType, DataChecks, DataSpec, DriftSpec
from mlops_assets.wording import nearest

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa

_ONLY_TYPES = {"drop": [], "checks": DataChecks()}
"""In place of what is declared about columns that labels need not have."""


def read_labels(
    files: Sequence[InboxFile], ids: Sequence[str], model: TrainedModel, data: DataSpec
) -> pd.DataFrame:
    """Read the labels of a day.

    Parameters
    ----------
    files
        Of one format; held in memory whole.
    ids
        Columns that tell which row is which; read as text, as they are.
    model
        Whose target is the label.
    data
        What is declared about the data that the model was trained on.

    Returns
    -------
    pandas.DataFrame
        The columns of `ids` and the target.

    Raises
    ------
    DataError
        A file is damaged or lacks a column, or a label is not of the target's type.
    """
    source = source_of(
        [SourceFile(file.name, file.part, partial(_content, file), lambda: "") for file in files]
    )
    types: dict[str, ColumnType] = {**dict.fromkeys(ids, "text"), model.target: _label_type(model)}
    there = source.table.column_names
    for name in types:
        if name not in there:
            raise DataError(f"{source.name} has no column {name}{nearest(name, there)}")
    labels = source._replace(table=source.table.select(list(types)))
    return typed(labels, data.model_copy(update=_ONLY_TYPES | {"columns": types}))


def _content(file: InboxFile) -> bytes:
    with file.open() as content:
        return content.read()


def _label_type(model: TrainedModel) -> ColumnType:
    if model.classes is not None and isinstance(model.classes[0], str):
        return "category"
    return "boolean" if model.classes and isinstance(model.classes[0], bool) else "number"


def realised(
    model: TrainedModel,
    answers: Iterable[pa.RecordBatch],
    labels: pd.DataFrame,
    ids: Sequence[str],
    metrics: Sequence[str],
) -> dict[str, Any]:
    """Measure stored answers on the rows whose labels are known.

    Parameters
    ----------
    model
        What gave the answers.
    answers
        As `score_batches` gives them, with the columns of `ids`. Only those that have a label are
        held in memory.
    labels
        The columns of `ids`, as text, and the target; rows without a target do not count.
    ids
        Columns that tell which row is which; compared as text.
    metrics
        Names of scorers.

    Returns
    -------
    dict
        ``rows`` with both an answer and a label, ``without_label``, ``without_answer``;
        ``metrics`` by name; ``undefined``: why others have no value, by name.

    Raises
    ------
    DataError
        An id is repeated, or a label is none of the classes or no number.
    """
    import numpy as np
    import pyarrow as pa

    known = labels[labels[model.target].notna()]
    index = _index(known[list(ids)])
    if index.has_duplicates:
        raise _repeated("labels", ids, index[index.duplicated()])
    places, chosen, rows = [], [], 0
    for batch in answers:
        place = index.get_indexer(_index(_as_text(batch, ids)))
        places.append(place[place >= 0])
        chosen.append(batch.filter(pa.array(place >= 0)).drop_columns(list(ids)))
        rows += batch.num_rows
    matched = np.concatenate([np.empty(0, dtype="int64"), *places])
    counts = np.bincount(matched, minlength=len(index))
    if (counts > 1).any():
        raise _repeated("predictions", ids, index[counts > 1])
    found = {
        "rows": len(matched),
        "without_label": rows - len(matched),
        "without_answer": len(index) - len(matched),
    }
    if not len(matched):
        return {**found, "metrics": {}, "undefined": {}}
    truth = encode(known[model.target].iloc[matched], model.classes)
    frame = pa.Table.from_batches(chosen).to_pandas()
    return {**found, **_measured(model, frame, truth, metrics)}


def judged(
    found: Mapping[str, Any], at_promotion: Mapping[str, float], spec: DriftSpec
) -> dict[str, Any]:
    """Compare realised metrics with those that the model was promoted for.

    Parameters
    ----------
    found
        What `realised` returned.
    at_promotion
        Metrics by name; all scikit-learn scorers are greater-is-better.
    spec
        By how much a metric may be lower.

    Returns
    -------
    dict
        `found` with ``metrics``: ``now``, ``at_promotion`` and ``loss`` (None where one of them is
        not known) and ``level`` by name; and the worst ``level`` of all. A metric with limits whose
        loss is not known is a "warn", and so are labels of which none has a prediction. On fewer
        than `spec.min_rows` labelled rows no loss is judged.
    """
    metrics = {}
    for name in dict.fromkeys([*found["metrics"], *spec.metrics]):
        now, before = found["metrics"].get(name), at_promotion.get(name)
        loss = None if now is None or before is None else _short(before - now)
        level: Level = "ok"
        if found["rows"] >= spec.min_rows and name in spec.metrics:
            level = "warn" if loss is None else spec.metrics[name].level(loss)
        metrics[name] = {"now": now, "at_promotion": before, "loss": loss, "level": level}
    nothing_fits: Level = "warn" if found["without_answer"] and not found["rows"] else "ok"
    level = worst([*metrics.values(), {"level": nothing_fits}])
    return {**found, "metrics": metrics, "level": level}


class _Stored:
    """A model's pipeline as scorers see it: asked for rows by number, it gives what was stored."""

    def __init__(self, model: TrainedModel, answers: pd.DataFrame) -> None:
        import numpy as np

        self._pipeline = model.pipeline
        self.predict = _lookup("predict", encode(answers[PREDICTION], model.classes))
        if columns := list(probability_columns(model)):
            shares = answers[columns].to_numpy()
            if len(columns) == 1:
                shares = np.column_stack([1 - shares, shares])
            self.predict_proba = _lookup("predict_proba", shares)

    def __getitem__(self, step: int) -> Any:
        return self._pipeline[step]

    def __getattr__(self, name: str) -> Any:
        if name in ("predict_proba", "decision_function"):  # not stored
            raise AttributeError(name)
        return getattr(self._pipeline, name)


def _lookup(name: str, values: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    def lookup(rows: np.ndarray) -> np.ndarray:
        chosen: np.ndarray = values[rows]
        return chosen

    lookup.__name__ = name  # scorers tell probabilities from decisions by it
    return lookup


def _measured(
    model: TrainedModel, answers: pd.DataFrame, truth: Any, metrics: Iterable[str]
) -> dict[str, Any]:
    import numpy as np

    stored = replace(model, pipeline=_Stored(model, answers))
    values: dict[str, float] = {}
    undefined: dict[str, str] = {}
    for name in metrics:
        try:
            values[name] = _short(measure(stored, np.arange(len(truth)), truth, name))
        except DataError:  # one class alone, say
            undefined[name] = f"has no value on these {len(truth)} rows"
        except ModelError:
            undefined[name] = "needs other answers of the model than those that are stored"
    return {"metrics": values, "undefined": undefined}


def _as_text(batch: pa.RecordBatch, columns: Sequence[str]) -> pd.DataFrame:
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = (pc.utf8_trim_whitespace(batch[name].cast(pa.large_string())) for name in columns)
    frame: pd.DataFrame = pa.table(list(texts), names=list(columns)).to_pandas()
    return frame


def _index(ids: pd.DataFrame) -> pd.Index:
    import pandas as pd

    return pd.MultiIndex.from_frame(ids) if ids.shape[1] > 1 else pd.Index(ids.iloc[:, 0])


def _repeated(what: str, ids: Sequence[str], values: pd.Index) -> DataError:
    return DataError(
        f"several of the {what} have the same {', '.join(ids)}, such as {values[0]!r}: keep one "
        "row for each"
    )


def _short(value: float) -> float:
    return float(f"{value:.6g}")
