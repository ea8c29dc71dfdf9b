"""How far two distributions of counts are apart: pure formulas over arrays.

Which counts, and what a value means for a pipeline, is `drift`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np

LEAST_EXPECTED = 5
"""Expected count from which on the chi-squared approximation of a cell is trusted (Cochran, 1954,
"Some methods for strengthening the common chi-squared tests", Biometrics 10)."""
_EMPTY = 0.5


class Test(NamedTuple):
    """A test of whether two samples come from one distribution."""

    statistic: float
    p_value: float


class ChiSquared(NamedTuple):
    """A chi-squared test; without a degree of freedom it says nothing, and its p-value is 1."""

    statistic: float
    dof: int
    p_value: float


def stability_index(reference: np.ndarray, now: np.ndarray) -> float:
    """Return the population stability index (PSI) of two histograms over the same bins.

    The sum of ``(q - p) * ln(q / p)`` over the bins, with the shares p of the reference and q of
    now (Siddiqi, 2006, "Credit Risk Scorecards", chapter 9). A bin that is empty on one side counts
    there as half a row; one that is empty on both sides does not count.

    Parameters
    ----------
    reference, now
        Counts by bin, each with at least one row.
    """
    import numpy as np

    used = (reference > 0) | (now > 0)
    p = np.maximum(reference[used], _EMPTY) / reference.sum()
    q = np.maximum(now[used], _EMPTY) / now.sum()
    return float(np.sum((q - p) * np.log(q / p)))


def chi_squared(reference: np.ndarray, now: np.ndarray) -> ChiSquared:
    """Test whether two histograms over the same bins come from one distribution.

    Pearson's test of homogeneity, without continuity correction. Bins in which fewer than 5 rows
    are expected on one side are joined, with the next larger one if need be.
    """
    import numpy as np
    from scipy.stats import chi2_contingency

    table = np.array([reference, now], dtype="float64")
    table = table[:, np.argsort(table.sum(axis=0), kind="stable")]
    expected = table.sum(axis=0) * table.sum(axis=1).min() / table.sum()
    rare = int(np.sum(expected < LEAST_EXPECTED))
    if 0 < expected[:rare].sum() < LEAST_EXPECTED:
        rare += 1
    joined = np.column_stack([table[:, :rare].sum(axis=1), table[:, rare:]])
    joined = joined[:, joined.sum(axis=0) > 0]
    if joined.shape[1] < 2:
        return ChiSquared(0.0, 0, 1.0)
    result = chi2_contingency(joined, correction=False)
    return ChiSquared(float(result.statistic), int(result.dof), float(result.pvalue))


def kolmogorov_smirnov(reference: np.ndarray, now: np.ndarray) -> Test | None:
    """Test whether two samples come from one continuous distribution, by their counts in ranges.

    The statistic is the largest distance between the two distribution functions at the ranges'
    ends: at most the largest share of the reference in one range below that of the values
    themselves. The p-value is that of SciPy's `ks_2samp(method="asymp")`.

    Returns
    -------
    Test or None
        None when a sample is empty.
    """
    import numpy as np
    from scipy.stats import kstwo

    n, m = int(reference.sum()), int(now.sum())
    if not n or not m:
        return None
    distance = float(np.abs(np.cumsum(reference) / n - np.cumsum(now) / m).max())
    return Test(distance, float(kstwo.sf(distance, max(1, round(n * m / (n + m))))))
