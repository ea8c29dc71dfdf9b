"""A deployment as its users meet it: runs by the UI's GraphQL, pods by the Kubernetes API."""

from __future__ import annotations

import time
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import requests
from kubernetes.client import (
    ApiClient,
    BatchV1Api,
    CoreV1Api,
    V1Eviction,
    V1ObjectMeta,
    V1Pod,
)
from kubernetes.utils import parse_quantity

T = TypeVar("T")

LAUNCH = """
mutation Launch($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
    ... on RunConfigValidationInvalid { errors { message } }
  }
}
"""
TERMINATE = """
mutation Terminate($run: String!) { terminateRun(runId: $run) { __typename } }
"""
STATUS = """
query Status($run: ID!) { runOrError(runId: $run) { ... on Run { status } } }
"""
LOG = """
query Log($run: ID!, $after: String) {
  logsForRun(runId: $run, afterCursor: $after, limit: 1000) {
    ... on EventConnection {
      cursor
      hasMore
      events {
        __typename
        ... on MessageEvent { message stepKey level timestamp }
        ... on ExecutionStepFailureEvent { error { message } failureMetadata { label description } }
        ... on ExecutionStepUpForRetryEvent { error { message } }
        ... on MaterializationEvent { metadataEntries { label
          ... on TextMetadataEntry { text } ... on BoolMetadataEntry { boolValue } } }
      }
    }
  }
}
"""
START_SCHEDULE = """
mutation Start($selector: ScheduleSelector!) {
  startSchedule(scheduleSelector: $selector) { __typename }
}
"""
STOP_SCHEDULE = """
mutation Stop($id: String!) { stopRunningSchedule(id: $id) { __typename } }
"""
SCHEDULE = """
query State($selector: ScheduleSelector!) {
  scheduleOrError(scheduleSelector: $selector) { ... on Schedule { scheduleState { id } } }
}
"""
RUNS = """
query Runs($job: String!) {
  runsOrError(filter: {pipelineName: $job}, limit: 1) { ... on Runs { results { runId } } }
}
"""
OVER = {"SUCCESS", "FAILURE", "CANCELED"}


@dataclass(frozen=True)
class Event:
    """An entry of a run's log."""

    kind: str
    step: str | None
    message: str
    metadata: Mapping[str, Any]


