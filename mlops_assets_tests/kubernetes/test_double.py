"""The double behaves as Kubernetes does, towards the clients that are used on a real one."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import kubernetes
import pytest
import urllib3.exceptions
from dagster import AssetExecutionContext, asset, materialize
from dagster_k8s import PipesK8sClient
from dagster_k8s.client import DagsterK8sError, DagsterKubernetesClient, WaitForPodState
from kubernetes.client import ApiException

from mlops_assets_tests.kubernetes import KubernetesDouble, Node
from mlops_assets_tests.kubernetes.kubelet import expand
from mlops_assets_tests.kubernetes.objects import quantity

NAMESPACE = "default"


class Clients:
    """The Python client and dagster-k8s', with the kubeconfig of a service account."""

    def __init__(self, cluster: KubernetesDouble, service_account: str | None = None) -> None:
        config = str(cluster.kubeconfig(service_account))
        client = kubernetes.config.new_client_from_config(config)
        self.core, self.batch = (
            kubernetes.client.CoreV1Api(client),
            kubernetes.client.BatchV1Api(client),
        )
        dagster: Any = DagsterKubernetesClient  # whose methods have no types
        self.dagster = dagster.production_client(self.batch, self.core)

    def status(self, pod: str) -> Any:
        return self.core.read_namespaced_pod(pod, NAMESPACE).status


