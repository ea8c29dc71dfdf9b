"""What `test_alerts_daemon` loads: the pipelines, a worker to be killed, an asset that gets old."""

import os
import time
from datetime import timedelta
from pathlib import Path

from dagster import Definitions, FreshnessPolicy, asset, define_asset_job, in_process_executor

from mlops_assets.definitions import build_defs

WORKER = Path(os.environ["DAGSTER_HOME"]) / "worker.pid"


@asset(owners=["team:ml"])
def endless() -> None:
    """Be there to be killed, the first time."""
    if not WORKER.exists():
        WORKER.write_text(str(os.getpid()))
        time.sleep(600)


@asset(freshness_policy=FreshnessPolicy.time_window(timedelta(minutes=1)))
def aging() -> None:
    """Get old."""


jobs = [define_asset_job("endless_job", [endless], executor_def=in_process_executor)]
defs = Definitions.merge(build_defs(), Definitions([endless, aging], jobs=jobs))
