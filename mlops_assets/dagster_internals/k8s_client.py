"""dagster-k8s' client of the API server, made to outlast a server that is away for minutes.

Dagster's own gives up on creating a job after half a minute without an answer, and the run fails.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from dagster_k8s.client import WHITELISTED_TRANSIENT_K8S_STATUS_CODES, DagsterKubernetesClient
from kubernetes.client.rest import ApiException
from urllib3.exceptions import HTTPError

if TYPE_CHECKING:
    from kubernetes.client import V1Job

log = logging.getLogger(__name__)

AWAY_AT_MOST = 300.0
"""Seconds for which an API server that does not answer is waited for."""
PAUSE = 5.0
TIMEOUT = 10.0
"""Seconds that one request may take."""


def is_away(error: Exception) -> bool:
    """Whether an error of a request says that the API server cannot answer for now."""
    if isinstance(error, ApiException):
        return error.status in {429, *WHITELISTED_TRANSIENT_K8S_STATUS_CODES}
    return isinstance(error, HTTPError)


class PatientClient(DagsterKubernetesClient):
    """Creates jobs, lists them by label, and deletes them with their pods."""

    @classmethod
    def of(cls, client: DagsterKubernetesClient) -> PatientClient:
        """Return a patient client with the connection of another one."""
        return cls(**vars(client))

    def create_namespaced_job_with_retries(
        self, body: V1Job, namespace: str, wait_time_between_attempts: float = PAUSE
    ) -> None:
        """Create a job, once, however often it has to be asked for.

        Raises
        ------
        kubernetes.client.ApiException
            The API server refuses it; with status 409 there is a job of this name already.
        urllib3.exceptions.HTTPError
            The API server was away for `AWAY_AT_MOST` seconds.
        """
        until = time.monotonic() + AWAY_AT_MOST
        is_first = True
        while True:
            try:
                self.batch_api.create_namespaced_job(
                    body=body, namespace=namespace, _request_timeout=TIMEOUT
                )
            except (ApiException, HTTPError) as error:
                if getattr(error, "status", None) == 409 and not is_first:
                    return  # the request before was heard, and only its answer was lost
                if not is_away(error) or time.monotonic() > until:
                    raise
                log.warning("the Kubernetes API server does not answer, trying again: %s", error)
                is_first = False
                time.sleep(wait_time_between_attempts)
            else:
                return

    def jobs(self, namespace: str, selector: str) -> list[V1Job]:
        """Return the jobs with these labels, the oldest first."""
        found = self.batch_api.list_namespaced_job(
            namespace, label_selector=selector, _request_timeout=TIMEOUT
        ).items
        return sorted(found, key=lambda job: job.metadata.creation_timestamp)

    def remove(self, namespace: str, jobs: Iterable[V1Job]) -> None:
        """Delete jobs and, by the cluster, their pods; those that are gone already are no error."""
        for job in jobs:
            try:
                self.batch_api.delete_namespaced_job(
                    job.metadata.name,
                    namespace,
                    propagation_policy="Background",
                    _request_timeout=TIMEOUT,
                )
            except ApiException as error:
                if error.status != 404:
                    raise
