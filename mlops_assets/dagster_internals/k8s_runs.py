"""Runs as pods: dagster-k8s' launcher, which keeps calm and leaves nothing behind.

While the API server is away, nobody can tell how a run's worker does. dagster-k8s reports that as a
failure, and the daemon starts a second worker beside the first. And where run workers are resumed,
a run that is cancelled leaves the pods of its steps to themselves.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from dagster._core.launcher.base import CheckRunHealthResult, WorkerStatus
from dagster_k8s.launcher import K8sRunLauncher
from kubernetes.client.rest import ApiException
from urllib3.exceptions import HTTPError

from mlops_assets.dagster_internals.k8s_client import PatientClient

if TYPE_CHECKING:
    from dagster import DagsterRun

log = logging.getLogger(__name__)


class WatchedK8sRuns(K8sRunLauncher):
    """Launches runs as Kubernetes jobs. Configured like `dagster_k8s.K8sRunLauncher`."""

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        self._client = self._api_client = PatientClient.of(self._api_client)

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Tell how a run's worker does; one that cannot be asked after is taken for alive.

        The steps of a run that is over, because its worker is gone and has been replaced often
        enough, are deleted.
        """
        try:
            self._client.jobs(self._namespace_of(run), _steps_of(run.run_id))
        except (ApiException, HTTPError) as error:
            log.warning("how run %s does cannot be found out: %s", run.run_id, error)
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        result: CheckRunHealthResult = super().check_run_worker_health(run)
        if result.status in (WorkerStatus.RUNNING, WorkerStatus.SUCCESS):
            return result
        if not self._instance.run_will_resume(run.run_id):
            self._remove_steps(run)
        return result

    def terminate(self, run_id: str) -> bool:
        """End a run with all its steps."""
        ended = bool(super().terminate(run_id))  # type: ignore[no-untyped-call]
        if run := self._instance.get_run_by_id(run_id):
            self._remove_steps(run)
        return ended

    def _remove_steps(self, run: DagsterRun) -> None:
        namespace = self._namespace_of(run)
        try:
            jobs = self._client.jobs(namespace, _steps_of(run.run_id))
            self._client.remove(namespace, jobs)
        except (ApiException, HTTPError) as error:
            why = f"The pods of the steps could not be deleted: {error}"
            self._instance.report_engine_event(why, run, cls=self.__class__)

    def _namespace_of(self, run: DagsterRun) -> str:
        return str(self.get_container_context_for_run(run).namespace)


def _steps_of(run_id: str) -> str:
    return f"dagster/run-id={run_id},app.kubernetes.io/component=step_worker"
