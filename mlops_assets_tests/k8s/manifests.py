"""The manifests as kubectl renders them, and what the tests ask of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

Object = dict[str, Any]

PROJECT = Path(__file__).parents[2]
K8S = PROJECT / "k8s"
OVERLAYS = ("base", "overlays/local", "overlays/gpu", "overlays/cloud")

SUPPORTED = ("1.34", "1.37")
"""The oldest and the newest Kubernetes in which everything has to be valid.

In November 2026 upstream supports 1.35 to 1.37, and clouds the one before."""

OWN_IMAGE = "mlops-assets"


def kubectl() -> str:
    """Return the path of kubectl; skip the test where there is none."""
    beside_python = str(Path(sys.executable).parent)
    found = shutil.which("kubectl", path=os.pathsep.join([beside_python, os.environ["PATH"]]))
    if found is None:
        pytest.skip("needs kubectl 1.27 or newer; `.ci/kubectl` brings it")
    return found


def render(overlay: str) -> list[Object]:
    """Return the objects of `OVERLAYS`; each is rendered once."""
    return _render(K8S / overlay, kubectl())


def render_folder(folder: Path) -> list[Object]:
    """Return the objects of a folder with a kustomization."""
    return _render.__wrapped__(folder, kubectl())


@cache
def _render(folder: Path, program: str) -> list[Object]:
    done = subprocess.run([program, "kustomize", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # warnings, of what is deprecated
    return [it for it in yaml.safe_load_all(done.stdout) if it is not None]


def of_kind(objects: list[Object], *kinds: str) -> list[Object]:
    return [it for it in objects if it["kind"] in kinds]


def named(objects: list[Object], kind: str, name: str) -> Object:
    (found,) = (it for it in of_kind(objects, kind) if it["metadata"]["name"] == name)
    return found


def templates(objects: list[Object]) -> dict[str, Object]:
    """Return the pod templates by the name of what makes the pods."""
    makers = of_kind(objects, "Deployment", "StatefulSet", "DaemonSet", "Job")
    return {it["metadata"]["name"]: it["spec"]["template"] for it in makers}


def containers(pod: Object) -> Iterator[Object]:
    """Yield the containers of a pod's `spec`, those that come first included."""
    yield from pod.get("initContainers", [])
    yield from pod["containers"]


def breaches(pod: Object) -> list[str]:
    """Return what is wrong with the `spec` of a pod.

    That is what Pod Security's level "restricted" refuses, and what is asked here beyond it: users
    by number, a read-only root, and resources.
    """
    found: list[str] = []
    own = pod.get("securityContext", {})

    def demand(holds: bool, what: str) -> None:
        if not holds:
            found.append(what)

    for name in ("hostNetwork", "hostPID", "hostIPC"):
        demand(not pod.get(name), name)
    demand(own.get("runAsNonRoot") is True, "runAsNonRoot")
    demand(own.get("runAsUser", 0) > 0, "runAsUser")
    demand(own.get("seccompProfile") == {"type": "RuntimeDefault"}, "seccompProfile")
    allowed = {"configMap", "emptyDir", "persistentVolumeClaim", "projected", "secret"}
    for volume in pod.get("volumes", []):
        demand(set(volume) - {"name"} <= allowed, f"volume {volume}")
    for container in containers(pod):
        name, context = container["name"], container.get("securityContext", {})
        demand(context.get("allowPrivilegeEscalation") is False, f"{name}: privilege escalation")
        demand(context.get("capabilities") == {"drop": ["ALL"]}, f"{name}: capabilities")
        demand(context.get("readOnlyRootFilesystem") is True, f"{name}: writable root")
        overrides = {"privileged", "runAsUser", "runAsNonRoot", "seccompProfile", "procMount"}
        demand(not overrides & set(context), f"{name}: overrides the pod's")
        demand(not any("hostPort" in port for port in container.get("ports", [])), "hostPort")
        for kind in ("requests", "limits"):
            asked = container.get("resources", {}).get(kind, {})
            demand({"cpu", "memory"} <= set(asked), f"{name}: {kind}")
    return found


def loose_ends(pod: Object) -> list[str]:
    """Return what in the `spec` of a pod does not fit together."""
    volumes = [volume["name"] for volume in pod.get("volumes", [])]
    found = [f"two volumes {name}" for name in set(volumes) if volumes.count(name) > 1]
    for container in containers(pod):
        names = [variable["name"] for variable in container.get("env", [])]
        found += [f"two values of {name}" for name in set(names) if names.count(name) > 1]
        paths = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
        found += [f"two mounts at {path}" for path in set(paths) if paths.count(path) > 1]
    return found
