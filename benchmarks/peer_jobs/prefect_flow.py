"""The job in Prefect: results are kept, and looked up by source code and inputs."""

import hashlib
import os
from pathlib import Path
from typing import Any

import work
from prefect import flow, task
from prefect.cache_policies import INPUTS, TASK_SOURCE
from prefect.context import TaskRunContext


def content(_: TaskRunContext, inputs: dict[str, Any]) -> str:
    """Have the file count by what is in it: by default its path alone would."""
    return hashlib.sha256(Path(inputs["path"]).read_bytes()).hexdigest()


cached = {"cache_policy": INPUTS + TASK_SOURCE, "persist_result": True}
load = task(work.load, cache_key_fn=content, persist_result=True)
split = task(work.split, **cached)
train = task(work.train, **cached)
evaluate = task(work.evaluate, **cached)


@flow
def iris(path: str) -> None:
    """Train and judge a model."""
    training, test = split(load(path))
    evaluate(train(training), test, "figures")


if __name__ == "__main__":
    iris(os.environ["IRIS_CSV"])
