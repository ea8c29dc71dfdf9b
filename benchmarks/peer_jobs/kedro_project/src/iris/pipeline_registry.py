"""The pipeline that `kedro run` runs."""

import os
from typing import Any

import pandas as pd
import work
from kedro.pipeline import Pipeline, node, pipeline


def load() -> pd.DataFrame:
    """Read all flowers."""
    return work.load(os.environ["IRIS_CSV"])


def evaluate(model: Any, test: pd.DataFrame) -> dict[str, Any]:
    """Judge the model."""
    return work.evaluate(model, test, "figures")


def register_pipelines() -> dict[str, Pipeline]:
    """Return the one pipeline."""
    nodes = [
        node(load, None, "raw"),
        node(work.split, "raw", ["training", "test"]),
        node(work.train, "training", "model"),
        node(evaluate, ["model", "test"], "metrics"),
    ]
    return {"__default__": pipeline(nodes)}
