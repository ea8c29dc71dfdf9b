"""The daemon itself, with schedules and a sensor that are on."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dagster import DagsterInstance, DagsterRunStatus
from dagster._core.scheduler.instigation import InstigatorTick, TickStatus

from mlops_assets_tests.conftest import DUMMY, Project
from mlops_assets_tests.servers import stop_group

pytestmark = pytest.mark.daemon

ROOT = Path(__file__).parents[2]
MINUTES = 3


@pytest.fixture
def home(customers: Project) -> Path:
    home = customers.folder / "dagster"
    home.mkdir()
    shutil.copy(ROOT / "dagster.yaml", home)
    return home


@pytest.fixture
def daemon(customers: Project, home: Path) -> Iterator[Callable[[], None]]:
    """Return what starts `dagster-daemon run` on this test's project."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        process = subprocess.Popen(
            [
                str(Path(sys.executable).with_name("dagster-daemon")),
                *("run", "--module-name", "mlops_assets_tests.automation.code_location"),
            ],
            env=customers.environment(home),
            cwd=ROOT,  # where the tests can be imported
            stdout=(customers.folder / "daemon.log").open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        started.append(process)

    yield start
    for process in started:
        stop_group(process)


def ticks(instance: DagsterInstance, name: str) -> list[InstigatorTick]:
    """Return the ticks of a schedule or sensor that are over, the first one first."""
    return [
        tick
        for state in instance.all_instigator_state()
        if state.name == name
        for tick in reversed(
            instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=100)
        )
        if tick.status != TickStatus.STARTED
    ]


def test_the_daemon_launches_what_is_stale_once_and_skips_what_is_fresh(
    customers: Project, home: Path, daemon: Callable[[], None]
) -> None:
    customers.add("customers", DUMMY + "train: {schedule: '* * * * *'}\n")
    with DagsterInstance.from_config(str(home)) as instance:
        customers.instance = instance
        assert customers.train("customers").success
        daemon()

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
