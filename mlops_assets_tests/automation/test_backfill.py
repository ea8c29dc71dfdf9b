"""A backfill of many days by the daemon, whose processes are all killed in the middle of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import date, timedelta
from pathlib import Path

import pytest
from dagster import AssetKey, DagsterEventType, DagsterInstance, DagsterRunStatus, RunsFilter
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill

from mlops_assets_tests.conftest import CUSTOMERS, Project, instance_of, train_once
from mlops_assets_tests.servers import stop_group

pytestmark = pytest.mark.daemon

ROOT = Path(__file__).parents[2]
# MLOPS_TEST_DAYS=90 makes it what it is like in earnest
DAYS = [
    (date(2026, 1, 1) + timedelta(n)).isoformat()
    for n in range(int(os.environ.get("MLOPS_TEST_DAYS", "5")))
]
BAD = DAYS[2]
MINUTES = 5 + len(DAYS) / 3
KEY = AssetKey(["customers", "predictions"])


@pytest.fixture
def home(customers: Project) -> Path:
    home = customers.folder / "dagster"
    home.mkdir()
    shipped = (ROOT / "dagster.yaml").read_text()
    sooner = "poll_interval_seconds: 2\n  start_timeout_seconds: 60"
    (home / "dagster.yaml").write_text(shipped.replace("poll_interval_seconds: 30", sooner))
    return home


@pytest.fixture
def start(customers: Project, home: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def daemon() -> subprocess.Popen[bytes]:
        command = Path(sys.executable).with_name("dagster-daemon")
        process = subprocess.Popen(
            [str(command), "run", "--module-name", "mlops_assets.definitions"],
            env=customers.environment(home),
            stdout=(customers.folder / "daemon.log").open("a"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield daemon
    for process in started:
        if process.poll() is None:
            stop_group(process)
    _kill_everything_in(home)


def test_a_backfill_survives_that_everything_is_killed_and_a_bad_file_fails_only_its_day(
    customers: Project,
    trained_store: Path,
    home: Path,
    start: Callable[[], subprocess.Popen[bytes]],
) -> None:
    customers.add(
        "customers", CUSTOMERS + "score: {uri: 'inbox/{date}/*.csv', start: 2026-01-01}\n"
    )
    for number, day in enumerate(DAYS):
        path = customers.folder / "pipelines" / "inbox" / day / "a.csv"
        path.parent.mkdir(parents=True)
        path.write_text("age\n1\n" if day == BAD else f"age,plan\n{20 + number},basic\n")

    with instance_of(home) as instance:
        customers.instance = instance
        train_once(customers, trained_store)
        backfill = _backfill(customers)
        instance.add_backfill(backfill)

        def until(done: Callable[[], bool]) -> None:
            while not done():
                log = customers.folder / "daemon.log"
                assert time.monotonic() < deadline, log.read_text()[-5000:]
                time.sleep(0.2)

        def running() -> int:
            return instance.get_runs_count(RunsFilter(statuses=[DagsterRunStatus.STARTED]))

        def is_over() -> bool:
            found = instance.get_backfill(backfill.backfill_id)
            assert found is not None
            return found.status in (
                BulkActionStatus.COMPLETED,
                BulkActionStatus.COMPLETED_SUCCESS,
                BulkActionStatus.COMPLETED_FAILED,
            )

        deadline = time.monotonic() + 60 * MINUTES
        first = start()
        until(lambda: len(instance.get_materialized_partitions(KEY)) >= len(DAYS) // 4)
        until(lambda: running() > 0)
        _kill_everything_in(home)
        first.wait()
        orphans = running()
        start()
        until(is_over)

        assert orphans > 0
        good = set(DAYS) - {BAD}
        assert instance.get_materialized_partitions(KEY) == good
        _assert_one_object_for_each_day(customers, instance, good)
        assert _failures(instance) == {BAD}


def _kill_everything_in(home: Path) -> None:
    """Kill the daemon, the code servers and the runs of a Dagster home, at once."""
    mine = f"DAGSTER_HOME={home}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mine in (process / "environ").read_bytes().split(b"\0"):
                os.kill(int(process.name), signal.SIGKILL)


def _backfill(project: Project) -> PartitionBackfill:
    graph = project.definitions().resolve_asset_graph()
    return PartitionBackfill.from_asset_partitions(
        backfill_id="all_days",
        asset_graph=graph,
        partition_names=DAYS,
        asset_selection=[KEY],
        backfill_timestamp=time.time(),
        tags={},
        dynamic_partitions_store=project.instance,
        all_partitions=False,
        title=None,
        description=None,
        run_config=None,
    )


def _assert_one_object_for_each_day(
    project: Project, instance: DagsterInstance, days: set[str]
) -> None:
    recorded: dict[str, set[str]] = defaultdict(set)
    for record in instance.fetch_materializations(KEY, limit=1000).records:
        made = record.asset_materialization
        assert made is not None
        recorded[str(made.partition)].add((made.tags or {})["dagster/data_version"])
    for day in days:
        [artifact] = project.store.versions(KEY.path, day)
        assert recorded[day] == {artifact.version}
        assert len(project.store.read(artifact)) == 1


def _failures(instance: DagsterInstance) -> set[str]:
    """Return the days of which a step failed; each names the bad file."""
    days = set()
    for run in instance.get_runs():
        for entry in instance.all_logs(run.run_id, of_type=DagsterEventType.STEP_FAILURE):
            assert entry.dagster_event is not None
            user = entry.dagster_event.step_failure_data.user_failure_data
            assert user is not None
            assert f"inbox/{BAD}/a.csv lacks the column plan" in (user.description or "")
            days.add(run.tags["dagster/partition"])
    return days
