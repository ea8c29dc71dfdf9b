"""Who may do what: pods, tokens, the API server, the network, Secrets."""

from __future__ import annotations

from base64 import b64decode
from typing import Any

import pytest

from mlops_assets_tests.k8s.manifests import (
    OVERLAYS,
    Object,
    breaches,
    named,
    of_kind,
    render,
    templates,
)

COMPONENT = "app.kubernetes.io/component"

ACCESS = {
    "dagster-daemon": {
        ("batch", "jobs"): {"create", "list", "delete"},
        ("batch", "jobs/status"): {"get"},
        ("", "pods"): {"list", "delete"},
        ("", "pods/log"): {"get"},
        ("", "events"): {"list"},
    },
    "dagster-webserver": {
        ("batch", "jobs"): {"list", "delete"},
        ("", "pods"): {"list", "delete"},
    },
    "dagster-run": {
        ("batch", "jobs"): {"create", "list", "delete"},
        ("batch", "jobs/status"): {"get"},
        ("", "pods"): {"list", "delete"},
        ("", "pods/log"): {"get"},
        ("", "events"): {"list"},
    },
    "dagster-pipes": {
        ("", "pods"): {"create", "get", "delete"},
        ("", "pods/log"): {"get"},
    },
}
"""All that anybody may ask the API server for."""


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_pod_asks_for_more_than_the_level_restricted_allows(overlay: str) -> None:
    objects = render(overlay)
    assert {name: breaches(it["spec"]) for name, it in templates(objects).items()} == {
        name: [] for name in templates(objects)
    }
    labels = named(objects, "Namespace", "mlops")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_only_the_webserver_and_the_daemon_get_a_token(overlay: str) -> None:
    objects = render(overlay)
    with_token = {
        name
        for name, template in templates(objects).items()
        if template["spec"]["automountServiceAccountToken"]
    }
    assert with_token == {"dagster-webserver", "dagster-daemon"}
    accounts = of_kind(objects, "ServiceAccount")
    assert not any(account["automountServiceAccountToken"] for account in accounts)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nobody_may_do_more_than_what_is_called(overlay: str) -> None:
    objects = render(overlay)
    granted: dict[str, dict[tuple[str, str], set[str]]] = {}
    for binding in of_kind(objects, "RoleBinding"):
        ((subject),) = binding["subjects"]
        assert subject == {
            "kind": "ServiceAccount",
            "name": binding["metadata"]["name"],
            "namespace": "mlops",
        }
        role = named(objects, binding["roleRef"]["kind"], binding["roleRef"]["name"])
        granted[subject["name"]] = {
            (group, resource): set(rule["verbs"])
            for rule in role["rules"]
            for group in rule["apiGroups"]
            for resource in rule["resources"]
        }
    assert granted == ACCESS
    assert not of_kind(objects, "ClusterRole", "ClusterRoleBinding")
    assert len(of_kind(objects, "Role")) == len(ACCESS)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_secrets_are_in_git_for_local_use_only(overlay: str) -> None:
    secrets = of_kind(render(overlay), "Secret")
    if overlay in ("base", "overlays/cloud"):
        assert not secrets
    values = {b64decode(value) for it in secrets for value in it.get("data", {}).values()}
    assert values <= {b"for-local-use-only"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_value_of_the_environment_looks_like_a_secret(overlay: str) -> None:
    for config_map in of_kind(render(overlay), "ConfigMap"):
        for name in config_map["data"]:
            assert not any(word in name.upper() for word in ("PASSWORD", "SECRET", "TOKEN", "KEY"))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_is_not_allowed_is_denied_in_both_directions(overlay: str) -> None:
    assert named(render(overlay), "NetworkPolicy", "default-deny")["spec"] == {
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
    }


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nobody_reaches_the_webserver_but_the_authenticating_proxy(overlay: str) -> None:
    peers = [
        peer["podSelector"]["matchLabels"]
        for policy in of_kind(render(overlay), "NetworkPolicy")
        if _selects(policy, "webserver")
        for rule in policy["spec"].get("ingress", [])
        for peer in rule["from"]
    ]
    expected = [{COMPONENT: "auth-proxy"}] if overlay == "overlays/cloud" else []
    assert peers == expected


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nobody_calls_the_code_location_but_the_webserver_and_the_daemon(overlay: str) -> None:
    assert _callers(render(overlay), "code") == {"webserver", "daemon"}


def test_the_way_in_leads_to_the_proxy_alone() -> None:
    objects = render("overlays/cloud")
    assert not [it for overlay in OVERLAYS[:3] for it in of_kind(render(overlay), "Ingress")]
    (ingress,) = of_kind(objects, "Ingress")
    backends = [
        path["backend"]["service"]["name"]
        for rule in ingress["spec"]["rules"]
        for path in rule["http"]["paths"]
    ]
    assert backends == ["auth-proxy"]
    assert "defaultBackend" not in ingress["spec"]
    assert ingress["spec"]["tls"]
    policy = named(objects, "NetworkPolicy", "auth-proxy")["spec"]
    (rule,) = policy["ingress"]
    (peer,) = rule["from"]
    assert set(peer) == {"namespaceSelector"}


def test_pages_of_others_cannot_use_somebodys_log_in() -> None:
    """The webserver executes what any page in a browser asks it for: the cookie must stay away."""
    (proxy,) = templates(render("overlays/cloud"))["auth-proxy"]["spec"]["containers"]
    assert {"--cookie-samesite=lax", "--cookie-secure=true"} <= set(proxy["args"])
    assert not [it for it in proxy["args"] if "skip-auth" in it or "trusted-ip" in it]


def test_no_service_is_open_to_the_outside() -> None:
    for overlay in OVERLAYS:
        services = of_kind(render(overlay), "Service")
        assert {it["spec"].get("type", "ClusterIP") for it in services} == {"ClusterIP"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_data_are_out_of_reach_of_the_webserver_and_the_daemon(overlay: str) -> None:
    for name in ("dagster-webserver", "dagster-daemon"):
        pod = templates(render(overlay))[name]["spec"]
        sources = [it for box in pod["containers"] for it in box["envFrom"]]
        assert not [it for it in sources if "secretRef" in it]
    assert not {"webserver", "daemon"} & _callers(render("overlays/local"), "store")


def _selects(policy: Object, component: str) -> bool:
    return component in _chosen(policy["spec"]["podSelector"])


def _callers(objects: list[Object], component: str) -> set[str]:
    """Return the components from which policies let something in."""
    return {
        name
        for policy in of_kind(objects, "NetworkPolicy")
        if _selects(policy, component)
        for rule in policy["spec"].get("ingress", [])
        for peer in rule["from"]
        for name in _chosen(peer["podSelector"])
    }


def _chosen(selector: dict[str, Any]) -> list[str]:
    labels = selector.get("matchLabels", {})
    listed = [
        value
        for it in selector.get("matchExpressions", [])
        if it["key"] == COMPONENT
        for value in it.get("values", [])
    ]
    return [*listed, *([labels[COMPONENT]] if COMPONENT in labels else [])]