Start = Callable[..., tuple[KubernetesDouble, Clients]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def start(**options: Any) -> tuple[KubernetesDouble, Clients]:
            cluster = stack.enter_context(KubernetesDouble(tmp_path / "cluster", **options))
            return cluster, Clients(cluster)

        yield start


def container(script: str = "true", **more: Any) -> dict[str, Any]:
    return {"name": "main", "image": "image", "command": ["sh", "-c", script], **more}


def pod(script: str = "true", name: str = "pod", **more: Any) -> dict[str, Any]:
    main = container(script, **{k: more.pop(k) for k in list(more) if k in CONTAINER})
    metadata = {"name": name, "labels": more.pop("labels", {})}
    return {"metadata": metadata, "spec": {"restartPolicy": "Never", "containers": [main], **more}}


CONTAINER = {"env", "envFrom", "image", "resources", "volumeMounts", "command", "args"} | {
    "terminationMessagePolicy",
    "imagePullPolicy",
}


def job(script: str = "true", name: str = "job", template: Any = None, **more: Any) -> Any:
    template = template or pod(script)
    template["metadata"].pop("name")
    return {"metadata": {"name": name}, "spec": {"backoffLimit": 0, "template": template, **more}}


def condition(status: Any, kind: str) -> Any:
    return next((it for it in status.conditions or [] if it.type == kind), None)


def ended(cluster: KubernetesDouble, name: str = "pod") -> dict[str, Any]:
    """Return how a pod and its first container have ended."""

    def found() -> list[dict[str, Any]]:
        pods = [it for it in cluster.history if it["metadata"]["name"] == name]
        return [it["status"] for it in pods if it["status"]["phase"] in ("Succeeded", "Failed")]

    (status,) = cluster.wait(found)
    return {**status, **status["containerStatuses"][0]["state"]["terminated"]}


def is_there(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


# -- jobs


def test_a_job_whose_pod_succeeds_is_complete(start: Start) -> None:
    cluster, api = start()
    api.dagster.create_namespaced_job_with_retries(job("echo hello; sleep 0.2"), NAMESPACE)

    running = cluster.wait_for_pod("job-name=job")
    assert cluster.wait(lambda: api.dagster.get_job_status("job", NAMESPACE).active) == 1
    name = running["metadata"]["name"]
    api.dagster.wait_for_pod(name, NAMESPACE, WaitForPodState.Terminated, 9, 9, 0.05)

    status = cluster.wait(lambda: _with(api.dagster.get_job_status("job", NAMESPACE), "Complete"))
    assert (status.succeeded, status.failed, status.active) == (1, None, None)
    assert status.completion_time >= status.start_time
    assert condition(api.status(name), "Ready").reason == "PodCompleted"
    assert api.dagster.retrieve_pod_logs(name, NAMESPACE) == "hello\n"


def _with(status: Any, kind: str) -> Any:
    return status if condition(status, kind) else None


def test_a_job_without_retries_fails_with_its_first_pod(start: Start) -> None:
    cluster, api = start()
    api.batch.create_namespaced_job(NAMESPACE, job("exit 3"))

    status = cluster.wait(lambda: _with(api.dagster.get_job_status("job", NAMESPACE), "Failed"))

    assert condition(status, "Failed").reason == "BackoffLimitExceeded"
    assert (status.failed, status.succeeded, status.active) == (1, None, None)
    (only,) = cluster.history
    assert only["status"]["phase"] == "Failed"
    (state,) = [it["state"] for it in only["status"]["containerStatuses"]]
    assert (state["terminated"]["exitCode"], state["terminated"]["reason"]) == (3, "Error")


def test_a_job_with_a_retry_gets_a_second_pod(start: Start) -> None:
    cluster, api = start()
    api.batch.create_namespaced_job(NAMESPACE, job("exit 3", backoffLimit=1))

    status = cluster.wait(lambda: _with(api.dagster.get_job_status("job", NAMESPACE), "Failed"))

    assert status.failed == len(cluster.history) == 2


def test_a_pod_carries_the_name_and_uid_of_its_job(start: Start) -> None:
    cluster, api = start()
    name = "j" * 63
    created = api.batch.create_namespaced_job(NAMESPACE, job("sleep 9", name))

    running = cluster.wait_for_pod(f"batch.kubernetes.io/job-name={name}")

    metadata = running["metadata"]
    assert len(metadata["name"]) == 63
    assert metadata["name"].startswith(f"{name[:57]}")
    assert metadata["labels"]["controller-uid"] == created.metadata.uid
    assert metadata["ownerReferences"][0]["uid"] == created.metadata.uid
    assert cluster.pods(**{"job-name": name}) == [running]


def test_a_job_that_takes_too_long_fails(start: Start) -> None:
    cluster, api = start(longest_grace=0)
    api.batch.create_namespaced_job(NAMESPACE, job("sleep 60", activeDeadlineSeconds=1))

    status = cluster.wait(lambda: _with(api.dagster.get_job_status("job", NAMESPACE), "Failed"))

    assert condition(status, "Failed").reason == "DeadlineExceeded"
    assert cluster.pods() == []


def test_a_finished_job_and_its_pod_are_gone_after_their_time(start: Start) -> None:
    cluster, api = start()
    api.batch.create_namespaced_job(NAMESPACE, job(ttlSecondsAfterFinished=1))
    cluster.wait(lambda: any("completionTime" in it["status"] for it in cluster.jobs()))

    cluster.wait(lambda: not cluster.jobs() and not cluster.pods())


# -- deletion


def test_a_pod_deleted_while_it_runs_fails_its_job_at_once_and_disappears(start: Start) -> None:
    cluster, api = start()
    script = "trap 'echo saving; sleep 0.5; exit 0' TERM; echo up; sleep 60 & wait"
    api.batch.create_namespaced_job(NAMESPACE, job(script))
    name = _running(cluster, api)

    deleted = api.core.delete_namespaced_pod(name, NAMESPACE)

    assert deleted.metadata.deletion_timestamp is not None
    assert cluster.wait(lambda: api.dagster.get_job_status("job", NAMESPACE).failed) == 1
    status = api.dagster.get_job_status("job", NAMESPACE)
    assert (status.active, status.terminating) == (None, 1)
    assert condition(status, "Failed") is None
    cluster.wait(lambda: not cluster.pods())
    cluster.wait(lambda: _with(api.dagster.get_job_status("job", NAMESPACE), "Failed"))
    assert cluster.log(name) == "up\nsaving\n"


def _running(cluster: KubernetesDouble, api: Clients, selector: str = "") -> str:
    """Return the name of a pod that has said something."""
    name: str = cluster.wait_for_pod(selector)["metadata"]["name"]
    cluster.wait(lambda: api.dagster.retrieve_pod_logs(name, NAMESPACE))
    return name


def test_a_process_that_ignores_sigterm_is_killed_after_the_grace_period(start: Start) -> None:
    cluster, api = start()
    script = "trap '' TERM; echo up; while :; do sleep 0.1; done"
    api.core.create_namespaced_pod(NAMESPACE, pod(script, terminationGracePeriodSeconds=1))
    name = _running(cluster, api)

    api.core.delete_namespaced_pod(name, NAMESPACE)

    assert api.core.read_namespaced_pod(name, NAMESPACE).status.phase == "Running"
    cluster.wait(lambda: not cluster.pods())
    assert ended(cluster)["exitCode"] == 137


def test_a_pod_deleted_by_force_is_gone_at_once_and_so_is_its_process(start: Start) -> None:
    cluster, api = start()
    api.core.create_namespaced_pod(NAMESPACE, pod("echo $$$$; sleep 60"))
    pid = int(api.dagster.retrieve_pod_logs(_running(cluster, api), NAMESPACE))

    api.core.delete_namespaced_pod("pod", NAMESPACE, grace_period_seconds=0)

    assert cluster.pods() == []
    cluster.wait(lambda: not is_there(pid))


def test_deleting_a_job_keeps_its_pods_unless_a_policy_says_otherwise(start: Start) -> None:
    cluster, api = start(longest_grace=0)
    for name in ("orphans", "background", "foreground"):
        api.batch.create_namespaced_job(NAMESPACE, job("sleep 60", name))
        cluster.wait_for_pod(f"job-name={name}")

    api.batch.delete_namespaced_job("orphans", NAMESPACE)
    api.batch.delete_namespaced_job("background", NAMESPACE, propagation_policy="Background")
    options = {"propagationPolicy": "Foreground"}
    api.batch.delete_namespaced_job("foreground", NAMESPACE, body=options)

    cluster.wait(lambda: not cluster.jobs() and len(cluster.pods()) == 1)
    (left,) = cluster.pods()
    assert left["metadata"]["labels"]["job-name"] == "orphans"
    assert left["metadata"]["ownerReferences"] == []
    assert left["status"]["phase"] == "Running"


def test_dagster_deletes_a_job_with_its_pods(start: Start) -> None:
    cluster, api = start(longest_grace=0)
    api.batch.create_namespaced_job(NAMESPACE, job("sleep 60"))
    cluster.wait_for_pod("job-name=job")

    assert api.dagster.delete_job("job", NAMESPACE)

    cluster.wait(lambda: not cluster.pods())
    assert not api.dagster.delete_job("job", NAMESPACE)


def test_what_a_deleted_pod_owns_is_deleted_too(start: Start) -> None:
    cluster, api = start(longest_grace=0)
    run = api.core.create_namespaced_pod(NAMESPACE, pod("sleep 60", "run"))
    reference = {"apiVersion": "v1", "kind": "Pod", "name": "run", "uid": run.metadata.uid}
    step = job("sleep 60", "step")
    step["metadata"]["ownerReferences"] = [reference]
    api.batch.create_namespaced_job(NAMESPACE, step)
    cluster.wait_for_pod("job-name=step")

    api.core.delete_namespaced_pod("run", NAMESPACE)

    cluster.wait(lambda: not cluster.pods() and not cluster.jobs())


# -- containers


def test_an_executable_that_does_not_exist_is_told_as_the_kubelet_does(start: Start) -> None:
    cluster, api = start()
    api.core.create_namespaced_pod(NAMESPACE, pod(command=["no-such-thing"]))

    end = ended(cluster)

    assert (end["phase"], end["exitCode"], end["reason"]) == ("Failed", 128, "StartError")
    assert 'exec: "no-such-thing": executable file not found in $PATH' in end["message"]
    with pytest.raises(DagsterK8sError, match="no-such-thing"):
        api.dagster.wait_for_pod("pod", NAMESPACE, WaitForPodState.Terminated, 9, 9, 0.05)


def test_a_container_without_a_command_does_not_start(start: Start) -> None:
    cluster, api = start()
    api.core.create_namespaced_pod(NAMESPACE, pod(command=[]))

    waiting = cluster.wait(lambda: _waiting(api, "CreateContainerError"))
    assert "no command specified" in waiting.message


def _waiting(api: Clients, reason: str, name: str = "pod") -> Any:
    (status,) = api.status(name).container_statuses or [None]
    waiting = status and status.state.waiting
    return waiting if waiting and waiting.reason == reason else None


def test_a_container_sees_what_it_is_given_and_nothing_else(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLOPS_STORE_URL", "of the tests")
    cluster, api = start(
        environment={"IMAGE": "sets this"},
        manifests=[
            {"kind": "ConfigMap", "metadata": {"name": "map"}, "data": {"A": "1", "B": "2"}},
            {"kind": "Secret", "metadata": {"name": "secret"}, "stringData": {"key": "hidden"}},
        ],
    )
    env = [
        {"name": "B", "value": "$(A)$(C) $$(A)"},
        {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "secret", "key": "key"}}},
        {"name": "MAP", "valueFrom": {"configMapKeyRef": {"name": "map", "key": "B"}}},
        {
            "name": "NONE",
            "valueFrom": {"secretKeyRef": {"name": "x", "key": "x", "optional": True}},
        },
        {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "LABEL", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a/b']"}}},
        {"name": "MEMORY", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory"}}},
    ]
    sources = [
        {"configMapRef": {"name": "map"}},
        {"secretRef": {"name": "secret", "optional": True}},
    ]
    limits = {"limits": {"memory": "64Mi"}}
    api.core.create_namespaced_pod(
        NAMESPACE,
        pod("env", env=env, envFrom=sources, resources=limits, labels={"a/b": "c"}),
    )

    assert ended(cluster)["exitCode"] == 0
    found = dict(line.split("=", 1) for line in cluster.log("pod").splitlines())
    given = {"A": "1", "B": "1$(C) $(A)", "SECRET": "hidden", "MAP": "2", "NAME": "pod"}
    assert (
        found.items() >= (given | {"LABEL": "c", "MEMORY": str(64 << 20), "key": "hidden"}).items()
    )
    own = {"HOME", "HOSTNAME", "IMAGE", "KUBECONFIG", "LANG", "PATH", "PWD"}
    assert set(found) - set(given) - {"LABEL", "MEMORY", "key"} <= own | {
        "KUBERNETES_DOUBLE_CONTAINER",
        "OLDPWD",
        "SHLVL",
        "_",
    }
    assert found["HOSTNAME"] == "pod"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$(A)", "1"),
        ("$(date)", "$(date)"),
        ("$$(A)", "$(A)"),
        ("echo $$ $A", "echo $ $A"),
        ("$(A", "$(A"),
    ],
)
def test_variables_in_commands_are_replaced_as_kubernetes_does(text: str, expected: str) -> None:
    assert expand(text, {"A": "1"}) == expected


def test_a_container_waits_for_a_secret_that_is_missing(start: Start) -> None:
    cluster, api = start()
    source = [{"secretRef": {"name": "later"}}]
    api.core.create_namespaced_pod(NAMESPACE, pod("echo $key", envFrom=source))
    waiting = cluster.wait(lambda: _waiting(api, "CreateContainerConfigError"))
    assert waiting.message == 'secret "later" not found'

    secret = {"metadata": {"name": "later"}, "data": {"key": "aGVyZQ=="}}
    api.core.create_namespaced_secret(NAMESPACE, secret)

    ended(cluster)
    assert cluster.log("pod") == "here\n"


def test_a_config_map_mounted_below_the_doubles_folder_is_written_there(
    start: Start, tmp_path: Path
) -> None:
    home = tmp_path / "cluster" / "dagster_home"
    data = {"dagster.yaml": "telemetry: off"}
    cluster, api = start(
        manifests=[{"kind": "ConfigMap", "metadata": {"name": "instance"}, "data": data}]
    )
    mounts = [
        {"name": "instance", "mountPath": f"{home}/dagster.yaml", "subPath": "dagster.yaml"},
        {"name": "instance", "mountPath": str(tmp_path / "outside")},
        {"name": "scratch", "mountPath": "/scratch"},
    ]
    volumes = [
        {"name": "instance", "configMap": {"name": "instance"}},
        {"name": "scratch", "emptyDir": {}},
    ]
    api.core.create_namespaced_pod(
        NAMESPACE, pod(f"cat {home}/dagster.yaml", volumeMounts=mounts, volumes=volumes)
    )

    ended(cluster)
    assert cluster.log("pod") == "telemetry: off"
    assert not (tmp_path / "outside").exists()


def test_a_container_waits_for_a_volume_whose_config_map_is_missing(start: Start) -> None:
    cluster, api = start()
    api.core.create_namespaced_pod(
        NAMESPACE,
        pod(
            volumeMounts=[{"name": "v", "mountPath": "/etc/v"}],
            volumes=[{"name": "v", "configMap": {"name": "none"}}],
        ),
    )

    cluster.wait(lambda: any("FailedMount" in it for it in cluster.events("pod")))
    assert _waiting(api, "ContainerCreating")
    assert 'configmap "none" not found' in api.dagster.get_pod_debug_info("pod", NAMESPACE)


def test_the_end_of_the_log_explains_a_failure_where_that_is_asked_for(start: Start) -> None:
    cluster, api = start()
    policy = "FallbackToLogsOnError"
    api.core.create_namespaced_pod(
        NAMESPACE, pod("echo broken; exit 1", terminationMessagePolicy=policy)
    )

    assert ended(cluster)["message"] == "broken\n"


def test_init_containers_run_first_and_a_failed_one_is_the_last(start: Start) -> None:
    cluster, api = start()
    order = f"{cluster.root}/order"
    for name, script in {"good": "true", "bad": "exit 7"}.items():
        init = container(f"echo init {name} >> {order}; {script}") | {"name": "init"}
        body = pod(f"echo main {name} >> {order}", name, initContainers=[init])
        api.core.create_namespaced_pod(NAMESPACE, body)
        cluster.wait_for_pod(phase="Succeeded" if name == "good" else "Failed")

    assert Path(order).read_text().splitlines() == ["init good", "main good", "init bad"]
    with pytest.raises(DagsterK8sError, match="failed to initialize"):
        api.dagster.wait_for_pod("bad", NAMESPACE, WaitForPodState.Terminated, 9, 9, 0.05)


def test_a_pod_with_two_containers_is_over_when_both_are(start: Start) -> None:
    cluster, api = start()
    body = pod("sleep 0.3; echo last")
    body["spec"]["containers"].append(container("echo first; exit 2") | {"name": "other"})
    api.core.create_namespaced_pod(NAMESPACE, body)

    assert ended(cluster)["phase"] == "Failed"
    assert cluster.log("pod") == "last\n"
    assert api.dagster.retrieve_pod_logs("pod", NAMESPACE, "other") == "first\n"
    with pytest.raises(ApiException, match="a container name must be specified"):
        api.dagster.retrieve_pod_logs("pod", NAMESPACE)


def test_a_pod_is_stopped_at_its_own_deadline(start: Start) -> None:
    cluster, api = start(longest_grace=0)
    api.core.create_namespaced_pod(NAMESPACE, pod("sleep 60", activeDeadlineSeconds=1))

    end = ended(cluster)

    assert (end["phase"], end["exitCode"]) == ("Failed", 137)
    assert api.status("pod").reason == "DeadlineExceeded"


# -- images


@pytest.mark.parametrize(
    ("image", "policy", "reason"),
    [
        ("elsewhere/unknown:1", "IfNotPresent", "ImagePullBackOff"),
        ("Not An Image", "IfNotPresent", "InvalidImageName"),
        ("unknown", "Never", "ErrImageNeverPull"),
    ],
)
def test_an_image_that_cannot_be_had_keeps_the_container_waiting(
    start: Start, image: str, policy: str, reason: str
) -> None:
    cluster, api = start()
    api.core.create_namespaced_pod(NAMESPACE, pod(image=image, imagePullPolicy=policy))

    waiting = cluster.wait(lambda: _waiting(api, reason))

    assert image in waiting.message
    assert api.status("pod").phase == "Pending"
    with pytest.raises(ApiException, match="waiting to start") as error:
        api.dagster.retrieve_pod_logs("pod", NAMESPACE)
    assert error.value.status == 400
    with pytest.raises(DagsterK8sError, match=reason):
        api.dagster.wait_for_pod("pod", NAMESPACE, WaitForPodState.Ready, 9, 9, 0.05)
    api.core.delete_namespaced_pod("pod", NAMESPACE)
    cluster.wait(lambda: not cluster.pods())


def test_a_pod_starts_when_its_image_has_been_pushed(start: Start) -> None:
    images: set[str] = set()
    cluster, api = start(images=images)
    api.core.create_namespaced_pod(NAMESPACE, pod())
    cluster.wait(lambda: _waiting(api, "ImagePullBackOff"))

    images.add("image")

    assert ended(cluster)["exitCode"] == 0


# -- memory


def test_a_container_beyond_its_memory_limit_is_killed(start: Start) -> None:
    cluster, api = start()
    hungry = "python -c 'import time; kept = bytearray(200 << 20); time.sleep(60)' & wait"
    limit = {"limits": {"memory": "100Mi"}}
    api.batch.create_namespaced_job(NAMESPACE, job(template=pod(hungry, resources=limit)))

    cluster.wait_for_pod("job-name=job", "Failed")

    end = ended(cluster, cluster.pods()[0]["metadata"]["name"])
    assert (end["exitCode"], end["reason"]) == (137, "OOMKilled")
    cluster.wait(lambda: cluster.jobs()[0]["status"].get("failed"))


def test_a_container_within_its_memory_limit_goes_on(start: Start) -> None:
    cluster, api = start()
    modest = "python -c 'import time; kept = bytearray(50 << 20); time.sleep(0.4)'"
    limit = {"limits": {"memory": "200Mi"}}
    api.core.create_namespaced_pod(NAMESPACE, pod(modest, resources=limit))

    assert ended(cluster)["reason"] == "Completed"


@pytest.mark.parametrize(
    ("text", "amount"),
    [("500m", 0.5), ("1.5Gi", 1.5 * 2**30), ("2k", 2000), ("1e3", 1000), ("1E", 10**18), (3, 3)],
)
def test_quantities_are_read_as_kubernetes_does(text: str | int, amount: float) -> None:
    assert float(quantity(text)) == amount


# -- scheduling


def test_a_pod_waits_until_there_is_room_for_it(start: Start) -> None:
    cluster, api = start(nodes=[Node(cpu="2")], longest_grace=0)
    asks = {"requests": {"cpu": "1500m"}}
    for name in ("first", "second"):
        api.core.create_namespaced_pod(NAMESPACE, pod("sleep 60", name, resources=asks))
    cluster.wait(lambda: condition(api.status("second"), "PodScheduled"))
    scheduled = condition(api.status("second"), "PodScheduled")
    assert (scheduled.status, scheduled.reason) == ("False", "Unschedulable")
    assert scheduled.message.startswith("0/1 nodes are available: 1 Insufficient cpu.")
    assert api.status("second").phase == "Pending"
    assert any("FailedScheduling" in it for it in cluster.events("second"))

    api.core.delete_namespaced_pod("first", NAMESPACE)

    cluster.wait(lambda: api.status("second").phase == "Running")


def test_pods_go_where_selectors_and_taints_let_them(start: Start) -> None:
    taint = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
    nodes = [Node("plain"), Node("gpu", gpus=2, labels={"kind": "fast"}, taints=[taint])]
    cluster, api = start(nodes=nodes, longest_grace=0)
    gpu = {"limits": {"nvidia.com/gpu": "1"}}
    tolerated = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    script = "echo ${NVIDIA_VISIBLE_DEVICES-none}; sleep 60"
    pods: dict[str, Any] = {
        "plain": {},
        "selected": {"nodeSelector": {"kind": "fast"}},
        "first": {"resources": gpu, "tolerations": tolerated},
        "second": {"resources": gpu, "tolerations": tolerated},
        "third": {"resources": gpu, "tolerations": tolerated},
    }
    for name, more in pods.items():
        api.core.create_namespaced_pod(NAMESPACE, pod(script, name, **more))
    for name in ("plain", "first", "second"):
        cluster.wait(partial(cluster.log, name))
    for name in ("selected", "third"):
        cluster.wait(lambda name=name: condition(api.status(name), "PodScheduled"))  # type: ignore[misc]

    where = {it["metadata"]["name"]: it["spec"].get("nodeName") for it in cluster.pods()}
    assert where == {
        "plain": "plain",
        "selected": None,
        "first": "gpu",
        "second": "gpu",
        "third": None,
    }
    assert [cluster.log(it).strip() for it in ("plain", "first", "second")] == ["none", "0", "1"]
    message = condition(api.status("selected"), "PodScheduled").message
    assert "node(s) had untolerated taint {nvidia.com/gpu: present}" in message
    assert "node(s) didn't match Pod's node affinity/selector" in message
    assert "2 Insufficient nvidia.com/gpu" in condition(api.status("third"), "PodScheduled").message


# -- what the platform does to pods


def test_a_killed_process_is_an_error_with_137(start: Start) -> None:
    cluster, api = start()
    api.core.create_namespaced_pod(NAMESPACE, pod("sleep 60"))
    cluster.wait_for_pod()

    cluster.kill("pod")

    end = ended(cluster)
    assert (end["exitCode"], end["reason"], end["phase"]) == (137, "Error", "Failed")


def test_an_evicted_pod_fails_and_stays(start: Start) -> None:
    cluster, api = start()
    api.batch.create_namespaced_job(
        NAMESPACE, job("trap 'echo bye; exit 0' TERM; echo up; sleep 60 & wait")
    )
    name = _running(cluster, api)

    cluster.evict(name, "The node was low on resource: memory.")

    assert ended(cluster, name)["phase"] == "Failed"
    status = api.status(name)
    assert (status.reason, status.message) == ("Evicted", "The node was low on resource: memory.")
    assert condition(status, "DisruptionTarget").reason == "TerminationByKubelet"
    assert cluster.log(name) == "up\nbye\n"
    cluster.wait(lambda: _with(api.dagster.get_job_status("job", NAMESPACE), "Failed"))


def _preempt(cluster: KubernetesDouble, api: Clients, name: str) -> None:
    cluster.preempt(name)


def _evict_by_api(cluster: KubernetesDouble, api: Clients, name: str) -> None:
    eviction = {"metadata": {"name": name, "namespace": NAMESPACE}}
    api.core.create_namespaced_pod_eviction(name, NAMESPACE, eviction)


def _lose_node(cluster: KubernetesDouble, api: Clients, name: str) -> None:
    cluster.lose_node()


@pytest.mark.parametrize(
    ("disrupt", "reason", "says_goodbye"),
    [
        (_preempt, "PreemptionByScheduler", True),
        (_evict_by_api, "EvictionByEvictionAPI", True),
        (_lose_node, "DeletionByTaintManager", False),
    ],
)
def test_a_pod_that_the_platform_deletes_is_gone_and_its_job_has_failed(
    start: Start,
    disrupt: Callable[[KubernetesDouble, Clients, str], None],
    reason: str,
    says_goodbye: bool,
) -> None:
    cluster, api = start()
    api.batch.create_namespaced_job(
        NAMESPACE, job("trap 'echo bye; exit 0' TERM; echo up; sleep 60 & wait")
    )
    name = _running(cluster, api)

    disrupt(cluster, api, name)

    cluster.wait(lambda: not cluster.pods())
    status = cluster.wait(lambda: _with(api.dagster.get_job_status("job", NAMESPACE), "Failed"))
    assert (status.failed, status.active) == (1, None)
    (gone,) = cluster.history
    target = next(it for it in gone["status"]["conditions"] if it["type"] == "DisruptionTarget")
    assert target["reason"] == reason
    assert ("bye" in cluster.log(name)) is says_goodbye


def test_a_lost_node_takes_no_pods_until_it_is_back(start: Start) -> None:
    cluster, api = start()
    cluster.lose_node()
    api.core.create_namespaced_pod(NAMESPACE, pod())
    cluster.wait(lambda: condition(api.status("pod"), "PodScheduled"))
    assert "unreachable" in condition(api.status("pod"), "PodScheduled").message

    cluster.restore_node()

    assert ended(cluster)["exitCode"] == 0


def test_pods_of_a_lost_node_can_hang_until_they_are_deleted_by_force(start: Start) -> None:
    cluster, api = start()
    api.core.create_namespaced_pod(NAMESPACE, pod("echo $$$$; sleep 60"))
    pid = int(api.dagster.retrieve_pod_logs(_running(cluster, api), NAMESPACE))

    cluster.lose_node(stuck=True)

    cluster.wait(lambda: not is_there(pid))
    api.core.delete_namespaced_pod("pod", NAMESPACE)
    (left,) = cluster.pods()
    assert left["status"]["phase"] == "Running"
    assert "deletionTimestamp" in left["metadata"]
    with pytest.raises(ApiException, match="no route to host"):
        api.dagster.retrieve_pod_logs("pod", NAMESPACE)
    api.core.delete_namespaced_pod("pod", NAMESPACE, grace_period_seconds=0)
    assert cluster.pods() == []


# -- the API server


def test_a_server_that_is_away_refuses_connections_and_its_pods_go_on(start: Start) -> None:
    cluster, api = start()
    api.core.create_namespaced_pod(NAMESPACE, pod("sleep 0.3; echo done"))
    cluster.wait_for_pod()

    with cluster.away():
        with pytest.raises(urllib3.exceptions.HTTPError):
            api.core.list_namespaced_pod(NAMESPACE)
        ended(cluster)

    assert api.dagster.retrieve_pod_logs("pod", NAMESPACE) == "done\n"


def test_a_server_that_fails_is_asked_again_by_dagster(start: Start) -> None:
    cluster, api = start()
    cluster.failing(500, times=2, method="POST", path="/jobs$")

    api.dagster.create_namespaced_job_with_retries(job(), NAMESPACE, 0.01)

    statuses = [it.status for it in cluster.requests if it.method == "POST"]
    assert statuses == [500, 500, 201]


def test_an_answer_that_is_lost_leaves_what_was_done(start: Start) -> None:
    cluster, api = start()
    cluster.failing(503, method="POST", done=True)

    api.dagster.create_namespaced_job_with_retries(job(), NAMESPACE, 0.01)

    assert [it.status for it in cluster.requests if it.method == "POST"] == [503, 409]
    cluster.wait(lambda: cluster.jobs()[0]["status"].get("succeeded"))
    assert len(cluster.history) == 1


def test_too_many_requests_are_asked_again_by_the_client_itself(start: Start) -> None:
    cluster, api = start()
    cluster.failing(429)

    assert api.core.list_namespaced_pod(NAMESPACE).items == []

    assert [it.status for it in cluster.requests] == [429, 200]


def test_objects_are_selected_by_labels_and_fields(start: Start) -> None:
    cluster, api = start()
    for name, labels in {"a": {"x": "1"}, "b": {"x": "2", "y": ""}, "c": {}}.items():
        api.core.create_namespaced_pod(NAMESPACE, pod(name=name, labels=labels))
    cluster.wait(lambda: len(cluster.pods("")) == 3)

    def names(**selector: str) -> str:
        found = api.core.list_namespaced_pod(NAMESPACE, **selector).items
        return "".join(sorted(it.metadata.name for it in found))

    for selector, expected in {
        "": "abc",
        "x=1": "a",
        "x==2": "b",
        "x!=1": "bc",
        "x in (1, 2)": "ab",
        "x notin (1),y": "b",
        "x": "ab",
        "!x": "c",
    }.items():
        assert names(label_selector=selector) == expected, selector
    cluster.wait(lambda: names(field_selector="status.phase=Succeeded") == "abc")
    assert names(field_selector="metadata.name!=a", label_selector="x") == "b"
    for wrong in ({"label_selector": "x=in valid!"}, {"field_selector": "spec.image=x"}):
        with pytest.raises(ApiException) as error:
            names(**wrong)
        assert error.value.status == 400


LONG = "x" * 64
NEAR: Any = {
    "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}
}


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"metadata": {"name": "Upper"}}, 422, "metadata.name: Invalid value"),
        ({"metadata": {"name": LONG}}, 422, "must be no more than 63 characters"),
        ({"metadata": {}}, 422, "name or generateName is required"),
        ({"metadata": {"name": "a", "labels": {"x": LONG}}}, 422, "no more than 63"),
        ({"metadata": {"name": "a", "labels": {"x": "a b"}}}, 422, "metadata.labels"),
        ({"metadata": {"name": "a", "labels": {"a b": "x"}}}, 422, "metadata.labels"),
        ({"metadata": {"name": "a", "labels": {"x": 1}}}, 400, "cannot be handled as a Job"),
        ({"metadata": {"name": "a", "namespace": "other"}}, 400, "does not match the namespace"),
        ({"kind": "Pod"}, 400, "cannot be handled as a Job"),
        ({"apiVersion": "v1"}, 400, "does not match the expected API version"),
        ({"spec": {"template": {"spec": {"containers": []}}}}, 422, "restartPolicy"),
        ({"spec": {}}, 422, "Required value"),
        ({"spec": None}, 422, "Required value"),
        ({"spec": {"template": {}}}, 422, "Required value"),
        ({"spec": job(parallelism=2)["spec"]}, 422, "this double"),
        ({"spec": job(template=pod(affinity=NEAR))["spec"]}, 422, "this double"),
    ],
)
def test_a_job_that_a_server_would_refuse_is_refused(
    start: Start, change: dict[str, Any], status: int, message: str
) -> None:
    _, api = start()
    with pytest.raises(ApiException, match=message) as error:
        api.batch.create_namespaced_job(NAMESPACE, job() | change)
    assert error.value.status == status


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"name": "not_a_label"}, 422, r"containers\[0\].name"),
        ({"image": ""}, 422, r"containers\[0\].image: Required value"),
        ({"env": [{"name": "A", "value": 1}]}, 400, "is not of type 'string'"),
        ({"resources": {"limits": {"memory": "lots"}}}, 422, "quantities must match"),
        ({"resources": {"limits": {"cpu": "1"}, "requests": {"cpu": 2}}}, 422, "cpu limit of 1"),
        ({"resources": {"requests": {"nvidia.com/gpu": 1}}}, 422, "Limit must be set"),
        ({"resources": {"limits": {"nvidia.com/gpu": "0.5"}}}, 422, "must be an integer"),
        ({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}, 422, 'Not found: \\\\"v'),
    ],
)
def test_a_container_that_a_server_would_refuse_is_refused(
    start: Start, change: dict[str, Any], status: int, message: str
) -> None:
    _, api = start()
    body = pod()
    body["spec"]["containers"][0] |= change
    with pytest.raises(ApiException, match=message) as error:
        api.core.create_namespaced_pod(NAMESPACE, body)
    assert error.value.status == status


