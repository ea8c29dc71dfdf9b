"""The API server: REST over HTTPS, as far as clients of jobs, pods and logs use it.

There is no patch but merging (a strategic patch replaces lists too), no update by PUT, no exec.
"""

from __future__ import annotations

import contextlib
import copy
import json
import re
import socket
import ssl
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from mlops_assets_tests.kubernetes.access import Access
from mlops_assets_tests.kubernetes.cluster import Cluster, name_it
from mlops_assets_tests.kubernetes.kubelet import Log
from mlops_assets_tests.kubernetes.objects import (
    API_VERSIONS,
    CLUSTER_WIDE,
    VERSION,
    ApiError,
    Object,
    check,
    field_selector,
    is_over,
    label_selector,
    not_found,
)

_PATH = re.compile(
    r"/(?P<api>api/v1|apis/batch/v1)(?:/namespaces/(?P<namespace>[^/]+)(?=/))?"
    r"/(?P<resource>[a-z]+)(?:/(?P<name>[^/]+)(?:/(?P<sub>[a-z]+))?)?"
)
_SUBRESOURCES = {
    ("pods", "status", "GET"),
    ("pods", "status", "PATCH"),
    ("pods", "log", "GET"),
    ("pods", "eviction", "POST"),
    ("jobs", "status", "GET"),
    ("jobs", "status", "PATCH"),
}
_VERBS = {"POST": "create", "PATCH": "patch"}
_CREATABLE = {"pods", "jobs", "configmaps", "secrets", "events"}
_MUTABLE_SPEC = {
    "jobs": {"suspend", "ttlSecondsAfterFinished", "activeDeadlineSeconds", "backoffLimit"},
    "pods": {"activeDeadlineSeconds", "tolerations"},
}


@dataclass(frozen=True)
class Request:
    """A request, as the tests count them."""

    method: str
    path: str
    user: str
    status: int


@dataclass
class Failure:
    """What is answered instead, to the next requests of a kind."""

    status: int
    times: int
    method: str
    path: str
    done: bool
    """Whether what was asked for is done all the same."""

    def concerns(self, method: str, path: str) -> bool:
        return (
            self.times > 0
            and self.method in ("", method)
            and re.search(self.path, path) is not None
        )


class ApiServer:
    """Serves a cluster on a port; can be away for a while."""

    def __init__(self, certificate: Path) -> None:
        self.requests: list[Request] = []
        self.failures: list[Failure] = []
        self.cluster: Cluster
        self.access: Access
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(certificate)
        self._http: _Server | None = None
        self.port = 0
        self.port = self.start()

    def start(self) -> int:
        """Listen; on the same port as before, if there was one."""
        self._http = _Server(self, self._tls, self.port)
        threading.Thread(target=self._http.serve_forever, args=[0.05], daemon=True).start()
        return int(self._http.server_address[1])

    def stop(self) -> None:
        """Refuse connections and break off those that there are."""
        if self._http is not None:
            self._http.shutdown()
            self._http.server_close()
            self._http.break_off()
            self._http = None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, api: ApiServer, tls: ssl.SSLContext, port: int) -> None:
        self.api, self._tls = api, tls
        self._connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), _Handler)

    def finish_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        try:
            with self._tls.wrap_socket(request, server_side=True) as secure:
                self._connections.add(secure)
                try:
                    super().finish_request(secure, client_address)
                finally:
                    self._connections.discard(secure)
        except OSError:  # the client or this server has broken off
            pass
        finally:
            self._connections.discard(request)

    def break_off(self) -> None:
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: _Server

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        data = self.rfile.read(length)
        call = _Call(self.server.api, self.command, self.path, self.headers, data)
        status, answer = call.answer()
        if isinstance(answer, Iterator):
            self._stream(status, call.content_type, answer)
        else:
            self.send_response(status)
            self.send_header("Content-Type", call.content_type)
            self.send_header("Content-Length", str(len(answer)))
            if status == 429:
                self.send_header("Retry-After", "1")
            self.end_headers()
            self.wfile.write(answer)

    do_POST = do_PATCH = do_PUT = do_DELETE = do_GET

    def _stream(self, status: int, content_type: str, parts: Iterator[bytes]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.flush()
        for part in parts:
            if part:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
                self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: Any) -> None:
        pass


Answer = Object | Iterator[bytes]


