"""Runs of `code_location` in a folder of the test's own, with real processes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

import pytest
from dagster import (
    DagsterEvent,
    DagsterEventType,
    DagsterInstance,
    execute_job,
)
from dagster._core.definitions.reconstruct import ReconstructableRepository

from mlops_assets.execution import executors
from mlops_assets_tests.ranges import range_tags

CODE_LOCATION = "mlops_assets_tests.execution.code_location"
FORKSERVER = {"execution": {"config": {"forkserver": {"max_concurrent": 2}}}}


@dataclass
class Result:
    """What happened in one run."""

    success: bool
    events: list[DagsterEvent]
    logs: list[str]
    ran: list[str]
    launched: list[str]
    initialised: list[str]

    def steps(self, event_type: DagsterEventType) -> list[str]:
        """Sorted keys of the steps that have events of a type."""
        return sorted(str(e.step_key) for e in self.events if e.event_type is event_type)

    @property
    def succeeded(self) -> list[str]:
        return self.steps(DagsterEventType.STEP_SUCCESS)

    @property
    def processes_started(self) -> list[str]:
        return self.steps(DagsterEventType.STEP_WORKER_STARTING)

    @property
    def reused(self) -> list[str]:
        """Sorted keys of the steps whose materialisation was told again."""
        return sorted(
            str(event.step_key)
            for event in self.events
            if event.event_type is DagsterEventType.ASSET_MATERIALIZATION
            and "memoized" in event.materialization.metadata
        )


@dataclass
class Location:
    """`code_location` with its folder and an instance."""

    folder: Path
    instance: DagsterInstance

    def run(
        self,
        job: str,
        config: dict[str, Any] | None = None,
        parts: tuple[str, str] | None = None,
    ) -> Result:
        """Run a job to its end, for all partitions from one to another if they are given."""
        seen = {kind: len(self.noted(kind)) for kind in ("ran", "launched", "initialised")}
        repository = ReconstructableRepository.for_module(CODE_LOCATION, "defs")
        # Not in a with statement, which would initialise the resources in this process.
        result = execute_job(
            repository.get_reconstructable_job(job),
            self.instance,
            run_config=config,
            tags=range_tags(*parts) if parts else None,
        )
        entries = self.instance.all_logs(result.run_id)
        return Result(
            success=result.success,
            events=[entry.dagster_event for entry in entries if entry.dagster_event],
            logs=[entry.user_message for entry in entries if not entry.dagster_event],
            **{kind: sorted(self.noted(kind)[n:]) for kind, n in seen.items()},
        )

    def noted(self, kind: str) -> list[str]:
        """What steps and resources have noted so far, in the order of time."""
        paths = sorted((self.folder / kind).glob("*"), key=lambda path: path.suffix)
        return [path.name.split(".")[0] for path in paths]

    def put(self, name: str, text: str = "") -> None:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One folder for all tests of a module: a fork server keeps the environment it started with."""
    path = tmp_path_factory.mktemp("code_location")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEST_FOLDER", str(path))
        # scikit-learn and pandas are none of these steps' business, and take seconds.
        patch.setattr(executors, "PRELOAD", ("dagster",))
        stop_helpers()
        yield path
        stop_helpers()


@pytest.fixture
def location(folder: Path, tmp_path: Path) -> Iterator[Location]:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with DagsterInstance.local_temp(
        str(tmp_path), overrides={"telemetry": {"enabled": False}}
    ) as instance:
        yield Location(folder, instance)


def stop_helpers() -> None:
    """Stop the processes that multiprocessing keeps."""
    forkserver._forkserver._stop()
    resource_tracker._resource_tracker._stop()


def helpers_running() -> bool:
    """Whether multiprocessing keeps a process."""
    return (
        forkserver._forkserver._forkserver_pid is not None
        or resource_tracker._resource_tracker._pid is not None
    )
