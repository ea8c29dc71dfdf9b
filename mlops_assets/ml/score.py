"""The predictions for a day's files: checked, then read, predicted and passed on batch by batch.

Memory does not grow with the files. Which files there are is `inbox`, how they are parsed is
`batches`; values get their types by the rules of `read`, so that a row scores exactly as it would
have been trained on.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from mlops_assets.errors import DataError, ModelError
from mlops_assets.ml.batches import batches_of, columns_of
from mlops_assets.ml.inbox import InboxFile
from mlops_assets.ml.read import Column, own_type, typed_column
from mlops_assets.ml.tables import Source, suffixes
from mlops_assets.spec import ColumnType, DataSpec
from mlops_assets.wording import listed, nearest

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from mlops_assets.ml.model import TrainedModel

PREDICTION = "prediction"
PROBABILITY = "probability_"
MODEL_VERSION = "model_version"
FILE, ROW = "source_file", "row"
"""What tells rows apart when no column does."""

_REPORT_SECONDS = 10.0
_LARGEST_NUMBER = 1e150  # as of `read`


@dataclass
class Tally:
    """What is known of predictions when all of them have been made."""

    rows: int = 0
    classes: Counter[str] = field(default_factory=Counter)
    """Rows by predicted class; empty for a regression."""
    lowest: float = math.inf
    highest: float = -math.inf
    total: float = 0.0
    """Of a regression's predictions."""
    id_hashes: list[Any] = field(default_factory=list)
    """Arrays of uint64, a hash for each row."""

    def summary(self) -> dict[str, float]:
        """Return the shares of the (20 most) predicted classes, or lowest, mean and highest."""
        if self.classes:
            return {f"share_{label}": n / self.rows for label, n in self.classes.most_common(20)}
        mean = self.total / self.rows
        return {"lowest": self.lowest, "mean": mean, "highest": self.highest}

    def repeated_ids(self) -> int:
        """Count the rows with the id of another row before them.

        By hashes of 64 bits: of 20 million rows, chance finds a repetition once in 100,000 times.
        """
        import numpy as np

        hashes = np.concatenate(self.id_hashes) if self.id_hashes else np.empty(0)
        hashes.sort()
        return int((hashes[1:] == hashes[:-1]).sum())


class _Part(NamedTuple):
    """Some rows of a file."""

    file: InboxFile
    number: int
    """Of the file among all."""
    first_row: int
    batch: pa.RecordBatch

    @property
    def name(self) -> str:
        last = self.first_row + self.batch.num_rows - 1
        return f"{self.file.name} (rows {self.first_row} to {last})"


def score_batches(
    model: TrainedModel,
    files: Sequence[InboxFile],
    data: DataSpec,
    *,
    model_version: str,
    ids: Sequence[str] = (),
    known: Sequence[str] = (),
    tally: Tally | None = None,
    report: Callable[[str], object] = lambda _: None,
) -> pa.RecordBatchReader:
    """Predict all rows of some files, in the order of the files and of their rows.

    The columns of all files are compared with those of the training before anything is predicted.

    Parameters
    ----------
    model
        What is asked.
    files
        Of `inbox.files_of_day`; of one format.
    data
        What is declared about the columns.
    model_version
        Written beside every prediction.
    ids
        Columns that are copied to the output.
    known
        Columns that may be there, and are not used. All others that the model was not trained on
        are refused.
    tally
        Is filled while the batches are read.
    report
        Is told every 10 seconds how far it is.

    Returns
    -------
    pyarrow.RecordBatchReader
        The columns of `ids` (those of csv and jsonl as text), or ``source_file`` and ``row``,
        counted from 0; ``prediction``, a class or a number; the columns of `probability_columns`
        (float64); ``model_version``. The same bytes for the same content and model.

    Raises
    ------
    DataError
        A file is damaged or empty, lacks a column, has one of another type than in training or one
        that was not there. While the batches are read: the same for the rows of jsonl, a value is
        not of its column's type, or there is no row at all. With file, row, column and value.
    ModelError
        While they are read: the estimator has no answer for some row.
    OSError
        A file cannot be read now.
    """
    import pyarrow as pa

    check = _Check(model, data, ids, known)
    for file in files:
        check.columns(file)
    schema = _schema(model, files[0], ids)
    tally = Tally() if tally is None else tally

    def batches() -> Iterator[pa.RecordBatch]:
        begun = told = time.monotonic()
        for part in _parts(files, check):
            yield _scored(part, check, schema, files, model_version, tally)
            if time.monotonic() - told > _REPORT_SECONDS:
                told = time.monotonic()
                speed = tally.rows / (told - begun)
                report(
                    f"file {part.number + 1} of {len(files)}: {tally.rows:,} rows scored, "
                    f"{speed:,.0f} rows/s"
                )
        if not tally.rows:
            raise DataError(f"score.uri: there is no row in {listed(f.name for f in files)}")

    return pa.RecordBatchReader.from_batches(schema, batches())


