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
from dagster import (
    AssetKey,
    DagsterEventType,
    DagsterInstance,
    DagsterRunStatus,
    Definitions,
    RunsFilter,
)

from mlops_assets.store.reuse import MEMOIZED
from mlops_assets_tests.conftest import CUSTOMERS, Project, instance_of, train_once
from mlops_assets_tests.ranges import backfill_of, is_over
from mlops_assets_tests.servers import stop_group

pytestmark = pytest.mark.daemon

ROOT = Path(__file__).parents[2]
# MLOPS_TEST_DAYS=90 makes it what it is like in earnest
DAYS = [
    (date(2026, 1, 1) + timedelta(n)).isoformat()
    for n in range(int(os.environ.get("MLOPS_TEST_DAYS", "5")))
]
BAD = DAYS[2]
ROWS = 2_000_000 // len(DAYS)  # of a day: the kill has to find the run in the middle
MINUTES = 5 + len(DAYS) / 3
PREDICTIONS, DRIFT = AssetKey(["customers", "predictions"]), AssetKey(["customers", "drift"])


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
        path.write_text("age\n1\n" if day == BAD else "age,plan\n" + f"{number},basic\n" * ROWS)

    with instance_of(home) as instance:
        customers.instance = instance
        train_once(customers, trained_store)
        definitions = customers.definitions()
        backfill = backfill_of(definitions, instance, [PREDICTIONS, DRIFT], DAYS)
        instance.add_backfill(backfill)

        def until(done: Callable[[], bool]) -> None:
            while not done():
                log = customers.folder / "daemon.log"
                assert time.monotonic() < deadline, log.read_text()[-5000:]
                time.sleep(0.1)

        deadline = time.monotonic() + 60 * MINUTES
        first = start()
        until(lambda: len(instance.get_materialized_partitions(PREDICTIONS)) >= len(DAYS) // 4)
        _kill_everything_in(home)
        first.wait()
        finished = instance.get_materialized_partitions(PREDICTIONS)
        orphans = instance.get_runs_count(RunsFilter(statuses=[DagsterRunStatus.STARTED]))
        start()
        until(lambda: is_over(instance, backfill.backfill_id))

        good = set(DAYS) - {BAD}
        assert orphans == 1, "all days are one run"
        assert finished < good
        for key in (PREDICTIONS, DRIFT):
            assert instance.get_materialized_partitions(key) == good
        _assert_one_object_for_each_day(customers, instance, good)
        assert len(_scored(instance) & finished) <= 1, "of a day the last thing to be written"
        assert _told(instance, definitions) == {(key, BAD) for key in (PREDICTIONS, DRIFT)}


def _kill_everything_in(home: Path) -> None:
    """Kill the daemon, the code servers and the runs of a Dagster home, at once."""
    mine = f"DAGSTER_HOME={home}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mine in (process / "environ").read_bytes().split(b"\0"):
                os.kill(int(process.name), signal.SIGKILL)


def _assert_one_object_for_each_day(
    project: Project, instance: DagsterInstance, days: set[str]
) -> None:
    recorded: dict[str, set[str]] = defaultdict(set)
    for record in instance.fetch_materializations(PREDICTIONS, limit=1000).records:
        made = record.asset_materialization
        assert made is not None
        recorded[str(made.partition)].add((made.tags or {})["dagster/data_version"])
    for day in days:
        [artifact] = project.store.versions(PREDICTIONS.path, day)
        assert recorded[day] == {artifact.version}
        assert len(project.store.read(artifact)) == ROWS


def _scored(instance: DagsterInstance) -> set[str]:
    """Return the days that were scored, rather than reused, by the run that went on."""
    [last, _] = instance.get_runs(RunsFilter(tags={"dagster/backfill": "all_days"}))
    records = instance.fetch_materializations(PREDICTIONS, limit=1000).records
    return {
        str(made.partition)
        for record in records
        if record.run_id == last.run_id
        and (made := record.asset_materialization)
        and MEMOIZED not in made.metadata
    }


def _told(instance: DagsterInstance, definitions: Definitions) -> set[tuple[AssetKey, str]]:
    """Return what the backfill shows as failed, after a look at what its run says of it."""
    [failure] = [
        entry.get_dagster_event().step_failure_data.user_failure_data
        for run in instance.get_runs()
        for entry in instance.all_logs(run.run_id, of_type=DagsterEventType.STEP_FAILURE)
    ]
    assert failure is not None
    said = failure.description or ""
    assert f"1 of {len(DAYS)} partitions failed" in said
    assert f"inbox/{BAD}/a.csv lacks the column plan" in said

    backfill = instance.get_backfill("all_days")
    assert backfill is not None
    data = backfill.get_asset_backfill_data(definitions.resolve_asset_graph())
    failed = data.failed_and_downstream_subset.iterate_asset_partitions()
    return {(one.asset_key, str(one.partition_key)) for one in failed}