def test_what_is_missing_or_there_already_is_told(start: Start) -> None:
    _, api = start()
    api.core.create_namespaced_pod(NAMESPACE, pod())
    calls: list[tuple[Callable[[], Any], int, str]] = [
        (lambda: api.core.create_namespaced_pod(NAMESPACE, pod()), 409, "AlreadyExists"),
        (lambda: api.core.create_namespaced_pod("nowhere", pod()), 404, "NotFound"),
        (lambda: api.batch.read_namespaced_job("none", NAMESPACE), 404, "NotFound"),
        (lambda: api.batch.list_namespaced_cron_job(NAMESPACE), 404, "NotFound"),
        (lambda: api.core.replace_namespaced_pod("pod", NAMESPACE, pod()), 405, "MethodNotAllowed"),
    ]
    for call, status, reason in calls:
        with pytest.raises(ApiException, match=reason) as error:
            call()
        assert error.value.status == status


def test_labels_can_be_patched_and_a_running_spec_cannot(start: Start) -> None:
    _, api = start()
    api.batch.create_namespaced_job(NAMESPACE, job("sleep 60"))
    before = api.batch.read_namespaced_job("job", NAMESPACE)

    change = {"metadata": {"labels": {"new": "label"}}, "spec": {"ttlSecondsAfterFinished": 5}}
    after = api.batch.patch_namespaced_job("job", NAMESPACE, change)

    assert after.metadata.labels == {"new": "label"}
    assert after.spec.ttl_seconds_after_finished == 5
    assert int(after.metadata.resource_version) > int(before.metadata.resource_version)
    with pytest.raises(ApiException, match="Forbidden"):
        api.batch.patch_namespaced_job("job", NAMESPACE, {"spec": {"parallelism": 0}})


