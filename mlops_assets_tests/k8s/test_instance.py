"""`k8s/base/dagster.yaml`: the instance that it makes, and the jobs of runs and steps."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from dagster import DagsterInstance, DagsterRun
from dagster_k8s.container_context import K8sContainerContext
from dagster_k8s.job import (
    UserDefinedDagsterK8sConfig,
    construct_dagster_k8s_job,
    get_user_defined_k8s_config,
)
from kubernetes.client import ApiClient

from mlops_assets.dagster_internals.k8s_run_launcher import WatchedK8sRunLauncher
from mlops_assets.execution.compute import K8S_CONFIG, pod_config
from mlops_assets.execution.kubernetes import STEP_ACCOUNT, _with_defaults
from mlops_assets.spec import ComputeSpec
from mlops_assets_tests.k8s.manifests import (
    K8S,
    SUPPORTED,
    Object,
    breaches,
    containers,
    loose_ends,
    named,
    of_kind,
    render,
    templates,
)
from mlops_assets_tests.servers import postgres, postgres_programs

INSTANCE = K8S / "base" / "dagster.yaml"
IMAGE = "registry.test/mlops-assets:7"


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DagsterInstance]:
    """The instance as a process without a token opens it, with a PostgreSQL server of its own."""
    if postgres_programs() is None:
        pytest.skip("needs a PostgreSQL server: apt-get install postgresql")
    (tmp_path / "dagster.yaml").write_text(INSTANCE.read_text())
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with postgres() as server:
        for name, value in {
            "DAGSTER_PG_HOST": "127.0.0.1",
            "DAGSTER_PG_PORT": str(server.port),
            "DAGSTER_PG_DB": "dagster",
            "DAGSTER_PG_USERNAME": "dagster",
            "DAGSTER_PG_PASSWORD": "dagster",
        }.items():
            monkeypatch.setenv(name, value)
        with DagsterInstance.from_config(str(tmp_path)) as opened:
            yield opened


def test_steps_open_the_instance_without_a_token_and_without_a_cluster(
    instance: DagsterInstance,
) -> None:
    assert isinstance(instance.run_launcher, WatchedK8sRunLauncher)
    assert instance.run_monitoring_max_resume_run_attempts == 3
    assert instance.run_retries_enabled
    assert instance.get_run_records() == []
    pools = instance.get_concurrency_config().pool_config
    assert (str(pools.pool_granularity), pools.default_pool_limit) == ("PoolGranularity.OP", 1)
    assert not instance.telemetry_enabled


def test_every_variable_that_the_instance_asks_for_is_in_the_environment() -> None:
    given = set(named(render("base"), "ConfigMap", _environment())["data"])
    asked = set(_asked_for(yaml.safe_load(INSTANCE.read_text())))
    for name in ("dagster-webserver", "dagster-daemon", "mlops-code"):
        for container in containers(templates(render("base"))[name]["spec"]):
            assert asked <= given | {it["name"] for it in container["env"]}


def _environment() -> str:
    maps = of_kind(render("base"), "ConfigMap")
    (name,) = (it["metadata"]["name"] for it in maps if "MLOPS_STORE_URL" in it["data"])
    return str(name)


def _asked_for(node: Any) -> list[str]:
    if isinstance(node, list):
        return [name for it in node for name in _asked_for(it)]
    if not isinstance(node, dict):
        return []
    own = [node["env"]] if set(node) == {"env"} else node.get("env_vars", [])
    return [*own, *(name for it in node.values() for name in _asked_for(it))]


# --- the jobs of runs and steps -----------------------------------------------------------------


@pytest.fixture
def launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WatchedK8sRunLauncher]:
    """The launcher of `dagster.yaml`, with a kubeconfig in place of a pod's token."""
    monkeypatch.setenv("MLOPS_NAMESPACE", "mlops")
    monkeypatch.setenv("MLOPS_ENVIRONMENT_CONFIG_MAP", "mlops-environment-1")
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "nowhere",
                "clusters": [{"name": "nowhere", "cluster": {"server": "https://127.0.0.1:1"}}],
                "users": [{"name": "nobody", "user": {}}],
                "contexts": [
                    {"name": "nowhere", "context": {"cluster": "nowhere", "user": "nobody"}}
                ],
            }
        )
    )
    config = yaml.safe_load(INSTANCE.read_text())["run_launcher"]["config"]
    config.update(load_incluster_config=False, kubeconfig_file=str(kubeconfig))
    made = WatchedK8sRunLauncher(config, None)
    with DagsterInstance.ephemeral() as somewhere:
        made.register_instance(somewhere)
        yield made