def features_of(
    model: TrainedModel,
    files: Sequence[InboxFile],
    data: DataSpec,
    *,
    ids: Sequence[str] = (),
    known: Sequence[str] = (),
) -> Iterator[pd.DataFrame]:
    """Read what the model is asked with, batch by batch, as `score_batches` does; errors as there.

    Yields
    ------
    pandas.DataFrame
        The features, as `TrainedModel.predict` takes them.
    """
    check = _Check(model, data, ids, known)
    for part in _parts(files, check):
        yield _frame(part, model.features, data)


def probability_columns(model: TrainedModel) -> dict[str, int]:
    """Return the columns of probabilities with the position of the class that each is about.

    Of two classes only the positive one has a column: that of the other is what is left to 1.
    """
    classes = model.classes
    if classes is None or not hasattr(model.pipeline, "predict_proba"):
        return {}
    about = range(1, 2) if len(classes) == 2 else range(len(classes))
    return {f"{PROBABILITY}{classes[position]}": position for position in about}


# --- what the files must be ---------------------------------------------------------------------


@dataclass(frozen=True)
class _Check:
    """What is expected of the files, and the errors that say what is found instead."""

    model: TrainedModel
    data: DataSpec
    ids: Sequence[str]
    known: Sequence[str]

    @property
    def wanted(self) -> list[str]:
        return list(dict.fromkeys([*self.model.features, *self.ids]))

    def columns(self, file: InboxFile) -> None:
        """Check what a file says of its columns; jsonl says nothing."""
        found = columns_of(file)
        if found is not None:
            self.none_is_missing(file, found)
            self.none_is_new(file, found)
            self.none_is_retyped(file, found)

    def none_is_missing(self, file: InboxFile, names: Iterable[str]) -> None:
        names = set(names)
        new = names - {*self.wanted, *self.known}
        expected = {
            "that the model was trained on": self.model.features,
            "that score.id lists": self.ids,
        }
        for whose, columns in expected.items():
            missing = [name for name in columns if name not in names]
            if missing:
                hint = nearest(missing[0], new or names)
                raise DataError(f"{file.name} lacks the column {listed(missing)}{hint} {whose}")

    def none_is_new(self, file: InboxFile, names: Iterable[str]) -> None:
        new = [name for name in names if name not in {*self.wanted, *self.known}]
        if new:
            raise DataError(
                f"{file.name} has columns that the model was not trained on: "
                f"{listed(new)}{nearest(new[0], self.wanted)}; leave them out of the file, or list "
                "them under score.id to have them in the output"
            )

    def none_is_retyped(self, file: InboxFile, types: Mapping[str, pa.DataType]) -> None:
        import pyarrow as pa

        is_csv = suffixes(file.name)[0] == ".csv"
        for name, wanted in self.model.features.items():
            own = own_type(types[name])
            if own is not None and (name in self.data.columns or pa.types.is_null(types[name])):
                continue
            # text is what dates and booleans are written as, too
            reads_text = own == "text" and (is_csv or wanted != "number")
            if own != wanted and not reads_text:
                raise DataError(
                    f"{file.name}: column {name} was of the type {wanted} when the model was "
                    f"trained and is now {types[name]}; write it as before, or declare it in "
                    f"data.columns as {name}: {wanted}"
                )
        for name in self.ids:
            if own_type(types[name]) is None:
                raise DataError(
                    f"{file.name}: column {name} of score.id is of the type {types[name]}, which "
                    "is no number, text, boolean, date or timestamp"
                )


def _parts(files: Sequence[InboxFile], check: _Check) -> Iterator[_Part]:
    for number, file in enumerate(files):
        is_jsonl = suffixes(file.name)[0] == ".jsonl"
        first_row, seen = 0, dict[str, None]()
        for batch in batches_of(file, check.wanted, check.data.missing_values):
            if is_jsonl:
                seen.update(dict.fromkeys(batch.schema.names))
                check.none_is_new(file, batch.schema.names)
                batch = _filled(batch, check.wanted)
                check.none_is_retyped(file, {f.name: f.type for f in batch.schema})
            if batch.num_rows:
                yield _Part(file, number, first_row, batch)
                first_row += batch.num_rows
        if first_row and is_jsonl:
            check.none_is_missing(file, seen)


def _filled(batch: pa.RecordBatch, columns: Iterable[str]) -> pa.RecordBatch:
    """Add the columns that none of these rows has."""
    import pyarrow as pa

    for name in columns:
        if name not in batch.schema.names:
            batch = batch.append_column(name, pa.nulls(batch.num_rows))
    return batch


# --- what is made of them -----------------------------------------------------------------------


