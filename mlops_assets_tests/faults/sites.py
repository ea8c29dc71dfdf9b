"""Projects that faults are injected into: copies of one that was trained once.

What has to hold after every fault is `Site.is_sound`, and what the next run has to make of it
`Site.recovers`.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest.mock import patch

from dagster import AssetKey, DagsterInstance, DagsterRun, DagsterRunStatus

from mlops_assets.store.layout import parse_object_path
from mlops_assets_tests.conftest import CUSTOMERS, write_customers
from mlops_assets_tests.warm import Command, warm

ROOT = Path(__file__).parents[2]
PIPELINE = "customers"
STAGES = ("raw", "train", "test", "model", "metrics", "champion")
JOB = ("dagster", "job", "execute", "-m", "mlops_assets.definitions", "-j", "customers_training")
RUN = ("mlops", "run", "--json")


@dataclass
class Site:
    """A project in a folder, with a Dagster instance, a store and an MLflow database of its own."""

    folder: Path
    variables: dict[str, str] = field(default_factory=dict)
    _logs: int = 0

    @property
    def home(self) -> Path:
        return self.folder / "dagster"

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "DAGSTER_HOME": str(self.home),
            "MLOPS_PIPELINES": str(self.folder / "pipelines"),
            "MLOPS_STORE_URL": str(self.store),
            "MLFLOW_TRACKING_URI": f"sqlite:///{self.folder / 'mlflow.db'}",
            "OMP_NUM_THREADS": "1",
            **self.variables,
        }

    def start(self, *argv: str, **variables: str) -> Command:
        """Start `mlops …` or `dagster …` on this project."""
        self._logs += 1
        log = self.folder / f"output-{self._logs}.log"
        return warm().start(argv, self.environment | variables, log, ROOT)

    def edit(self, rows: int) -> None:
        """Change the data, so that every stage has to be computed again."""
        write_customers(self.folder / "pipelines" / "customers.csv", rows=rows)

    def set_params(self, iterations: int) -> None:
        """Change a parameter, so that the model and what is below it has to be computed again."""
        text = CUSTOMERS.replace("max_iter: 500", f"max_iter: {iterations}")
        path = self.folder / "pipelines" / "customers.yaml"
        path.write_text(f"{text}\nretries: {{max: 2, delay: 0}}\n")

    @contextmanager
    def instance(self) -> Iterator[DagsterInstance]:
        home = {"DAGSTER_HOME": str(self.home)}  # which dagster.yaml asks for
        with patch.dict(os.environ, home), DagsterInstance.from_config(str(self.home)) as instance:
            yield instance

    def runs(self) -> list[DagsterRun]:
        """Return the runs of Dagster, the newest first."""
        with self.instance() as instance:
            return list(instance.get_runs())

    def made(self, run: DagsterRun) -> set[str]:
        """Return what the steps of a run have materialised that were finished."""
        with self.instance() as instance:
            entries = instance.all_logs(run.run_id)
        events = [entry.get_dagster_event() for entry in entries if entry.is_dagster_event]
        finished = {event.step_key for event in events if event.is_step_success}
        return {
            event.asset_key.to_user_string()
            for event in events
            if event.is_step_materialization and event.asset_key and event.step_key in finished
        }

    # --- what has to hold ---------------------------------------------------------------------

    def is_sound(self, command: Command) -> str:
        """Check what holds after a command that was disturbed, and return how it ended."""
        self.store_is_whole()
        newest, *_ = self.runs() or [None]
        succeeded = newest is not None and newest.is_success
        if command.returncode == 0:
            assert succeeded, command.output
        if succeeded:
            assert newest is not None
            missing = {f"{PIPELINE}/{stage}" for stage in STAGES} - self.made(newest)
            assert not missing or "reuse" in command.output, missing
        return "succeeded" if command.returncode == 0 else "interrupted"

    def recovers(self, *, again: Collection[str] = ()) -> dict[str, Any]:
        """Run again without a fault, check all that was left, and return what the run says of it.

        What an earlier run has finished must not be executed again, but for `again`.
        """
        finished = {asset for run in self.runs() for asset in self._current(run)} - {*again}
        command = self.start(*RUN)
        assert command.wait() == 0, command.output
        report: dict[str, Any] = json.loads(command.output.splitlines()[-1])
        told = report["pipelines"][PIPELINE]
        assert report["status"] == "success"
        assert not finished & set(told["executed"]), (finished, told)
        self.store_is_whole()
        # one that was killed before it began is ended once that is certain, in ten minutes
        began = [run for run in self.runs() if run.status is not DagsterRunStatus.NOT_STARTED]
        unfinished = [run for run in began if not run.is_finished]
        assert not unfinished, f"{unfinished}\n{command.output}"
        self.tracking_is_consistent()
        self.leave_runs_out()
        return report

    def leave_runs_out(self) -> None:
        """Have the runs so far count as none that has made anything here from what is there now."""
        (self.folder / "before.txt").write_text("\n".join(run.run_id for run in self.runs()))

    def _current(self, run: DagsterRun) -> set[str]:
        """Return what a run has made from the inputs of today; none of the trained template's."""
        return self.made(run) if run.run_id not in self._before() else set()

    def _before(self) -> set[str]:
        return set((self.folder / "before.txt").read_text().split())

    def store_is_whole(self) -> None:
        """Check that whatever can be read in the store is complete, temporary files aside."""
        for path in self.store.rglob("*"):
            name = path.relative_to(self.store).as_posix()
            if path.is_dir() or path.name.startswith(".tmp-"):
                continue
            if parsed := parse_object_path(name):
                assert sha256(path.read_bytes()).hexdigest().startswith(parsed[0]), name
            else:
                json.loads(path.read_bytes())

    def champion(self) -> str | None:
        """Return the version of the champion by the store's log."""
        log = sorted((self.store / ".champions" / PIPELINE).glob("*.json"))
        numbers = [int(path.stem) for path in log]
        assert numbers == list(range(1, len(numbers) + 1))
        return json.loads(log[-1].read_bytes())["version"] if log else None

    def recorded(self, stage: str) -> str | None:
        """Return the version that Dagster has as the latest."""
        with self.instance() as instance:
            event = instance.get_latest_materialization_event(AssetKey([PIPELINE, stage]))
        made = event.asset_materialization if event else None
        return (made.tags or {})["dagster/data_version"] if made else None

    def tracking_is_consistent(self, *, alias: bool = True) -> None:
        """Check MLflow: no run in progress, one entry for a content, the champion of the store."""
        tracked = Tracked.of(self.folder / "mlflow.db")
        assert "RUNNING" not in tracked.statuses.values(), tracked
        assert not [version for version, n in tracked.entries.items() if n > 1], tracked
        assert self.recorded("champion") == self.champion()
        if alias:
            assert tracked.champion == self.champion(), tracked


