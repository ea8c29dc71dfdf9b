"""Whether a run in progress is still there, as its code server or the lack of one tells.

What is done about one that is gone is in `automation/test_backfill.py`.
"""

from __future__ import annotations

import json
from pathlib import Path

from dagster import DagsterInstance, DagsterRun, DagsterRunStatus
from dagster._core.launcher.base import WorkerStatus
from dagster._core.launcher.default_run_launcher import GRPC_INFO_TAG

from mlops_assets.dagster_internals.run_launcher import WatchedRunLauncher
from mlops_assets_tests.conftest import instance_of

ROOT = Path(__file__).parents[2]


def run_of(instance: DagsterInstance, **tags: str) -> DagsterRun:
    run = DagsterRun("any", status=DagsterRunStatus.STARTED, tags=tags)
    return instance.add_run(run)


def test_the_shipped_instance_asks_whether_a_run_is_gone(tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text())
    with instance_of(tmp_path) as instance:
        launcher = instance.run_launcher
        assert isinstance(launcher, WatchedRunLauncher)
        assert launcher.supports_check_run_worker_health
        assert instance.run_monitoring_enabled

        dead = run_of(
            instance, **{GRPC_INFO_TAG: json.dumps({"host": "localhost", "socket": "/x"})}
        )
        assert launcher.check_run_worker_health(dead).status == WorkerStatus.FAILED
        by_command = run_of(instance)
        assert launcher.check_run_worker_health(by_command).status == WorkerStatus.RUNNING