def test_a_watch_tells_what_becomes_of_a_pod(start: Start) -> None:
    _, api = start()
    api.core.create_namespaced_pod(NAMESPACE, pod("sleep 0.2"))
    phases: list[tuple[str, str]] = []
    stream: Any = kubernetes.watch.Watch()
    pods = api.core.list_namespaced_pod
    for event in stream.stream(pods, NAMESPACE, timeout_seconds=20, resource_version="1"):
        phases.append((event["type"], event["object"].status.phase))
        if phases[-1] == ("MODIFIED", "Succeeded"):
            api.core.delete_namespaced_pod("pod", NAMESPACE)
        if event["type"] == "DELETED":
            stream.stop()

    assert phases[0] == ("ADDED", "Pending")
    assert ("MODIFIED", "Running") in phases
    assert phases[-1] == ("DELETED", "Succeeded")


def test_logs_can_be_followed_shortened_and_timed(start: Start) -> None:
    cluster, api = start()
    api.core.create_namespaced_pod(
        NAMESPACE, pod("echo one; sleep 0.3; echo two >&2; printf three")
    )
    cluster.wait_for_pod()

    def read(**options: Any) -> str:
        return str(api.dagster.retrieve_pod_logs("pod", NAMESPACE, **options))

    assert read(follow=True) == "one\ntwo\nthree"
    assert read(tail_lines=1) == "three"
    assert read(limit_bytes=5) == "one\nt"
    assert read(since_seconds=60) == "one\ntwo\nthree"
    lines = read(timestamps=True).splitlines()
    assert [it.split(" ", 1)[1] for it in lines] == ["one", "two", "three"]
    assert len({len(it.split(" ")[0]) for it in lines}) == 1
    with pytest.raises(ApiException, match="is not valid for pod"):
        read(container_name="none")