class _Call:
    """One request, and how it is answered."""

    def __init__(self, api: ApiServer, method: str, url: str, headers: Any, data: bytes) -> None:
        parts = urlsplit(url)
        self.api, self.cluster = api, api.cluster
        self.method, self.path, self.data = method, parts.path, data
        self.query = dict(parse_qsl(parts.query))
        self.headers = headers
        self.content_type = "application/json"
        self.code = 200
        self.user = ""

    def answer(self) -> tuple[int, bytes | Iterator[bytes]]:
        failure = next((f for f in self.api.failures if f.concerns(self.method, self.path)), None)
        try:
            self.user = self.api.access.user(self.headers.get("Authorization"))
            if failure is not None:
                failure.times -= 1
                if failure.done:
                    self._do()
                raise ApiError(failure.status, "the test wanted this to fail")
            body = self._do()
        except ApiError as error:
            self.code, body = error.code, error.status
        except Exception as error:
            traceback.print_exc()
            self.code, body = 500, ApiError(500, f"the double has a defect: {error!r}").status
        finally:
            path = self.path if "watch" not in self.query else f"{self.path}?watch"
            self.api.requests.append(Request(self.method, path, self.user, self.code))
        if isinstance(body, dict):
            with self.cluster.changed:
                return self.code, json.dumps(body).encode()
        return self.code, body

    def _do(self) -> Answer:
        if (known := _DISCOVERY.get(self.path)) is not None and self.method == "GET":
            return known
        match = _PATH.fullmatch(self.path)
        if match is None:
            raise ApiError(404, "the server could not find the requested resource")
        resource = match["resource"]
        self.namespace, self.name, sub = match["namespace"] or "", match["name"] or "", match["sub"]
        api = "apis/batch/v1" if resource == "jobs" else "api/v1"
        if resource not in API_VERSIONS or match["api"] != api:
            raise ApiError(404, "the server could not find the requested resource")
        if sub and (resource, sub, self.method) not in _SUBRESOURCES:
            raise ApiError(404, "the server could not find the requested resource")
        self.resource = resource
        self.api.access.check(
            self.user, self._verb(), resource, sub or "", self.namespace, self.name
        )
        if sub in ("log", "eviction"):
            return self._log() if sub == "log" else self._evict()
        action: Callable[[], Answer] | None = {
            ("GET", True): self._get,
            ("GET", False): self._list,
            ("POST", False): self._create,
            ("PATCH", True): lambda: self._patch(sub),
            ("DELETE", True): self._delete,
            ("DELETE", False): self._delete_all,
        }.get((self.method, bool(self.name)))
        if action is None:
            raise ApiError(405, "the server does not allow this method on the requested resource")
        return action()

    def _verb(self) -> str:
        if self.method == "GET":
            return "get" if self.name else "watch" if _is_true(self.query.get("watch")) else "list"
        if self.method == "DELETE":
            return "delete" if self.name else "deletecollection"
        return _VERBS.get(self.method, "update")

    def _body(self) -> Object:
        try:
            body = json.loads(self.data or b"{}")
        except ValueError as error:
            raise ApiError(400, f"invalid character in the body: {error}") from None
        if not isinstance(body, dict):
            raise ApiError(415, "the body of the request was in an unknown format")
        return body

    def _target(self) -> Object:
        where = "" if self.resource in CLUSTER_WIDE else self.namespace
        return self.cluster.get(self.resource, where, self.name)

    # -- verbs

    def _get(self) -> Object:
        with self.cluster.changed:
            return copy.deepcopy(self._target())

    def _selected(self) -> Callable[[Object], bool]:
        labels = label_selector(self.query.get("labelSelector", ""))
        fields = field_selector(self.resource, self.query.get("fieldSelector", ""))
        where = None if self.resource in CLUSTER_WIDE else self.namespace
        return lambda obj: (
            (not where or obj["metadata"]["namespace"] == where) and labels(obj) and fields(obj)
        )

    def _list(self) -> Answer:
        selected = self._selected()
        if _is_true(self.query.get("watch")):
            return self._watch(selected)
        with self.cluster.changed:
            items = [it for it in self.cluster.all(self.resource) if selected(it)]
            return {
                "kind": f"{API_VERSIONS[self.resource][1]}List",
                "apiVersion": API_VERSIONS[self.resource][0],
                "metadata": {"resourceVersion": str(self.cluster.version)},
                "items": copy.deepcopy(items),
            }

    def _watch(self, selected: Callable[[Object], bool]) -> Iterator[bytes]:
        cluster, since = self.cluster, self.query.get("resourceVersion") or "0"
        end = time.monotonic() + float(self.query.get("timeoutSeconds") or 3600)
        with cluster.changed:
            if since == "0":
                items = [it for it in cluster.all(self.resource) if selected(it)]
                events = [{"type": "ADDED", "object": copy.deepcopy(it)} for it in items]
                seen = cluster.version
            else:
                events, seen = [], int(since)

        def stream() -> Iterator[bytes]:
            nonlocal seen, events
            while True:
                yield b"".join(json.dumps(it).encode() + b"\n" for it in events)
                if time.monotonic() >= end:
                    return
                with cluster.changed:
                    if cluster.version == seen:
                        cluster.changed.wait(min(1, max(0, end - time.monotonic())))
                    events = [
                        {"type": kind, "object": obj}
                        for version, kind, resource, obj in cluster.journal
                        if version > seen and resource == self.resource and selected(obj)
                    ]
                    seen = cluster.version

        return stream()

    def _create(self) -> Object:
        body, (api_version, kind) = self._body(), API_VERSIONS[self.resource]
        if body.setdefault("apiVersion", api_version) != api_version:
            raise ApiError(
                400,
                f"the API version in the data ({body['apiVersion']}) does not match the expected "
                f"API version ({api_version})",
            )
        if body.setdefault("kind", kind) != kind:
            raise ApiError(
                400,
                f'{body["kind"]} in version "{api_version}" cannot be handled as a {kind}: '
                f'no kind "{body["kind"]}" is registered',
            )
        metadata = body["metadata"] = body.get("metadata") or {}
        if metadata.get("namespace") not in (None, self.namespace):
            raise ApiError(
                400,
                "the namespace of the provided object does not match the namespace sent on the "
                "request",
            )
        if self.resource not in _CREATABLE or not self.namespace:
            raise ApiError(405, "the server does not allow this method on the requested resource")
        if not self.cluster.find("namespaces", "", self.namespace):
            raise not_found("namespaces", self.namespace)
        if not (metadata.get("name") or metadata.get("generateName")):
            raise ApiError(
                422,
                f'{kind} "" is invalid: metadata.name: Required value: name or generateName is '
                "required",
            )
        self.code = 201
        with self.cluster.changed:  # before anybody changes what is answered
            if self.resource == "pods":
                new = self.cluster.create_pod(body, self.namespace)
            elif self.resource == "jobs":
                new = self.cluster.create_job(body, self.namespace)
            else:
                name_it(body)
                check(self.resource, body)
                new = self.cluster.put(self.resource, body, self.namespace)
            return copy.deepcopy(new)

    def _patch(self, sub: str | None) -> Object:
        if "json-patch" in (self.headers.get("Content-Type") or ""):
            raise ApiError(415, "this double merges patches and does nothing else")
        patch = self._body()
        with self.cluster.changed:
            obj = self._target()
            new = _merged(obj, patch)
            if sub == "status":
                obj["status"] = new["status"]
            else:
                free = _MUTABLE_SPEC.get(self.resource, set())
                old_spec, new_spec = (
                    {k: v for k, v in it.get("spec", {}).items() if k not in free}
                    for it in (obj, new)
                )
                if old_spec != new_spec:
                    kind = API_VERSIONS[self.resource][1]
                    problem = "spec: Forbidden: updates may not change fields other than a few"
                    raise ApiError(422, f'{kind} "{self.name}" is invalid: {problem}')
                fixed = {k: obj["metadata"][k] for k in ("name", "namespace", "uid")}
                new["metadata"] |= fixed
                check(self.resource, {k: v for k, v in new.items() if k != "status"})
                obj |= {k: v for k, v in new.items() if k != "status"}
            self.cluster.touch(obj)
            return copy.deepcopy(obj)

    def _delete(self) -> Object:
        options = self._body()
        grace = options.get("gracePeriodSeconds", self.query.get("gracePeriodSeconds"))
        policy = options.get("propagationPolicy") or self.query.get("propagationPolicy")
        orphan = options.get("orphanDependents", self.query.get("orphanDependents"))
        if policy not in (None, "Background", "Foreground", "Orphan"):
            raise ApiError(422, f'DeleteOptions is invalid: propagationPolicy: "{policy}"')
        if policy is None and orphan is not None:
            policy = "Orphan" if _is_true(orphan) else "Background"
        with self.cluster.changed:
            obj = self._target()
            seconds = None if grace is None else float(grace)
            self.cluster.delete(self.resource, obj, seconds, policy)
            if self.resource == "pods" or "deletionTimestamp" in obj["metadata"]:
                return copy.deepcopy(obj)
            return _success(name=self.name, kind=self.resource, uid=obj["metadata"]["uid"])

    def _delete_all(self) -> Object:
        selected = self._selected()
        with self.cluster.changed:
            for obj in [it for it in self.cluster.all(self.resource) if selected(it)]:
                self.name = obj["metadata"]["name"]
                self._delete()
        return _success()

    def _evict(self) -> Object:
        with self.cluster.changed:
            reason = ("EvictionByEvictionAPI", "Eviction API: evicting")
            options = self._body().get("deleteOptions") or {}
            self.cluster.delete_pod(self._target(), options.get("gracePeriodSeconds"), reason)
        self.code = 201
        return _success()

    # -- logs

    def _log(self) -> Iterator[bytes]:
        with self.cluster.changed:
            pod = self._target()
            spec, status = pod["spec"], pod["status"]
            containers = [it["name"] for it in spec["containers"]]
            everything = [it["name"] for it in spec.get("initContainers") or []] + containers
            name = self.query.get("container") or containers[0]
            if "container" not in self.query and len(containers) > 1:
                raise ApiError(
                    400,
                    f"a container name must be specified for pod {self.name}, choose one of: "
                    f"[{' '.join(containers)}]",
                )
            if name not in everything:
                raise ApiError(400, f"container {name} is not valid for pod {self.name}")
            states = {
                it["name"]: it["state"]
                for field in ("initContainerStatuses", "containerStatuses")
                for it in status.get(field, [])
            }
            state = states.get(name, {"waiting": {"reason": "ContainerCreating"}})
            worker = self.cluster.workers.get(pod["metadata"]["uid"])
            if worker is not None and worker.lost:
                raise ApiError(500, "dial tcp 10.0.0.1:10250: connect: no route to host")
            if "waiting" in state and not is_over(pod):
                reason = state["waiting"]["reason"]
                why = f"waiting to start: {reason}"
                if reason in ("ErrImagePull", "ImagePullBackOff"):
                    why = "waiting to start: trying and failing to pull image"
                raise ApiError(400, f'container "{name}" in pod "{self.name}" is {why}')
            log: Log | None = None
            if worker is not None:
                log = next(it.log for it in worker.everything if it.name == name)
            uid = pod["metadata"]["uid"]
        self.content_type = "text/plain"
        if log is None:
            return self._lines(Log(self.cluster.root / "pods" / uid / f"{name}.log"), follow=False)
        return self._lines(log, follow=_is_true(self.query.get("follow")))

    def _lines(self, log: Log, *, follow: bool) -> Iterator[bytes]:
        since = 0.0
        if "sinceSeconds" in self.query:
            since = time.time() - float(self.query["sinceSeconds"])
        elif "sinceTime" in self.query:
            since = datetime.fromisoformat(self.query["sinceTime"]).timestamp()
        skipped = 0
        if "tailLines" in self.query:
            skipped = max(0, sum(1 for _ in log.lines()) - int(self.query["tailLines"]))
        left = int(self.query.get("limitBytes") or 1 << 62)
        with_time = _is_true(self.query.get("timestamps"))
        for number, line in enumerate(log.lines(follow=follow)):
            moment, _, text = line.partition(b" ")
            if number < skipped or (since and _moment(moment) < since):
                continue
            part = (line if with_time else text)[:left]
            left -= len(part)
            yield part
            if not left:
                return


