"""The launcher of runs that `k8s/base/dagster.yaml` names: `k8s_runs`, loaded when it is needed.

Dagster makes the launcher in every process that opens the instance. The pods of steps launch
nothing: they have no token for the API server, and need not import its client.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dagster import Permissive
from dagster._core.launcher.base import (
    CheckRunHealthResult,
    LaunchRunContext,
    ResumeRunContext,
    RunLauncher,
)
from dagster._serdes import ConfigurableClass, ConfigurableClassData

if TYPE_CHECKING:
    from dagster import DagsterRun

    from mlops_assets.dagster_internals.k8s_runs import WatchedK8sRuns


class WatchedK8sRunLauncher(RunLauncher, ConfigurableClass):
    """Launches runs as Kubernetes jobs. Configured like `dagster_k8s.K8sRunLauncher`.

    It has the attributes of that one, which dagster-k8s asks it for.
    """

    def __init__(self, config: Mapping[str, Any], inst_data: ConfigurableClassData | None) -> None:
        self._config, self._inst_data = config, inst_data
        super().__init__()  # type: ignore[no-untyped-call]

    @cached_property
    def runs(self) -> WatchedK8sRuns:
        """What talks to the API server.

        Raises
        ------
        dagster.DagsterInvalidConfigError
            The configuration is not one of `dagster_k8s.K8sRunLauncher`.
        kubernetes.config.ConfigException
            This process has no access to an API server.
        """
        from mlops_assets.dagster_internals.k8s_runs import WatchedK8sRuns

        # JSON is YAML
        data = ConfigurableClassData(
            WatchedK8sRuns.__module__, WatchedK8sRuns.__name__, json.dumps(self._config)
        )
        runs = data.rehydrate(WatchedK8sRuns)
        runs.register_instance(self._instance)
        return runs

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.runs, name)

    @classmethod
    def config_type(cls) -> Any:
        """Leave the check of the configuration to whoever uses it."""
        permissive: Any = Permissive  # its constructor has no types
        return permissive()

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> WatchedK8sRunLauncher:
        """See `ConfigurableClass`."""
        return cls(config_value, inst_data)

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        """See `ConfigurableClass`."""
        return self._inst_data

    @property
    def supports_check_run_worker_health(self) -> bool:
        """See `RunLauncher`."""
        return True

    @property
    def supports_resume_run(self) -> bool:
        """See `RunLauncher`."""
        return True

    @property
    def supports_run_worker_crash_recovery(self) -> bool:
        """See `RunLauncher`."""
        return True

    def launch_run(self, context: LaunchRunContext) -> None:
        """See `RunLauncher`."""
        self.runs.launch_run(context)

    def resume_run(self, context: ResumeRunContext) -> None:
        """See `RunLauncher`."""
        self.runs.resume_run(context)

    def terminate(self, run_id: str) -> bool:
        """See `RunLauncher`."""
        return self.runs.terminate(run_id)

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """See `RunLauncher`."""
        return self.runs.check_run_worker_health(run)

    def get_run_worker_debug_info(
        self, run: DagsterRun, include_container_logs: bool | None = True
    ) -> str | None:
        """See `RunLauncher`."""
        return self.runs.get_run_worker_debug_info(run, include_container_logs)
