"""A command in a pod of its own, by `dagster_k8s.PipesK8sClient`.

Kubernetes keeps one log of a container: what the command writes to its standard error counts as
output here. Nothing but `runners` imports this, and only where a pod is to be run.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from copy import deepcopy
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import kubernetes
from dagster_k8s import PipesK8sClient
from dagster_k8s.client import DagsterK8sError
from dagster_k8s.pipes import PipesK8sPodLogsMessageReader
from dagster_k8s.utils import detect_current_namespace
from kubernetes.client import ApiException, CoreV1Api
from urllib3.exceptions import HTTPError

from mlops_assets.commands.ending import Ending
from mlops_assets.commands.process import GRACE
from mlops_assets.commands.runners import Ran, Work, quiet
from mlops_assets.commands.value import argv_of
from mlops_assets.spec import in_bytes
from mlops_assets.wording import size

if TYPE_CHECKING:
    from dagster import AssetExecutionContext
    from dagster_pipes import PipesParams
    from kubernetes.client import V1Pod

    from mlops_assets.commands.lines import Lines

TRY = "mlops/try"
"""Label by which the pod of one try is found."""

NOBODY = 65534
"""User and group of the command: many images would run as root, which is not allowed here."""

_POLL = 1.0  # seconds
_CONTAINER = "command"
_NEVER = ("ErrImageNeverPull", "InvalidImageName")
_FOR_WANT_OF_MEMORY = "OOMKilled"


def in_pod(context: AssetExecutionContext, work: Work, lines: Lines) -> Ran:
    """Run an image in a pod of the same namespace, and delete the pod whatever happens.

    One that is killed for want of memory is tried again at once with twice as much, up to
    `compute.max_memory`.
    """
    _load_configuration()
    api, namespace = CoreV1Api(), detect_current_namespace(None) or "default"
    memory, most = in_bytes(work.step.compute.memory), work.step.compute.memory_limit
    while True:
        ran, reason = _try(context, work, lines, api, namespace, memory)
        if reason != _FOR_WANT_OF_MEMORY:
            return ran
        if memory >= most:
            why = (
                f"the command was killed for want of memory: {size(memory)} are all that "
                "`compute.max_memory` allows"
            )
            return Ran(Ending(ran.ending.code, why=why, final=True))
        more = min(2 * memory, most)
        context.log.warning(
            "the command was killed for want of memory with %s: tried again with %s",
            size(memory),
            size(more),
        )
        memory = more
        lines.begin()


def _try(
    context: AssetExecutionContext,
    work: Work,
    lines: Lines,
    api: CoreV1Api,
    namespace: str,
    memory: int,
) -> tuple[Ran, str | None]:
    """Run one pod; return how it ended, and the cluster's own word for that."""
    label = uuid4().hex
    reader = _PodLogs(lines)
    client = PipesK8sClient(message_reader=reader, poll_interval=_POLL)
    try:
        with quiet(context.log), redirect_stdout(_ToLines(lines)):
            done = client.run(
                context=context,
                extras=dict(work.extras),
                namespace=namespace,
                env=work.variables,
                base_pod_meta=_metadata(work, label, _owner(api, namespace)),
                base_pod_spec=_pod_spec(work, memory),
                delete_pod_on_completion=False,
            )
    except DagsterK8sError as error:
        pod = _pod(api, namespace, label)
        if pod is not None and not lines.seen:
            _fetch(api, namespace, pod, lines)
        lines.end()
        return Ran(ending_of(pod, work, str(error))), _reason(pod)
    else:
        lines.end()
        return Ran(Ending(0), tuple(done.get_results(implicit_materializations=False))), None
    finally:
        _delete(context, api, namespace, label)


