"""Runs whose process is killed, interrupted or asked to end: they end, in Dagster and in MLflow."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterRun, DagsterRunStatus
from mlflow import MlflowClient

from mlops_assets.dagster_internals.database import (
    LONGEST_BEGINNING,
    PROCESS,
    may_have_gone_runs,
)
from mlops_assets.dagster_internals.gone_runs import end_gone_runs
from mlops_assets_tests.cli.test_run import MLOPS, mlops, start
from mlops_assets_tests.conftest import CUSTOMERS, Project, instance_of

DAGSTER = str(Path(sys.executable).with_name("dagster"))
JOB = (DAGSTER, "job", "execute", "-m", "mlops_assets.definitions", "-j")
SLOW = """
import time
from pathlib import Path

def features(train):
    Path(__file__).with_name("{name}.begun").touch()
    time.sleep(600)
"""


def add_slow(project: Project, name: str) -> None:
    (project.folder / "pipelines" / f"slow_{name}.py").write_text(SLOW.format(name=name))
    project.add(name, f"{CUSTOMERS}  features: slow_{name}:features\n")


@contextmanager
def training(project: Project, name: str, *command: str) -> Iterator[subprocess.Popen[str]]:
    """Start a command, and wait until it trains the model of a pipeline."""
    with start(project, *command) as process:
        begun = project.folder / "pipelines" / f"{name}.begun"
        deadline = time.monotonic() + 240
        while not begun.exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        try:
            yield process
        finally:
            process.kill()


def runs(project: Project) -> dict[str, DagsterRun]:
    """Return the only run of each pipeline."""
    with instance_of(project.folder / "dagster") as instance:
        return {
            key.path[0]: run
            for run in instance.get_runs()
            for key in run.asset_selection or ()
            if key.path[-1] == "model"
        }


def said_of(project: Project, run: DagsterRun) -> str:
    with instance_of(project.folder / "dagster") as instance:
        return "\n".join(entry.message for entry in instance.all_logs(run.run_id))


def mlflow_statuses(project: Project, name: str) -> list[str]:
    client: Any = MlflowClient(project.settings.tracking_uri)
    experiment = client.get_experiment_by_name(name)
    return [run.info.status for run in client.search_runs([experiment.experiment_id])]


def test_a_killed_run_is_ended_by_the_next_command_and_a_living_one_is_left_alone(
    customers: Project,
) -> None:
    add_slow(customers, "killed")
    add_slow(customers, "living")
    with (
        training(customers, "killed", MLOPS, "run", "killed") as killed,
        training(customers, "living", MLOPS, "run", "living") as living,
    ):
        killed.kill()
        killed.wait()
        assert runs(customers)["killed"].status is DagsterRunStatus.STARTED

        pruned = mlops(customers, "prune", "--dry-run")
        after = runs(customers)

        assert pruned.returncode == 0
        assert f"run {after['killed'].run_id} failed: its process on this machine" in pruned.stderr
        assert after["killed"].status is DagsterRunStatus.FAILURE
        assert "its process on this machine is gone" in said_of(customers, after["killed"])
        assert mlflow_statuses(customers, "killed") == ["KILLED"]
        assert living.poll() is None
        assert after["living"].status is DagsterRunStatus.STARTED
        assert mlflow_statuses(customers, "living") == ["RUNNING"]
        assert "gone" not in mlops(customers, "run", "customers").stderr


def test_a_run_that_was_killed_before_it_began_is_ended_when_that_is_certain(
    customers: Project,
) -> None:
    home = customers.folder / "dagster"
    home.mkdir()
    with instance_of(home) as instance:
        old, new = (instance.add_run(DagsterRun("any")).run_id for _ in range(2))
        with closing(sqlite3.connect(home / "history" / "runs.db")) as database, database:
            made = datetime.now(UTC) - LONGEST_BEGINNING - timedelta(seconds=1)
            database.execute(
                "UPDATE runs SET create_timestamp = ? WHERE run_id = ?",
                [f"{made:%Y-%m-%d %H:%M:%S.%f}", old],
            )
        assert may_have_gone_runs(home)
        assert [run.run_id for run in end_gone_runs(instance)] == [old]
        assert not may_have_gone_runs(home)
        statuses = {run.run_id: run.status for run in instance.get_runs()}
        assert statuses == {old: DagsterRunStatus.FAILURE, new: DagsterRunStatus.NOT_STARTED}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", [(MLOPS, "run"), JOB], ids=["mlops", "dagster"])
def test_a_run_that_is_asked_to_end_never_succeeds_and_leaves_nothing_running(
    customers: Project, command: tuple[str, ...], number: signal.Signals
) -> None:
    add_slow(customers, "slow")
    name = "slow" if command[0] == MLOPS else "slow_training"
    with training(customers, "slow", *command, name) as process:
        process.send_signal(number)
        process.wait(60)

    [run] = _all_runs(customers)
    assert process.returncode != 0
    assert run.status in (DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED)
    assert mlflow_statuses(customers, "slow") == ["KILLED"]


def test_a_killed_job_of_dagsters_own_command_is_ended_by_the_next_run(
    customers: Project,
) -> None:
    add_slow(customers, "slow")
    with training(customers, "slow", *JOB, "slow_training") as process:
        process.kill()
        process.wait()
    [before] = _all_runs(customers)
    assert before.status is DagsterRunStatus.STARTED
    assert before.tags[PROCESS].startswith(f"{before.run_id} ")

    customers.add("slow", CUSTOMERS)
    assert mlops(customers, "run", "slow").returncode == 0

    [_, after] = _all_runs(customers)
    assert after.run_id == before.run_id
    assert after.status is DagsterRunStatus.FAILURE
    assert sorted(mlflow_statuses(customers, "slow")) == ["FINISHED", "KILLED"]


def _all_runs(project: Project) -> list[DagsterRun]:
    with instance_of(project.folder / "dagster") as instance:
        return list(instance.get_runs())
