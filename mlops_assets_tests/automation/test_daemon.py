"""The daemon itself, with schedules and a sensor that are on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from dagster import AssetKey, DagsterRunStatus, RunsFilter
from dagster._core.definitions.freshness import FreshnessState
from dagster._core.scheduler.instigation import TickStatus

from mlops_assets_tests.automation.conftest import StartDaemon, ticks
from mlops_assets_tests.conftest import DUMMY, Project, instance_of, write_customers

pytestmark = pytest.mark.daemon

MINUTES = 5


def test_the_daemon_launches_what_is_stale_once_and_skips_what_is_fresh(
    customers: Project, home: Path, daemon: StartDaemon
) -> None:
    customers.add("customers", DUMMY + "train: {schedule: '* * * * *'}\n")
    with instance_of(home) as instance:
        customers.instance = instance
        assert customers.train("customers").success
        daemon("code_location")

        def until(done: Callable[[], bool]) -> None:
            while not done():
                assert time.monotonic() < deadline, (customers.folder / "daemon.log").read_text()
                time.sleep(0.5)

        def finished(tag: str, name: str) -> list[set[str]]:
            runs = [run for run in instance.get_runs() if run.tags.get(tag) == name]
            assert all(run.status != DagsterRunStatus.FAILURE for run in runs)
            return [
                {key.to_user_string() for key in run.asset_selection or ()}
                for run in runs
                if run.is_finished
            ]

        deadline = time.monotonic() + 60 * MINUTES
        until(lambda: bool(finished("dagster/sensor_name", "own_sensor")))
        seen = len(ticks(instance, "own_sensor"))
        until(lambda: bool(finished("dagster/schedule_name", "own_schedule")))
        until(lambda: len(ticks(instance, "own_sensor")) > seen + 1)
        until(lambda: bool(ticks(instance, "customers_training_schedule")))

        assert finished("dagster/sensor_name", "own_sensor") == [{"by_sensor", "below"}]
        assert finished("dagster/schedule_name", "own_schedule") == [{"by_schedule"}]
        assert finished("dagster/schedule_name", "customers_training_schedule") == []
        [training, *_] = ticks(instance, "customers_training_schedule")
        assert "fresh: customers/champion" in (training.skip_reason or "")


def test_the_daemon_launches_one_run_for_each_change_of_the_data(
    customers: Project, home: Path, daemon: StartDaemon
) -> None:
    pipelines = customers.folder / "pipelines"
    on_new_data = "train: {on_new_data: true, fresh_within: 1d}\n"
    customers.add("customers", DUMMY.replace("customers.csv", "in/*.csv") + on_new_data)
    (pipelines / "in").mkdir()
    (pipelines / "customers.csv").rename(pipelines / "in" / "customers.csv")
    model = AssetKey(["customers", "model"])
    deadline = time.monotonic() + 60 * MINUTES

    def until(done: Callable[[], bool]) -> None:
        while not done():
            assert time.monotonic() < deadline, (customers.folder / "daemon.log").read_text()
            time.sleep(0.5)

    with instance_of(home) as instance:

        def succeeded() -> int:
            launched = RunsFilter(tags={"dagster/sensor_name": "customers_new_data_sensor"})
            statuses = [run.status for run in instance.get_runs(launched)]
            assert DagsterRunStatus.FAILURE not in statuses
            assert set(statuses[1:]) <= {DagsterRunStatus.SUCCESS}, "one after the other"
            return statuses.count(DagsterRunStatus.SUCCESS)

        def skips() -> list[str]:
            found = ticks(instance, "customers_new_data_sensor")
            assert all(tick.status != TickStatus.FAILURE for tick in found)
            return [tick.skip_reason or "" for tick in found]

        def rows() -> int:
            record = instance.fetch_materializations(AssetKey(["customers", "raw"]), limit=1)
            made = record.records[0].asset_materialization
            assert made is not None
            return int(made.metadata["dagster/row_count"].value)

        daemon("code_location")
        until(lambda: succeeded() == 1)

        half = pipelines / "in" / "half.csv"
        write_customers(half, rows=50)
        until(lambda: any("half.csv may not be complete" in one for one in skips()))
        with half.open("a") as file:
            file.write("30,basic,no\n" * 10)
        until(lambda: succeeded() == 2)
        assert rows() == 180

        late = customers.folder / "late.csv"
        write_customers(late, rows=20)
        os.utime(late, (1, 1))
        late.rename(pipelines / "in" / "late.csv")
        until(lambda: succeeded() == 3)
        assert rows() == 200

        # the same file twice
        (pipelines / "in" / "late.csv").write_text((pipelines / "in" / "late.csv").read_text())
        until(lambda: any("fresh: customers/champion" in one for one in skips()))
        until(lambda: "nothing new among 3" in skips()[-1])
        until(lambda: bool(instance.get_freshness_state_records([model])))
        [state] = instance.get_freshness_state_records([model]).values()
        assert state.freshness_state == FreshnessState.PASS
        assert succeeded() == 3
