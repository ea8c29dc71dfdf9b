"""Whether a run in progress is still there, as its code server or the lack of one tells.

What is done about one that is gone is in `automation/test_backfill.py`.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from dagster import DagsterInstance, DagsterRun, DagsterRunStatus
from dagster._core.launcher.base import WorkerStatus
from dagster._core.launcher.default_run_launcher import GRPC_INFO_TAG

from mlops_assets.dagster_internals.database import PROCESS, may_have_gone_runs
from mlops_assets.dagster_internals.gone_runs import end_gone_runs
from mlops_assets.dagster_internals.run_launcher import WatchedRunLauncher
from mlops_assets.processes import this_process
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


def test_a_run_that_no_code_server_started_is_gone_with_the_process_that_it_names(
    tmp_path: Path,
) -> None:
    (tmp_path / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text())
    process = this_process()
    assert process is not None
    *place, _ = process.split(" ")
    killed = " ".join([*place, "1"])  # the number was given again
    with instance_of(tmp_path) as instance:

        def status_of(process: str, run_id: str | None = None) -> WorkerStatus:
            run = run_of(instance)
            instance.add_run_tags(run.run_id, {PROCESS: f"{run_id or run.run_id} {process}"})
            run = instance.get_run_by_id(run.run_id)
            return instance.run_launcher.check_run_worker_health(run).status

        assert status_of(process) == WorkerStatus.RUNNING
        assert status_of(killed) == WorkerStatus.FAILED
        assert status_of(killed, "the-run-it-is-a-retry-of") == WorkerStatus.RUNNING


@pytest.mark.parametrize(
    ("before", "after"),
    [("STARTED", "FAILURE"), ("STARTING", "FAILURE"), ("CANCELING", "CANCELED")],
)
def test_runs_whose_process_is_gone_are_ended(tmp_path: Path, before: str, after: str) -> None:
    process = this_process()
    assert process is not None
    *place, _ = process.split(" ")
    with DagsterInstance.local_temp(str(tmp_path)) as instance:
        runs = [
            instance.add_run(
                DagsterRun(
                    "any",
                    run_id=run_id,
                    status=DagsterRunStatus(before),
                    tags={PROCESS: f"{run_id} {process}"},
                )
            )
            for run_id, process in [
                ("00000000-0000-0000-0000-000000000001", " ".join([*place, "1"])),
                ("00000000-0000-0000-0000-000000000002", process),
            ]
        ]
        assert may_have_gone_runs(tmp_path)
        assert [run.run_id for run in end_gone_runs(instance)] == [runs[0].run_id]
        assert not may_have_gone_runs(tmp_path)
        found = [instance.get_run_by_id(run.run_id) for run in runs]
        assert [run.status.value for run in found if run] == [after, before]