def ending_of(pod: V1Pod | None, work: Work, error: str) -> Ending:
    """Return how the command of a pod ended, as the cluster tells it.

    Parameters
    ----------
    pod : V1Pod or None
        None if it is gone.
    work : Work
        What it was to run.
    error : str
        What dagster-k8s says of it, where the pod itself says nothing.
    """
    if pod is None:
        return Ending(1, why="the pod of the command was deleted while it ran")
    if pod.status.reason == "DeadlineExceeded":
        return Ending(1, timeout=work.step.timeout)
    state = _state(pod)
    if state is not None and state.waiting is not None:
        reason, message = state.waiting.reason, state.waiting.message
        why = f"the image {work.step.image} cannot be run: {reason}: {message or 'no message'}"
        return Ending(1, why=why, final=reason in _NEVER)
    if pod.status.reason:
        why = f"the pod of the command was ended by the cluster: {pod.status.reason}"
        return Ending(1, why=f"{why}: {pod.status.message or 'no message'}")
    if state is not None and state.terminated is not None:
        end = state.terminated
        if end.reason in ("StartError", "ContainerCannotRun"):
            why = f"the command cannot be started: {end.message}"
            return Ending(end.exit_code, why=why, final=True)
        return Ending(end.exit_code)
    return Ending(1, why=error)


def _load_configuration() -> None:
    if os.environ.get("KUBERNETES_SERVICE_HOST"):
        kubernetes.config.load_incluster_config()
    else:
        kubernetes.config.load_kube_config()


# --- the pod ------------------------------------------------------------------------------------


def _pod_spec(work: Work, memory: int) -> dict[str, Any]:
    container: dict[str, Any] = deepcopy(dict(work.pod["container_config"]))
    for kind in ("requests", "limits"):
        container["resources"][kind] = {**container["resources"][kind], "memory": str(memory)}
    argv = argv_of(work.step.command) if work.step.command is not None else None
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


def _metadata(work: Work, label: str, owner: Mapping[str, Any] | None) -> dict[str, Any]:
    given = work.pod["pod_template_spec_metadata"]
    return {
        "labels": {**given["labels"], **work.labels, TRY: label},
        "annotations": {**given["annotations"]},
        **({"owner_references": [dict(owner)]} if owner else {}),
    }


def _owner(api: CoreV1Api, namespace: str) -> Mapping[str, Any] | None:
    """Return the pod of this step, with which the cluster deletes the pod of the command.

    None where this process is in no pod, or may not look at it.
    """
    name = os.environ.get("HOSTNAME")
    if not name or not os.environ.get("KUBERNETES_SERVICE_HOST"):
        return None
    with suppress(ApiException, HTTPError):
        own = api.read_namespaced_pod(name, namespace)
        return {"api_version": "v1", "kind": "Pod", "name": name, "uid": own.metadata.uid}
    return None


def _pod(api: CoreV1Api, namespace: str, label: str) -> V1Pod | None:
    found = api.list_namespaced_pod(namespace, label_selector=f"{TRY}={label}").items
    return found[0] if found else None


def _delete(context: AssetExecutionContext, api: CoreV1Api, namespace: str, label: str) -> None:
    """Delete the pod; one that cannot be deleted now goes with the pod of this step."""
    try:
        pod = _pod(api, namespace, label)
        if pod is not None:
            api.delete_namespaced_pod(pod.metadata.name, namespace)
    except (ApiException, HTTPError) as error:
        if not isinstance(error, ApiException) or error.status != 404:
            context.log.warning("the pod of the command may be left behind: %s", error)


def _state(pod: V1Pod) -> Any:
    return next((status.state for status in pod.status.container_statuses or ()), None)


def _reason(pod: V1Pod | None) -> str | None:
    state = _state(pod) if pod is not None else None
    return state.terminated.reason if state is not None and state.terminated is not None else None


# --- what it writes -----------------------------------------------------------------------------


def _fetch(api: CoreV1Api, namespace: str, pod: V1Pod, lines: Lines) -> None:
    """Take the log of a pod that ended before anybody had begun to read it."""
    with suppress(ApiException, HTTPError):
        log = api.read_namespaced_pod_log(pod.metadata.name, namespace, container=_CONTAINER)
        lines.take("stdout", (log or "").encode())


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
