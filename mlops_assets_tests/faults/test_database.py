"""Dagster's database locked, cut off, restarted, damaged or read-only while a pipeline runs."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
import yaml

from mlops_assets_tests.conftest import instance_of
from mlops_assets_tests.faults.sites import RUN, Site, Sites
from mlops_assets_tests.faults.trials import Trials
from mlops_assets_tests.servers import Postgres, postgres, postgres_programs

INDEX = Path("history", "runs", "index.db")
RUNS = Path("history", "runs.db")


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Hold a database as another process would that writes to it for long."""
    with closing(sqlite3.connect(database, timeout=60, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")


@pytest.mark.parametrize(("seconds", "count"), [(1, 4), (10, 1)])
def test_a_database_that_is_locked_for_a_while_is_waited_for(
    trials: Trials, sites: Sites, seconds: float, count: int
) -> None:
    for trial in trials(f"Dagster's sqlite locked for {seconds} s", count):
        with trial, sites.copy() as site:
            site.edit(rows=121 + trial.number)
            database = [INDEX, RUNS][trial.number % 2]
            delay = trial.random.uniform(0, sites.usual)
            trial.facts |= {"database": str(database), "after": delay}
            command = site.start(*RUN)
            time.sleep(delay)
            with locked(site.home / database):
                time.sleep(seconds)
            assert command.wait() == 0, command.output
            assert site.is_sound(command) == "succeeded"
            trial.outcome = "went on"
            site.recovers()


def test_a_database_that_stays_locked_ends_the_run_and_the_next_one_finishes_it(
    trials: Trials, sites: Sites
) -> None:
    for trial in trials("Dagster's sqlite locked for good", 1):
        with trial, sites.copy() as site:
            site.edit(rows=121 + trial.number)
            database = [INDEX, RUNS][trial.number % 2]
            delay = trial.random.uniform(0, 0.7 * sites.usual)
            trial.facts |= {"database": str(database), "after": delay}
            command = site.start(*RUN)
            time.sleep(delay)
            with locked(site.home / database):
                command.wait(400)
            trial.outcome = site.is_sound(command)
            trial.facts["said"] = command.output.splitlines()[-1][:500]
            site.recovers()


def damage_by_name(site: Site, damage: str) -> None:
    database = site.home / INDEX
    if damage == "deleted":
        for path in database.parent.glob("index.db*"):
            path.unlink()
    elif damage == "overwritten":
        database.write_bytes(b"no database " * 1000)
    else:
        database.write_bytes(database.read_bytes()[:5000])


@pytest.mark.parametrize("damage", ["deleted", "overwritten", "truncated"])
def test_a_damaged_database_is_no_success_and_a_new_one_reuses_what_the_store_has(
    trials: Trials, sites: Sites, damage: str
) -> None:
    for trial in trials(f"Dagster's sqlite {damage} in a run", 1):
        with trial, sites.copy() as site:
            site.edit(rows=121 + trial.number)
            command = site.start(*RUN)
            time.sleep(trial.random.uniform(0, 0.7 * sites.usual))
            damage_by_name(site, damage)
            code = command.wait(400)
            trial.facts |= {"code": code, "said": command.output.splitlines()[-1][:500]}
            trial.outcome = "succeeded" if code == 0 else "failed"
            site.store_is_whole()
            # by hand, as documented: a new home, since no tool can mend the damaged one
            home = site.home.rename(site.folder / "damaged")
            site.home.mkdir()
            (site.home / "dagster.yaml").write_bytes((home / "dagster.yaml").read_bytes())
            site.recovers()


# --- PostgreSQL -----------------------------------------------------------------------------------

needs_postgres = pytest.mark.skipif(
    postgres_programs() is None, reason="needs PostgreSQL's server programs"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """Give a server with Dagster's tables, whose creation cannot be gone on with once cut off."""
    home = tmp_path_factory.mktemp("postgres")
    with postgres() as server:
        storage = {"postgres": {"postgres_url": server.url}}
        (home / "dagster.yaml").write_text(yaml.safe_dump({"storage": storage}))
        with instance_of(home) as instance:
            assert instance.get_runs_count() == 0
        yield server


def cut(server: Postgres) -> None:
    server.query(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'dagster'"
        " AND pid <> pg_backend_pid()"
    )


def pause(server: Postgres) -> None:
    pids = server.pids()
    send(pids, signal.SIGSTOP)
    time.sleep(2)
    send(pids, signal.SIGCONT)


def send(pids: list[int], signal_number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):  # it has ended because its client has
            os.kill(pid, signal_number)


def restart(server: Postgres, mode: str) -> None:
    server.stop(mode)
    time.sleep(1)
    server.start()


FAULTS = {
    "connections cut": cut,
    "restarted": lambda server: restart(server, "fast"),
    "killed and started": lambda server: restart(server, "immediate"),
    "paused": pause,
}


@needs_postgres
@pytest.mark.parametrize("fault", FAULTS)
def test_postgresql_that_goes_away_in_a_run_is_survived_or_ends_the_run(
    trials: Trials, sites: Sites, server: Postgres, fault: str
) -> None:
    for trial in trials(f"Dagster's PostgreSQL {fault}", 1):
        with trial, sites.copy() as site:
            configuration = yaml.safe_load((site.home / "dagster.yaml").read_text())
            configuration["storage"] = {"postgres": {"postgres_url": server.url}}
            (site.home / "dagster.yaml").write_text(yaml.safe_dump(configuration))
            site.leave_runs_out()  # those of earlier trials, with stores of their own
            site.set_params(1000 + int(10_000 * trial.random.random()))
            site.edit(rows=121 + trial.number)
            command = site.start(*RUN)
            delay = trial.random.uniform(0, sites.usual)
            trial.facts["after"] = delay
            time.sleep(delay)
            FAULTS[fault](server)
            command.wait()
            trial.outcome = site.is_sound(command)
            trial.facts["said"] = command.output.splitlines()[-1][:500]
            site.recovers()