@dataclass(frozen=True)
class Tracked:
    """What an MLflow database holds, read without MLflow."""

    statuses: Mapping[str, str]
    """By run."""
    trained: Mapping[str, str]
    """Version of the model by run."""
    entries: Mapping[str, int]
    """How many entries the registry has, by version of the model."""
    champion: str | None

    @classmethod
    def of(cls, database: Path, pipeline: str = PIPELINE) -> Tracked:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:

            def rows(query: str) -> list[tuple[Any, ...]]:
                return connection.execute(query, [pipeline]).fetchall()

            runs = (
                "SELECT run_uuid FROM runs JOIN experiments USING (experiment_id)"
                " WHERE experiments.name = ? AND runs.lifecycle_stage = 'active'"
            )
            tag = "key = 'mlops.model_version'"
            entries = (
                "SELECT value FROM model_version_tags JOIN model_versions USING (name, version)"
                f" WHERE {tag} AND name = ? AND current_stage != 'Deleted_Internal'"
            )
            champion = (
                "SELECT tags.value FROM registered_model_aliases AS alias"
                " JOIN model_version_tags AS tags USING (name, version)"
                f" WHERE alias.alias = 'champion' AND tags.{tag} AND name = ?"
            )
            return cls(
                dict(rows(f"SELECT run_uuid, status FROM runs WHERE run_uuid IN ({runs})")),
                dict(
                    rows(f"SELECT run_uuid, value FROM tags WHERE {tag} AND run_uuid IN ({runs})")
                ),
                Counter(version for (version,) in rows(entries)),
                next((version for (version,) in rows(champion)), None),
            )


class Sites:
    """Copies of a project that was trained once, on a file system in memory if there is one."""

    def __init__(self, tracking_database: Path) -> None:
        memory = Path("/dev/shm")
        self._folder = Path(
            tempfile.mkdtemp(prefix="faults-", dir=memory if os.access(memory, os.W_OK) else None)
        )
        self._copies = 0
        template = Site(self._folder / "template")
        self._template = template
        (template.folder / "pipelines").mkdir(parents=True)
        template.home.mkdir()
        shutil.copy(ROOT / "dagster.yaml", template.home)
        shutil.copy(tracking_database, template.folder / "mlflow.db")
        shutil.copytree(template.folder, self._folder / "empty")
        template.edit(rows=120)
        template.set_params(500)
        self.usual = self._train(template)
        """Seconds that an undisturbed run takes."""
        shutil.copy(tracking_database, template.folder / "mlflow.db")
        before = [run.run_id for run in template.runs()]
        (template.folder / "before.txt").write_text("\n".join(before))

    def _train(self, template: Site) -> float:
        command = template.start(*RUN)
        assert command.wait() == 0, command.output
        return float(json.loads(command.output.splitlines()[-1])["seconds"])

    @contextmanager
    def copy(self) -> Iterator[Site]:
        """Give a copy, which is deleted unless the trial fails."""
        self._copies += 1
        site = Site(self._folder / f"trial-{self._copies}")
        shutil.copytree(self._template.folder, site.folder)
        yield site
        shutil.rmtree(site.folder, ignore_errors=True)

    def delete(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