@dataclass
class Deployment:
    """Dagster's web server with its daemon and code location, and the cluster that they run on.

    Parameters
    ----------
    url : str
        Of the web server.
    api : kubernetes.client.ApiClient
        Of an administrator of the namespace.
    namespace : str
        Where everything runs.
    image : str
        Of the project, which pods run.
    """

    url: str
    api: ApiClient
    namespace: str
    image: str
    location: str = "mlops_assets"

    @property
    def core(self) -> CoreV1Api:
        return CoreV1Api(self.api)

    @property
    def batch(self) -> BatchV1Api:
        return BatchV1Api(self.api)

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        answer = requests.post(
            f"{self.url}/graphql", json={"query": query, "variables": variables}, timeout=60
        )
        answer.raise_for_status()
        body: dict[str, Any] = answer.json()
        assert "errors" not in body, body["errors"]
        return dict(body["data"])

    def selector(self, job: str) -> dict[str, Any]:
        return {
            "repositoryLocationName": self.location,
            "repositoryName": "__repository__",
            "jobName": job,
        }

    def launch(
        self,
        job: str,
        assets: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> str:
        """Start a run as the launchpad does, and return its id."""
        selection = [{"path": asset.split("/")} for asset in assets]
        params = {
            "selector": {
                **self.selector(job),
                **({"assetSelection": selection} if selection else {}),
            },
            "runConfigData": config or {},
            "mode": "default",
            "executionMetadata": {
                "tags": [{"key": key, "value": value} for key, value in (tags or {}).items()]
            },
        }
        launched = self.ask(LAUNCH, params=params)["launchRun"]
        assert launched["__typename"] == "LaunchRunSuccess", launched
        return str(launched["run"]["runId"])

    def status(self, run: str) -> str:
        return str(self.ask(STATUS, run=run)["runOrError"]["status"])

    def terminate(self, run: str) -> None:
        ended = self.ask(TERMINATE, run=run)["terminateRun"]["__typename"]
        assert ended == "TerminateRunSuccess"

    def start_schedule(self, name: str) -> None:
        started = self.ask(START_SCHEDULE, selector=self._schedule(name))["startSchedule"]
        assert started["__typename"] == "ScheduleStateResult", started

    def stop_schedule(self, name: str) -> None:
        found = self.ask(SCHEDULE, selector=self._schedule(name))["scheduleOrError"]
        stopped = self.ask(STOP_SCHEDULE, id=found["scheduleState"]["id"])["stopRunningSchedule"]
        assert stopped["__typename"] == "ScheduleStateResult", stopped

    def _schedule(self, name: str) -> dict[str, str]:
        return {
            "repositoryLocationName": self.location,
            "repositoryName": "__repository__",
            "scheduleName": name,
        }

    def latest_run(self, job: str) -> str | None:
        """Return the id of the latest run of a job; None before the first one."""
        runs = self.ask(RUNS, job=job)["runsOrError"]["results"]
        return str(runs[0]["runId"]) if runs else None

    def evict(self, pod: str) -> None:
        """Have a pod evicted as a drain of its node does."""
        metadata = V1ObjectMeta(name=pod, namespace=self.namespace)
        self.core.create_namespaced_pod_eviction(pod, self.namespace, V1Eviction(metadata=metadata))

    @property
    def environment(self) -> dict[str, str]:
        """What every component and every pod is given, the credentials of the store among it."""
        read = self.core
        settings = read.read_namespaced_config_map("mlops-environment", self.namespace).data
        secret = read.read_namespaced_secret("mlops-store", self.namespace).data
        return {**settings, **{name: b64decode(it).decode() for name, it in secret.items()}}

    @staticmethod
    def bytes_of(quantity: str) -> int:
        return int(parse_quantity(quantity))

    def log(self, run: str) -> list[Event]:
        events: list[Event] = []
        cursor, has_more = None, True
        while has_more:
            page = self.ask(LOG, run=run, after=cursor)["logsForRun"]
            cursor, has_more = page["cursor"], page["hasMore"]
            events += [_event(event) for event in page["events"]]
        return events

    def messages(self, run: str, step: str | None = None) -> str:
        """Return what the log says, of one step or of all."""
        log = self.log(run)
        return "\n".join(event.message for event in log if step in (None, event.step))

    def kinds(self, run: str, step: str) -> list[str]:
        return [event.kind for event in self.log(run) if event.step == step]

    def finished(self, run: str, within: float = 180) -> str:
        """Wait for the end of a run, and return its status."""
        return wait_until(
            lambda: status if (status := self.status(run)) in OVER else None,
            within,
            lambda: f"run {run} is {self.status(run)}:\n{self.messages(run)}",
        )

    def succeeds(self, run: str, within: float = 180) -> None:
        status = self.finished(run, within)
        assert status == "SUCCESS", self.messages(run)

    def pods(
        self, run: str, component: str = "step_worker", step: str | None = None
    ) -> list[V1Pod]:
        """Return the pods of a run that there are now."""
        selector = f"dagster/run-id={run},app.kubernetes.io/component={component}"
        if step:
            selector += f",dagster/op={step}"
        return list(self.core.list_namespaced_pod(self.namespace, label_selector=selector).items)

    def phases(self, run: str, component: str = "step_worker") -> list[str]:
        """Wait until no pod of a finished run is ending any more, and return the pods' phases."""

        def ended() -> list[str] | None:
            phases = [str(pod.status.phase) for pod in self.pods(run, component)]
            return phases if "Running" not in phases else None

        return wait_until(ended, 60, lambda: f"pods of {run} go on running")

    def pod_that_said(self, run: str, step: str, text: str, within: float = 120) -> V1Pod:
        """Wait until a step has logged something, and return its pod."""
        wait_until(
            lambda: text in self.messages(run, step) or None,
            within,
            lambda: f"{step} has not said {text!r}:\n{self.messages(run)}",
        )
        (pod,) = (pod for pod in self.pods(run, step=step) if pod.status.phase == "Running")
        return pod


def wait_until(
    probe: Callable[[], T | None], within: float, what: Callable[[], str], every: float = 0.5
) -> T:
    """Return what a probe finds as soon as it is not None; fail after some seconds."""
    deadline = time.monotonic() + within
    while (found := probe()) is None:
        if time.monotonic() > deadline:
            raise AssertionError(what())
        time.sleep(every)
    return found


def _event(event: dict[str, Any]) -> Event:
    failure = event.get("failureMetadata") or {}
    said = [
        event.get("message") or "",
        (event.get("error") or {}).get("message") or "",
        failure.get("description") or "",
    ]
    return Event(
        kind=event["__typename"],
        step=event.get("stepKey"),
        message="\n".join(filter(None, said)),
        metadata={
            entry["label"]: entry.get("text", entry.get("boolValue"))
            for entry in event.get("metadataEntries", ())
        },
    )
