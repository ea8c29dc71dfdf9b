"""The job in Kubeflow Pipelines: components that hand on artefacts, run and cached locally."""

import hashlib
import os
from pathlib import Path

from kfp import dsl, local

component = dsl.component(install_kfp_package=False)
# by default the file would count by its path alone
content = hashlib.sha256(Path(os.environ["IRIS_CSV"]).read_bytes()).hexdigest()


@component
def load(path: str, raw: dsl.Output[dsl.Dataset]) -> None:
    """All flowers."""
    import work

    work.load(path).to_parquet(raw.path)


@component
def split(
    raw: dsl.Input[dsl.Dataset], training: dsl.Output[dsl.Dataset], test: dsl.Output[dsl.Dataset]
) -> None:
    """Flowers to learn from and to be judged on."""
    import pandas as pd
    import work

    first, second = work.split(pd.read_parquet(raw.path))
    first.to_parquet(training.path)
    second.to_parquet(test.path)


@component
def train(training: dsl.Input[dsl.Dataset], model: dsl.Output[dsl.Model]) -> None:
    """The trained model."""
    import joblib
    import pandas as pd
    import work

    joblib.dump(work.train(pd.read_parquet(training.path)), model.path)


@component
def evaluate(
    model: dsl.Input[dsl.Model],
    test: dsl.Input[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    figures: dsl.Output[dsl.Artifact],
) -> None:
    """How good the model is."""
    import json
    from pathlib import Path

    import joblib
    import pandas as pd
    import work

    evaluation = work.evaluate(joblib.load(model.path), pd.read_parquet(test.path), figures.path)
    for name, value in evaluation["metrics"].items():
        metrics.log_metric(name, value)
    # without a file of the artefact the local cache would take this step for one to be run again
    Path(metrics.path).write_text(json.dumps(evaluation))


@dsl.pipeline
def iris(path: str) -> None:
    """Train and judge a model."""
    loaded = load(path=path).set_caching_options(enable_caching=True, cache_key=content)
    parts = split(raw=loaded.output).outputs
    model = train(training=parts["training"]).output
    evaluate(model=model, test=parts["test"])


if __name__ == "__main__":
    local.init(
        runner=local.SubprocessRunner(use_venv=False),
        pipeline_root="outputs",
        enable_caching=True,
    )
    iris(path=os.environ["IRIS_CSV"])
