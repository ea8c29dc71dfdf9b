"""Dividing the rows into train and test, and looking for what both have in common.

The result depends on the frame and the `SplitSpec` alone. Rows whose target is missing belong to
neither side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from mlops_assets.errors import DataError
from mlops_assets.spec import SplitSpec, Task
from mlops_assets.wording import nearest

if TYPE_CHECKING:
    import pandas as pd


class Split(NamedTuple):
    """Two frames without a common row, each in the order of the raw data."""

    train: pd.DataFrame
    test: pd.DataFrame


def split(frame: pd.DataFrame, spec: SplitSpec, *, target: str, task: Task) -> Split:
    """Divide the rows that have a target into train and test.

    With `by_time` the latest rows are the test set, and rows of the same time are on one side. With
    `group` whole groups are drawn until the test set has its share of rows. Otherwise rows are
    drawn, for a classification within each class if `stratify` is set.

    Parameters
    ----------
    frame
        Raw data as `read` gives it.
    spec
        How to divide.
    target
        Column to predict.
    task
        A regression is never stratified.

    Raises
    ------
    DataError
        A side would be empty, a class has a single row, or the column to divide by is not there or
        has missing values.
    """
    labelled = frame[frame[target].notna()]
    if len(labelled) < 2:
        raise DataError(
            f"data.target: {len(labelled)} of {len(frame)} rows have a value of {target}; "
            "a train and a test set need at least 2"
        )
    if spec.by_time is not None:
        in_test = _latest(_column(labelled, spec.by_time, "split.by_time"), spec)
    elif spec.group is not None:
        in_test = _groups(_column(labelled, spec.group, "split.group"), spec)
    else:
        classes = labelled[target] if spec.stratify and task == "classification" else None
        in_test = _drawn(len(labelled), classes, spec)
    if in_test.all() or not in_test.any():
        raise DataError(
            f"split.test_size: {spec.test_size} of {len(labelled)} rows leaves the train or the "
            "test set without a row"
        )
    return Split(train=labelled[~in_test], test=labelled[in_test])


def _column(frame: pd.DataFrame, name: str, field: str) -> pd.Series:
    if name not in frame.columns:
        hint = nearest(name, map(str, frame.columns))
        raise DataError(f"{field}: the data has no column {name}{hint}")
    missing = frame.index[frame[name].isna()]
    if len(missing):
        raise DataError(
            f"{field}: column {name} is missing in {len(missing)} rows, such as row {missing[0]}; "
            "a row without it has no side: fill it in or leave the rows out of the data"
        )
    return frame[name]


def _latest(times: pd.Series, spec: SplitSpec) -> Any:
    if times.dtype.kind not in "Mif":
        raise DataError(
            f"split.by_time: column {times.name} is neither a time nor a number; write times as "
            f"2024-01-31T12:00:00 and declare it in data.columns as {times.name}: datetime"
        )
    if times.nunique() < 2:
        raise DataError(
            f"split.by_time: all rows have the same {times.name}, so that none is later"
        )
    rows = _test_rows(len(times), spec)
    first = times.sort_values().iloc[-rows]
    in_test = times >= first
    return (times > first if in_test.all() else in_test).to_numpy()


def _groups(groups: pd.Series, spec: SplitSpec) -> Any:
    import numpy as np
    import pandas as pd

    codes, names = pd.factorize(groups, sort=True)
    if len(names) < 2:
        raise DataError(
            f"split.group: all rows have the same {groups.name}; at least 2 groups are needed"
        )
    order = np.random.default_rng(spec.seed).permutation(len(names))
    rows = np.cumsum(np.bincount(codes)[order])
    # the number of groups whose rows come nearest to the wanted share
    count = int(np.abs(rows[:-1] - _test_rows(len(groups), spec)).argmin()) + 1
    return np.isin(codes, order[:count])


def _drawn(rows: int, classes: pd.Series | None, spec: SplitSpec) -> Any:
    import numpy as np
    from sklearn.model_selection import train_test_split

    if classes is not None:
        _require_stratifiable(classes, spec)
    try:
        _, test = train_test_split(
            np.arange(rows),
            test_size=spec.test_size,
            random_state=spec.seed,
            stratify=None if classes is None else classes.astype(str),
        )
    except ValueError as error:
        raise DataError(f"split.test_size: {spec.test_size} does not fit: {error}") from error
    return np.isin(np.arange(rows), test)


def _require_stratifiable(classes: pd.Series, spec: SplitSpec) -> None:
    counts = classes.value_counts()
    rare = sorted(str(name) for name, count in counts.items() if count == 1)
    if rare:
        raise DataError(
            f"split.stratify: only one row has {classes.name} = {', '.join(rare[:5])}, which "
            "cannot be in both train and test; remove the row, merge the class with another, or "
            "set stratify: false"
        )
    rows = _test_rows(len(classes), spec)
    present = int((counts > 0).sum())
    if min(rows, len(classes) - rows) < present:
        raise DataError(
            f"split.test_size: {spec.test_size} of {len(classes)} rows leaves one side with fewer "
            f"rows than there are classes ({present}); change test_size or set stratify: false"
        )


def _test_rows(rows: int, spec: SplitSpec) -> int:
    """Rows of the test set, rounded up as scikit-learn does, but never none or all."""
    import math

    return min(max(math.ceil(rows * spec.test_size), 1), rows - 1)


def overlap(parts: Split, spec: SplitSpec) -> list[str]:
    """Describe every way in which train and test are not separate; empty when they are."""
    problems = []
    shared = parts.train.index.intersection(parts.test.index)
    if len(shared):
        problems.append(f"{len(shared)} rows are in both train and test, such as row {shared[0]}")
    if spec.group is not None:
        groups = set(parts.train[spec.group].dropna()) & set(parts.test[spec.group].dropna())
        if groups:
            example = min(groups, key=str)
            problems.append(
                f"{len(groups)} values of {spec.group} are in both train and test, such as "
                f"{example}"
            )
    if spec.by_time is not None:
        last, first = parts.train[spec.by_time].max(), parts.test[spec.by_time].min()
        if not last < first:
            problems.append(f"train reaches to {last}, but test begins at {first}")
    return problems


def repeated_rows(parts: Split) -> int:
    """Count the test rows whose whole content is also that of a row in train."""
    from pandas.util import hash_pandas_object

    train, test = (hash_pandas_object(part, index=False) for part in parts)
    return int(test.isin(train).sum())