def _schema(model: TrainedModel, file: InboxFile, ids: Sequence[str]) -> pa.Schema:
    import pyarrow as pa

    text = pa.dictionary(pa.int32(), pa.string())
    types = columns_of(file) or {}
    identity = {name: types.get(name, pa.large_string()) for name in ids}
    predicted = {str: text, bool: pa.bool_(), int: pa.int64()}
    made = {
        PREDICTION: predicted[type(model.classes[0])] if model.classes else pa.float64(),
        **dict.fromkeys(probability_columns(model), pa.float64()),
        MODEL_VERSION: text,
    }
    if both := sorted(set(identity) & set(made)):
        raise DataError(f"score.id: {listed(both)} is a column of the output; rename it")
    return pa.schema({**(identity or {FILE: text, ROW: pa.int64()}), **made})


def _scored(
    part: _Part,
    check: _Check,
    schema: pa.Schema,
    files: Sequence[InboxFile],
    model_version: str,
    tally: Tally,
) -> pa.RecordBatch:
    import numpy as np
    import pyarrow as pa

    model, rows = check.model, part.batch.num_rows
    frame = _frame(part, model.features, check.data)
    try:
        answers, shares = model.answer(frame)
    except (DataError, ModelError) as error:
        raise type(error)(f"{part.name}: {error}") from error
    tally.rows += rows
    if check.ids:
        identity = [_identity(part, name, schema.field(name).type) for name in check.ids]
        tally.id_hashes.append(_hashes(identity))
    else:
        row = pa.array(np.arange(part.first_row, part.first_row + rows))
        identity = [_repeated(part.number, [file.part for file in files], rows), row]
    columns = [
        *identity,
        _predictions(answers, model.classes, tally),
        *(pa.array(shares[:, position]) for position in probability_columns(model).values()),
        _repeated(0, [model_version], rows),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _frame(part: _Part, features: Mapping[str, ColumnType], data: DataSpec) -> pd.DataFrame:
    """Give the features their types, as `read` does."""
    import pandas as pd
    import pyarrow as pa

    rows = part.batch.num_rows
    is_csv = suffixes(part.file.name)[0] == ".csv"
    source = Source(part.name, part.batch, [(part.name, rows)], is_csv, part.first_row)
    columns = {}
    for name, wanted in features.items():
        values = _decoded(part.batch.column(name))
        numbers = _numbers(values) if wanted == "number" else None
        if numbers is None:
            # a model takes a category as text
            declared: ColumnType = "text" if wanted == "category" else wanted
            column = Column(name, source, declared, data.missing_values)
            numbers = typed_column(pa.chunked_array([values]), column)
        columns[name] = numbers
    return pd.DataFrame(columns, pd.RangeIndex(rows))


def _numbers(values: pa.Array) -> Any:
    """Return numbers as float64; None where `read` would look closer at some of them."""
    import numpy as np
    import pyarrow as pa

    try:
        numbers = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None
    usual = np.count_nonzero(np.abs(numbers) <= _LARGEST_NUMBER)
    return numbers if usual == len(values) - values.null_count else None


def _decoded(values: pa.Array) -> pa.Array:
    import pyarrow as pa

    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values


def _identity(part: _Part, name: str, kind: pa.DataType) -> pa.Array:
    import pyarrow as pa

    values = _decoded(part.batch.column(name))
    try:
        return values.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"{part.file.name}: column {name} of score.id is of the type {values.type}, and in the "
            f"first file it is {kind}; write the same type in all files"
        ) from error


def _hashes(columns: Sequence[pa.Array]) -> Any:
    """Return a hash of 64 bits for each row."""
    import numpy as np
    import pyarrow as pa
    from pandas.util import hash_array

    hashes = np.zeros(len(columns[0]), "uint64")
    for column in columns:
        plain = column if pa.types.is_integer(column.type) else column.cast(pa.large_string())
        values = plain.to_numpy(zero_copy_only=False)
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + hash_array(values, categorize=False)
    return hashes


def _predictions(answers: Any, classes: Sequence[Any] | None, tally: Tally) -> pa.Array:
    import numpy as np
    import pyarrow as pa

    if classes is None:
        tally.lowest = min(tally.lowest, float(answers.min()))
        tally.highest = max(tally.highest, float(answers.max()))
        tally.total += float(answers.sum())
        return pa.array(answers)
    counts = np.bincount(answers, minlength=len(classes)).tolist()
    tally.classes.update({str(label): n for label, n in zip(classes, counts, strict=True) if n})
    if isinstance(classes[0], str):
        codes = pa.array(answers.astype("int32"))
        return pa.DictionaryArray.from_arrays(codes, pa.array(classes))
    return pa.array(np.asarray(classes)[answers])


def _repeated(position: int, texts: Sequence[str], rows: int) -> pa.Array:
    """Return one of some texts in every row."""
    import numpy as np
    import pyarrow as pa

    codes = pa.array(np.full(rows, position, "int32"))
    return pa.DictionaryArray.from_arrays(codes, pa.array(texts, pa.string()))
