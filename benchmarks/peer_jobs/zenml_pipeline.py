"""The job in ZenML: steps whose artefacts are kept and reused, with caching as it is by default."""

import hashlib
import os
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import work
from sklearn.pipeline import Pipeline
from zenml import pipeline, step
from zenml.config import CachePolicy


def content() -> str:
    """Have the file count by what is in it: by default its path alone would."""
    return hashlib.sha256(Path(os.environ["IRIS_CSV"]).read_bytes()).hexdigest()


@step(cache_policy=CachePolicy(cache_func=content))
def load(path: str) -> pd.DataFrame:
    """All flowers."""
    return work.load(path)


@step
def split(
    raw: pd.DataFrame,
) -> tuple[Annotated[pd.DataFrame, "training"], Annotated[pd.DataFrame, "test"]]:
    """Flowers to learn from and to be judged on."""
    training, test = work.split(raw)
    return training, test  # written out, as ZenML looks at the source for the number of results


@step
def train(training: pd.DataFrame) -> Pipeline:
    """The trained model."""
    return work.train(training)


@step
def evaluate(model: Pipeline, test: pd.DataFrame) -> dict[str, Any]:
    """How good the model is."""
    return work.evaluate(model, test, "figures")


@pipeline
def iris(path: str) -> None:
    """Train and judge a model."""
    training, test = split(load(path))
    evaluate(train(training), test)


if __name__ == "__main__":
    iris(os.environ["IRIS_CSV"])
