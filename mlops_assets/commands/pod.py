"""A command in a pod of its own, which this process makes, watches and deletes.

The session, the messages and the log are Dagster Pipes'. The waiting is not `PipesK8sClient`'s,
which waits for a day when a pod is taken away, and gives up when the API server does not answer.

Kubernetes keeps one log of a container: what the command writes to its standard error counts as
output here. Nothing but `runners` imports this, and only where a pod is to be run.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from copy import deepcopy
from datetime import timedelta
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, TypeVar

import kubernetes
from dagster import PipesEnvContextInjector
from dagster_k8s.pipes import PipesK8sPodLogsMessageReader, build_pod_body, get_pod_name
from dagster_k8s.utils import detect_current_namespace
from kubernetes.client import ApiException, CoreV1Api, V1JobStatus
from urllib3.exceptions import HTTPError

from mlops_assets.commands.ending import Ending
from mlops_assets.commands.process import GRACE
from mlops_assets.commands.runners import Ran, Work, session_of
from mlops_assets.commands.value import argv_of
from mlops_assets.dagster_internals.k8s_client import AWAY_AT_MOST, TIMEOUT, is_away
from mlops_assets.dagster_internals.k8s_pods import trouble_of, waiting_for
from mlops_assets.spec import in_bytes
from mlops_assets.wording import size

if TYPE_CHECKING:
    from dagster import AssetExecutionContext
    from dagster_pipes import PipesParams
    from kubernetes.client import V1ContainerState, V1Pod

    from mlops_assets.commands.lines import Lines
    from mlops_assets.dagster_internals.k8s_pods import Kind

NOBODY = 65534
"""User and group of the command: many images would run as root, which is not allowed here."""

PLATFORM_RETRIES = 5
"""How often a pod that was evicted, pre-empted or lost is run again."""

PATIENCE = timedelta(minutes=2)
"""How long an image may fail to be pulled before the pod is given up."""

_POLL = 1.0  # seconds
_SETTLED = 10.0  # seconds after the end of a log in which its pod ends
_CONTAINER = "command"
_REFUSALS = (400, 401, 403, 422)

_Answer = TypeVar("_Answer")


def in_pod(context: AssetExecutionContext, work: Work, lines: Lines) -> Ran:
    """Run an image in a pod of the same namespace, and delete the pod whatever happens.

    One that is killed for want of memory is tried again at once with twice as much, up to
    `compute.max_memory`; one that the cluster has ended is tried again `PLATFORM_RETRIES` times.
    Neither counts as a retry of the step.
    """
    _load_configuration()
    memory, most = in_bytes(work.step.compute.memory), work.step.compute.memory_limit
    left = PLATFORM_RETRIES
    while True:
        try:
            ran, fault = _try(context, work, lines, memory)
        except (ApiException, HTTPError) as error:
            return Ran(_refused(error))
        if fault == "memory" and memory < most:
            memory = min(2 * memory, most)
            context.log.warning("%s: tried again with %s", ran.ending, size(memory))
        elif fault == "memory":
            why = f"{ran.ending}: `compute.max_memory` allows no more"
            return Ran(Ending(ran.ending.code, why=why, final=True))
        elif fault == "platform" and left:
            left -= 1
            context.log.warning("%s: tried again", ran.ending)
        else:
            return ran


def _try(context: AssetExecutionContext, work: Work, lines: Lines, memory: int) -> tuple[Ran, Kind]:
    """Run one pod; return how it ended, and whose fault that was."""
    reader = _PodLogs(lines)
    with session_of(context, work, PipesEnvContextInjector(), reader) as session:
        pod = _Pod(context, reader, get_pod_name(context.run.run_id, work.name))
        body = build_pod_body(
            pod_name=pod.name,
            image=None,
            command=None,
            env_vars={
                **{name: _literal(value) for name, value in work.variables.items()},
                **session.get_bootstrap_env_vars(),
            },
            base_pod_meta=_metadata(work, pod.owner),
            base_pod_spec=_pod_spec(work, memory),
        )
        try:
            pod.create(body)
            last = pod.follow(lines)
        finally:
            lines.end()
            pod.delete()
    ending, fault = _end_of(last, work, memory)
    return Ran(ending, tuple(session.get_reported_results())), fault


class _Pod:
    """One pod, for as long as it is there."""

    def __init__(self, context: AssetExecutionContext, reader: _PodLogs, name: str) -> None:
        self.name = name
        self._context, self._reader = context, reader
        self._api = CoreV1Api()
        self._namespace = detect_current_namespace(_kubeconfig()) or "default"

    @property
    def owner(self) -> Mapping[str, Any] | None:
        """The pod of this step, with which the cluster deletes the pod of the command.

        None where this process is in no pod, or may not look at it.
        """
        name = os.environ.get("HOSTNAME")
        if not name or not os.environ.get("KUBERNETES_SERVICE_HOST"):
            return None
        with suppress(ApiException):
            own = self._patiently(self._api.read_namespaced_pod, name, self._namespace)
            return {"api_version": "v1", "kind": "Pod", "name": name, "uid": own.metadata.uid}
        return None

    def create(self, body: V1Pod) -> None:
        """Make the pod, once, however often it has to be asked for."""
        try:
            self._patiently(self._api.create_namespaced_pod, self._namespace, body)
        except ApiException as error:
            if error.status != 409:  # the request before was heard, and only its answer was lost
                raise

    def follow(self, lines: Lines) -> V1Pod | None:
        """Hand on what the command writes until the pod is over, or cannot begin.

        Returns what the pod was at last; None if it was taken away.
        """
        read_at, obstacle = None, None
        while (pod := self._look()) is not None:
            is_over = _is_over(pod)
            has_begun = any(state.running or state.terminated for state in _states(pod))
            if not has_begun and not is_over:
                if trouble_of(V1JobStatus(), [pod], PATIENCE):
                    return pod
                if (now := waiting_for([pod])) and now != obstacle:
                    obstacle = now
                    self._context.log.warning("the command waits: %s", now)
            # a log may end early; it is read anew then, from its beginning
            elif has_begun and (read_at is None or (not is_over and monotonic() > read_at)):
                lines.begin()
                read_at = monotonic() + _SETTLED if self._read(lines) else None
            if is_over and (read_at is not None or not has_begun):
                return pod
            sleep(_POLL)
        return None

    def delete(self) -> None:
        """Delete the pod; one that cannot be deleted goes with the pod of this step."""
        try:
            self._patiently(self._api.delete_namespaced_pod, self.name, self._namespace)
        except (ApiException, HTTPError) as error:
            if not isinstance(error, ApiException) or error.status != 404:
                self._context.log.warning("the pod %s may be left behind: %s", self.name, error)

    def _look(self) -> V1Pod | None:
        try:
            return self._patiently(self._api.read_namespaced_pod, self.name, self._namespace)
        except ApiException as error:
            if error.status != 404:
                raise
            return None

    def _read(self, lines: Lines) -> bool:
        """Follow the log to its end; whether that was reached."""
        try:
            with redirect_stdout(_ToLines(lines)):
                self._reader.consume_pod_logs(self._context, self._api, self.name, self._namespace)
        except (ApiException, HTTPError) as error:
            if isinstance(error, ApiException) and error.status == 404:
                return True  # it went with the pod
            self._context.log.warning("the log of the command broke off: %s", error)
            return False
        return True

    def _patiently(self, ask: Callable[..., _Answer], *arguments: Any) -> _Answer:
        """Ask the API server, and wait for it if it is away."""
        until = monotonic() + AWAY_AT_MOST
        while True:
            try:
                return ask(*arguments, _request_timeout=TIMEOUT)
            except (ApiException, HTTPError) as error:
                if not is_away(error) or monotonic() > until:
                    raise
            sleep(_POLL)


def _is_over(pod: V1Pod) -> bool:
    return pod.status.phase in ("Failed", "Succeeded")


def _states(pod: V1Pod | None) -> list[V1ContainerState]:
    statuses = (pod.status.container_statuses or ()) if pod is not None else ()
    return [status.state for status in statuses if status.state]


def _end_of(pod: V1Pod | None, work: Work, memory: int) -> tuple[Ending, Kind]:
    """Return how the command of a pod ended, or why it never began; None for a pod that is gone."""
    if pod is not None and pod.status.phase == "Succeeded":
        return Ending(0), "process"
    if pod is not None and pod.status.reason == "DeadlineExceeded":
        return Ending(1, timeout=work.step.timeout), "process"
    code = next((state.terminated.exit_code for state in _states(pod) if state.terminated), 1)
    is_over = pod is None or _is_over(pod)
    pods = [] if pod is None else [pod]
    trouble = trouble_of(V1JobStatus(failed=1 if is_over else None), pods, patience=timedelta(0))
    kind = trouble.kind if trouble is not None else "process"
    reason = trouble.reason if trouble is not None else ""
    if kind == "process":
        return Ending(code), kind
    if kind == "memory":
        return Ending(code, why=f"the command was out of memory with {size(memory)}"), kind
    if not is_over:
        why = f"the image {work.step.image} cannot be run: {reason}"
        return Ending(code, why=why, final=kind == "setup"), "setup"
    why = f"the pod of the command was ended by the cluster: {reason}"
    return Ending(code, why=why, final=kind == "setup"), kind


def _refused(error: ApiException | HTTPError) -> Ending:
    """Say that the cluster refuses a pod, which trying again does not mend, or is away."""
    if isinstance(error, ApiException) and error.status in _REFUSALS:
        why = f"the cluster refuses the pod of the command: {error.reason}: {error.body}"
        return Ending(1, why=why, final=True)
    return Ending(1, why=f"the cluster could not be asked while the command ran: {error}")


def _kubeconfig() -> str | None:
    """Return the path of the configuration outside of a cluster; None for the usual one."""
    inside = os.environ.get("KUBERNETES_SERVICE_HOST")
    return None if inside else os.environ.get("KUBECONFIG")


def _load_configuration() -> None:
    if os.environ.get("KUBERNETES_SERVICE_HOST"):
        kubernetes.config.load_incluster_config()
    else:
        kubernetes.config.load_kube_config(_kubeconfig())


# --- the pod ------------------------------------------------------------------------------------


def _pod_spec(work: Work, memory: int) -> dict[str, Any]:
    container: dict[str, Any] = deepcopy(dict(work.pod["container_config"]))
    for kind in ("requests", "limits"):
        container["resources"][kind] = {**container["resources"][kind], "memory": str(memory)}
    command = work.step.command
    argv = [_literal(part) for part in argv_of(command)] if command is not None else None
    return {
        **deepcopy(dict(work.pod["pod_spec_config"])),
        "containers": [
            {
                **container,
                "name": _CONTAINER,
                "image": work.step.image,
                **({"command": argv} if argv else {}),
                "security_context": {
                    "allow_privilege_escalation": False,
                    "capabilities": {"drop": ["ALL"]},
                },
            }
        ],
        "security_context": {
            "run_as_non_root": True,
            "run_as_user": NOBODY,
            "run_as_group": NOBODY,
            "seccomp_profile": {"type": "RuntimeDefault"},
        },
        "automount_service_account_token": False,
        "restart_policy": "Never",
        "termination_grace_period_seconds": int(GRACE),
        **(
            {"active_deadline_seconds": math.ceil(work.step.timeout)}
            if work.step.timeout is not None
            else {}
        ),
    }


def _literal(text: str) -> str:
    """Return a text from which Kubernetes makes this one: it would read $$ and $(NAME) itself."""
    return text.replace("$", "$$")


def _metadata(work: Work, owner: Mapping[str, Any] | None) -> dict[str, Any]:
    given = work.pod["pod_template_spec_metadata"]
    return {
        "labels": {**given["labels"], **work.labels},
        "annotations": {**given["annotations"]},
        **({"owner_references": [dict(owner)]} if owner else {}),
    }


# --- what it writes -----------------------------------------------------------------------------


class _PodLogs(PipesK8sPodLogsMessageReader):
    """Has the lines looked through for messages, too.

    Of lines that were written at once, Kubernetes gives all the same time; dagster-k8s takes those
    for one, and finds no message in it.
    """

    def __init__(self, lines: Lines) -> None:
        self._lines = lines

    @contextmanager
    def read_messages(self, handler: Any) -> Iterator[PipesParams]:
        """See `PipesMessageReader`."""
        self._lines.handler = handler
        try:
            with super().read_messages(handler) as params:
                yield params
        finally:
            self._lines.handler = None


class _ToLines(io.TextIOBase):
    """Where dagster-k8s prints what a pod has written."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines

    def write(self, text: str) -> int:
        """Take what is printed."""
        self._lines.take("stdout", text.encode(errors="replace"))
        return len(text)
