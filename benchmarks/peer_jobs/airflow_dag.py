"""The job in Airflow: TaskFlow, with paths as XComs, as data do not belong into its database."""

import os
from pathlib import Path

from airflow.sdk import dag, task


@dag(schedule=None)
def iris() -> None:
    """Train and judge a model."""

    @task
    def load() -> str:
        import work

        path = _folder() / "raw.parquet"
        work.load(os.environ["IRIS_CSV"]).to_parquet(path)
        return str(path)

    @task(multiple_outputs=True)
    def split(raw: str) -> dict[str, str]:
        import pandas as pd
        import work

        paths = {name: str(_folder() / f"{name}.parquet") for name in ("training", "test")}
        for path, part in zip(paths.values(), work.split(pd.read_parquet(raw)), strict=True):
            part.to_parquet(path)
        return paths

    @task
    def train(training: str) -> str:
        import joblib
        import pandas as pd
        import work

        path = str(_folder() / "model.joblib")
        joblib.dump(work.train(pd.read_parquet(training)), path)
        return path

    @task
    def evaluate(model: str, test: str) -> dict[str, float]:
        import joblib
        import pandas as pd
        import work

        figures = _folder() / "figures"
        evaluation = work.evaluate(joblib.load(model), pd.read_parquet(test), figures)
        return evaluation["metrics"]

    parts = split(load())
    evaluate(train(parts["training"]), parts["test"])


def _folder() -> Path:
    folder = Path(os.environ["AIRFLOW_HOME"], "data")
    folder.mkdir(exist_ok=True)
    return folder


iris()
