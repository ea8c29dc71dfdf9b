"""Whether what a model is given, and what it answers, still looks as it did at training.

A reference is made once of the training data, a profile is counted of the rows of a day, and the
two are compared. How values are counted is `distribution`; the measures are `divergence`; whether
the answers turned out right is `realised`; drawing is `drift_figure`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from mlops_assets.errors import DataError
from mlops_assets.ml.distribution import Bins
from mlops_assets.ml.divergence import chi_squared, kolmogorov_smirnov, stability_index
from mlops_assets.ml.model import TrainedModel, conform
from mlops_assets.ml.score import PREDICTION, probability_columns
from mlops_assets.spec import ColumnDriftSpec, ColumnType, DriftSpec
from mlops_assets.wording import nearest

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

FORMAT = 1
"""Of a reference; one of another format is made anew."""

Level = Literal["ok", "warn", "error"]
_LEVELS: tuple[Level, ...] = ("ok", "warn", "error")
_MOST_NEW = 1000
_SHOWN_NEW = 10


class Profile:
    """Counts of the values of some columns, batch after batch."""

    def __init__(self, bins: Iterable[Bins]) -> None:
        import numpy as np

        self.bins = list(bins)
        self.rows = 0
        self.counts = [np.zeros(1, dtype="int64") for _ in self.bins]
        self.new: list[dict[str, None]] = [{} for _ in self.bins]
        """Categories that the reference does not have, at most 1,000 for each column."""

    def add(self, frame: pd.DataFrame) -> None:
        """Count the rows of a frame.

        Raises
        ------
        DataError
            A column is missing or of another type.
        """
        frame = conform(frame, {bins.column: bins.type for bins in self.bins})
        self.rows += len(frame)
        for i, bins in enumerate(self.bins):
            values = frame[bins.column]
            counts = bins.count(values)
            self.counts[i] = self.counts[i] + counts
            if not bins.is_ordered and counts[-2] and len(self.new[i]) < _MOST_NEW:
                self.new[i] |= dict.fromkeys(bins.unknown(values)[:_MOST_NEW])


def reference(model: TrainedModel, train: pd.DataFrame, test: pd.DataFrame) -> dict[str, Any]:
    """Describe what a model was trained on, and what it answers to rows that it has not seen.

    Parameters
    ----------
    model
        The trained model.
    train
        The rows that it was trained on: of these are the features.
    test
        Of these are the scores. A model is surer of the rows that it was trained on, so that its
        answers to them differ from those of any day.

    Returns
    -------
    dict
        Plain values: ``format``, and ``features`` and ``scores``, each with ``rows`` and
        ``columns``, and of each column ``bins`` and ``counts``.

    Raises
    ------
    DataError, ModelError
        The frames are not those of the model.
    """
    return {
        "format": FORMAT,
        "features": _described(conform(train, model.features), model.features),
        "scores": _described(_scores(model, test), score_types(model)),
    }


def score_types(model: TrainedModel) -> dict[str, ColumnType]:
    """Return the columns of a model's stored answers that are compared, with their types."""
    kind: ColumnType = "number" if model.classes is None else "category"
    return {PREDICTION: kind, **dict.fromkeys(probability_columns(model), "number")}


def profiles(reference: Mapping[str, Any], ignore: Collection[str] = ()) -> tuple[Profile, Profile]:
    """Return empty profiles of the features, without those to ignore, and of the scores."""
    features, scores = (
        [Bins.from_json(column["bins"]) for column in reference[part]["columns"]]
        for part in ("features", "scores")
    )
    return Profile(bins for bins in features if bins.column not in ignore), Profile(scores)


def stored_scores(answers: pa.RecordBatch, model: TrainedModel) -> pd.DataFrame:
    """Return the columns of `score_types` of stored answers, for `Profile.add`."""
    frame: pd.DataFrame = answers.select(list(score_types(model))).to_pandas()
    if model.classes is not None:
        names = {label: str(label) for label in model.classes}
        frame[PREDICTION] = frame[PREDICTION].map(names)
    return frame


def compare(reference: Mapping[str, Any], profile: Profile) -> list[dict[str, Any]]:
    """Measure how far the columns of a profile are from a reference.

    Parameters
    ----------
    reference
        The part of a reference that the profile was begun with: features or scores.
    profile
        With at least one row.

    Returns
    -------
    list of dict
        For each column, the one that has shifted most first:

        ``column``, ``type``
        ``psi``
            Population stability index over at most 10 ranges, or the 19 most frequent categories
            and the rest; and missing values.
        ``chi_squared``
            ``statistic``, ``dof`` and ``p_value`` of the same counts.
        ``kolmogorov_smirnov``
            ``statistic`` and ``p_value`` of numbers and times; None for others and without values.
        ``missing``
            Share of missing values, ``reference`` and ``now``.
        ``new``
            Categories that training never saw: how many ``rows``, how many ``categories`` (at most
            1,000 are counted), and ``examples``. None where this cannot be told.
        ``bins``
            ``labels``, and the shares ``reference`` and ``now``.
    """
    before = {one["bins"]["column"]: one["counts"] for one in reference["columns"]}
    found = [
        _compared(bins, before[bins.column], counts, new)
        for bins, counts, new in zip(profile.bins, profile.counts, profile.new, strict=True)
    ]
    return sorted(found, key=lambda column: (-column["psi"], column["column"]))


