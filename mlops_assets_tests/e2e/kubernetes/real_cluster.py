"""The overlay `local` on a real cluster, in a namespace that is made for the tests and deleted.

It needs kubectl, a cluster on which the image can be pulled (or has been loaded) and a default
storage class. The nodes should have `nvidia.com/gpu` to give, simulated or not: one step asks for
it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml
from kubernetes.config import new_client_from_config

from mlops_assets_tests.e2e.kubernetes.runs import Deployment
from mlops_assets_tests.servers import free_port, wait_for

OVERLAY = Path(__file__).parents[3] / "k8s" / "overlays" / "local"
INSTANCE = OVERLAY.parents[1] / "base" / "dagster.yaml"
FOLDER = "/opt/mlops/pipelines"
NAMESPACE = "mlops"
READY_SECONDS = 600


@contextmanager
def real_deployment(
    kubeconfig: Path, image: str, pipelines: Mapping[str, str]
) -> Iterator[Deployment]:
    """Deploy the project with the tests' pipeline files, and delete all of it in the end.

    Parameters
    ----------
    kubeconfig : Path
        Of somebody who may create the namespace.
    image : str
        Of the project, with a tag.
    pipelines : mapping of str to str
        Pipeline files by name.
    """
    environment = {**os.environ, "KUBECONFIG": str(kubeconfig)}

    def kubectl(*arguments: str) -> None:
        subprocess.run(["kubectl", *arguments], env=environment, check=True)

    with TemporaryDirectory() as name:
        folder = Path(name)
        _write_overlay(folder, image, pipelines)
        kubectl("apply", "-k", str(folder))
        port, forward = free_port(), None
        try:
            for kind in ("statefulset", "deployment"):
                kubectl("rollout", "status", kind, "-n", NAMESPACE, f"--timeout={READY_SECONDS}s")
            forward = subprocess.Popen(
                [
                    "kubectl",
                    "port-forward",
                    "-n",
                    NAMESPACE,
                    "service/dagster-webserver",
                    f"{port}:3000",
                ],
                env=environment,
            )
            wait_for(port)
            api = new_client_from_config(str(kubeconfig))
            yield Deployment(f"http://127.0.0.1:{port}", api, NAMESPACE, image)
        finally:
            if forward is not None:
                forward.terminate()
                forward.wait()
            kubectl("delete", "-k", str(folder), "--wait=false")


def _write_overlay(folder: Path, image: str, pipelines: Mapping[str, str]) -> None:
    """Write a kustomization that adds the pipeline files to code, runs and steps."""
    name, _, tag = image.rpartition(":")
    for pipeline, text in pipelines.items():
        (folder / f"{pipeline}.yaml").write_text(text)
    instance = yaml.safe_load(INSTANCE.read_text())
    instance["run_monitoring"]["poll_interval_seconds"] = 5
    volume = {"name": "pipelines", "config_map": {"name": "test-pipelines"}}
    pods = instance["run_launcher"]["config"]["run_k8s_config"]
    pods["pod_spec_config"]["volumes"].append(volume)
    pods["container_config"]["volume_mounts"].append({"name": "pipelines", "mount_path": FOLDER})
    (folder / "dagster.yaml").write_text(yaml.safe_dump(instance))
    mounted = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "mlops-code"},
        "spec": {
            "template": {
                "spec": {
                    "containers": [
                        {
                            "name": "code",
                            "volumeMounts": [{"name": "pipelines", "mountPath": FOLDER}],
                        }
                    ],
                    "volumes": [{"name": "pipelines", "configMap": {"name": "test-pipelines"}}],
                }
            }
        },
    }
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": NAMESPACE,
        "resources": [os.path.relpath(OVERLAY, folder)],
        "images": [{"name": "mlops-assets", "newName": name, "newTag": tag}],
        "configMapGenerator": [
            {
                "name": "test-pipelines",
                "files": [f"{pipeline}.yaml" for pipeline in pipelines],
                "options": {"disableNameSuffixHash": True},
            },
            {"name": "dagster-instance", "behavior": "replace", "files": ["dagster.yaml"]},
            {
                "name": "mlops-environment",
                "behavior": "merge",
                "literals": [f"MLOPS_PIPELINES={FOLDER}"],
            },
        ],
        "patches": [{"patch": yaml.safe_dump(mounted)}],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