def test_requests_and_pods_are_counted(start: Start) -> None:
    cluster, api = start()
    api.core.create_namespaced_pod(NAMESPACE, pod("exit 4"))
    ended(cluster)
    api.core.delete_namespaced_pod("pod", NAMESPACE)

    assert [(it.method, it.path) for it in cluster.requests] == [
        ("POST", "/api/v1/namespaces/default/pods"),
        ("DELETE", "/api/v1/namespaces/default/pods/pod"),
    ]
    assert cluster.pods() == []
    assert [it["status"]["phase"] for it in cluster.history] == ["Failed"]


# -- who may do what

ACCESS = [
    {"kind": "ServiceAccount", "metadata": {"name": "runner"}},
    {
        "kind": "ServiceAccount",
        "metadata": {"name": "step"},
        "automountServiceAccountToken": False,
    },
    {
        "kind": "Role",
        "metadata": {"name": "launcher"},
        "rules": [
            {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["create", "list"]},
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["*"], "resourceNames": ["mine"]},
            {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]},
        ],
    },
    {
        "kind": "RoleBinding",
        "metadata": {"name": "launcher"},
        "roleRef": {"kind": "Role", "name": "launcher"},
        "subjects": [{"kind": "ServiceAccount", "name": "runner"}],
    },
]


