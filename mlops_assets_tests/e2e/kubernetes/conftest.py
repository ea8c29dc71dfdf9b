"""The whole deployment: on a double of Kubernetes whose pods are processes, or on a real cluster.

The double comes with PostgreSQL, an S3-compatible server, the code location, the web server and the
daemon as processes of this machine, with the instance, the permissions and the service accounts of
`k8s/base`. With ``MLOPS_TEST_KUBECONFIG`` and ``MLOPS_TEST_IMAGE`` the same tests run on a real
cluster: see `real_cluster`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.client import ApiClient
from kubernetes.config import new_client_from_config

from mlops_assets_tests.e2e.kubernetes.pipelines import pipelines
from mlops_assets_tests.e2e.kubernetes.real_cluster import real_deployment
from mlops_assets_tests.e2e.kubernetes.runs import Deployment
from mlops_assets_tests.kubernetes import KubernetesDouble, Node
from mlops_assets_tests.servers import (
    free_port,
    postgres,
    postgres_programs,
    stop_group,
    wait_for,
)
from mlops_assets_tests.store.conftest import ACCESS_KEY, BUCKET, SECRET_KEY
from mlops_assets_tests.store.conftest import s3_server as s3_server

ROOT = Path(__file__).parents[3]
BASE = ROOT / "k8s" / "base"
IMAGE = "mlops-assets:test"
NAMESPACE = "mlops"

# Read at import: other fixtures clear the environment.
KUBECONFIG = os.environ.get("MLOPS_TEST_KUBECONFIG")
REAL_IMAGE = os.environ.get("MLOPS_TEST_IMAGE")

IMPORTS = {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
"""Every process of the deployment imports what the tests do."""

NODES = [
    Node(name="node-1"),
    Node(
        name="spare",
        labels={"disk": "spare"},
        taints=[{"key": "spare", "value": "", "effect": "NoSchedule"}],
    ),
    Node(
        name="gpu",
        gpus=1,
        labels={"nvidia.com/gpu.product": "NVIDIA-L4"},
        taints=[{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}],
    ),
]


@pytest.fixture(scope="module")
def double(
    tmp_path_factory: pytest.TempPathFactory, s3_server: str
) -> Iterator[KubernetesDouble | None]:
    """The double; None when the tests run on a real cluster."""
    if KUBECONFIG:
        yield None
        return
    if postgres_programs() is None:
        pytest.skip("needs a PostgreSQL server: apt-get install postgresql")
    root = tmp_path_factory.mktemp("cluster")
    with postgres() as server:
        environment = {
            "MLOPS_DEPLOYMENT": "k8s",
            "MLOPS_PIPELINES": str(root / "pipelines"),
            "MLOPS_STORE_URL": f"s3://{BUCKET}/{root.name}",
            "MLOPS_S3_ENDPOINT_URL": s3_server,
            "MLFLOW_TRACKING_URI": f"sqlite:///{root / 'mlflow.db'}",
            "DAGSTER_PG_HOST": "127.0.0.1",
            "DAGSTER_PG_DB": "dagster",
            "DAGSTER_PG_USERNAME": "dagster",
            "DAGSTER_PG_PORT": str(server.port),
            "DAGSTER_DISABLE_TELEMETRY": "yes",
        }
        manifests = [
            *yaml.safe_load_all((BASE / "access.yaml").read_text()),
            _config_map("mlops-environment", environment),
            _config_map("dagster-instance", {"dagster.yaml": _instance(root)}),
            _secret("dagster-postgresql", {"postgresql-password": "dagster"}),
            _secret(
                "mlops-store",
                {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY},
            ),
        ]
        with KubernetesDouble(
            root,
            nodes=NODES,
            images=(IMAGE,),
            namespace=NAMESPACE,
            manifests=manifests,
            longest_grace=5,
            environment=IMPORTS,
        ) as cluster:
            yield cluster


@pytest.fixture(scope="module")
def deployment(double: KubernetesDouble | None) -> Iterator[Deployment]:
    """The deployment, ready to launch runs."""
    if double is None:
        assert KUBECONFIG is not None
        assert REAL_IMAGE, (
            "MLOPS_TEST_KUBECONFIG needs MLOPS_TEST_IMAGE beside it: registry/name:tag"
        )
        with real_deployment(Path(KUBECONFIG), REAL_IMAGE, pipelines(REAL_IMAGE)) as deployed:
            yield deployed
        return
    (double.root / "home").mkdir()
    (double.root / "home" / "dagster.yaml").write_text(_instance(double.root))
    (double.root / "pipelines").mkdir()
    for name, text in pipelines(IMAGE).items():
        (double.root / "pipelines" / f"{name}.yaml").write_text(text)
    code, web = free_port(), free_port()
    workspace = yaml.safe_load((BASE / "workspace.yaml").read_text())
    workspace["load_from"][0]["grpc_server"].update(host="127.0.0.1", port=code)
    (double.root / "workspace.yaml").write_text(yaml.safe_dump(workspace))
    with ExitStack() as stack:
        api: ApiClient = new_client_from_config(str(double.kubeconfig()))
        deployed = Deployment(f"http://127.0.0.1:{web}", api, NAMESPACE, IMAGE)
        start = _starter(double, deployed.environment, stack)
        start("mlops-code", "dagster", "api", "grpc", "-m", "mlops_assets.definitions", "-p", code)
        wait_for(code)
        start("dagster-webserver", "dagster-webserver", "-p", web, "-w", "workspace.yaml")
        start("dagster-daemon", "dagster-daemon", "run", "-w", "workspace.yaml")
        wait_for(web)
        yield deployed


@pytest.fixture
def faults(double: KubernetesDouble | None) -> KubernetesDouble:
    """The double, for what cannot be done to a real cluster from outside."""
    if double is None:
        pytest.skip("cannot be done to a real cluster from outside")
    return double


def _starter(double: KubernetesDouble, given: dict[str, str], stack: ExitStack) -> Any:
    """Return what starts a component with the environment and token of its Deployment."""

    def start(account: str, program: str, *arguments: object) -> None:
        environment = {
            **{name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ},
            **IMPORTS,
            **given,
            "DAGSTER_HOME": str(double.root / "home"),
            "DAGSTER_PG_PASSWORD": "dagster",
            "DAGSTER_CURRENT_IMAGE": IMAGE,
            "MLOPS_NAMESPACE": NAMESPACE,
            "MLOPS_ENVIRONMENT_CONFIG_MAP": "mlops-environment",
        }
        if account != "mlops-code":
            environment["KUBECONFIG"] = str(double.kubeconfig(account))
        log = stack.enter_context((double.root / f"{account}.log").open("w"))
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name(program)), *map(str, arguments)],
            env=environment,
            cwd=double.root,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        stack.callback(stop_group, process)

    return start


def _instance(root: Path) -> str:
    """Return the shipped `dagster.yaml` for processes of this machine, which looks more often."""
    instance = yaml.safe_load((BASE / "dagster.yaml").read_text())
    instance["storage"]["postgres"]["postgres_db"]["port"] = {"env": "DAGSTER_PG_PORT"}
    instance["run_monitoring"]["poll_interval_seconds"] = 3
    launcher = instance["run_launcher"]["config"]
    launcher["load_incluster_config"] = False  # a kubeconfig in place of the mounted token
    launcher["dagster_home"] = str(root / "home")
    for mount in launcher["run_k8s_config"]["container_config"]["volume_mounts"]:
        if mount["name"] == "home":
            mount["mount_path"] = str(root / "home")
    return str(yaml.safe_dump(instance))


def _config_map(name: str, data: dict[str, str]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def _secret(name: str, data: dict[str, str]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data}
