"""The daemon itself: a worker that is killed, and an asset that gets old."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from dagster import AssetKey, AssetMaterialization, DagsterInstance, DagsterRunStatus
from dagster._core.events import DagsterEvent, StepMaterializationData

from mlops_assets_tests.automation.channels import Webhook
from mlops_assets_tests.automation.conftest import ROOT, StartDaemon, ticks
from mlops_assets_tests.conftest import Project, instance_of

pytestmark = pytest.mark.daemon

MINUTES = 4
MODULE = "mlops_assets_tests.automation.alerts_code_location"


def launch(project: Project, home: Path) -> None:
    command = ["job", "launch", "--module-name", MODULE, "--job", "endless_job"]
    subprocess.run(
        [str(Path(sys.executable).with_name("dagster")), *command],
        env=project.environment(home),
        cwd=ROOT,
        check=True,
        capture_output=True,
    )


def made_long_ago(instance: DagsterInstance, name: str) -> None:
    made = StepMaterializationData(AssetMaterialization(name))
    event = DagsterEvent("ASSET_MATERIALIZATION", "", event_specific_data=made)
    instance.report_dagster_event(event, run_id="", timestamp=time.time() - 3600)
    assert instance.get_latest_materialization_event(AssetKey(name)) is not None


def test_a_killed_worker_and_an_overdue_asset_are_told_once(
    customers: Project, home: Path, daemon: StartDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Webhook() as webhook, instance_of(home) as instance:
        monkeypatch.setenv("MLOPS_ALERT_URLS", webhook.url)
        daemon("alerts_code_location")
        deadline = time.monotonic() + 60 * MINUTES

        def until(done: Callable[[], bool]) -> None:
            while not done():
                assert time.monotonic() < deadline, (customers.folder / "daemon.log").read_text()
                time.sleep(0.5)

        until(lambda: bool(ticks(instance, "asset_alerts")))
        made_long_ago(instance, "aging")
        launch(customers, home)
        worker = home / "worker.pid"
        until(lambda: worker.exists() and bool(worker.read_text()))
        os.kill(int(worker.read_text()), signal.SIGKILL)
        until(lambda: len(webhook.received) == 2)
        until(lambda: instance.get_runs()[0].status is DagsterRunStatus.SUCCESS)
        seen = len(ticks(instance, "run_failure_alerts"))
        until(lambda: len(ticks(instance, "run_failure_alerts")) > seen)

        told = {message["title"]: message for message in webhook.received}
        assert len(webhook.received) == 2
        killed = told["endless failed, will be retried"]
        retried, failed = instance.get_runs()
        assert retried.parent_run_id == failed.run_id
        assert killed["type"] == "warning"
        assert "was terminated by signal 9 (SIGKILL)" in killed["message"]
        assert "step: endless" in killed["message"]
        assert "owners: team:ml" in killed["message"]
        assert killed["message"].endswith(f"http://localhost:3000/runs/{failed.run_id}")
        overdue = told["aging is overdue"]
        assert overdue["type"] == "failure"
        assert overdue["message"].endswith("http://localhost:3000/assets/aging")
        assert all(tick.error is None for tick in ticks(instance, "run_failure_alerts"))
