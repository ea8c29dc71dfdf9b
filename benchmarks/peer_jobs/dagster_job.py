"""The job in stock Dagster: assets, pickled by its default IO manager, in the run's own process."""

import os
from typing import Any

import pandas as pd
import work
from dagster import AssetOut, Definitions, asset, define_asset_job, in_process_executor, multi_asset
from sklearn.pipeline import Pipeline


@asset(code_version="1")
def raw() -> pd.DataFrame:
    """All flowers."""
    return work.load(os.environ["IRIS_CSV"])


@multi_asset(outs={"training": AssetOut(code_version="1"), "test": AssetOut(code_version="1")})
def divided(raw: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Flowers to learn from and to be judged on."""
    return work.split(raw)


@asset(code_version="1")
def model(training: pd.DataFrame) -> Pipeline:
    """The trained model."""
    return work.train(training)


@asset(code_version="1")
def metrics(model: Pipeline, test: pd.DataFrame) -> dict[str, Any]:
    """How good the model is."""
    return work.evaluate(model, test, "figures")


defs = Definitions(
    assets=[raw, divided, model, metrics],
    jobs=[define_asset_job("iris")],
    executor=in_process_executor,
)