def job_of(launcher: WatchedK8sRunLauncher, component: str, *added: K8sContainerContext) -> Object:
    """Return the job of a run, or with what its steps have beyond it of a step."""
    run = DagsterRun(job_name="churn_training", run_id=str(uuid.uuid4()))
    context = K8sContainerContext.create_for_run(
        run, launcher.runs, include_run_tags=component == "run_worker"
    )
    for further in added:
        context = context.merge(further)
    assert context.namespace == "mlops"
    job = construct_dagster_k8s_job(
        job_config=context.get_k8s_job_config(IMAGE, launcher.runs),
        args=["dagster", "api", "execute_run", "…"],
        job_name="dagster-run-1",
        component=component,
        user_defined_k8s_config=context.run_k8s_config,
        env_vars=[{"name": "DAGSTER_RUN_JOB_NAME", "value": "churn_training"}],
    )
    made: Object = ApiClient().sanitize_for_serialization(job)
    return made


@pytest.fixture
def run_job(launcher: WatchedK8sRunLauncher) -> Object:
    return job_of(launcher, "run_worker")


@pytest.fixture
def step_job(launcher: WatchedK8sRunLauncher) -> Object:
    compute = ComputeSpec(cpu=2, memory="4Gi", gpu=1, gpu_type="NVIDIA-L4")
    config = pod_config("churn", "model", compute)
    executor = K8sContainerContext(
        service_account_name=STEP_ACCOUNT,
        run_k8s_config=UserDefinedDagsterK8sConfig.from_dict(_with_defaults({})),
    )
    step = get_user_defined_k8s_config({K8S_CONFIG: json.dumps(config)})
    return job_of(launcher, "step_worker", executor, K8sContainerContext(run_k8s_config=step))


@pytest.mark.parametrize("version", SUPPORTED)
@pytest.mark.parametrize("job", ["run_job", "step_job"])
def test_jobs_are_valid_and_ask_for_no_more_than_the_level_restricted_allows(
    job: str, version: str, request: pytest.FixtureRequest
) -> None:
    made = request.getfixturevalue(job)
    assert kubernetes_validate.validate(made, version, strict=True) == version
    pod = made["spec"]["template"]["spec"]
    assert not breaches(pod)
    assert not loose_ends(pod)
    (container,) = pod["containers"]
    assert container["image"] == IMAGE
    assert {"/tmp", "/opt/dagster/home"} == {it["mountPath"] for it in container["volumeMounts"]}
    assert {volume["name"] for volume in pod["volumes"]} == {"tmp", "home"}


@pytest.mark.parametrize("job", ["run_job", "step_job"])
def test_jobs_have_the_environment_of_the_deployment(
    job: str, request: pytest.FixtureRequest
) -> None:
    (container,) = request.getfixturevalue(job)["spec"]["template"]["spec"]["containers"]
    assert container["envFrom"] == [
        {"configMapRef": {"name": "mlops-environment-1"}},
        {"secretRef": {"name": "mlops-store", "optional": True}},
    ]
    environment = {it["name"]: it for it in container["env"]}
    assert environment["DAGSTER_PG_PASSWORD"]["valueFrom"]["secretKeyRef"] == {
        "name": "dagster-postgresql",
        "key": "postgresql-password",
    }
    assert environment["MLOPS_NAMESPACE"]["value"] == "mlops"
    assert environment["MLOPS_ENVIRONMENT_CONFIG_MAP"]["value"] == "mlops-environment-1"
    assert environment["DAGSTER_HOME"]["value"] == "/opt/dagster/home"


@pytest.mark.parametrize("job", ["run_job", "step_job"])
def test_a_job_makes_one_pod_that_is_neither_evicted_nor_kept_for_ever(
    job: str, request: pytest.FixtureRequest
) -> None:
    spec = request.getfixturevalue(job)["spec"]
    assert (spec["backoffLimit"], spec["ttlSecondsAfterFinished"]) == (0, 86400)
    annotations = spec["template"]["metadata"]["annotations"]
    assert annotations == {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}
    assert spec["template"]["spec"]["restartPolicy"] == "Never"


def test_a_run_has_a_token_and_its_steps_have_none(run_job: Object, step_job: Object) -> None:
    run, step = (job["spec"]["template"]["spec"] for job in (run_job, step_job))
    assert (run["serviceAccountName"], run["automountServiceAccountToken"]) == ("dagster-run", True)
    assert (step["serviceAccountName"], step["automountServiceAccountToken"]) == (
        "dagster-step",
        False,
    )
    accounts = {it["metadata"]["name"] for it in of_kind(render("base"), "ServiceAccount")}
    assert {"dagster-run", "dagster-step"} <= accounts


def test_what_a_step_asks_for_takes_the_place_of_what_a_run_does(
    run_job: Object, step_job: Object
) -> None:
    (run,), (step,) = (job["spec"]["template"]["spec"]["containers"] for job in (run_job, step_job))
    assert run["resources"]["limits"] == {"cpu": "1", "memory": "1Gi"}
    asked = {"cpu": "2000m", "memory": "4Gi", "nvidia.com/gpu": "1"}
    assert step["resources"] == {"requests": asked, "limits": asked}
