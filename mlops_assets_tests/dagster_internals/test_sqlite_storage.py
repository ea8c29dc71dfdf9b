"""The instance on one machine: Dagster's own files, few transactions, and nothing lost in them."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from threading import Event

import pytest
from dagster import (
    AssetCheckResult,
    AssetKey,
    AssetObservation,
    AssetSpec,
    DagsterInstance,
    DagsterRun,
    EventLogEntry,
    MaterializeResult,
    asset,
    asset_check,
    materialize,
    multi_asset,
)
from dagster._core.storage.event_log.sqlite.sqlite_event_log import SqliteEventLogStorage

from mlops_assets.dagster_internals import sqlite_storage
from mlops_assets.dagster_internals.sqlite_storage import instance_in
from mlops_assets.dagster_internals.steps import together
from mlops_assets_tests.conftest import instance_of

ROOT = Path(__file__).parents[2]
SHIPPED = (ROOT / "dagster.yaml").read_text()
STOCK = "telemetry: {enabled: false}\n"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return home_with(tmp_path / "home", SHIPPED)


@pytest.fixture
def instance(home: Path) -> Iterator[DagsterInstance]:
    with instance_of(home) as instance:
        yield instance


def home_with(home: Path, configuration: str) -> Path:
    home.mkdir()
    (home / "dagster.yaml").write_text(configuration)
    return home


@asset(code_version="1")
def up() -> int:
    return 1


@asset(code_version="1")
def down(up: int) -> int:
    return up + 1


@asset_check(asset=down)
def is_two(down: int) -> AssetCheckResult:
    return AssetCheckResult(passed=down == 2)


@multi_asset(specs=[AssetSpec("one"), AssetSpec("other")])
def several() -> Iterator[MaterializeResult[None]]:
    yield MaterializeResult(asset_key="one")
    yield MaterializeResult(asset_key="other")


def run(instance: DagsterInstance) -> str:
    result = materialize([up, down, is_two, several], instance=instance)
    assert result.success
    return result.run_id


def told(instance: DagsterInstance, message: str, run_id: str = "any") -> None:
    instance.report_engine_event(message, run_id=run_id, job_name="any")


def messages(instance: DagsterInstance, run_id: str = "any") -> list[str]:
    return [
        entry.dagster_event.message or ""
        for entry in instance.all_logs(run_id)
        if entry.dagster_event is not None
    ]


def rows(database: Path, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(database)) as connection:
        return sorted(connection.execute(query), key=repr)


def history(home: Path, name: str) -> Path:
    return home / "history" / "runs" / f"{name}.db"


def test_a_run_leaves_the_same_as_with_dagsters_own_storage(tmp_path: Path) -> None:
    left = []
    for name, configuration in (("ours", SHIPPED), ("stock", STOCK)):
        home = home_with(tmp_path / name, configuration)
        with instance_of(home) as instance:
            run_id = run(instance)
        events = "SELECT dagster_event_type, step_key, asset_key, partition FROM event_logs"
        schema = "SELECT type, name, tbl_name, sql FROM sqlite_master"
        left.append(
            [
                rows(history(home, run_id), events),
                rows(history(home, "index"), events),
                rows(history(home, "index"), "SELECT asset_key, key FROM asset_event_tags"),
                rows(history(home, "index"), "SELECT check_name, execution_status, partition"
                     " FROM asset_check_executions"),
                rows(history(home, run_id), schema),
                rows(history(home, run_id), "SELECT version_num FROM alembic_version"),
                rows(home / "history" / "runs.db", "SELECT status, pipeline_name FROM runs"),
            ]
        )  # fmt: skip
    ours, stock = left
    assert ours == stock
    assert all(ours)


def test_dagsters_own_storage_and_this_one_go_on_with_each_others_files(tmp_path: Path) -> None:
    home = home_with(tmp_path / "home", STOCK)
    runs = []
    for configuration in (STOCK, SHIPPED, STOCK, SHIPPED):
        (home / "dagster.yaml").write_text(configuration)
        with instance_of(home) as instance:
            runs.append(run(instance))
            assert {record.dagster_run.run_id for record in instance.get_run_records()} == {*runs}
            assert instance.get_latest_materialization_event(AssetKey("down")).run_id == runs[-1]
            assert len(messages(instance, runs[0])) == len(messages(instance, runs[-1])) > 10


def test_both_storages_work_on_the_same_files_at_once(home: Path) -> None:
    with instance_of(home) as ours:
        told(ours, "ours first")
        (home / "dagster.yaml").write_text(STOCK)
        with instance_of(home) as stock:
            assert isinstance(stock.event_log_storage, SqliteEventLogStorage)
            told(stock, "stock")
            told(ours, "ours again")
            assert messages(stock) == messages(ours) == ["ours first", "stock", "ours again"]


def test_a_home_without_a_configuration_gets_this_storage_too(tmp_path: Path) -> None:
    with instance_in(tmp_path) as instance:
        told(instance, "here")
        assert isinstance(instance.event_log_storage, sqlite_storage._EventLogStorage)
    assert history(tmp_path, "any").exists()


def test_the_database_of_schedules_is_made_when_it_is_asked_for(
    instance: DagsterInstance, home: Path
) -> None:
    database = home / "schedules" / "schedules.db"
    run(instance)
    assert not database.exists()
    assert instance.all_instigator_state() == []
    assert rows(database, "SELECT count(*) FROM alembic_version") == [(1,)]


OPEN_WHEN_TOLD = """
import sys
from dagster import DagsterInstance
import mlops_assets.dagster_internals.sqlite_storage
print("ready", flush=True)
sys.stdin.readline()
with DagsterInstance.get() as instance:
    instance.get_runs()
    instance.all_instigator_state()
