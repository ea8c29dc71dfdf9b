"""What the raw data must satisfy: the rules of `data.checks`, told with the rows that break them.

Only judging; whether a broken rule stops a pipeline is decided where it is shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlops_assets.errors import DataError
from mlops_assets.spec import DataSpec

if TYPE_CHECKING:
    import pandas as pd

_EXAMPLES = 5


@dataclass(frozen=True)
class BrokenRule:
    """A rule that some rows break."""

    rule: str
    """`unique`, `not_null`, `between` or `target`."""
    column: str
    count: int
    """How many rows break it."""
    examples: list[int]
    """The first of these rows."""
    message: str


def broken_rules(frame: pd.DataFrame, data: DataSpec) -> list[BrokenRule]:
    """Find the rules of `data.checks` that the raw data breaks.

    A missing value breaks `not_null` only. The rule `target` is broken when no row has a target.

    Raises
    ------
    DataError
        `between` is declared for a column that is not a number.
    """
    return [
        _broken(rule, name, frame.index[breaks.to_numpy(dtype=bool)].tolist(), data)
        for name in map(str, frame.columns)
        for rule, breaks in _breaks(frame[name], name, data)
        if breaks.any()
    ]


def class_balance(frame: pd.DataFrame, target: str) -> dict[str, float]:
    """Share of each class among the rows that have a target, by name."""
    shares = frame[target].dropna().astype(str).value_counts(normalize=True)
    return {str(name): float(share) for name, share in sorted(shares.items())}


def _breaks(values: pd.Series, column: str, data: DataSpec) -> Iterator[tuple[str, pd.Series]]:
    """Tell for each rule of a column which rows break it."""
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    known = values.notna()
    if column in data.checks.unique:
        yield "unique", known & values.duplicated(keep=False)
    if column in data.checks.not_null:
        yield "not_null", ~known
    if column == data.target:
        yield "target", ~known & (not known.any())
    if column in data.checks.between:
        if not is_numeric_dtype(values.dtype) or is_bool_dtype(values.dtype):
            raise DataError(
                f"data.checks.between: column {column} is not a number; remove the rule, or declare"
                f" the column in data.columns as {column}: number"
            )
        yield "between", known & ~values.between(*data.checks.between[column])


def _broken(rule: str, column: str, rows: list[int], data: DataSpec) -> BrokenRule:
    low, high = data.checks.between.get(column, (0, 0))
    meaning = {
        "unique": "has repeated values",
        "not_null": "has missing values",
        "between": f"has values outside {low:g} to {high:g}",
        "target": "is the target and has no value at all",
    }[rule]
    examples = sorted(rows)[:_EXAMPLES]
    shown = ", ".join(str(row) for row in examples)
    message = f"column {column} {meaning}: {len(rows)} rows, such as {shown}"
    return BrokenRule(rule, column, len(rows), examples, message)
