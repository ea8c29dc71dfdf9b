"""What became of the pod of a step, as the cluster tells it, and whose fault it was.

Nothing here asks the cluster or acts on what is found: that is `k8s_steps`.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from kubernetes.client import V1ContainerState, V1JobStatus, V1Pod

Kind = Literal["platform", "memory", "process", "setup"]
"""Whose fault it was: the cluster's, which a new pod mends; want of memory, which more mends; the
step's own process; or the way that the pod is described, which only a person mends."""

# https://kubernetes.io/docs/reference/node/node-status, and the reasons that kubelets give to pods
# that they refuse or end.
_BY_THE_NODE = {
    "Evicted",
    "NodeAffinity",
    "NodeLost",
    "NodeShutdown",
    "OutOfcpu",
    "OutOfmemory",
    "OutOfpods",
    "Preempting",
    "Shutdown",
    "Terminated",
    "UnexpectedAdmissionError",
}
_NEVER = {"ErrImageNeverPull", "InvalidImageName"}
_IMAGE = {"ErrImagePull", "ImagePullBackOff", "ImageInspectError", "RegistryUnavailable"}
_CREATING = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}


class Trouble(NamedTuple):
    """Why the pod of a step cannot go on."""

    kind: Kind
    reason: str


def trouble_of(job: V1JobStatus, pods: Sequence[V1Pod], patience: timedelta) -> Trouble | None:
    """Return why a job's pod cannot go on; None while it can.

    Parameters
    ----------
    job : kubernetes.client.V1JobStatus
        Of a job that makes one pod and never a second one (`backoffLimit: 0`).
    pods : sequence of kubernetes.client.V1Pod
        Those that there are of it.
    patience : datetime.timedelta
        How long a container may fail to be created before the pod is given up.
    """
    if not job.failed:
        return next(filter(None, (_in_the_way(pod, patience) for pod in pods)), None)
    if not pods:
        # Only pods that ended by themselves stay. A drained, pre-empted or lost one is deleted.
        return Trouble("platform", "its pod was deleted")
    return _end_of(max(pods, key=lambda pod: pod.metadata.creation_timestamp))


def waiting_for(pods: Sequence[V1Pod]) -> str | None:
    """Return what pods wait for before they can start; None if they don't."""
    for pod in pods:
        for condition in pod.status.conditions or ():
            if condition.type == "PodScheduled" and condition.status == "False":
                return f"no node takes its pod: {condition.message or condition.reason}"
        for state in _states(pod):
            if state.waiting and state.waiting.reason in _IMAGE | _CREATING:
                return f"{state.waiting.reason}: {state.waiting.message or 'no message'}"
    return None


def _in_the_way(pod: V1Pod, patience: timedelta) -> Trouble | None:
    """Return why a pod that is not over will never run."""
    for state in _states(pod):
        if not state.waiting:
            continue
        why = f"{state.waiting.reason}: {state.waiting.message or 'no message'}"
        if state.waiting.reason in _NEVER:
            return Trouble("setup", why)
        if datetime.now(UTC) - pod.metadata.creation_timestamp > patience:
            if state.waiting.reason in _IMAGE:
                return Trouble("platform", why)
            if state.waiting.reason in _CREATING:
                return Trouble("setup", why)
    return None


def _end_of(pod: V1Pod) -> Trouble:
    ended = [state.terminated for state in _states(pod) if state.terminated]
    if any(end.reason == "OOMKilled" for end in ended):
        return Trouble("memory", "it was killed for want of memory")
    for condition in pod.status.conditions or ():
        if condition.type == "DisruptionTarget" and condition.status == "True":
            return Trouble("platform", f"{condition.reason}: {condition.message or 'no message'}")
    if pod.status.reason in _BY_THE_NODE or any(
        end.reason == "ContainerStatusUnknown" for end in ended
    ):
        why = pod.status.reason or "ContainerStatusUnknown"
        return Trouble("platform", f"{why}: {pod.status.message or 'no message'}")
    if any(end.reason in ("StartError", "ContainerCannotRun") for end in ended):
        why = next(end.message or end.reason for end in ended)
        return Trouble("setup", f"its container could not be started: {why}")
    if not ended:
        return Trouble("platform", pod.status.message or "its pod failed without a word")
    return Trouble("process", _exit(next((end.exit_code for end in ended if end.exit_code), 0)))


def _exit(code: int) -> str:
    """Say how a process ended, by its code as containers report it."""
    if code <= 128:
        return f"its process ended with exit code {code}"
    try:
        name = signal.Signals(code - 128).name
    except ValueError:
        return f"its process ended with exit code {code}"
    return f"its process was killed by {name} (exit code {code})"


def _states(pod: V1Pod) -> Iterator[V1ContainerState]:
    statuses = [*(pod.status.init_container_statuses or ()), *(pod.status.container_statuses or ())]
    return (status.state for status in statuses if status.state)
