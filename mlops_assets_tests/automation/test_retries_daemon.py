"""The daemon itself, and how often it has steps executed that fail and workers that are killed."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest
from dagster import DagsterInstance, DagsterRun, DagsterRunStatus

from mlops_assets.dagster_internals.database import PROCESS
from mlops_assets.processes import this_process
from mlops_assets_tests.automation.conftest import StartDaemon
from mlops_assets_tests.conftest import Project, instance_of

pytestmark = pytest.mark.daemon

MINUTES = 6


def test_what_is_wrong_is_executed_once_and_what_may_pass_within_its_budget_over_all_runs(
    customers: Project, home: Path, daemon: StartDaemon
) -> None:
    settings = home / "dagster.yaml"
    sooner = settings.read_text().replace("poll_interval_seconds: 30", "poll_interval_seconds: 2")
    settings.write_text(sooner)
    with instance_of(home) as instance:
        killed = _run_of_a_command_that_was_killed(instance)
        daemon("retries_code_location")
        deadline = time.monotonic() + 60 * MINUTES

        def statuses() -> dict[str, list[str]]:
            """Of the runs of each job, the first one first."""
            found: dict[str, list[str]] = {}
            for run in reversed(instance.get_runs()):
                found.setdefault(run.job_name, []).append(run.status.value)
            return found

        expected = {
            "by_command": ["FAILURE"],
            "failing": ["FAILURE"],
            "resumed": ["FAILURE", "SUCCESS"],
            "given_up": ["FAILURE", "FAILURE"],
        }
        while statuses() != expected:
            log = (customers.folder / "daemon.log").read_text()
            assert time.monotonic() < deadline, f"{statuses()}\n{log[-5000:]}"
            time.sleep(0.5)

        assert Counter((home / "executed").read_text().split()) == {
            "defective": 1,
            "passing": 3,
            "hopeless": 3,
            "before": 1,
            "killed": 2,
            "lost": 1,
        }
        assert "its process on this machine is gone" in _said_of(instance, killed)
        [given_up, *_] = [run for run in instance.get_runs() if run.job_name == "given_up"]
        assert "lost has had all attempts that `retries.max`" in _said_of(instance, given_up)


def _run_of_a_command_that_was_killed(instance: DagsterInstance) -> DagsterRun:
    process = this_process()
    assert process is not None
    run = instance.add_run(DagsterRun("by_command", status=DagsterRunStatus.STARTED))
    *place, _ = process.split(" ")  # the number was given again
    instance.add_run_tags(run.run_id, {PROCESS: " ".join([run.run_id, *place, "1"])})
    return run


def _said_of(instance: DagsterInstance, run: DagsterRun) -> str:
    events = [entry.dagster_event for entry in instance.all_logs(run.run_id)]
    failures = [event.step_failure_data for event in events if event and event.is_step_failure]
    said = [one.user_failure_data.description for one in failures if one.user_failure_data]
    return "\n".join([*(event.message or "" for event in events if event), *map(str, said)])
