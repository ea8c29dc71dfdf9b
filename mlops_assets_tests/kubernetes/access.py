"""Who may do what: the certificate, the kubeconfig of each service account, and RBAC."""

from __future__ import annotations

import base64
import ipaddress
import json
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from mlops_assets_tests.kubernetes.objects import ApiError, Object, qualified

ADMIN = "admin"


def write_certificate(folder: Path) -> Path:
    """Write a key and a certificate of its own for 127.0.0.1; return the file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "kubernetes")])
    unused = ["content_commitment", "key_encipherment", "data_encipherment", "key_agreement"]
    unused += ["crl_sign", "encipher_only", "decipher_only"]
    usage = x509.KeyUsage(
        digital_signature=True, key_cert_sign=True, **dict.fromkeys(unused, False)
    )
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=7))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    file = folder / "server.pem"
    file.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return file


@dataclass
class Access:
    """Tokens, kubeconfigs and rules.

    Everybody may do everything until a RoleBinding or ClusterRoleBinding is known; from then on a
    token is needed, and the rules decide. The administrator's token is always enough.
    """

    folder: Path
    url: str
    certificate: bytes
    roles: list[Object] = field(default_factory=list)
    bindings: list[Object] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def kubeconfig(self, namespace: str, service_account: str | None) -> Path:
        """Return a kubeconfig for a service account; for the administrator without one."""
        token = f"{namespace}:{service_account}" if service_account else ADMIN
        file = self.folder / f"{namespace}.{service_account or 'admin'}.kubeconfig"
        with self._lock:
            if not file.exists():
                file.write_text(json.dumps(self._kubeconfig(namespace, token), indent=1))
        return file

    def _kubeconfig(self, namespace: str, token: str) -> Object:
        authority = base64.b64encode(self.certificate).decode()
        cluster = {"server": self.url, "certificate-authority-data": authority}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "double",
            "clusters": [{"name": "double", "cluster": cluster}],
            "users": [{"name": "user", "user": {"token": token}}],
            "contexts": [
                {
                    "name": "double",
                    "context": {"cluster": "double", "user": "user", "namespace": namespace},
                }
            ],
        }

    def apply(self, obj: Object) -> None:
        """Add or replace a role or a binding."""
        kept = self.bindings if obj["kind"].endswith("Binding") else self.roles
        kept[:] = [it for it in kept if _identity(it) != _identity(obj)] + [obj]

    def user(self, authorization: str | None) -> str:
        """Return who sends a request."""
        token = (authorization or "").removeprefix("Bearer ").strip()
        if token == ADMIN:
            return ADMIN
        if not token:
            return "system:anonymous"
        namespace, colon, name = token.partition(":")
        if not colon and self.bindings:
            raise ApiError(401, "Unauthorized")
        return f"system:serviceaccount:{namespace}:{name}" if colon else token

    def check(
        self, user: str, verb: str, resource: str, sub: str, namespace: str, name: str
    ) -> None:
        """Raise 403 unless somebody may do something."""
        if user == ADMIN or not self.bindings:
            return
        wanted = f"{resource}/{sub}" if sub else resource
        group = qualified(resource).partition(".")[2]
        if any(_allows(rule, verb, group, wanted, name) for rule in self._rules(user, namespace)):
            return
        where = f' in the namespace "{namespace}"' if namespace else " at the cluster scope"
        which = f' "{name}"' if name else ""
        raise ApiError(
            403,
            f'{qualified(resource)}{which} is forbidden: User "{user}" '
            f'cannot {verb} resource "{wanted}" in API group "{group}"{where}',
        )

    def _rules(self, user: str, namespace: str) -> Iterator[Object]:
        for binding in self.bindings:
            home = binding["metadata"].get("namespace", "default")
            everywhere = binding["kind"] == "ClusterRoleBinding"
            if not (everywhere or home == namespace) or user not in _subjects(binding, home):
                continue
            reference = binding["roleRef"]
            for role in self.roles:
                same_place = role["kind"] == "ClusterRole" or (
                    role["metadata"].get("namespace", "default") == home
                )
                if (role["kind"], role["metadata"]["name"]) == (
                    reference["kind"],
                    reference["name"],
                ) and same_place:
                    yield from role.get("rules") or []


def _identity(obj: Object) -> tuple[str, str, str]:
    metadata = obj["metadata"]
    return obj["kind"], metadata.get("namespace", ""), metadata["name"]


def _subjects(binding: Object, home: str) -> Iterable[str]:
    for subject in binding.get("subjects") or []:
        if subject["kind"] == "ServiceAccount":
            yield f"system:serviceaccount:{subject.get('namespace', home)}:{subject['name']}"
        else:
            yield subject["name"]


def _allows(rule: Object, verb: str, group: str, resource: str, name: str) -> bool:
    def among(field: str, *values: str) -> bool:
        return bool({"*", *values} & set(rule.get(field) or []))

    names = rule.get("resourceNames")
    return (
        among("verbs", verb)
        and among("apiGroups", group)
        and among("resources", resource, *([f"*/{resource.partition('/')[2]}"] * ("/" in resource)))
        and (not names or name in names)
    )
