"""MLflow that is away, busy, slow, broken or killed: its record may be late, and no step fails.

Most trials drive `MlflowTracking` against a real server, through a proxy that disturbs requests.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from random import Random

import pytest
from mlflow import MlflowClient

from mlops_assets.store.artifacts import Artifact, ArtifactStore
from mlops_assets.tracking import MODEL_VERSION, MlflowTracking, Verdicts
from mlops_assets_tests.faults.proxy import FAULTS, Fault, Proxy, proxy_before
from mlops_assets_tests.faults.sites import RUN, Site, Sites, Tracked
from mlops_assets_tests.faults.trials import Trials
from mlops_assets_tests.servers import free_port, mlflow_server

Gone = Callable[[MlflowClient, str], None]
Away = Callable[[Site], AbstractContextManager[None]]

QUICK = {"MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0", "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0"}
"""Limits of a user's own, so that trials wait for less."""


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory, _empty_tracking_database: Path) -> Path:
    path = tmp_path_factory.mktemp("tracking") / "mlflow.db"
    path.write_bytes(_empty_tracking_database.read_bytes())
    return path


@pytest.fixture(scope="module")
def proxy(database: Path) -> Iterator[Proxy]:
    with (
        mlflow_server(f"sqlite:///{database}", database.parent / "served") as port,
        proxy_before(port) as before,
    ):
        yield before


class Steps:
    """What the steps `model` and `champion` of a pipeline of its own tell MLflow."""

    def __init__(self, folder: Path, uri: str, name: str, model: str = "first") -> None:
        self.name = name
        self.log = logging.getLogger(f"faults.{name}")
        self.tracking = MlflowTracking(mlflow_tracking_uri=uri)
        self.store = ArtifactStore(str(folder / "store"))
        self.model: Artifact = self.store.write([name, "model"], {"model": f"{name}, {model}"})

    def train(self, run_id: str) -> None:
        with self.tracking.training(self.log, self.name, run_id, is_over=lambda _: True) as run:
            run.log(
                params={"alpha": 1},
                tags={MODEL_VERSION: self.model.version},
                texts={"pipeline.json": "{}"},
            )

    def promote(self) -> None:
        version = self.model.version
        with self.tracking.trained(self.log, self.name, version) as run:
            run.log(metrics={"accuracy": 0.9}, figures={"roc": b"PNG"})
            run.register(self.model, self.store.url_of(self.model))
            run.follow(self.name, lambda: Verdicts({"champion": version}, {}))


def is_recorded(database: Path, *models: Steps) -> None:
    """Check that MLflow has one finished run and one entry of each model; the last is champion."""
    tracked = Tracked.of(database, models[0].name)
    versions = [one.model.version for one in models]
    finished = [run for run, status in tracked.statuses.items() if status == "FINISHED"]
    assert "RUNNING" not in tracked.statuses.values(), tracked
    assert tracked.entries == dict.fromkeys(versions, 1), tracked
    assert tracked.champion == versions[-1], tracked
    of_models = [tracked.trained[run] for run in finished if run in tracked.trained]
    assert sorted(of_models) == sorted(versions), tracked


def some_of(fault: str, chance: Random) -> tuple[Fault, str]:
    """Return a fault of one request, of three, of every other or of all from one on; and which."""
    first, kind = chance.randrange(25), chance.choice(["one", "three", "half", "all"])
    length = {"one": 1, "three": 3, "half": 1, "all": 10**6}[kind]
    dice = Random(chance.random())

    def strikes(number: int) -> str | None:
        if kind == "half":
            return fault if dice.random() < 0.5 else None
        return fault if first <= number < first + length else None

    return strikes, f"{kind} from {first}"


@pytest.mark.parametrize("fault", FAULTS)
def test_requests_that_fail_cost_a_warning_and_the_next_step_that_gets_through_mends_the_record(
    trials: Trials,
    proxy: Proxy,
    database: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: str,
) -> None:
    limits = {**QUICK, **({"MLFLOW_HTTP_REQUEST_TIMEOUT": "2"} if fault == "never" else {})}
    for name, value in limits.items():
        monkeypatch.setenv(name, value)
    for trial in trials(f"MLflow: {fault}", 2):
        with trial:
            caplog.clear()
            steps = Steps(
                tmp_path / str(trial.number), proxy.url, f"{fault}-{trial.number}".replace(" ", "-")
            )
            strikes, trial.facts["requests"] = some_of(fault, trial.random)
            proxy.set(strikes)
            begun = time.monotonic()
            steps.train("run-1")
            steps.promote()
            trial.facts["seconds disturbed"] = time.monotonic() - begun
            warnings = [r.getMessage() for r in caplog.records if r.name == steps.log.name]
            assert len(warnings) <= 2, warnings  # one for each step
            assert all("cannot be used, so this step is not tracked" in it for it in warnings)
            trial.facts["warnings"] = warnings
            trial.outcome = "tracked late" if warnings else "retried"

            proxy.set(lambda _: None)
            steps.promote()
            second = Steps(tmp_path / f"{trial.number}-next", proxy.url, steps.name, "second")
            second.train("run-2")
            second.promote()
            is_recorded(database, steps, second)


