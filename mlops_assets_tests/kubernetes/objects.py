"""What Kubernetes accepts, what it fills in and how it selects: pure functions of objects.

Objects are dictionaries as in JSON. What the double cannot do is refused here, with status 422.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

Object = dict[str, Any]

VERSION = "1.33"
API_VERSIONS = {
    "pods": ("v1", "Pod"),
    "jobs": ("batch/v1", "Job"),
    "events": ("v1", "Event"),
    "configmaps": ("v1", "ConfigMap"),
    "secrets": ("v1", "Secret"),
    "serviceaccounts": ("v1", "ServiceAccount"),
    "namespaces": ("v1", "Namespace"),
    "nodes": ("v1", "Node"),
}
"""The resources that are stored, with their version and kind."""

CLUSTER_WIDE = {"namespaces", "nodes"}

GPU = "nvidia.com/gpu"
EXTENDED = re.compile(r"^(?!kubernetes\.io/)[a-z0-9.-]+/")
"""Resources that cannot be overcommitted: their request is their limit."""

_REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    409: "Conflict",
    410: "Expired",
    415: "UnsupportedMediaType",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}

_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_DNS_SUBDOMAIN = re.compile(rf"{_DNS_LABEL.pattern}(\.{_DNS_LABEL.pattern})*")
_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(m|k|[KMGTPE]i?|[eE][+-]?\d+)?")
_FACTORS = {"m": Decimal("0.001"), "k": Decimal(1000)} | {
    prefix + suffix: Decimal(base) ** (power + 1)
    for power, prefix in enumerate("KMGTPE")
    for suffix, base in (("i", 1024), ("", 1000))
}
_CHARACTERS = (
    "must consist of alphanumeric characters, '-', '_' or '.', begin and end with such one"
)
_DNS_CHARACTERS = (
    "must consist of lower case alphanumeric characters or '-', begin and end with such"
)


class ApiError(Exception):
    """An answer that is a `Status` of failure."""

    def __init__(
        self, code: int, message: str, reason: str | None = None, details: Object | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.status: Object = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": reason or _REASONS.get(code, "Unknown"),
            "details": details or {},
            "code": code,
        }


def qualified(resource: str) -> str:
    """Return the name of a resource in messages, `jobs.batch`."""
    group = group_of(resource)
    return f"{resource}.{group}" if group else resource


def group_of(resource: str) -> str:
    version = API_VERSIONS[resource][0]
    return version.partition("/")[0] if "/" in version else ""


def not_found(resource: str, name: str) -> ApiError:
    details = {"name": name, "group": group_of(resource), "kind": resource}
    return ApiError(404, f'{qualified(resource)} "{name}" not found', details=details)


# -- time and numbers


def stamp(moment: datetime | None = None) -> str:
    return (moment or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ")


def in_seconds(seconds: float) -> str:
    return stamp(datetime.now(UTC) + timedelta(seconds=seconds))


def quantity(text: str | int | float) -> Decimal:
    """Return what a quantity, `500m` or `2Gi`, amounts to."""
    match = _QUANTITY.fullmatch(str(text))
    if match is None:
        raise ValueError("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkK…")
    number, unit = match.groups()
    if unit and unit[0] in "eE" and len(unit) > 1 and unit != "Ei":
        return Decimal(number + unit)
    return Decimal(number) * _FACTORS.get(unit or "", Decimal(1))


def requests_of(pod: Object) -> dict[str, Decimal]:
    """Return what the scheduler sets aside for a pod."""

    def asked(container: Object) -> dict[str, Decimal]:
        return {k: quantity(v) for k, v in container["resources"].get("requests", {}).items()}

    total: dict[str, Decimal] = {"pods": Decimal(1)}
    for container in pod["spec"]["containers"]:
        for resource, amount in asked(container).items():
            total[resource] = total.get(resource, Decimal(0)) + amount
    for container in pod["spec"].get("initContainers") or []:
        for resource, amount in asked(container).items():
            total[resource] = max(total.get(resource, Decimal(0)), amount)
    return total


# -- state that is written the same way everywhere


def set_condition(
    status: Object, kind: str, value: bool, reason: str | None = None, message: str | None = None
) -> bool:
    """Set a condition; return whether that changed anything."""
    conditions = status.setdefault("conditions", [])
    new = {"type": kind, "status": str(value)}
    new |= {k: v for k, v in (("reason", reason), ("message", message)) if v}
    for old in conditions:
        if old["type"] == kind:
            if all(old.get(k) == new.get(k) for k in ("status", "reason", "message")):
                return False
            same = old["status"] == new["status"]
            new["lastTransitionTime"] = old["lastTransitionTime"] if same else stamp()
            conditions[conditions.index(old)] = new
            return True
    conditions.append(new | {"lastTransitionTime": stamp()})
    return True


def has_condition(obj: Object, kind: str) -> bool:
    conditions = obj.get("status", {}).get("conditions", [])
    return any(it["type"] == kind and it["status"] == "True" for it in conditions)


def is_over(pod: Object) -> bool:
    return pod["status"]["phase"] in ("Succeeded", "Failed")


def is_finished(job: Object) -> bool:
    return has_condition(job, "Complete") or has_condition(job, "Failed")


# -- selection


def label_selector(text: str) -> Callable[[Object], bool]:
    """Return whether an object has the labels that a `labelSelector` asks for."""
    tests = [_requirement(it.strip()) for it in re.split(r",(?![^(]*\))", text) if it.strip()]
    return lambda obj: all(test(obj["metadata"].get("labels") or {}) for test in tests)


def _requirement(text: str) -> Callable[[Mapping[str, str]], bool]:
    if match := re.fullmatch(r"(\S+)\s+(in|notin)\s+\(([^)]*)\)", text):
        key, wanted = match[1], match[2] == "in"
        values = {it.strip() for it in match[3].split(",")}
    elif match := re.fullmatch(r"([^\s=!]+)\s*(==|=|!=)\s*(\S*)", text):
        key, wanted, values = match[1], match[2] != "!=", {match[3]}
    elif match := re.fullmatch(r"(!?)\s*([^\s=!(),]+)", text):
        key, wanted = match[2], not match[1]
        return lambda labels: (key in labels) is wanted
    else:
        raise ApiError(400, f"unable to parse requirement: {text!r}")
    for value in values:
        if problem := label_value_problem(value):
            raise ApiError(400, f'values[0][{key}]: Invalid value: "{value}": {problem}')
    return lambda labels: (labels.get(key) in values) is wanted


_FIELDS = {
    "pods": {"spec.nodeName", "spec.restartPolicy", "spec.serviceAccountName", "status.phase"},
    "jobs": {"status.successful"},
    "events": {f"involvedObject.{it}" for it in ("kind", "namespace", "name", "uid")}
    | {"reason", "type", "source"},
    "secrets": {"type"},
    "namespaces": {"status.phase"},
    "nodes": {"spec.unschedulable"},
}


def field_selector(resource: str, text: str) -> Callable[[Object], bool]:
    """Return whether an object has the values that a `fieldSelector` asks for."""
    tests: list[tuple[str, bool, str]] = []
    for part in filter(None, text.split(",")):
        match = re.fullmatch(r"([^=!]+)(==|=|!=)(.*)", part)
        if match is None:
            raise ApiError(400, f"invalid selector: '{part}'; can't understand '{part}'")
        field, operator, value = match.groups()
        if field not in {"metadata.name", "metadata.namespace"} | _FIELDS.get(resource, set()):
            raise ApiError(400, f"field label not supported: {field}")
        tests.append((field, operator != "!=", value))

    def value_of(obj: Object, field: str) -> str:
        value: Any = obj
        for key in field.split("."):
            value = (value or {}).get(key)
        return str(value or "")

    return lambda obj: all((value_of(obj, f) == value) is wanted for f, wanted, value in tests)


# -- what a server refuses


def label_value_problem(value: str) -> str | None:
    if len(value) > 63:
        return "must be no more than 63 characters"
    return None if _LABEL_VALUE.fullmatch(value) else f"a valid label {_CHARACTERS}"


def _key_problem(key: str) -> str | None:
    prefix, slash, name = key.rpartition("/")
    if slash and not (_DNS_SUBDOMAIN.fullmatch(prefix) and len(prefix) <= 253):
        return "prefix part a lowercase RFC 1123 subdomain " + _DNS_CHARACTERS
    if len(name) > 63:
        return "name part must be no more than 63 characters"
    return None if name and _LABEL_VALUE.fullmatch(name) else f"name part {_CHARACTERS}"


def name_problem(name: str, longest: int = 253, *, dots: bool = True) -> str | None:
    if len(name) > longest:
        return f"must be no more than {longest} characters"
    if (_DNS_SUBDOMAIN if dots else _DNS_LABEL).fullmatch(name):
        return None
    return f"a lowercase RFC 1123 {'subdomain' if dots else 'label'} {_DNS_CHARACTERS}"


def check(resource: str, obj: Object) -> None:
    """Raise what a server answers to an object that it refuses.

    Raises
    ------
    ApiError
        400 for another type than the schema says, 422 for another value than allowed.
    """
    import kubernetes_validate  # type: ignore[import-untyped]

    kind = API_VERSIONS[resource][1]
    name = obj["metadata"].get("name", "")
    problems: list[str] = []
    try:
        kubernetes_validate.validate(obj, VERSION, strict=False)
    except kubernetes_validate.ValidationError as error:
        path = "".join(f"[{it}]" if isinstance(it, int) else f".{it}" for it in error.path)
        if error.validator != "required":
            raise ApiError(
                400,
                f'{kind} in version "{API_VERSIONS[resource][0]}" cannot be handled as a {kind}: '
                f"{path[1:]}: {error.message}",
            ) from None
        problems.append(f"{path[1:]}: Required value: {error.message}")
    else:
        problems += _metadata_problems(obj["metadata"], "metadata")
        if resource == "pods":
            problems += _pod_problems(obj["spec"], "spec", {"Never"})
        elif resource == "jobs":
            problems += _job_problems(obj)
    if problems:
        text = problems[0] if len(problems) == 1 else f"[{', '.join(problems)}]"
        details = {"name": name, "group": group_of(resource), "kind": kind}
        raise ApiError(422, f'{kind} "{name}" is invalid: {text}', details=details)


def _metadata_problems(metadata: Object, path: str) -> Iterator[str]:
    if "name" in metadata and (problem := name_problem(metadata["name"])):
        yield f'{path}.name: Invalid value: "{metadata["name"]}": {problem}'
    for key, value in (metadata.get("labels") or {}).items():
        if problem := _key_problem(key):
            yield f'{path}.labels: Invalid value: "{key}": {problem}'
        if problem := label_value_problem(value or ""):
            yield f'{path}.labels: Invalid value: "{value}": {problem}'
    annotations = metadata.get("annotations") or {}
    for key in annotations:
        if problem := _key_problem(key.lower()):
            yield f'{path}.annotations: Invalid value: "{key}": {problem}'
    if sum(len(k) + len(v or "") for k, v in annotations.items()) > 256 * 1024:
        yield f"{path}.annotations: Too long: may not be more than 262144 bytes"


def _job_problems(job: Object) -> Iterator[str]:
    spec, path = job.get("spec") or {}, "spec.template"
    if not (spec.get("template") or {}).get("spec"):
        yield f"{path}.spec.containers: Required value"
        return
    if len(job["metadata"]["name"]) > 63:
        name = job["metadata"]["name"]
        yield f'{path}.labels: Invalid value: "{name}": must be no more than 63 characters'
    for field, only in {"parallelism": 1, "completions": 1, "completionMode": "NonIndexed"}.items():
        if spec[field] != only:
            yield f"spec.{field}: this double does nothing but {only}"
    for field in ("podFailurePolicy", "successPolicy", "backoffLimitPerIndex", "managedBy"):
        if spec.get(field):
            yield f"spec.{field}: this double does not do that"
    if spec["suspend"] or spec["podReplacementPolicy"] != "TerminatingOrFailed":
        yield "spec: this double neither suspends jobs nor waits before it replaces pods"
    for field in ("backoffLimit", "ttlSecondsAfterFinished", "activeDeadlineSeconds"):
        if spec.get(field) is not None and spec[field] < 0:
            yield f"spec.{field}: Invalid value: {spec[field]}: must be greater than or equal to 0"
    yield from _metadata_problems(spec["template"]["metadata"], f"{path}.metadata")
    yield from _pod_problems(spec["template"]["spec"], f"{path}.spec", {"Never", "OnFailure"})


def _pod_problems(spec: Object, path: str, policies: set[str]) -> Iterator[str]:
    policy = spec["restartPolicy"]
    if policy not in policies:
        yield f'{path}.restartPolicy: Unsupported value: "{policy}": supported values: "Never"'
    elif policy != "Never":
        yield f"{path}.restartPolicy: this double restarts nothing"
    if any(
        field.startswith("required")
        for it in (spec.get("affinity") or {}).values()
        for field in it or ()
    ):
        yield f"{path}.affinity: this double has node selectors instead"
    if not spec.get("containers"):
        yield f"{path}.containers: Required value"
    for key, value in (spec.get("nodeSelector") or {}).items():
        if problem := _key_problem(key) or label_value_problem(value):
            yield f'{path}.nodeSelector: Invalid value: "{key}={value}": {problem}'
    for n, toleration in enumerate(spec.get("tolerations") or []):
        where, operator = f"{path}.tolerations[{n}]", toleration.get("operator") or "Equal"
        effects = ("", "NoSchedule", "PreferNoSchedule", "NoExecute")
        if operator not in ("Equal", "Exists"):
            yield f'{where}.operator: Unsupported value: "{operator}"'
        if operator == "Exists" and toleration.get("value"):
            yield f"{where}.operator: Invalid value: value must be empty when `operator` is Exists"
        if (toleration.get("effect") or "") not in effects:
            yield f'{where}.effect: Unsupported value: "{toleration["effect"]}"'
        if not toleration.get("key") and operator != "Exists":
            yield f"{where}.operator: Invalid value: operator must be Exists when `key` is empty"
    volumes = [it["name"] for it in spec.get("volumes") or []]
    for n, volume in enumerate(volumes):
        if problem := name_problem(volume, 63, dots=False):
            yield f'{path}.volumes[{n}].name: Invalid value: "{volume}": {problem}'
        if volume in volumes[:n]:
            yield f'{path}.volumes[{n}].name: Duplicate value: "{volume}"'
    names: set[str] = set()
    for field in ("initContainers", "containers"):
        for n, container in enumerate(spec.get(field) or []):
            where = f"{path}.{field}[{n}]"
            if container["name"] in names:
                yield f'{where}.name: Duplicate value: "{container["name"]}"'
            names.add(container["name"])
            yield from _container_problems(container, where, volumes)


def _container_problems(container: Object, path: str, volumes: list[str]) -> Iterator[str]:
    if problem := name_problem(container["name"], 63, dots=False):
        yield f'{path}.name: Invalid value: "{container["name"]}": {problem}'
    if not container.get("image"):
        yield f"{path}.image: Required value"
    if container.get("restartPolicy"):
        yield f"{path}.restartPolicy: this double has no sidecars"
    for n, variable in enumerate(container.get("env") or []):
        if not re.fullmatch(r"[ -<>-~]+", variable["name"]):
            yield f'{path}.env[{n}].name: Invalid value: "{variable["name"]}"'
        if variable.get("value") and variable.get("valueFrom"):
            yield f'{path}.env[{n}].valueFrom: Invalid value: "": may not be specified when `value`'
    mounted: set[str] = set()
    for n, mount in enumerate(container.get("volumeMounts") or []):
        if mount["name"] not in volumes:
            yield f'{path}.volumeMounts[{n}].name: Not found: "{mount["name"]}"'
        if mount["mountPath"] in mounted:
            where = f"{path}.volumeMounts[{n}].mountPath"
            yield f'{where}: Invalid value: "{mount["mountPath"]}": must be unique'
        mounted.add(mount["mountPath"])
    yield from _resource_problems(container["resources"], f"{path}.resources")


def _resource_problems(resources: Object, path: str) -> Iterator[str]:
    amounts: dict[str, dict[str, Decimal]] = {"limits": {}, "requests": {}}
    for field, found in amounts.items():
        for resource, text in (resources.get(field) or {}).items():
            try:
                found[resource] = quantity(text)
            except ValueError as error:
                yield f'{path}.{field}[{resource}]: Invalid value: "{text}": {error}'
                continue
            standard = resource in ("cpu", "memory", "ephemeral-storage")
            if not (standard or EXTENDED.match(resource) or resource.startswith("hugepages-")):
                yield f'{path}.{field}[{resource}]: Invalid value: "{resource}": must be a standard'
            if found[resource] < 0 or (EXTENDED.match(resource) and found[resource] % 1):
                yield f'{path}.{field}[{resource}]: Invalid value: "{text}": must be an integer'
    for resource, asked in amounts["requests"].items():
        limit = amounts["limits"].get(resource)
        if EXTENDED.match(resource) and limit is None:
            problem = "Limit must be set for non overcommitable resources"
            yield f"{path}.limits: Required value: {problem}"
        elif limit is not None and (asked > limit or (EXTENDED.match(resource) and asked != limit)):
            text = resources["requests"][resource]
            yield (
                f'{path}.requests: Invalid value: "{text}": must be less than or equal to '
                f"{resource} limit of {resources['limits'][resource]}"
            )


def violations(spec: Object) -> list[str]:
    """Return what the pod security standard `restricted` has against a pod.

    See https://kubernetes.io/docs/concepts/security/pod-security-standards; without the rules for
    host ports, host processes, SELinux, AppArmor, sysctls and procMount.
    """
    found: list[str] = []
    pod = spec.get("securityContext") or {}
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(name):
            found.append(f"host namespaces ({name}=true)")
    allowed = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "projected", "secret"}
    allowed |= {"persistentVolumeClaim", "name"}
    for volume in spec.get("volumes") or []:
        if kinds := {k for k, v in volume.items() if v is not None} - allowed:
            found.append(f'restricted volume types (volume "{volume["name"]}" uses {kinds})')
    for container in [*(spec.get("initContainers") or []), *spec["containers"]]:
        own = container.get("securityContext") or {}
        capabilities = own.get("capabilities") or {}
        profile = (own.get("seccompProfile") or pod.get("seccompProfile") or {}).get("type")
        non_root = own.get("runAsNonRoot", pod.get("runAsNonRoot"))
        for problem, exists in {
            "privileged": own.get("privileged"),
            "allowPrivilegeEscalation != false": own.get("allowPrivilegeEscalation") is not False,
            "unrestricted capabilities": "ALL" not in (capabilities.get("drop") or [])
            or set(capabilities.get("add") or []) - {"NET_BIND_SERVICE"},
            "runAsNonRoot != true": non_root is not True,
            "runAsUser=0": own.get("runAsUser", pod.get("runAsUser")) == 0,
            "seccompProfile": profile not in ("RuntimeDefault", "Localhost"),
        }.items():
            if exists:
                found.append(f'{problem} (container "{container["name"]}")')
    return found


# -- what a server fills in


def fill_in_pod(spec: Object) -> None:
    spec.setdefault("restartPolicy", "Always")
    spec.setdefault("dnsPolicy", "ClusterFirst")
    spec.setdefault("schedulerName", "default-scheduler")
    spec.setdefault("securityContext", {})
    if spec.get("terminationGracePeriodSeconds") is None:
        spec["terminationGracePeriodSeconds"] = 30
    for container in [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]:
        container.setdefault("terminationMessagePath", "/dev/termination-log")
        container.setdefault("terminationMessagePolicy", "File")
        tag = container.get("image", "").rpartition("/")[2].partition(":")[2]
        if not container.get("imagePullPolicy"):
            container["imagePullPolicy"] = "Always" if tag in ("", "latest") else "IfNotPresent"
        resources = container["resources"] = container.get("resources") or {}
        if limits := resources.get("limits"):
            resources["requests"] = {**limits, **(resources.get("requests") or {})}


def fill_in_job(job: Object) -> None:
    spec, uid, name = job["spec"], job["metadata"]["uid"], job["metadata"]["name"]
    for field, value in {
        "parallelism": 1,
        "completions": 1,
        "backoffLimit": 6,
        "completionMode": "NonIndexed",
        "suspend": False,
        "podReplacementPolicy": "TerminatingOrFailed",
    }.items():
        if spec.get(field) is None:
            spec[field] = value
    spec["selector"] = {"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}
    template = spec["template"]
    metadata = template["metadata"] = template.get("metadata") or {}
    metadata["labels"] = {
        **(metadata.get("labels") or {}),
        "batch.kubernetes.io/controller-uid": uid,
        "batch.kubernetes.io/job-name": name,
        "controller-uid": uid,
        "job-name": name,
    }
    fill_in_pod(template["spec"])