def test_a_service_account_may_do_what_its_role_says(start: Start) -> None:
    cluster, admin = start(manifests=ACCESS)
    runner, step = Clients(cluster, "runner"), Clients(cluster, "step")
    admin.core.create_namespaced_pod(NAMESPACE, pod("echo hello", "mine"))
    ended(cluster, "mine")

    runner.batch.create_namespaced_job(NAMESPACE, job())
    assert runner.core.read_namespaced_pod("mine", NAMESPACE).status.phase == "Succeeded"
    assert runner.dagster.retrieve_pod_logs("mine", NAMESPACE) == "hello\n"
    calls: list[Callable[[], Any]] = [
        lambda: runner.batch.read_namespaced_job_status("job", NAMESPACE),
        lambda: runner.batch.delete_namespaced_job("job", NAMESPACE),
        lambda: runner.core.list_namespaced_pod(NAMESPACE),
        lambda: runner.batch.list_namespaced_job("elsewhere"),
        lambda: step.batch.list_namespaced_job(NAMESPACE),
    ]
    for refused in calls:
        with pytest.raises(ApiException, match="is forbidden: User") as error:
            refused()
        assert error.value.status == 403
    (first, *_) = [it for it in cluster.requests if it.status == 403]
    assert first.user == "system:serviceaccount:default:runner"


