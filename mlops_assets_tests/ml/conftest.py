"""Fixtures of the tests of `mlops_assets.ml`: a mixed frame, and readers of files written here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mlops_assets.ml.read import read
from mlops_assets.spec import DataSpec
from mlops_assets_tests.store.conftest import s3_endpoint as s3_endpoint
from mlops_assets_tests.store.conftest import s3_server as s3_server

CHURN = Path(__file__).parents[2] / "mlops_assets" / "data" / "telco_churn.csv"

Reader = Callable[..., pd.DataFrame]


@pytest.fixture
def read_csv(tmp_path: Path) -> Reader:
    """Write content as a csv file and read it; keywords are those of DataSpec."""

    def reader(content: str | bytes, **spec: object) -> pd.DataFrame:
        encoded = content.encode() if isinstance(content, str) else content
        (tmp_path / "data.csv").write_bytes(encoded)
        return read(DataSpec(**{"uri": "data.csv", "target": "x", **spec}), tmp_path)

    return reader


@pytest.fixture
def mixed() -> pd.DataFrame:
    """90 rows with every type of column, missing values and a `level` of three classes."""
    rng = np.random.default_rng(0)
    rows = 90
    frame = pd.DataFrame(
        {
            "weight": rng.normal(size=rows),
            "count": rng.integers(0, 9, rows),
            "color": pd.Categorical(rng.choice(["blue", "green", "red"], rows)),
            "seen": pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 900, rows), "D"),
            "active": rng.random(rows) < 0.5,
            "note": pd.Series([f"free text {row}" for row in range(rows)], dtype=object),
        },
        index=pd.RangeIndex(rows, name="row"),
    )
    amount = frame["weight"] + frame["count"] / 3
    frame["amount"] = amount - amount.min() + 0.1
    frame["level"] = pd.cut(amount, [-9, 0.5, 1.5, 99], labels=["low", "mid", "high"]).astype(str)
    frame["level"] = frame["level"].astype("category")
    frame.loc[3, "weight"] = np.nan
    frame.loc[5, "color"] = np.nan
    frame.loc[7, "seen"] = pd.NaT
    frame["active"] = frame["active"].astype("boolean")
    frame.loc[9, "active"] = pd.NA
    return frame
