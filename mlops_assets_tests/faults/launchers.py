"""A launcher whose runs are over at once, so that daemons can be watched without waiting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dagster import DagsterEventType
from dagster._core.events import DagsterEvent
from dagster._core.launcher.base import LaunchRunContext, RunLauncher
from dagster._serdes import ConfigurableClass, ConfigurableClassData


class OverAtOnce(RunLauncher, ConfigurableClass):
    """Notes every launch in the file `launched`, and tells that the run has succeeded."""

    def __init__(self, inst_data: ConfigurableClassData | None = None) -> None:
        self._inst_data = inst_data
        super().__init__()

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        return self._inst_data

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        return {}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData, config_value: object
    ) -> OverAtOnce:
        return cls(inst_data)

    def launch_run(self, context: LaunchRunContext) -> None:
        run = context.dagster_run
        with Path(self._instance.root_directory, "launched").open("a") as launched:
            launched.write(f"{run.run_id}\n")
        for kind in (DagsterEventType.RUN_START, DagsterEventType.RUN_SUCCESS):
            self._instance.report_dagster_event(DagsterEvent(kind.value, run.job_name), run.run_id)

    def terminate(self, run_id: str) -> bool:
        return False