@pytest.mark.parametrize(
    ("account", "mounted", "user"),
    [("runner", None, "default:runner"), ("step", None, ""), ("step", True, "default:step")],
)
def test_a_pod_has_the_kubeconfig_of_its_service_account_unless_it_wants_none(
    start: Start, account: str, mounted: bool | None, user: str
) -> None:
    cluster, api = start(manifests=ACCESS)
    more: Any = {} if mounted is None else {"automountServiceAccountToken": mounted}
    script = "cmp $KUBECONFIG ~/.kube/config && grep -o default:[a-z]* $KUBECONFIG"
    api.core.create_namespaced_pod(
        NAMESPACE,
        pod(f'test -z "$KUBECONFIG" || {{ {script}; }}', serviceAccountName=account, **more),
    )

    assert ended(cluster)["exitCode"] == 0
    assert cluster.log("pod").strip() == user


def test_a_role_that_is_applied_again_replaces_the_first(start: Start) -> None:
    cluster, _ = start(manifests=ACCESS)
    runner = Clients(cluster, "runner")
    assert runner.batch.list_namespaced_job(NAMESPACE).items == []

    cluster.apply([{"kind": "Role", "metadata": {"name": "launcher"}, "rules": []}])

    with pytest.raises(ApiException, match="is forbidden: User"):
        runner.batch.list_namespaced_job(NAMESPACE)


