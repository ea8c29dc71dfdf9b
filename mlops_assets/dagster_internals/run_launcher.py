"""The launcher of runs on one machine: Dagster's own, which also notices a run that was killed.

When a run's process dies, the code server that started it says so. When both are killed, by a
reboot or for want of memory, Dagster's launcher leaves the run in progress forever: it keeps its
place in the queue, and a backfill waits for it. `dagster.yaml` names this one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dagster import deserialize_value
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.launcher.base import CheckRunHealthResult, WorkerStatus
from dagster._core.launcher.default_run_launcher import DefaultRunLauncher
from dagster._grpc.types import CanCancelExecutionRequest, CanCancelExecutionResult

from mlops_assets.dagster_internals.gone_runs import WHY, has_gone

if TYPE_CHECKING:
    from dagster import DagsterRun
    from dagster._grpc.client import DagsterGrpcClient


class WatchedRunLauncher(DefaultRunLauncher):
    """Launches runs as processes of the code server, and tells run monitoring which are gone."""

    @property
    def supports_check_run_worker_health(self) -> bool:
        """See `RunLauncher`."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Ask the code server that started a run whether its process is there.

        A run that none started, such as that of a command, names its process. What cannot be told
        is taken for alive.
        """
        client = self._server_of(run)
        if client is None:
            if has_gone(run):
                return CheckRunHealthResult(WorkerStatus.FAILED, WHY)
            # run monitoring takes every other status for a failure
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        try:
            answer = client.can_cancel_execution(CanCancelExecutionRequest(run_id=run.run_id))
        except DagsterUserCodeUnreachableError:
            return CheckRunHealthResult(WorkerStatus.FAILED, "its code server is gone")
        if deserialize_value(answer, CanCancelExecutionResult).can_cancel:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(WorkerStatus.FAILED, "its process is gone")

    def _server_of(self, run: DagsterRun) -> DagsterGrpcClient | None:
        client: DagsterGrpcClient | None = self._get_grpc_client_for_termination(run.run_id)  # type: ignore[no-untyped-call]
        return client
