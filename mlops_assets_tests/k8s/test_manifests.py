"""What kubectl makes of k8s/: that it is valid, and that its parts fit together."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from mlops_assets_tests.k8s.manifests import (
    K8S,
    OVERLAYS,
    OWN_IMAGE,
    PROJECT,
    SUPPORTED,
    Object,
    containers,
    loose_ends,
    named,
    of_kind,
    render,
    render_folder,
    templates,
)

NEWLY_CREATED = {"mlops-store", "mlops-alerts", "dagster-postgresql", "auth-proxy", "dagster-tls"}
"""The Secrets that docs/kubernetes.md tells to create."""

OF_RUNS = {"run_worker", "step_worker"}
"""The components that dagster-k8s names."""


@pytest.mark.parametrize("version", SUPPORTED)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_is_valid_in_every_supported_kubernetes(overlay: str, version: str) -> None:
    objects = render(overlay)
    # an object of a kind without a schema raises SchemaNotFoundError
    validated = {kubernetes_validate.validate(it, version, strict=True) for it in objects}
    assert validated == {version}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_is_there_once_and_in_the_namespace(overlay: str) -> None:
    objects = render(overlay)
    names = [(it["kind"], it["metadata"]["name"]) for it in objects]
    assert len(names) == len(set(names)) > 20
    assert {it["metadata"].get("namespace") for it in objects if it["kind"] != "Namespace"} == {
        "mlops"
    }
    assert ("Namespace", "mlops") in names


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_parts_of_a_pod_fit_together(overlay: str) -> None:
    for name, template in templates(render(overlay)).items():
        pod = template["spec"]
        assert not loose_ends(pod), name
        volumes = {volume["name"] for volume in pod.get("volumes", [])} | _claimed(overlay, name)
        mounted = {it["name"] for box in containers(pod) for it in box.get("volumeMounts", [])}
        assert mounted == volumes, name


def _claimed(overlay: str, name: str) -> set[str]:
    sets = [it for it in of_kind(render(overlay), "StatefulSet") if it["metadata"]["name"] == name]
    return {
        claim["metadata"]["name"] for it in sets for claim in it["spec"]["volumeClaimTemplates"]
    }


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_a_pod_refers_to_is_there_or_has_to_be_created(overlay: str) -> None:
    objects = render(overlay)
    config_maps = {it["metadata"]["name"] for it in of_kind(objects, "ConfigMap")}
    accounts = {it["metadata"]["name"] for it in of_kind(objects, "ServiceAccount")}
    for template in templates(objects).values():
        assert set(_values(template, "configMapRef", "configMap")) <= config_maps
        assert set(_values(template, "secretRef", "secretKeyRef")) <= NEWLY_CREATED
        assert template["spec"].get("serviceAccountName", "default") in accounts | {"default"}


def test_the_docs_name_every_secret_and_every_account() -> None:
    text = (PROJECT / "docs" / "kubernetes.md").read_text()
    accounts = {
        it["metadata"]["name"]
        for overlay in OVERLAYS[:2]
        for it in of_kind(render(overlay), "ServiceAccount")
    }
    assert not {name for name in NEWLY_CREATED | accounts if f"`{name}`" not in text}


def _values(node: Any, *keys: str) -> list[str]:
    """Return the `name` of everything in a template that is called one of `keys`."""
    if isinstance(node, list):
        return [name for it in node for name in _values(it, *keys)]
    if not isinstance(node, dict):
        return []
    own = [node[key]["name"] for key in keys if key in node]
    return own + [name for it in node.values() for name in _values(it, *keys)]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_services_and_budgets_select_pods_that_have_the_port(overlay: str) -> None:
    objects = render(overlay)
    pods = list(templates(objects).values())

    def selected(labels: dict[str, str]) -> list[Object]:
        return [it for it in pods if labels.items() <= it["metadata"]["labels"].items()]

    for service in of_kind(objects, "Service"):
        (pod,) = selected(service["spec"]["selector"])
        ports = {port["name"] for it in pod["spec"]["containers"] for port in it["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    budgets = of_kind(objects, "PodDisruptionBudget")
    for budget in budgets:
        assert len(selected(budget["spec"]["selector"]["matchLabels"])) == 1
    deployments = {it["metadata"]["name"] for it in of_kind(objects, "Deployment")}
    assert {it["metadata"]["name"] for it in budgets} == deployments


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_network_policies_speak_of_components_that_there_are(overlay: str) -> None:
    objects = render(overlay)
    label = "app.kubernetes.io/component"
    there = {it["metadata"]["labels"][label] for it in templates(objects).values()}
    spoken_of: set[str] = set()
    for policy in of_kind(objects, "NetworkPolicy"):
        spoken_of |= _components(policy["spec"])
    assert spoken_of == there | OF_RUNS


def _components(node: Any) -> set[str]:
    if isinstance(node, list):
        return {name for it in node for name in _components(it)}
    if not isinstance(node, dict):
        return set()
    if node.get("key") == "app.kubernetes.io/component":
        return set(node.get("values", []))
    own = {node[it] for it in node if it == "app.kubernetes.io/component"}
    return own | {name for it in node.values() for name in _components(it)}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_whatever_runs_all_the_time_has_probes(overlay: str) -> None:
    probes = {"startupProbe", "livenessProbe"}
    for name, template in templates(render(overlay)).items():
        for container in template["spec"]["containers"]:
            # nobody sends anything to the daemon, so it need not say when it is ready
            needed = probes if name == "dagster-daemon" else probes | {"readinessProbe"}
            assert needed <= set(container), name


def test_there_is_never_a_second_daemon() -> None:
    for overlay in OVERLAYS:
        spec = named(render(overlay), "Deployment", "dagster-daemon")["spec"]
        assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})


def test_the_cloud_spreads_two_of_what_there_can_be_two_of() -> None:
    objects = render("overlays/cloud")
    for name in ("dagster-webserver", "mlops-code", "auth-proxy"):
        spec = named(objects, "Deployment", name)["spec"]
        assert spec["replicas"] == 2
        spread = spec["template"]["spec"]["topologySpreadConstraints"]
        assert spread[0]["topologyKey"] == "kubernetes.io/hostname"
        assert all(it["labelSelector"] == spec["selector"] for it in spread)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_one_line_changes_the_image_of_everything_and_of_the_runs(
    overlay: str, tmp_path: Path
) -> None:
    image = {"name": OWN_IMAGE, "newName": "registry.test/team/ours", "newTag": "7"}
    if overlay == "overlays/cloud":
        image["name"] = "registry.example.org/mlops-assets"
    (tmp_path / "kustomization.yaml").write_text(
        yaml.safe_dump(
            {"resources": [os.path.relpath(K8S / overlay, tmp_path.resolve())], "images": [image]}
        )
    )
    before, after = templates(render(overlay)), templates(render_folder(tmp_path.resolve()))
    for name, template in after.items():
        for container, old in zip(
            containers(template["spec"]), containers(before[name]["spec"]), strict=True
        ):
            was_ours = old["image"].partition(":")[0].endswith(OWN_IMAGE)
            new = "registry.test/team/ours:7" if was_ours else old["image"]
            assert container["image"] == new
    (code,) = after["mlops-code"]["spec"]["containers"]
    environment = {it["name"]: it.get("value") for it in code["env"]}
    assert environment["DAGSTER_CURRENT_IMAGE"] == code["image"] == "registry.test/team/ours:7"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_changed_environment_rolls_out_what_reads_it_and_reaches_the_runs(
    overlay: str, tmp_path: Path
) -> None:
    (tmp_path / "kustomization.yaml").write_text(
        yaml.safe_dump(
            {
                "resources": [os.path.relpath(K8S / overlay, tmp_path.resolve())],
                "namespace": "mlops",
                "configMapGenerator": [
                    {"name": "mlops-environment", "behavior": "merge", "literals": ["NEW=1"]}
                ],
            }
        )
    )
    names = []
    for objects in (render(overlay), render_folder(tmp_path.resolve())):
        found = of_kind(objects, "ConfigMap")
        (name,) = (it["metadata"]["name"] for it in found if "MLOPS_STORE_URL" in it["data"])
        for component in ("mlops-code", "dagster-daemon", "dagster-webserver"):
            pod = templates(objects)[component]["spec"]
            for container in containers(pod):
                assert {"configMapRef": {"name": name}} in container["envFrom"]
                value = {"name": "MLOPS_ENVIRONMENT_CONFIG_MAP", "value": name}
                assert value in container["env"]
        names.append(name)
    assert names[0] != names[1]


def test_the_workspace_names_the_service_of_the_code_location() -> None:
    workspace = yaml.safe_load((K8S / "base" / "workspace.yaml").read_text())
    (location,) = workspace["load_from"]
    server = location["grpc_server"]
    service = named(render("base"), "Service", server["host"])
    assert [port["port"] for port in service["spec"]["ports"]] == [server["port"]]


def test_all_pods_of_the_gpu_overlay_leave_gpu_nodes_to_the_steps() -> None:
    for template in templates(render("overlays/gpu")).values():
        (term,) = template["spec"]["affinity"]["nodeAffinity"][
            "preferredDuringSchedulingIgnoredDuringExecution"
        ]
        assert term["preference"]["matchExpressions"] == [
            {"key": "nvidia.com/gpu.present", "operator": "DoesNotExist"}
        ]
        assert not [
            it for it in containers(template["spec"]) if "nvidia.com/gpu" in str(it["resources"])
        ]


def test_the_gpu_overlay_limits_what_steps_may_take_at_once() -> None:
    objects = render("overlays/gpu")
    quota = named(objects, "ResourceQuota", "gpu")["spec"]["hard"]["requests.nvidia.com/gpu"]
    (pool,) = templates(objects)["dagster-daemon"]["spec"]["initContainers"]
    assert pool["args"] == ["dagster", "instance", "concurrency", "set", "gpu", quota]
