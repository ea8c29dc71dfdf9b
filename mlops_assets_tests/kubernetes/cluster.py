"""The state of a cluster and what acts on it: jobs, scheduling, deletion, garbage collection.

All state is guarded by one condition, `Cluster.changed`, which is notified of every change. A
thread brings jobs and pods further whenever something has changed.
"""

from __future__ import annotations

import contextlib
import copy
import random
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from mlops_assets_tests.kubernetes.kubelet import PodWorker, kill_beyond_limit
from mlops_assets_tests.kubernetes.objects import (
    API_VERSIONS,
    CLUSTER_WIDE,
    GPU,
    ApiError,
    Object,
    check,
    fill_in_job,
    fill_in_pod,
    has_condition,
    in_seconds,
    is_finished,
    is_over,
    not_found,
    qualified,
    quantity,
    requests_of,
    set_condition,
    stamp,
    violations,
)

Images = Collection[str] | Callable[[str], bool]

REPLACES_AFTER = 0.2
"""Seconds before a job with a `backoffLimit` starts another pod; 10 and more on a real cluster."""

UNREACHABLE = {"key": "node.kubernetes.io/unreachable", "effect": "NoSchedule"}


@dataclass
class Node:
    """A node and what it has to give."""

    name: str = "node-1"
    cpu: str = "8"
    memory: str = "32Gi"
    gpus: int = 0
    labels: dict[str, str] = field(default_factory=dict)
    taints: list[Object] = field(default_factory=list)
    ready: bool = True

    @property
    def capacity(self) -> dict[str, str]:
        return {
            "cpu": self.cpu,
            "memory": self.memory,
            "ephemeral-storage": "100Gi",
            "pods": "110",
            **({GPU: str(self.gpus)} if self.gpus else {}),
        }

    def as_object(self) -> Object:
        taints = [*self.taints, *([] if self.ready else [UNREACHABLE])]
        return {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": self.name,
                "labels": {
                    "kubernetes.io/hostname": self.name,
                    "kubernetes.io/os": "linux",
                    **self.labels,
                },
            },
            "spec": {"taints": taints} if taints else {},
            "status": {
                "capacity": self.capacity,
                "allocatable": self.capacity,
                "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
                "conditions": [
                    {
                        "type": "Ready",
                        "status": "True" if self.ready else "Unknown",
                        "reason": "KubeletReady" if self.ready else "NodeStatusUnknown",
                    }
                ],
            },
        }


