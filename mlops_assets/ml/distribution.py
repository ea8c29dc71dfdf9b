"""How the values of a column are distributed: bins learned from the training data, and counting.

Counting needs memory for the bins alone, however many rows there are. What a difference between two
distributions means is `drift`; the numbers that measure it are `divergence`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mlops_assets.spec import ColumnType

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

QUANTILES = 100
"""Fine bins of a column of numbers: what is measured from them is right to 1/100."""
GROUPS = 10
"""Bins of about equal size for the stability index of numbers, as is usual for scorecards."""
MOST_CATEGORIES = 1000
"""Categories that are known by name; of a column with more, the most frequent ones."""
SHOWN_CATEGORIES = 19
"""Categories with a bin of their own for the stability index; the others share one."""

MISSING = "missing"
OTHER = "other"


@dataclass(frozen=True)
class Bins:
    """Into what the values of a column are sorted.

    Numbers and times have the bins below the first edge, between two edges (the upper one
    included), and above the last one. Categories, booleans and texts have one for each known
    category, and one for all others. The last bin counts missing values.
    """

    column: str
    type: ColumnType
    edges: Sequence[float] = ()
    """Ascending; of times in seconds since 1970."""
    categories: Sequence[str] = ()
    """The most frequent first."""
    is_complete: bool = True
    """Whether `categories` are all that there were."""

    @classmethod
    def of(cls, values: pd.Series, type_: ColumnType) -> Bins:
        """Choose the bins of a column from its values, which have the dtypes of `model.conform`."""
        column = str(values.name)
        if type_ in ("number", "datetime"):
            return cls(column, type_, _edges(_numbers(values)))
        if type_ == "text":  # nearly every value is another one
            return cls(column, type_, is_complete=False)
        counts = _texts(values).value_counts()
        names = sorted(counts.index, key=lambda name: (-counts[name], name))
        kept = tuple(names[:MOST_CATEGORIES])
        return cls(column, type_, categories=kept, is_complete=len(kept) == len(names))

    @classmethod
    def from_json(cls, bins: Mapping[str, Any]) -> Bins:
        """Restore what `as_json` made."""
        return cls(**bins)

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    @property
    def is_ordered(self) -> bool:
        """Whether the bins are ranges."""
        return self.type in ("number", "datetime")

    def count(self, values: pd.Series) -> np.ndarray:
        """Count values by bin: int64, the missing ones last."""
        import numpy as np
        import pandas as pd

        if self.is_ordered:
            numbers = _numbers(values)
            bins = np.searchsorted(self.edges, numbers)
            size, is_missing = len(self.edges) + 1, np.isnan(numbers)
        else:
            texts = _texts(values)
            known = pd.Index(list(self.categories)).get_indexer(pd.Index(texts))
            size, is_missing = len(self.categories) + 1, texts.isna().to_numpy()
            bins = np.where(known < 0, size - 1, known)
        return np.bincount(np.where(is_missing, size, bins), minlength=size + 1)

    def unknown(self, values: pd.Series) -> list[str]:
        """Return distinct values that are none of the categories, in order of appearance.

        Empty where this cannot be told: for ranges and text, and for more categories than are kept.
        """
        if self.is_ordered or not self.is_complete:
            return []
        texts = _texts(values).dropna()
        return list(texts[~texts.isin(self.categories)].unique())

    def groups(self, counts: np.ndarray) -> tuple[np.ndarray, list[str]]:
        """Join bins to the few that the stability index is computed from.

        Parameters
        ----------
        counts : numpy.ndarray
            Of the reference, by bin. Ranges are joined to about equal parts of them.

        Returns
        -------
        groups, labels
            For each bin the group that it belongs to, and what each group holds. The missing values
            are the last group.
        """
        import numpy as np

        if not self.is_ordered:
            shown = min(len(self.categories), SHOWN_CATEGORIES)
            groups = np.append(np.minimum(np.arange(len(counts) - 1), shown), shown + 1)
            other = "any text" if self.type == "text" else OTHER
            return groups, [*self.categories[:shown], other, MISSING]
        present = counts[:-1]
        middle = np.cumsum(present) - present / 2
        part = np.minimum(GROUPS * middle // max(present.sum(), 1), GROUPS - 1)
        first = np.append(True, np.diff(part) > 0)
        groups = np.cumsum(first) - 1
        starts = np.flatnonzero(first)[1:] - 1
        bounds = [None, *(self.edges[i] for i in starts), None]
        labels = [self._range(*ends) for ends in itertools.pairwise(bounds)]
        return np.append(groups, len(labels)), [*labels, MISSING]

    def _range(self, low: float | None, high: float | None) -> str:
        """Name the values above `low` up to `high`."""
        if low is None or high is None:
            edge = low if high is None else high
            if edge is None:
                return "any value"
            is_below = self._value(edge) != edge
            sign = ("≥" if is_below else ">") if high is None else ("<" if is_below else "≤")
            return f"{sign} {self._shown(edge)}"
        if self._value(low) == high:
            return self._shown(high)
        return f"{self._shown(low)} to {self._shown(high)}"

    def _value(self, edge: float) -> float:
        """Return the value that an edge lies just below of, or else the edge."""
        above = math.nextafter(edge, math.inf)
        return above if above in self.edges else edge

    def _shown(self, edge: float) -> str:
        value = self._value(edge)
        if self.type == "number":
            return f"{value + 0.0:.4g}"  # -0.0 is 0
        import pandas as pd

        return pd.Timestamp(value, unit="s").isoformat(" ", "minutes").removesuffix(" 00:00")


def _edges(numbers: np.ndarray) -> tuple[float, ...]:
    """Choose edges among the values: quantiles, and a second one just below each frequent value.

    With the second one a frequent value has a bin of its own, and so has what lies below the
    lowest value.
    """
    import numpy as np

    present = numbers[~np.isnan(numbers)]
    if not len(present):
        return ()
    shares = np.linspace(0, 1, QUANTILES + 1)
    values, times = np.unique(
        np.quantile(present, shares, method="inverted_cdf"), return_counts=True
    )
    times[0] = 2
    below = np.nextafter(values[times > 1], -np.inf)
    return tuple(np.unique(np.concatenate([below, values])).tolist())


def _numbers(values: pd.Series) -> np.ndarray:
    from pandas.api import types

    if types.is_datetime64_dtype(values.dtype):
        return (values.astype("int64") / 1e9).where(values.notna()).to_numpy()
    return values.to_numpy(dtype="float64", na_value=float("nan"))


def _texts(values: pd.Series) -> pd.Series:
    """Return values as text; `conform` makes numbers of booleans."""
    import numpy as np

    texts = values.astype("object")
    if values.dtype.kind == "f":
        texts = texts.map({0.0: "false", 1.0: "true"})
    return texts.where(values.notna(), np.nan)
