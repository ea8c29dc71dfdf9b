"""Whether a new model replaces the champion. Comparing only: scores come from `evaluate`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol


class Gate(Protocol):
    """A condition on a metric, such as `roc_auc >= 0.80`; `str()` of it is that text."""

    @property
    def metric(self) -> str:
        """Name of the metric."""

    def passes(self, value: float) -> bool:
        """Whether a value of the metric meets the condition."""


class Decision(NamedTuple):
    """Whether to promote, and the reason in words for people."""

    promote: bool
    reason: str


def decide(
    metrics: Mapping[str, float],
    gates: Iterable[Gate],
    *,
    by: str,
    challenger_score: float,
    champion_score: float | None,
    min_improvement: float = 0.0,
) -> Decision:
    """Compare a new model (the challenger) with the promoted one (the champion).

    Every gate must pass; then the challenger must reach the champion's score on the same test set
    plus `min_improvement`. All scikit-learn scorers are greater-is-better.

    Parameters
    ----------
    metrics
        The challenger's metrics; a gate whose metric is not among them does not pass.
    gates
        Conditions that the metrics must fulfil.
    by
        Name of the metric that the two scores are values of.
    challenger_score, champion_score
        Values of `by` on one and the same test set; no champion yet: None.
    min_improvement
        How much better the challenger must be, in units of `by`.
    """
    for gate in gates:
        value = metrics.get(gate.metric)
        if value is None:
            return Decision(False, f"gate {gate} failed: {gate.metric} was not measured")
        if not gate.passes(value):
            return Decision(False, f"gate {gate} failed: {gate.metric} is {value:.4g}")
    if champion_score is None:
        return Decision(True, f"the first champion: {by} is {challenger_score:.4g}")
    comparison = f"{by} {challenger_score:.4g} against the champion's {champion_score:.4g}"
    improvement = challenger_score - champion_score
    # 0.82 - 0.80 is less than 0.02 in floating point
    if improvement >= min_improvement - 1e-12:
        return Decision(True, f"{comparison} on the same test set")
    wanted = f", at least {min_improvement:.4g} better was asked for" if min_improvement else ""
    return Decision(False, f"{comparison} on the same test set{wanted}")