def test_a_job_whose_service_account_is_missing_has_no_pod_and_an_event(start: Start) -> None:
    cluster, api = start(manifests=ACCESS)
    template = pod(serviceAccountName="nobody")
    api.batch.create_namespaced_job(NAMESPACE, job(template=template))

    cluster.wait(lambda: any('"nobody" not found' in it for it in cluster.events("job")))
    assert cluster.history == []


def test_a_restricted_namespace_admits_no_pod_that_could_do_more_than_it_should(
    start: Start,
) -> None:
    enforce = {"pod-security.kubernetes.io/enforce": "restricted"}
    namespace = {"kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": enforce}}
    cluster, api = start(manifests=[namespace])
    api.batch.create_namespaced_job(NAMESPACE, job())
    cluster.wait(lambda: any("allowPrivilegeEscalation" in it for it in cluster.events("job")))
    assert cluster.history == []

    body = pod(securityContext={"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}})
    with pytest.raises(ApiException, match="unrestricted capabilities") as error:
        api.core.create_namespaced_pod(NAMESPACE, body)
    assert error.value.status == 403
    body["spec"]["containers"][0]["securityContext"] = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    api.core.create_namespaced_pod(NAMESPACE, body)

    assert ended(cluster)["exitCode"] == 0


# -- the handle


def test_ending_a_cluster_kills_everything_even_what_left_its_process_group(
    tmp_path: Path,
) -> None:
    with KubernetesDouble(tmp_path) as cluster:
        api = Clients(cluster)
        script = "echo $$$$; setsid sh -c 'trap \"\" TERM; echo $$$$; sleep 60' & wait"
        api.core.create_namespaced_pod(NAMESPACE, pod(script, command=["sh", "-c"], args=[script]))
        cluster.wait(lambda: len(cluster.log("pod").split()) == 2)
        pids = [int(it) for it in cluster.log("pod").split()]
        assert all(map(is_there, pids))

    assert not any(map(is_there, pids))


def test_waiting_in_vain_tells_the_state_of_the_pods(start: Start) -> None:
    cluster, api = start()
    api.core.create_namespaced_pod(NAMESPACE, pod("echo an explanation; exit 1"))
    ended(cluster)

    with pytest.raises(TimeoutError, match=r"pod: Failed (.|\n)*an explanation"):
        cluster.wait(lambda: False, timeout=0)


# -- Dagster Pipes


def test_a_pipes_session_runs_in_a_pod_and_reports_back(start: Start) -> None:
    cluster, _ = start()
    code = (
        "from dagster_pipes import open_dagster_pipes\n"
        "with open_dagster_pipes() as pipes:\n"
        "    pipes.log.info('working')\n"
        "    pipes.report_asset_materialization({'rows': 3}, data_version='v1')\n"
    )
    client = PipesK8sClient(
        kubeconfig_file=str(cluster.kubeconfig()), load_incluster_config=False, poll_interval=0.1
    )

    @asset
    def table(context: AssetExecutionContext):  # type: ignore[no-untyped-def]
        command = ["python", "-c", code]
        run = client.run(context=context, image="image", command=command)
        return run.get_materialize_result()

    result = materialize([table])

    (event,) = result.asset_materializations_for_node("table")
    assert event.metadata["rows"].value == 3
    assert cluster.pods() == []
    (gone,) = cluster.history
    assert gone["status"]["phase"] == "Succeeded"


def test_a_pipes_session_whose_pod_is_killed_fails(start: Start) -> None:
    cluster, _ = start()
    client = PipesK8sClient(kubeconfig_file=str(cluster.kubeconfig()), poll_interval=0.1)

    @asset
    def table(context: AssetExecutionContext):  # type: ignore[no-untyped-def]
        command = ["sh", "-c", "kill -9 $$$$"]
        client.run(context=context, image="image", command=command)

    result = materialize([table], raise_on_error=False)

    assert not result.success
    (gone,) = cluster.history
    assert gone["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 137
