"""What the daemons of the fault suite tick: a sensor that asks for a run every second."""

from __future__ import annotations

import time
from collections.abc import Iterator

from dagster import DefaultSensorStatus, Definitions, RunRequest, job, sensor


@job
def nothing() -> None:
    pass


@sensor(job=nothing, minimum_interval_seconds=1, default_status=DefaultSensorStatus.RUNNING)
def every_second() -> Iterator[RunRequest]:
    yield RunRequest(run_key=str(int(time.time())))


defs = Definitions(jobs=[nothing], sensors=[every_second])