class Cluster:
    """Objects by resource, namespace and name, and what happens to them by itself."""

    def __init__(
        self,
        root: Path,
        *,
        nodes: Collection[Node],
        images: Images,
        environment: Mapping[str, str],
        longest_grace: float | None,
        kubeconfig: Callable[[str, str], Path],
    ) -> None:
        self.root = root
        self.images = images
        self.environment = environment
        self.longest_grace = longest_grace
        self.changed = threading.Condition()
        self.version = 0
        self.journal: deque[tuple[int, str, str, Object]] = deque(maxlen=20_000)
        """Version, type, resource and object of each change."""
        self.every_pod: list[Object] = []
        self.workers: dict[str, PodWorker] = {}
        self._nodes = {it.name: replace(it) for it in nodes}
        self._kubeconfig = kubeconfig
        self._objects: dict[tuple[str, str, str], Object] = {}
        self._counted: dict[str, dict[str, str]] = {}
        """How the pods of each job have ended, by uid."""
        self._not_before: dict[tuple[str, int], float] = {}
        """When the next pod of a job may be created, by uid and failed pods."""
        self._devices: dict[str, list[int]] = {}
        self._closed = False
        for node in nodes:
            self.put("nodes", node.as_object())
        self._threads = [
            threading.Thread(target=loop, daemon=True) for loop in (self._control, self._guard)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Kill everything."""
        with self.changed:
            self._closed = True
            workers = list(self.workers.values())
            self.changed.notify_all()
        for worker in workers:
            worker.vanish()
        for thread in self._threads:
            thread.join(10)
        for worker in workers:
            if not worker.join(10):
                raise RuntimeError(f"pod {worker.pod['metadata']['name']} does not end")

    # -- objects

    def find(self, resource: str, namespace: str, name: str) -> Object | None:
        return self._objects.get((resource, namespace, name))

    def get(self, resource: str, namespace: str, name: str) -> Object:
        if obj := self.find(resource, namespace, name):
            return obj
        raise not_found(resource, name)

    def all(self, resource: str, namespace: str | None = None) -> list[Object]:
        return [
            obj
            for (kind, where, _), obj in self._objects.items()
            if kind == resource and namespace in (None, where)
        ]

    def put(self, resource: str, obj: Object, namespace: str = "") -> Object:
        """Store a new object that has been checked."""
        metadata = obj["metadata"]
        if namespace:
            metadata["namespace"] = namespace
        metadata.setdefault("uid", str(uuid.uuid4()))
        metadata["creationTimestamp"] = stamp()
        key = (resource, namespace, metadata["name"])
        with self.changed:
            if key in self._objects:
                details = {"name": metadata["name"], "kind": resource}
                raise ApiError(
                    409,
                    f'{qualified(resource)} "{metadata["name"]}" already exists',
                    "AlreadyExists",
                    details,
                )
            self._objects[key] = obj
            if resource == "pods":
                self.every_pod.append(obj)
            self._changed("ADDED", resource, obj)
        return obj

    def touch(self, obj: Object) -> None:
        """Tell that an object has changed; nothing if it is gone."""
        with self.changed:
            key = _key(obj)
            if self._objects.get(key) is obj:
                self._changed("MODIFIED", key[0], obj)

    def remove(self, obj: Object) -> None:
        """Make an object disappear."""
        with self.changed:
            key = _key(obj)
            if self._objects.get(key) is not obj:
                return
            if key[0] == "pods":
                self._count(obj)
            del self._objects[key]
            self._changed("DELETED", key[0], obj)

    def _changed(self, kind: str, resource: str, obj: Object) -> None:
        self.version += 1
        obj["metadata"]["resourceVersion"] = str(self.version)
        self.journal.append((self.version, kind, resource, copy.deepcopy(obj)))
        self.changed.notify_all()

    def event(self, obj: Object, kind: str, reason: str, message: str, source: str) -> None:
        """Note an event, or that it happened once more."""
        metadata = obj["metadata"]
        namespace = metadata.get("namespace", "default")
        with self.changed:
            for old in self.all("events", namespace):
                same = old["involvedObject"]["uid"] == metadata["uid"]
                if same and (old["reason"], old["message"]) == (reason, message):
                    old |= {"count": old["count"] + 1, "lastTimestamp": stamp()}
                    self.touch(old)
                    return
            event = {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"name": f"{metadata['name']}.{uuid.uuid4().hex[:16]}"},
                "involvedObject": {
                    "apiVersion": obj["apiVersion"],
                    "kind": obj["kind"],
                    "namespace": namespace,
                    "name": metadata["name"],
                    "uid": metadata["uid"],
                },
                "type": kind,
                "reason": reason,
                "message": message,
                "count": 1,
                "firstTimestamp": stamp(),
                "lastTimestamp": stamp(),
                "source": {"component": source},
                "reportingComponent": source,
                "reportingInstance": "",
            }
            self.put("events", event, namespace)

    # -- creation and deletion

    def create_pod(self, pod: Object, namespace: str, *, checked: bool = False) -> Object:
        """Store a new pod; `checked` if it comes from the template of a job that was checked."""
        with self.changed:
            metadata = pod["metadata"]
            spec = pod["spec"] = pod.get("spec") or {}
            name_it(pod)
            account = spec.get("serviceAccountName") or spec.get("serviceAccount") or "default"
            spec |= {"serviceAccountName": account, "serviceAccount": account}
            fill_in_pod(spec)
            if not checked:
                check("pods", pod)
            if problem := self._admission_problem(spec, account, namespace):
                raise ApiError(403, f'pods "{metadata["name"]}" is forbidden: {problem}')
            pod["status"] = {"phase": "Pending", "qosClass": "Burstable"}
            return self.put("pods", pod, namespace)

    def _admission_problem(self, spec: Object, account: str, namespace: str) -> str | None:
        labels = self.get("namespaces", "", namespace)["metadata"].get("labels") or {}
        if labels.get("pod-security.kubernetes.io/enforce") == "restricted":
            version = labels.get("pod-security.kubernetes.io/enforce-version", "latest")
            if found := violations(spec):
                return f'violates PodSecurity "restricted:{version}": {", ".join(found)}'
        known = {it["metadata"]["name"] for it in self.all("serviceaccounts", namespace)}
        if known and account not in known | {"default"}:
            return (
                f"error looking up service account {namespace}/{account}: "
                f'serviceaccount "{account}" not found'
            )
        return None

    def create_job(self, job: Object, namespace: str) -> Object:
        name_it(job)
        job["metadata"]["uid"] = str(uuid.uuid4())
        with contextlib.suppress(KeyError, TypeError, AttributeError):  # `check` tells what it is
            fill_in_job(job)
        check("jobs", job)
        job["status"] = {}
        return self.put("jobs", job, namespace)

    def delete(self, resource: str, obj: Object, grace: float | None, policy: str | None) -> None:
        """Delete as the API server does.

        Parameters
        ----------
        policy
            `Background`, `Foreground` or `Orphan`. The default for jobs of batch/v1 is `Orphan`:
            their pods stay.
        """
        with self.changed:
            policy = policy or ("Orphan" if resource == "jobs" else "Background")
            dependants = list(self._dependants(obj))
            if policy == "Orphan":
                uid = obj["metadata"]["uid"]
                for it in dependants:
                    owners = it["metadata"]["ownerReferences"]
                    it["metadata"]["ownerReferences"] = [o for o in owners if o["uid"] != uid]
                    self.touch(it)
            elif policy == "Foreground" and dependants:
                obj["metadata"]["deletionTimestamp"] = stamp()
                obj["metadata"]["finalizers"] = ["foregroundDeletion"]
                self.touch(obj)
                for it in dependants:
                    self._collect(it)
                return
            if resource == "pods":
                self.delete_pod(obj, grace)
            else:
                self.remove(obj)

    def delete_pod(
        self, pod: Object, grace: float | None = None, disruption: tuple[str, str] | None = None
    ) -> None:
        """Delete a pod: gracefully if it runs. `disruption` is reason and message."""
        with self.changed:
            metadata = pod["metadata"]
            worker = self.workers.get(metadata["uid"])
            if grace is None:
                grace = pod["spec"]["terminationGracePeriodSeconds"]
            if disruption:
                self.disrupt(pod, *disruption)
            if is_over(pod) or worker is None or not grace:
                self.remove(pod)
                if worker is not None:
                    worker.terminate(0)
                return
            if "deletionTimestamp" not in metadata:
                metadata["deletionTimestamp"] = in_seconds(grace)
                metadata["deletionGracePeriodSeconds"] = int(grace)
                self.touch(pod)
                self.event(pod, "Normal", "Killing", "Stopping container", "kubelet")
            if not worker.lost:
                worker.terminate(grace)

    def disrupt(self, pod: Object, reason: str, message: str) -> None:
        """Note on a pod why the platform ends it."""
        with self.changed:
            if not is_over(pod):
                set_condition(pod["status"], "DisruptionTarget", True, reason, message)
                self.touch(pod)

    def stopped(self, pod: Object) -> None:
        """Take note that the containers of a pod have ended, if its node still tells."""
        with self.changed:
            if self.workers[pod["metadata"]["uid"]].lost:
                return
            del self.workers[pod["metadata"]["uid"]]
            if "deletionTimestamp" in pod["metadata"]:
                self.remove(pod)

    def _dependants(self, owner: Object) -> Iterator[Object]:
        uid = owner["metadata"]["uid"]
        for obj in [*self.all("jobs"), *self.all("pods")]:
            if any(it["uid"] == uid for it in obj["metadata"].get("ownerReferences") or []):
                yield obj

    def _collect(self, obj: Object) -> None:
        """Delete what has lost its owner."""
        resource = _key(obj)[0]
        if resource == "pods":
            if "deletionTimestamp" not in obj["metadata"]:
                self.delete_pod(obj)
        else:
            self.delete(resource, obj, None, "Background")

    # -- what the kubelet asks

    def can_pull(self, image: str) -> bool:
        return self.images(image) if callable(self.images) else image in self.images

    def devices_of(self, pod: Object) -> list[int]:
        return self._devices.get(pod["metadata"]["uid"], [])

    def kubeconfig_of(self, pod: Object) -> Path | None:
        namespace, spec = pod["metadata"]["namespace"], pod["spec"]
        account = self.find("serviceaccounts", namespace, spec["serviceAccountName"]) or {}
        wanted = spec.get("automountServiceAccountToken")
        if wanted is None:
            wanted = account.get("automountServiceAccountToken", True)
        return self._kubeconfig(namespace, spec["serviceAccountName"]) if wanted else None

    # -- what happens by itself

    def _control(self) -> None:
        with self.changed:
            while not self._closed:
                seen = self.version
                for pod in self.all("pods"):
                    if not is_over(pod) and "nodeName" not in pod["spec"]:
                        self._schedule(pod)
                deadlines = [self._sync(job) for job in self.all("jobs")]
                self._collect_garbage()
                if self.version == seen:
                    due = [it for it in deadlines if it is not None]
                    self.changed.wait(max(0.0, min(due) - time.time()) if due else None)

    def _guard(self) -> None:
        """Enforce the limits of memory."""
        while not self._closed:
            with self.changed:
                containers = [it for worker in self.workers.values() for it in worker.everything]
            if kill_beyond_limit(containers):
                time.sleep(0.1)
                continue
            with self.changed:
                if not self._closed:
                    self.changed.wait(1)

    def _collect_garbage(self) -> None:
        uids = {obj["metadata"]["uid"] for obj in self._objects.values()}
        for obj in [*self.all("jobs"), *self.all("pods")]:
            owners = obj["metadata"].get("ownerReferences")
            if owners and not any(it["uid"] in uids for it in owners):
                self._collect(obj)
            elif obj["metadata"].get("finalizers") == ["foregroundDeletion"] and not any(
                self._dependants(obj)
            ):
                self.remove(obj)

    # -- jobs

    def _count(self, pod: Object) -> None:
        """Count an ended or deleted pod for its job, once."""
        for owner in pod["metadata"].get("ownerReferences") or []:
            if owner["kind"] == "Job":
                end = "succeeded" if pod["status"]["phase"] == "Succeeded" else "failed"
                counted = self._counted.setdefault(owner["uid"], {})
                counted.setdefault(pod["metadata"]["uid"], end)

    def _sync(self, job: Object) -> float | None:
        """Bring a job further; return when to look again if nothing happens until then."""
        status, spec, uid = job["status"], job["spec"], job["metadata"]["uid"]
        if is_finished(job):
            return self._expire(job)
        if "deletionTimestamp" in job["metadata"]:
            return None
        before = copy.deepcopy(status)
        pods = [it for it in self._dependants(job) if it["kind"] == "Pod"]
        for pod in pods:
            if not _is_active(pod):
                self._count(pod)
        ends = list(self._counted.get(uid, {}).values())
        failed, succeeded = ends.count("failed"), ends.count("succeeded")
        active = [it for it in pods if _is_active(it)]
        terminating = [it for it in pods if not is_over(it) and not _is_active(it)]
        status.setdefault("startTime", stamp())
        again: list[float] = []
        if (seconds := spec.get("activeDeadlineSeconds")) is not None:
            again.append(_seconds(status["startTime"]) + seconds)
        if succeeded:
            self._complete(job)
        elif not has_condition(job, "FailureTarget"):
            if failed > spec["backoffLimit"]:
                reason, text = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
                set_condition(status, "FailureTarget", True, reason, text)
            elif again and again[0] <= time.time():
                text = "Job was active longer than specified deadline"
                set_condition(status, "FailureTarget", True, "DeadlineExceeded", text)
            elif not active:
                again += self._create_pod_of(job, failed)
        if has_condition(job, "FailureTarget"):
            for pod in active:
                self.delete_pod(pod)
            if not active and not terminating:
                self._fail(job)
        for name, value in {
            "active": len(active),
            "ready": sum(has_condition(it, "Ready") for it in active),
            "terminating": len(terminating),
            "failed": failed,
            "succeeded": succeeded,
        }.items():
            if value or name in ("ready", "terminating"):
                status[name] = value
            else:
                status.pop(name, None)
        if status != before:
            self.touch(job)
        return min(again, default=None)

    def _complete(self, job: Object) -> None:
        reason, text = "CompletionsReached", "Reached expected number of succeeded pods"
        for kind in ("SuccessCriteriaMet", "Complete"):
            set_condition(job["status"], kind, True, reason, text)
        job["status"]["completionTime"] = stamp()
        self.event(job, "Normal", "Completed", "Job completed", "job-controller")

    def _fail(self, job: Object) -> None:
        target = next(it for it in job["status"]["conditions"] if it["type"] == "FailureTarget")
        set_condition(job["status"], "Failed", True, target["reason"], target["message"])
        self.event(job, "Warning", target["reason"], target["message"], "job-controller")

    def _expire(self, job: Object) -> float | None:
        ttl = job["spec"].get("ttlSecondsAfterFinished")
        if ttl is None or "deletionTimestamp" in job["metadata"]:
            return None
        ended = max(_seconds(it["lastTransitionTime"]) for it in job["status"]["conditions"])
        if ended + ttl > time.time():
            return float(ended + ttl)
        self.delete("jobs", job, None, "Background")
        return None

    def _create_pod_of(self, job: Object, failed: int) -> list[float]:
        """Create the next pod of a job; return when to try again, if it is not created."""
        metadata, template = job["metadata"], copy.deepcopy(job["spec"]["template"])
        attempt, now = (metadata["uid"], failed), time.time()
        due = self._not_before.setdefault(attempt, now + (REPLACES_AFTER if failed else 0))
        if due > now:
            return [due]
        owner = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "name": metadata["name"],
            "uid": metadata["uid"],
            "controller": True,
            "blockOwnerDeletion": True,
        }
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                **{k: v for k, v in template["metadata"].items() if k in ("labels", "annotations")},
                "generateName": f"{metadata['name']}-",
                "ownerReferences": [owner],
            },
            "spec": template["spec"],
        }
        try:
            created = self.create_pod(pod, metadata["namespace"], checked=True)
        except ApiError as error:
            message = f"Error creating: {error}"
            self.event(job, "Warning", "FailedCreate", message, "job-controller")
            self._not_before[attempt] = now + 1
            return [now + 1]
        message = f"Created pod: {created['metadata']['name']}"
        self.event(job, "Normal", "SuccessfulCreate", message, "job-controller")
        return []

    # -- scheduling

    def _schedule(self, pod: Object) -> None:
        obstacles: dict[str, int] = {}
        for node in self._nodes.values():
            found = self._obstacles(pod, node)
            if not found:
                self._bind(pod, node)
                return
            for obstacle in found:
                obstacles[obstacle] = obstacles.get(obstacle, 0) + 1
        total = len(self._nodes)
        reasons = ", ".join(sorted(f"{count} {text}" for text, count in obstacles.items()))
        message = (
            f"0/{total} nodes are available: {reasons}. preemption: 0/{total} nodes are "
            f"available: {total} No preemption victims found for incoming pod."
        )
        if set_condition(pod["status"], "PodScheduled", False, "Unschedulable", message):
            self.touch(pod)
            self.event(pod, "Warning", "FailedScheduling", message, "default-scheduler")

    def _obstacles(self, pod: Object, node: Node) -> list[str]:
        obj = node.as_object()
        selector = pod["spec"].get("nodeSelector") or {}
        if not selector.items() <= obj["metadata"]["labels"].items():
            return ["node(s) didn't match Pod's node affinity/selector"]
        for taint in obj["spec"].get("taints", []):
            hard = taint["effect"] != "PreferNoSchedule"
            if hard and not _tolerates(pod["spec"].get("tolerations") or [], taint):
                return [
                    f"node(s) had untolerated taint {{{taint['key']}: {taint.get('value', '')}}}"
                ]
        free = {resource: quantity(amount) for resource, amount in node.capacity.items()}
        for other in self._pods_on(node):
            for resource, amount in requests_of(other).items():
                free[resource] = free.get(resource, Decimal(0)) - amount
        return [
            "Too many pods" if resource == "pods" else f"Insufficient {resource}"
            for resource, amount in requests_of(pod).items()
            if amount > free.get(resource, Decimal(0))
        ]

    def _pods_on(self, node: Node) -> list[Object]:
        pods = self.all("pods")
        return [it for it in pods if it["spec"].get("nodeName") == node.name and not is_over(it)]

    def _bind(self, pod: Object, node: Node) -> None:
        metadata = pod["metadata"]
        taken = {
            device
            for other in self._pods_on(node)
            for device in self._devices.get(other["metadata"]["uid"], [])
        }
        free = [it for it in range(node.gpus) if it not in taken]
        self._devices[metadata["uid"]] = free[: int(requests_of(pod).get(GPU, 0))]
        pod["spec"]["nodeName"] = node.name
        pod["status"]["hostIP"] = "10.0.0.1"
        set_condition(pod["status"], "PodScheduled", True)
        message = f"Successfully assigned {metadata['namespace']}/{metadata['name']} to {node.name}"
        self.event(pod, "Normal", "Scheduled", message, "default-scheduler")
        worker = PodWorker(self, pod, self.root / "pods" / metadata["uid"])
        self.workers[metadata["uid"]] = worker
        worker.start()

    # -- nodes

    def lose_node(self, name: str, *, stuck: bool) -> None:
        with self.changed:
            node = self._nodes[name]
            node.ready = False
            self._show(node)
            for pod in self._pods_on(node):
                self.workers[pod["metadata"]["uid"]].vanish()
                set_condition(pod["status"], "Ready", False, "NodeLost")
                reason = (
                    "DeletionByTaintManager",
                    "Taint manager: deleting due to NoExecute taint",
                )
                self.delete_pod(pod, disruption=reason)
                if not stuck:
                    self.remove(pod)

    def restore_node(self, name: str) -> None:
        with self.changed:
            node = self._nodes[name]
            for pod in self._pods_on(node):
                if "deletionTimestamp" in pod["metadata"]:
                    self.remove(pod)
            node.ready = True
            self._show(node)

    def _show(self, node: Node) -> None:
        obj = self.get("nodes", "", node.name)
        obj |= {key: node.as_object()[key] for key in ("spec", "status")}
        self.touch(obj)


def _key(obj: Object) -> tuple[str, str, str]:
    resource = next(it for it, (_, kind) in API_VERSIONS.items() if kind == obj["kind"])
    metadata: dict[str, Any] = obj["metadata"]
    namespace = "" if resource in CLUSTER_WIDE else metadata["namespace"]
    return resource, namespace, metadata["name"]


def name_it(obj: Object) -> None:
    """Give a new object its name if it came with the beginning of one alone."""
    metadata = obj["metadata"]
    if not metadata.get("name") and (prefix := metadata.get("generateName")):
        suffix = "".join(random.choices("bcdfghjklmnpqrstvwxz2456789", k=5))
        metadata["name"] = prefix[:58] + suffix


def _is_active(pod: Object) -> bool:
    return not is_over(pod) and "deletionTimestamp" not in pod["metadata"]


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _tolerates(tolerations: list[Object], taint: Object) -> bool:
    for it in tolerations:
        same_effect = it.get("effect") in (None, "", taint["effect"])
        if not it.get("key") or it["key"] == taint["key"]:
            exists = it.get("operator") == "Exists"
            if same_effect and (exists or it.get("value", "") == taint.get("value", "")):
                return True
    return False
