"""The model card: that it tells what it should, and that no name breaks its tables."""

from __future__ import annotations

import pandas as pd

from mlops_assets.ml.evaluate import evaluate
from mlops_assets.ml.model_card import model_card
from mlops_assets.ml.train import train
from mlops_assets.spec import PipelineSpec


def _card(frame: pd.DataFrame, target: str, estimator: str, **parts: object) -> str:
    spec = PipelineSpec(
        name="growth",
        data={"uri": "data.csv", "target": target, "drop": []},
        model={"estimator": f"sklearn.linear_model.{estimator}", "params": {"max_iter": 500}},
        **parts,
    )
    model = train(frame, spec.model, target=target)
    return model_card(spec, model, evaluate(model, frame))


def test_a_classifier_is_described(mixed: pd.DataFrame) -> None:
    card = _card(
        mixed.drop(columns="amount"),
        "level",
        "LogisticRegression",
        description="How much it grows.",
        evaluate={"metrics": ["accuracy"], "gates": {"accuracy": ">= 0.5"}},
    )
    for text in [
        "# growth\n\nHow much it grows.",
        "3 classes `level` is: `high`, `low`, `mid`",
        "`sklearn.linear_model.LogisticRegression` with `max_iter=500`",
        "90 rows and 6 columns",
        "20% were drawn at random (seed 42)",
        "| accuracy |",
        "| accuracy >= 0.5 | passed |",
        "| count |",
        "| mid |",
    ]:
        assert text in card


def test_a_regressor_is_described(mixed: pd.DataFrame) -> None:
    card = _card(mixed.drop(columns="level"), "amount", "Ridge", split={"by_time": "seen"})
    assert "Predicts the number `amount`." in card
    assert "The latest 20% by `seen` are the test set." in card
    assert "## Classes" not in card


def test_no_name_breaks_a_table(mixed: pd.DataFrame) -> None:
    frame = mixed.drop(columns="amount").rename(columns={"count": "a | b\n`c`"})
    card = _card(frame, "level", "LogisticRegression")
    tables = [line for line in card.splitlines() if line.startswith("|")]
    assert "a \\| b 'c'" in card
    assert all(line.endswith("|") for line in tables)
