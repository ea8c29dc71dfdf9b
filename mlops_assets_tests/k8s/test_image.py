"""The image: what is locked for it, and that its Dockerfile and the manifests agree."""

from __future__ import annotations

import re

import pytest
import yaml

from mlops_assets_tests.k8s.manifests import K8S, PROJECT, render, templates

DOCKERFILE = (K8S / "Dockerfile").read_text()
DEVELOPMENT = {"pytest", "moto", "boto3", "ruff", "mypy", "playwright", "uv", "hatchling"}


def locked(name: str) -> set[str]:
    """Return the pins of a lock without extras, such as `six==1.17.0`."""
    lines = (PROJECT / name).read_text().splitlines()
    pins = {re.sub(r"\[.*]", "", line.split()[0]) for line in lines if re.match(r"[a-z0-9]", line)}
    assert pins, name
    return pins


def names(pins: set[str]) -> set[str]:
    return {pin.partition("=")[0] for pin in pins}


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-gpu.lock"])
def test_the_image_has_the_versions_that_the_tests_run_with(lock: str) -> None:
    only_here = locked(f"k8s/{lock}") - locked("requirements.lock")
    gpu = {"xgboost", "nvidia-nccl-cu12", "nvidia-nccl-cu13"} if "gpu" in lock else set()
    assert names(only_here) == gpu
    assert not names(locked(f"k8s/{lock}")) & DEVELOPMENT
    assert {"dagster-k8s", "dagster-postgres"} <= names(locked(f"k8s/{lock}"))


def test_xgboost_has_the_same_version_with_cuda_as_without() -> None:
    ours = {pin.replace("xgboost-cpu", "xgboost") for pin in locked("requirements.lock")}
    assert {pin for pin in locked("k8s/requirements-gpu.lock") if "xgboost" in pin} <= ours


def test_what_builds_the_image_is_locked_as_well() -> None:
    build = locked("k8s/requirements-build.lock")
    assert "hatchling" in names(build)
    assert build <= locked("requirements.lock")


def test_the_image_and_the_manifests_agree_on_the_user_and_the_folders() -> None:
    user = re.search(r"^USER (\d+):(\d+)$", DOCKERFILE, re.MULTILINE)
    home = re.search(r"DAGSTER_HOME=(\S+)", DOCKERFILE)
    assert user is not None
    assert home is not None
    context = {"runAsUser": int(user[1]), "runAsGroup": int(user[2])}
    for name in ("dagster-webserver", "dagster-daemon", "mlops-code"):
        pod = templates(render("base"))[name]["spec"]
        assert context.items() <= pod["securityContext"].items()
        mounts = {it["name"]: it["mountPath"] for it in pod["containers"][0]["volumeMounts"]}
        assert (mounts["tmp"], mounts["home"]) == ("/tmp", home[1])
        # an entrypoint of the image would come before the arguments of runs
        assert "command" not in pod["containers"][0]
    launcher = yaml.safe_load((K8S / "base" / "dagster.yaml").read_text())["run_launcher"]["config"]
    assert launcher["dagster_home"] == home[1]
    assert "ENTRYPOINT" not in DOCKERFILE
