"""What the raw data must satisfy: the rules of `data.checks`, told with the rows that break them.

Only judging; whether a broken rule stops a pipeline is decided where it is shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
    import pandera.pandas as pa
    from pandera.errors import SchemaErrors

    categories = frame.select_dtypes("category").columns
    schema = pa.DataFrameSchema(
        {
            name: pa.Column(nullable=True, checks=_rules(frame, name, data))
            for name in map(str, frame.columns)
        }
    )
    try:
        # pandera loses the rows of a category column
        schema.validate(frame.astype(dict.fromkeys(categories, "object")), lazy=True)
    except SchemaErrors as errors:
        cases = errors.failure_cases.groupby(["check", "column"], sort=False)
        return [
            _broken(rule, column, rows, data)
            for (rule, column), rows in cases["index"].agg(list).items()
        ]
    return []


def class_balance(frame: pd.DataFrame, target: str) -> dict[str, float]:
    """Share of each class among the rows that have a target, by name."""
    shares = frame[target].dropna().astype(str).value_counts(normalize=True)
    return {str(name): float(share) for name, share in sorted(shares.items())}


def _rules(frame: pd.DataFrame, column: str, data: DataSpec) -> list[Any]:
    from pandas.api.types import is_bool_dtype, is_numeric_dtype
    from pandera.pandas import Check

    rules = []
    if column in data.checks.unique:
        rules.append(Check(lambda values: ~values.duplicated(keep=False), name="unique"))
    if column in data.checks.not_null:
        rules.append(Check(lambda values: values.notna(), name="not_null", ignore_na=False))
    if column == data.target:
        rules.append(
            Check(lambda values: values.notna() | values.notna().any(), name="target",
                  ignore_na=False)
        )  # fmt: skip
    if column in data.checks.between:
        dtype = frame[column].dtype
        if not is_numeric_dtype(dtype) or is_bool_dtype(dtype):
            raise DataError(
                f"data.checks.between: column {column} is not a number; remove the rule, or declare"
                f" the column in data.columns as {column}: number"
            )
        low, high = data.checks.between[column]
        rules.append(Check(lambda values: values.between(low, high), name="between"))
    return rules


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