def _moment(text: bytes) -> float:
    return datetime.fromisoformat(text[:26].decode() + "+00:00").timestamp()


def _is_true(value: Any) -> bool:
    return str(value).lower() in ("true", "1")


def _merged(old: Any, patch: Any) -> Any:
    """Return what a merge patch makes of a value; RFC 7386."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    new = copy.deepcopy(old) if isinstance(old, dict) else {}
    for key, value in patch.items():
        if value is None:
            new.pop(key, None)
        else:
            new[key] = _merged(new.get(key), value)
    return new


def _success(**details: str) -> Object:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": details,
    }


def _resources(version: str) -> Object:
    verbs = ["create", "delete", "deletecollection", "get", "list", "patch", "watch"]
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": version,
        "resources": [
            {
                "name": resource,
                "singularName": kind.lower(),
                "namespaced": resource not in CLUSTER_WIDE,
                "kind": kind,
                "verbs": verbs,
            }
            for resource, (its_version, kind) in API_VERSIONS.items()
            if its_version == version
        ],
    }


_BATCH = {"groupVersion": "batch/v1", "version": "v1"}
_MAJOR, _MINOR = VERSION.split(".")
_DISCOVERY: dict[str, Object] = {
    "/version": {"major": _MAJOR, "minor": _MINOR, "gitVersion": f"v{VERSION}.0"},
    "/api": {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []},
    "/api/v1": _resources("v1"),
    "/apis/batch/v1": _resources("batch/v1"),
    "/apis": {
        "kind": "APIGroupList",
        "apiVersion": "v1",
        "groups": [{"name": "batch", "versions": [_BATCH], "preferredVersion": _BATCH}],
    },
}