"""


def test_processes_that_are_the_first_at_the_same_time_make_databases_that_all_can_use(
    home: Path,
) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN_WHEN_TOLD],
            env={**os.environ, "DAGSTER_HOME": str(home)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, errors


def test_what_is_told_together_is_there_in_full_or_not_at_all(
    instance: DagsterInstance, home: Path
) -> None:
    with instance_of(home) as another:
        with suppress(RuntimeError), together(instance):
            told(instance, "one")
            told(instance, "two")
            raise RuntimeError
        assert messages(another) == messages(instance) == []
        with together(instance):
            told(instance, "one")
            with together(instance):
                told(instance, "two")
            assert messages(instance) == ["one", "two"]
            assert messages(another) == []
        assert messages(another) == ["one", "two"]


def test_the_latest_materialisation_is_none_before_the_first_and_after_a_wipe(
    instance: DagsterInstance,
) -> None:
    key = AssetKey("up")
    assert instance.get_latest_materialization_event(key) is None
    first, second = run(instance), run(instance)
    assert first != second == instance.get_latest_materialization_event(key).run_id
    instance.wipe_assets([key])
    assert instance.get_latest_materialization_event(key) is None
    instance.report_runless_asset_event(AssetObservation(key))
    assert instance.get_latest_materialization_event(key) is None
    third = run(instance)
    assert instance.get_latest_materialization_event(key).run_id == third


def test_threads_take_turns_and_lose_nothing(instance: DagsterInstance) -> None:
    def tell(number: int) -> None:
        with together(instance):
            told(instance, f"{number} a", run_id=f"run{number % 3}")
            told(instance, f"{number} b", run_id=f"run{number % 3}")

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(tell, range(60)))
    for run in range(3):
        found = messages(instance, f"run{run}")
        assert sorted(found) == sorted(f"{n} {part}" for n in range(run, 60, 3) for part in "ab")
        assert all(a[:-1] == b[:-1] for a, b in zip(found[::2], found[1::2], strict=True))


def test_a_database_that_is_deleted_is_made_again(instance: DagsterInstance, home: Path) -> None:
    told(instance, "lost")
    for path in history(home, "any").parent.glob("any.db*"):
        path.unlink()
    told(instance, "kept")
    assert messages(instance) == ["kept"]
    with instance_of(home) as another:
        assert messages(another) == ["kept"]


def test_a_process_that_was_forked_has_connections_of_its_own(instance: DagsterInstance) -> None:
    told(instance, "before")
    child = os.fork()
    if child == 0:
        try:
            told(instance, "child")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    told(instance, "after")
    assert messages(instance) == ["before", "child", "after"]


def test_only_the_runs_looked_at_last_are_kept_open(instance: DagsterInstance) -> None:
    for number in range(60):
        told(instance, "x", run_id=f"run{number}")
    of_runs = {
        name
        for descriptor in Path("/proc/self/fd").iterdir()
        if (name := Path(os.path.realpath(descriptor)).name).endswith(".db")
        and name.startswith("run")
    }
    assert 0 < len(of_runs - {"runs.db"}) <= sqlite_storage._MOST_RUNS + 1
    assert messages(instance, "run0") == ["x"]


def test_whoever_watches_a_run_is_told_while_it_goes_on(instance: DagsterInstance) -> None:
    run_id = instance.add_run(DagsterRun("any")).run_id
    told(instance, "before", run_id)
    seen, came = [], Event()

    def saw(entry: EventLogEntry, cursor: str) -> None:
        seen.append(entry.dagster_event.message)
        came.set()

    instance.watch_event_logs(run_id, None, saw)
    told(instance, "now", run_id)
    assert came.wait(30)
    instance.end_watch_event_logs(run_id, saw)
    assert "now" in seen


def test_connections_do_not_grow_with_the_steps(
    instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = counted(monkeypatch)
    run(instance)
    assert len(opened) <= 10


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    opened: list[str] = []
    relax: Callable[[sqlite3.Connection, object], None] = sqlite_storage._relax

    def count(connection: sqlite3.Connection, record: object) -> None:
        opened.append("connection")
        relax(connection, record)

    monkeypatch.setattr(sqlite_storage, "_relax", count)
    return opened
