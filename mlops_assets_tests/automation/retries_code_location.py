"""What `test_retries_daemon` loads: assets that fail in every way, and note each execution."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dagster import (
    AssetsDefinition,
    DefaultSensorStatus,
    Definitions,
    EnvVar,
    RetryPolicy,
    RunRequest,
    asset,
    define_asset_job,
    sensor,
)

from mlops_assets.execution.executors import local_executor
from mlops_assets.store.io_manager import StoreIOManager


def executed(name: str) -> int:
    """Write down that an asset is executed; return how often it was by now."""
    path = Path(os.environ["DAGSTER_HOME"], "executed")
    with path.open("a") as file:
        file.write(f"{name}\n")
    return path.read_text().split().count(name)


def counting(
    retries: int, deps: tuple[str, ...] = ()
) -> Callable[[Callable[[int], object]], AssetsDefinition]:
    def decorate(attempt: Callable[[int], object]) -> AssetsDefinition:
        name = attempt.__name__

        @asset(
            name=name,
            deps=deps,
            io_manager_key="store",
            retry_policy=RetryPolicy(max_retries=retries),
        )
        def computed() -> Any:
            attempt(executed(name))
            return {}

        return computed

    return decorate


@counting(2)
def defective(_: int) -> None:
    raise KeyError("a defect")


@counting(2)
def passing(attempt: int) -> None:
    if attempt < 3:
        raise ConnectionError("away")


@counting(2)
def hopeless(_: int) -> None:
    raise ConnectionError("away")


@counting(2)
def before(_: int) -> None:
    pass


@counting(2, deps=("before",))
def killed(attempt: int) -> None:
    if attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)


@counting(0)
def lost(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


jobs = [
    define_asset_job("failing", ["defective", "passing", "hopeless"]),
    define_asset_job("resumed", ["before", "killed"]),
    define_asset_job("given_up", ["lost"]),
]


@sensor(jobs=jobs, default_status=DefaultSensorStatus.RUNNING, minimum_interval_seconds=1)
def each_once() -> Iterator[RunRequest]:
    yield from (RunRequest(run_key=job.name, job_name=job.name) for job in jobs)


defs = Definitions(
    [defective, passing, hopeless, before, killed, lost],
    jobs=jobs,
    sensors=[each_once],
    resources={"store": StoreIOManager(url=EnvVar("MLOPS_STORE_URL"))},
    executor=local_executor,
)