def deleted_run(client: MlflowClient, name: str) -> None:
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    for run in client.search_runs([experiment.experiment_id]):
        client.delete_run(run.info.run_id)


def deleted_alias(client: MlflowClient, name: str) -> None:
    client.delete_registered_model_alias(name, "champion")


def deleted_entry(client: MlflowClient, name: str) -> None:
    client.delete_registered_model(name)


def doubled_entry(client: MlflowClient, name: str) -> None:
    entry = client.get_model_version_by_alias(name, "champion")
    client.create_model_version(name, entry.source, entry.run_id, tags=entry.tags)
    client.delete_registered_model_alias(name, "champion")
    client.delete_model_version(name, entry.version)


@pytest.mark.parametrize("gone", [deleted_run, deleted_alias, deleted_entry, doubled_entry])
def test_what_somebody_deletes_in_mlflow_is_there_again_after_the_next_step(
    trials: Trials, proxy: Proxy, database: Path, tmp_path: Path, gone: Gone
) -> None:
    proxy.set(lambda _: None)
    for trial in trials(f"MLflow: {gone.__name__.replace('_', ' ')}", 1):
        with trial:
            steps = Steps(tmp_path, proxy.url, f"{gone.__name__}-{trial.number}")
            steps.train("run-1")
            steps.promote()
            gone(MlflowClient(proxy.url), steps.name)
            steps.promote()
            is_recorded(database, steps)
            trial.outcome = "there again"


def test_two_processes_that_register_a_model_at_once_leave_one_entry(
    trials: Trials, proxy: Proxy, database: Path, tmp_path: Path
) -> None:
    proxy.set(lambda _: None)
    for trial in trials("MLflow: one model registered twice at once", 4):
        with trial:
            name = f"twice-{trial.number}"
            both = [Steps(tmp_path / str(trial.number), proxy.url, name) for _ in range(2)]
            both[0].train("run-1")
            with ThreadPoolExecutor() as pool:
                list(pool.map(Steps.promote, both))
            is_recorded(database, both[0])
            trial.outcome = "one entry"


def test_a_password_in_the_address_is_in_no_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in QUICK.items():
        monkeypatch.setenv(name, value)
    address = f"http://anna:hunter2@127.0.0.1:{free_port()}"
    Steps(tmp_path, address, "secret").train("run-1")
    told = [record.getMessage() for record in caplog.records if record.name == "faults.secret"]
    assert len(told) == 1
    assert "hunter2" not in told[0]


# --- whole runs -----------------------------------------------------------------------------------


@contextmanager
def locked(site: Site) -> Iterator[None]:
    with closing(sqlite3.connect(site.folder / "mlflow.db", isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")


@contextmanager
def damaged(site: Site) -> Iterator[None]:
    database = site.folder / "mlflow.db"
    whole = database.read_bytes()
    database.write_bytes(b"no database " * 1000)
    yield
    database.write_bytes(whole)


@contextmanager
def unwritable(site: Site) -> Iterator[None]:
    """As on a disk that nothing can be written to: a file is where the folder should be."""
    site.variables["MLFLOW_TRACKING_URI"] = f"sqlite:///{site.folder / 'before.txt'}/mlflow.db"
    yield
    site.variables.clear()


@contextmanager
def closed(site: Site) -> Iterator[None]:
    site.variables["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{free_port()}"
    yield
    site.variables.clear()


@pytest.mark.parametrize("away", [locked, damaged, unwritable, closed])
def test_a_run_without_mlflow_succeeds_and_a_refresh_tells_it_all(
    trials: Trials, sites: Sites, away: Away
) -> None:
    for trial in trials(f"MLflow {away.__name__} for a whole run", 1):
        with trial, sites.copy() as site:
            site.edit(rows=121 + trial.number)
            begun = time.monotonic()
            with away(site):
                command = site.start(*RUN, **QUICK)
                assert command.wait() == 0, command.output
            trial.facts["seconds disturbed"] = time.monotonic() - begun
            assert command.output.count("so this step is not tracked") == 3, command.output
            assert site.is_sound(command) == "succeeded"
            refreshed = site.start(*RUN, "--refresh")
            assert refreshed.wait() == 0, refreshed.output
            site.tracking_is_consistent()
            trial.outcome = "succeeded, tracked late"


def test_a_server_that_is_killed_in_a_training_and_comes_back_costs_no_run(
    trials: Trials, sites: Sites
) -> None:
    for trial in trials("MLflow's server killed in a run, and back", 1):
        with trial, sites.copy() as site:
            database = site.folder / "mlflow.db"
            site.edit(rows=121 + trial.number)
            port = free_port()
            site.variables["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{port}"
            with mlflow_server(f"sqlite:///{database}", site.folder / "served", port):
                command = site.start(*RUN, **QUICK)
                time.sleep(trial.random.uniform(0.3, 1) * sites.usual)
            assert command.wait() == 0, command.output
            trial.facts["warnings"] = command.output.count("so this step is not tracked")
            assert site.is_sound(command) == "succeeded"
            with mlflow_server(f"sqlite:///{database}", site.folder / "served", port):
                refreshed = site.start(*RUN, "--refresh")
                assert refreshed.wait() == 0, refreshed.output
            site.tracking_is_consistent()
            trial.outcome = "tracked late" if trial.facts["warnings"] else "in time"
