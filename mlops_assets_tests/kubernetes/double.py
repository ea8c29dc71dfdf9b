"""The handle by which a test has a cluster: starts it, breaks it, looks into it, ends it."""

from __future__ import annotations

import contextlib
import copy
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from mlops_assets_tests.kubernetes.access import Access, write_certificate
from mlops_assets_tests.kubernetes.api import ApiServer, Failure, Request
from mlops_assets_tests.kubernetes.cluster import Cluster, Images, Node
from mlops_assets_tests.kubernetes.kubelet import Log
from mlops_assets_tests.kubernetes.objects import API_VERSIONS, Object, label_selector

T = TypeVar("T")


class KubernetesDouble:
    """A Kubernetes API server whose pods are processes of this machine; a context manager.

    Parameters
    ----------
    root
        Folder for logs, kubeconfigs and the containers' folders. ConfigMaps and Secrets mounted
        below it are written there.
    nodes
        What pods are scheduled on. One node with 8 CPUs, 32 GiB and no GPU by default.
    images
        The images that can be pulled, or a function that tells. All others are not found.
    environment
        What the images set. A container sees nothing else of the environment of the tests; the
        folder of this Python comes first in its `PATH`.
    manifests
        ServiceAccounts, roles, bindings, ConfigMaps, Secrets and Namespaces as in YAML; others
        are ignored. Permissions are enforced if there is a binding among them, the existence of
        service accounts if there is one, and the pod security standard that the label of a
        namespace asks for if it is `restricted`.
    namespace
        The namespace of the handle's methods; it exists.
    longest_grace
        Seconds that a pod has at most between SIGTERM and SIGKILL, whatever it asks for.
    """

    def __init__(
        self,
        root: Path,
        *,
        nodes: Sequence[Node] = (Node(),),
        images: Images = ("image",),
        environment: Mapping[str, str] | None = None,
        manifests: Iterable[Object] = (),
        namespace: str = "default",
        longest_grace: float | None = None,
    ) -> None:
        self.root, self.namespace = root.resolve(), namespace
        (self.root / "kubeconfigs").mkdir(parents=True, exist_ok=True)
        certificate = write_certificate(self.root)
        self._api = ApiServer(certificate)
        self.url = f"https://127.0.0.1:{self._api.port}"
        public = certificate.read_bytes()
        public = public[public.index(b"-----BEGIN CERTIFICATE") :]
        self._access = Access(self.root / "kubeconfigs", self.url, public)
        self._cluster = Cluster(
            self.root,
            nodes=nodes,
            images=images,
            environment=environment or {},
            longest_grace=longest_grace,
            kubeconfig=self._access.kubeconfig,
        )
        self._api.cluster, self._api.access = self._cluster, self._access
        for name in {"default", namespace}:
            self.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}])
        self.apply(manifests)

    def __enter__(self) -> KubernetesDouble:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill every process of every pod, and stop serving."""
        self._api.stop()
        self._cluster.close()

    # -- set up

    def apply(self, manifests: Iterable[Object]) -> None:
        """Add or replace what is in manifests."""
        kinds = {kind: resource for resource, (_, kind) in API_VERSIONS.items()}
        for manifest in map(copy.deepcopy, manifests):
            kind, metadata = manifest["kind"], manifest["metadata"]
            manifest.setdefault("apiVersion", "v1")
            if kind == "Namespace":
                self._put("namespaces", manifest, "")
            elif kind in ("Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"):
                metadata.setdefault("namespace", self.namespace)
                self._access.apply(manifest)
            elif kind in ("ServiceAccount", "ConfigMap", "Secret"):
                data = {k: b64encode(v.encode()).decode() for k, v in _text(manifest).items()}
                if data:
                    manifest["data"] = {**(manifest.get("data") or {}), **data}
                self._put(kinds[kind], manifest, metadata.get("namespace", self.namespace))

    def _put(self, resource: str, obj: Object, namespace: str) -> None:
        with self._cluster.changed:
            if old := self._cluster.find(resource, namespace, obj["metadata"]["name"]):
                self._cluster.remove(old)
            self._cluster.put(resource, obj, namespace)

    def kubeconfig(self, service_account: str | None = None) -> Path:
        """Return a kubeconfig for a service account; for the administrator without one."""
        return self._access.kubeconfig(self.namespace, service_account)

    # -- look

    @property
    def requests(self) -> list[Request]:
        """Every request so far."""
        return list(self._api.requests)

    @property
    def history(self) -> list[Object]:
        """Every pod ever created, in its latest or last state."""
        with self._cluster.changed:
            return copy.deepcopy(self._cluster.every_pod)

    def pods(self, selector: str = "", **labels: str) -> list[Object]:
        """Return the pods that there are, of a label selector and with labels."""
        return self._all("pods", selector, labels)

    def jobs(self, selector: str = "", **labels: str) -> list[Object]:
        """Return the jobs that there are, of a label selector and with labels."""
        return self._all("jobs", selector, labels)

    def _all(self, resource: str, selector: str, labels: Mapping[str, str]) -> list[Object]:
        wanted = [label_selector(it) for it in (selector, *(f"{k}={v}" for k, v in labels.items()))]
        with self._cluster.changed:
            found = [it for it in self._cluster.all(resource) if all(test(it) for test in wanted)]
            return copy.deepcopy(found)

    def events(self, name: str) -> list[str]:
        """Return the events of an object, `reason: message`."""
        with self._cluster.changed:
            events = self._cluster.all("events")
        return [
            f"{it['reason']}: {it['message']}"
            for it in events
            if it["involvedObject"]["name"] == name
        ]

    def log(self, pod: str | Object, container: str | None = None) -> str:
        """Return the output of a container, even of a pod that is gone."""
        obj = self._pod(pod)
        name = container or obj["spec"]["containers"][0]["name"]
        lines = Log(self.root / "pods" / obj["metadata"]["uid"] / f"{name}.log").lines()
        return b"".join(line.partition(b" ")[2] for line in lines).decode(errors="replace")

    def wait(self, condition: Callable[[], T], timeout: float = 60) -> T:
        """Return what a condition returns as soon as that is true.

        Raises
        ------
        TimeoutError
            With the state of every pod.
        """
        end = time.monotonic() + timeout
        while True:
            seen = self._cluster.version
            if result := condition():
                return result
            if time.monotonic() > end:
                raise TimeoutError(f"it did not happen in {timeout} s:\n{self.describe()}")
            with self._cluster.changed:
                if self._cluster.version == seen:
                    self._cluster.changed.wait(0.05)

    def wait_for_pod(
        self, selector: str = "", phase: str = "Running", timeout: float = 60
    ) -> Object:
        """Return the first pod of a label selector as soon as it is in a phase."""

        def found() -> Object | None:
            pods = self.pods(selector)
            return next((it for it in pods if it["status"]["phase"] == phase), None)

        pod = self.wait(found, timeout)
        assert pod is not None
        return pod

    def describe(self) -> str:
        """Return the state of every pod ever created, with the end of its output."""
        lines = []
        for pod in self.history:
            status = pod["status"]
            states = [it["state"] for it in status.get("containerStatuses", [])]
            lines.append(f"{pod['metadata']['name']}: {status['phase']} {states}")
            lines += [
                f"    {it['message']}" for it in status.get("conditions", []) if "message" in it
            ]
            for container in pod["spec"]["containers"]:
                log = self.log(pod, container["name"]).splitlines()
                lines += [f"    | {it}" for it in log[-15:]]
        return "\n".join(lines)

    # -- break

    def kill(self, pod: str | Object) -> None:
        """Send SIGKILL to the main process: the container ends with 137, reason `Error`."""
        self._cluster.workers[self._pod(pod)["metadata"]["uid"]].kill()

    def evict(
        self, pod: str | Object, message: str = "The node was low on resource: memory."
    ) -> None:
        """Have the kubelet evict a pod: it fails with reason `Evicted`, and stays."""
        with self._cluster.changed:
            obj = self._live(pod)
            self._cluster.disrupt(obj, "TerminationByKubelet", message)
            worker = self._cluster.workers[obj["metadata"]["uid"]]
            grace = obj["spec"]["terminationGracePeriodSeconds"]
            worker.terminate(grace, reason="Evicted", message=message)
            self._cluster.event(obj, "Warning", "Evicted", message, "kubelet")

    def preempt(self, pod: str | Object) -> None:
        """Have the scheduler make room for another pod: this one is deleted."""
        message = "default-scheduler: preempting to accommodate a higher priority pod"
        self._cluster.delete_pod(self._live(pod), disruption=("PreemptionByScheduler", message))

    def lose_node(self, name: str = "node-1", *, stuck: bool = False) -> None:
        """Lose a node: its processes end without a trace, its pods are deleted.

        With `stuck`, as long as nobody removes the node from a real cluster, the pods stay
        terminating until they are deleted by force or the node is restored.
        """
        self._cluster.lose_node(name, stuck=stuck)

    def restore_node(self, name: str = "node-1") -> None:
        """Have a lost node back, empty."""
        self._cluster.restore_node(name)

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Refuse connections for a while; the cluster goes on."""
        self._api.stop()
        try:
            yield
        finally:
            self._api.start()

    def failing(
        self, status: int, times: int = 1, *, method: str = "", path: str = "", done: bool = False
    ) -> None:
        """Answer the next requests of a method and path (a regular expression) with a failure.

        With `done`, what they ask for is done all the same, and the answer alone is lost.
        """
        self._api.failures.append(Failure(status, times, method, path, done))

    def _pod(self, pod: str | Object) -> Object:
        name = pod if isinstance(pod, str) else pod["metadata"]["name"]
        return next(
            it for it in reversed(self._cluster.every_pod) if it["metadata"]["name"] == name
        )

    def _live(self, pod: str | Object) -> Object:
        metadata = self._pod(pod)["metadata"]
        return self._cluster.get("pods", metadata["namespace"], metadata["name"])


def _text(manifest: Object) -> dict[str, str]:
    return manifest.pop("stringData", None) or {}
