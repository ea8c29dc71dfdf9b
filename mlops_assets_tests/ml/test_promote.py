"""Promotion: gates first, then the comparison on the same test set."""

from __future__ import annotations

import pytest

from mlops_assets.ml.promote import Decision, decide
from mlops_assets.spec import Gate

GATES = [Gate.parse("roc_auc", ">= 0.8"), Gate.parse("accuracy", "> 0.7")]
METRICS = {"roc_auc": 0.84, "accuracy": 0.8}


def _decide(
    champion: float | None, metrics: dict[str, float] = METRICS, min_improvement: float = 0.0
) -> Decision:
    return decide(
        metrics,
        GATES,
        by="roc_auc",
        challenger_score=0.84,
        champion_score=champion,
        min_improvement=min_improvement,
    )


def test_the_first_model_that_passes_its_gates_is_promoted() -> None:
    assert _decide(None) == Decision(True, "the first champion: roc_auc is 0.84")


@pytest.mark.parametrize(
    ("metrics", "reason"),
    [
        (METRICS | {"roc_auc": 0.79}, "gate roc_auc >= 0.8 failed: roc_auc is 0.79"),
        (METRICS | {"accuracy": 0.7}, "gate accuracy > 0.7 failed: accuracy is 0.7"),
        ({"roc_auc": 0.9}, "gate accuracy > 0.7 failed: accuracy was not measured"),
    ],
)
def test_a_failed_gate_keeps_a_model_from_promotion(metrics: dict[str, float], reason: str) -> None:
    assert _decide(None, metrics) == Decision(False, reason)
    assert _decide(0.1, metrics) == Decision(False, reason)


@pytest.mark.parametrize(
    ("champion", "min_improvement", "promoted"),
    [
        (0.83, 0.0, True),
        (0.84, 0.0, True),
        (0.85, 0.0, False),
        (0.82, 0.02, True),  # 0.84 - 0.82 is less than 0.02 in floating point
        (0.83, 0.02, False),
        (-0.5, 0.0, True),
    ],
)
def test_a_model_is_promoted_unless_it_is_worse(
    champion: float, min_improvement: float, promoted: bool
) -> None:
    decision = _decide(champion, min_improvement=min_improvement)
    assert decision.promote is promoted
    assert "0.84" in decision.reason
    assert f"{champion:.4g}" in decision.reason
