"""Whether a new model replaces the champion: both judged on the same rows, and compared.

What a single model is worth is `evaluate`; which champion there is, and who else may promote
meanwhile, is the store's affair.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from mlops_assets.ml.evaluate import measure
from mlops_assets.ml.model import TrainedModel, conform, encode

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

RESAMPLES = 1000
"""The usual number for percentile intervals; 200 are the usual least for standard errors."""

_FEWEST_RESAMPLES = 200
_RESAMPLED_ROWS = 5_000_000  # beyond, fewer resamples: scikit-learn takes 5 s for so many
_ROWS_AT_ONCE = 2_000_000  # 16 MB of row numbers
_LEVEL = 0.95


class Gate(Protocol):
    """A condition on a metric, such as `roc_auc >= 0.80`; `str()` of it is that text."""

    @property
    def metric(self) -> str:
        """Name of the metric."""

    def passes(self, value: float) -> bool:
        """Whether a value of the metric meets the condition."""


@dataclass(frozen=True)
class Comparison:
    """A challenger and the champion, measured by one metric on the same rows."""

    by: str
    challenger: float
    champion: float
    differences: np.ndarray
    """Challenger minus champion, of the resamples on which both have a value."""
    undefined: int
    """Resamples that were left out: on them the metric has no value."""

    @property
    def difference(self) -> float:
        """By how much the challenger is better, in units of the metric."""
        return self.challenger - self.champion

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """95 % percentile interval of the difference; None if most resamples were left out."""
        import numpy as np

        if len(self.differences) <= self.undefined:
            return None
        lower, upper = np.quantile(self.differences, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
        return float(lower), float(upper)

    def __str__(self) -> str:
        """Return the comparison in words for people."""
        said = (
            f"{self.by} {self.challenger:.4g} against the champion's {self.champion:.4g} on the "
            f"same test set, difference {self.difference:+.3g}"
        )
        if self.interval is None:
            return f"{said} (no interval: undefined on {self.undefined} resamples)"
        lower, upper = self.interval
        return f"{said} (95 % interval {lower:+.3g} to {upper:+.3g})"


class Decision(NamedTuple):
    """Whether to promote, and the reason in words for people."""

    promote: bool
    reason: str
    comparison: Comparison | None = None


def decide(
    metrics: Mapping[str, float],
    gates: Iterable[Gate],
    *,
    by: str,
    comparison: Comparison | None = None,
    min_improvement: float = 0.0,
) -> Decision:
    """Decide whether a new model (the challenger) replaces the promoted one (the champion).

    Every gate must pass; then the challenger must reach the champion's score on the same test set
    plus `min_improvement`. All scikit-learn scorers are greater-is-better. The interval of the
    difference informs and does not decide: how sure a promotion has to be is a matter of what it
    costs, and `min_improvement` says that in units of the metric.

    Parameters
    ----------
    metrics
        The challenger's metrics; a gate whose metric is not among them does not pass.
    gates
        Conditions that the metrics must fulfil.
    by
        Name of the metric that decides.
    comparison
        With the champion, by that metric; None as long as there is no champion.
    min_improvement
        How much better the challenger must be, in units of `by`.
    """
    for failed in failed_gates(metrics, gates):
        return Decision(False, failed)
    if comparison is None:
        return Decision(True, f"the first champion: {by} is {metrics[by]:.4g}")
    # 0.82 - 0.80 is less than 0.02 in floating point
    if comparison.difference >= min_improvement - 1e-12:
        return Decision(True, str(comparison), comparison)
    wanted = f", at least {min_improvement:.4g} better was asked for" if min_improvement else ""
    return Decision(False, f"{comparison}{wanted}", comparison)


def failed_gates(metrics: Mapping[str, float], gates: Iterable[Gate]) -> list[str]:
    """Say of each gate that does not pass why, in words for people."""
    failed = []
    for gate in gates:
        value = metrics.get(gate.metric)
        if value is None:
            failed.append(f"gate {gate} failed: {gate.metric} was not measured")
        elif not gate.passes(value):
            failed.append(f"gate {gate} failed: {gate.metric} is {value:.4g}")
    return failed


@dataclass(frozen=True)
class Judged:
    """A model that was measured, with all its answers, so that it need not predict again."""

    model: TrainedModel
    """Its pipeline is asked with row numbers."""
    truth: np.ndarray
    metric: str
    score: float

    def resampled(self, rows: np.ndarray) -> np.ndarray:
        """Measure on resamples of the rows.

        Parameters
        ----------
        rows
            Row numbers, one resample per line.

        Returns
        -------
        numpy.ndarray
            float64, one value per resample; NaN where the metric has none.
        """
        import numpy as np

        if self.metric == "roc_auc":
            return _roc_auc(self._ranking, self.truth, _counts(rows))
        if self.metric == "accuracy":
            answers = self.model.pipeline.predict(np.arange(len(self.truth)))
            return np.asarray(_counts(rows) @ (answers == self.truth) / rows.shape[1])
        return np.array([self._scored(sample) for sample in rows])

    @property
    def _ranking(self) -> np.ndarray:
        import numpy as np

        everything = np.arange(len(self.truth))
        if hasattr(self.model.pipeline, "decision_function"):
            return np.asarray(self.model.pipeline.decision_function(everything))
        return np.asarray(self.model.pipeline.predict_proba(everything)[:, 1])

    def _scored(self, rows: np.ndarray) -> float:
        from sklearn.metrics import get_scorer

        try:
            value = float(get_scorer(self.metric)(self.model.pipeline, rows, self.truth[rows]))
        except ValueError:  # such as a class that is in none of the rows
            return float("nan")
        return value if abs(value) < float("inf") else float("nan")


def judge(model: TrainedModel, test: pd.DataFrame, metric: str) -> Judged:
    """Measure a model, and keep its answers for `compare`; errors as of `evaluate`."""
    import numpy as np

    features, truth = conform(test, model.features), encode(test[model.target], model.classes)
    answering = replace(model, pipeline=_Answers(model.pipeline, features))
    score = measure(answering, np.arange(len(truth)), truth, metric)
    return Judged(answering, truth, metric, score)


def compare(
    challenger: Judged, champion: Judged, *, seed: int, resamples: int | None = None
) -> Comparison:
    """Compare two models that were judged on the same rows by the same metric.

    The paired bootstrap: both models are measured on the same resamples of the test rows, each as
    many rows drawn with replacement, and the differences tell how much the observed one owes to
    the rows that happened to be tested (Efron & Tibshirani 1993, *An Introduction to the
    Bootstrap*, chapter 13). Nothing is fitted and nothing predicted again.

    Parameters
    ----------
    challenger, champion
        As `judge` returned them for one test set.
    seed
        For the resamples: equal models, rows and seeds give equal results.
    resamples
        Default: `RESAMPLES`; of more than 5,000 rows fewer, and never less than 200.
    """
    import numpy as np

    count = len(challenger.truth)
    resamples = resamples or max(
        _FEWEST_RESAMPLES, min(RESAMPLES, _RESAMPLED_ROWS // max(count, 1))
    )
    rng = np.random.default_rng(seed)
    at_once = max(1, _ROWS_AT_ONCE // count)
    blocks = []
    with warnings.catch_warnings(action="ignore"):  # of every resample that lacks a class
        for start in range(0, resamples, at_once):
            rows = rng.integers(0, count, (min(at_once, resamples - start), count))
            blocks.append(challenger.resampled(rows) - champion.resampled(rows))
    differences = np.concatenate(blocks)
    defined = differences[np.isfinite(differences)]
    return Comparison(
        challenger.metric,
        challenger.score,
        champion.score,
        defined,
        resamples - len(defined),
    )


class _Answers:
    """A fitted pipeline that predicts its rows once and is asked for them by number."""

    def __init__(self, pipeline: Any, features: pd.DataFrame) -> None:
        self._pipeline = pipeline
        self._features = features
        self._answers: dict[str, Any] = {}

    def __getitem__(self, step: int) -> Any:
        return self._pipeline[step]

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._pipeline, name)
        if name not in ("predict", "predict_proba", "decision_function"):
            return found

        def answer(rows: np.ndarray) -> np.ndarray:
            import numpy as np

            if name not in self._answers:
                self._answers[name] = np.asarray(found(self._features))
            return np.asarray(self._answers[name][rows])

        answer.__name__ = name  # scorers tell probabilities from decisions by it
        return answer


def _counts(rows: np.ndarray) -> np.ndarray:
    """How often each row is in each resample."""
    import numpy as np

    resamples, count = rows.shape
    places = rows + count * np.arange(resamples)[:, np.newaxis]
    return np.bincount(places.ravel(), minlength=rows.size).reshape(rows.shape)


def _roc_auc(scores: np.ndarray, truth: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of all resamples at once.

    The share of pairs of a positive and a negative row that the scores put in order, ties counting
    half (Hanley & McNeil 1982, "The meaning and use of the area under a ROC curve").
    """
    import numpy as np

    order = np.argsort(scores, kind="stable")
    starts = np.unique(scores[order], return_index=True)[1]
    ordered = counts[:, order].astype("float64")
    positive = np.add.reduceat(ordered * (truth[order] == 1), starts, axis=1)
    negative = np.add.reduceat(ordered * (truth[order] == 0), starts, axis=1)
    below = np.cumsum(negative, axis=1) - negative / 2
    with np.errstate(invalid="ignore"):  # only one of the two classes
        return np.asarray(
            (positive * below).sum(axis=1) / (positive.sum(axis=1) * negative.sum(axis=1))
        )