def judge(columns: Sequence[dict[str, Any]], spec: DriftSpec, rows: int) -> list[dict[str, Any]]:
    """Give each compared column its ``level``: "ok", "warn" or "error"; the worst come first.

    The thresholds of the stability index say which shift matters. It must also be one that chance
    does not explain: the p-value of the chi-squared test must be below `spec.p_value` divided by
    the number of columns (Bonferroni). On few rows the index is large by chance: without any shift
    it is on average ``(bins - 1) * (1/n + 1/m)`` for n and m rows (Yurdakul, 2018, "Statistical
    properties of population stability index"). With fewer than `spec.min_rows` all are "ok".
    """
    levels = [_level(column, spec, len(columns)) for column in columns]
    judged: list[dict[str, Any]] = [
        {**column, "level": level if rows >= spec.min_rows else "ok"}
        for column, level in zip(columns, levels, strict=True)
    ]
    return sorted(judged, key=lambda column: -_LEVELS.index(column["level"]))


def _level(column: Mapping[str, Any], spec: DriftSpec, columns: int) -> Level:
    own = spec.columns.get(column["column"], ColumnDriftSpec())
    p_value = own.p_value or spec.p_value
    if p_value is not None and column["chi_squared"]["p_value"] >= p_value / columns:
        return "ok"
    return (own.psi or spec.psi).level(column["psi"])


def worst(columns: Iterable[Mapping[str, Any]]) -> Level:
    """Return the highest level of judged columns."""
    return max((column["level"] for column in columns), key=_LEVELS.index, default="ok")


def require_features(spec: DriftSpec, features: Iterable[str]) -> None:
    """Make sure that the columns that `drift` names are features of the model.

    Raises
    ------
    DataError
        One is none of them.
    """
    known = list(features)
    problems = [
        f"{field}: the model has no feature {name}{nearest(name, known)}"
        for field, names in {"drift.columns": spec.columns, "drift.ignore": spec.ignore}.items()
        for name in names
        if name not in known
    ]
    if problems:
        raise DataError("; ".join(problems))


def _scores(model: TrainedModel, frame: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    answers, shares = model.answer(frame)
    if model.classes is not None:
        answers = [str(model.classes[position]) for position in answers]
    columns = {name: shares[:, at] for name, at in probability_columns(model).items()}
    return pd.DataFrame({PREDICTION: answers, **columns})


def _described(frame: pd.DataFrame, types: Mapping[str, ColumnType]) -> dict[str, Any]:
    columns = []
    for name, type_ in types.items():
        bins = Bins.of(frame[name], type_)
        columns.append({"bins": bins.as_json(), "counts": bins.count(frame[name]).tolist()})
    return {"rows": len(frame), "columns": columns}


def _compared(
    bins: Bins, before: Sequence[int], after: Any, new: Mapping[str, None]
) -> dict[str, Any]:
    import numpy as np

    fine = np.array(before)
    groups, labels = bins.groups(fine)
    was, now = (np.bincount(groups, weights=counts) for counts in (fine, after))
    test = chi_squared(was, now)
    distance = kolmogorov_smirnov(fine[:-1], after[:-1]) if bins.is_ordered else None
    can_tell = bins.is_complete and not bins.is_ordered
    shares = {"reference": was / was.sum(), "now": now / now.sum()}
    return {
        "column": bins.column,
        "type": bins.type,
        "psi": _short(stability_index(was, now)),
        "chi_squared": {
            "statistic": _short(test.statistic),
            "dof": test.dof,
            "p_value": _short(test.p_value),
        },
        "kolmogorov_smirnov": distance
        and {"statistic": _short(distance.statistic), "p_value": _short(distance.p_value)},
        "missing": {side: _short(share[-1]) for side, share in shares.items()},
        "new": {
            "rows": int(after[-2]),
            "categories": len(new),
            "examples": list(new)[:_SHOWN_NEW],
        }
        if can_tell
        else None,
        "bins": {
            "labels": labels,
            **{side: [_short(one) for one in share] for side, share in shares.items()},
        },
    }


def _short(value: float) -> float:
    return float(f"{value:.6g}")
