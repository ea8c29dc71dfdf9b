"""What a node does: runs the containers of a pod as local processes and tells their state.

A container is a process group in a folder of its own. It sees the machine's file system: of the
volumes, ConfigMaps and Secrets mounted below the double's own folder are written there, all others
are only looked for. Probes, hooks, users and security contexts are ignored; `sh` as main process
dies of SIGTERM, which process 1 of a real container may ignore.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

from mlops_assets_tests.kubernetes.objects import GPU, Object, quantity, set_condition, stamp

MARK = "KUBERNETES_DOUBLE_CONTAINER"
"""Variable by which processes are found that left the process group of their container."""

Lookup = Callable[[str, str, str], Object | None]
"""The object of a resource, namespace and name."""


class Cluster(Protocol):
    """What the kubelet needs of the cluster."""

    changed: threading.Condition
    longest_grace: float | None
    environment: Mapping[str, str]
    root: Path

    def touch(self, obj: Object) -> None: ...
    def find(self, resource: str, namespace: str, name: str) -> Object | None: ...
    def event(self, obj: Object, kind: str, reason: str, message: str, source: str) -> None: ...
    def can_pull(self, image: str) -> bool: ...
    def kubeconfig_of(self, pod: Object) -> Path | None: ...
    def devices_of(self, pod: Object) -> list[int]: ...
    def stopped(self, pod: Object) -> None: ...


class NotYet(Exception):
    """A container waits: with a reason and a message."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason, self.message = reason, message


# -- logs


class Log:
    """The output of a container: a file of lines that begin with their time."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._more = threading.Condition()
        self._over = False

    def fill(self, stream: IO[bytes]) -> None:
        """Take lines from a pipe until its end."""
        with self.file.open("ab", buffering=0) as file:
            for line in stream:
                now = time.time_ns()
                moment = datetime.fromtimestamp(now // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%S")
                with self._more:
                    file.write(f"{moment}.{now % 10**9:09d}Z ".encode() + line)
                    self._more.notify_all()

    def close(self) -> None:
        with self._more:
            self._over = True
            self._more.notify_all()

    def lines(self, *, follow: bool = False) -> Iterator[bytes]:
        """Yield the lines with their times; on request until the container is over."""
        if not self.file.exists():
            return
        with self.file.open("rb") as file:
            while True:
                with self._more:
                    while not (line := file.readline()) and follow and not self._over:
                        self._more.wait()
                if not line:
                    return
                yield line


# -- the environment of a container


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Replace `$(NAME)` as Kubernetes does: `$$` is a dollar, an unknown name stays."""

    def replace(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else variables.get(match[1], match[0])

    return re.sub(r"\$(?:\$|\(([^)]*)\))", replace, text)


def data_of(obj: Object) -> dict[str, str]:
    """Return what is in a ConfigMap or a Secret."""
    data = obj.get("data") or {}
    if obj["kind"] == "Secret":
        return {k: base64.b64decode(v).decode() for k, v in data.items()}
    return dict(data)


def variables_of(pod: Object, container: Object, find: Lookup) -> dict[str, str]:
    """Return the variables that a container is given.

    Raises
    ------
    NotYet
        `CreateContainerConfigError`: a ConfigMap, Secret or key is missing.
    """
    found: dict[str, str] = {}
    for source in container.get("envFrom") or []:
        for field, resource in (("configMapRef", "configmaps"), ("secretRef", "secrets")):
            if reference := source.get(field):
                data = _data(pod, resource, reference, find)
                found |= {(source.get("prefix") or "") + k: v for k, v in data.items()}
    for variable in container.get("env") or []:
        if source := variable.get("valueFrom"):
            value = _value(pod, container, source, find)
            if value is None:
                continue
        else:
            value = expand(variable.get("value") or "", found)
        found[variable["name"]] = value
    return found


def _data(pod: Object, resource: str, reference: Object, find: Lookup) -> dict[str, str]:
    name = reference.get("name") or ""
    if obj := find(resource, pod["metadata"]["namespace"], name):
        return data_of(obj)
    if reference.get("optional"):
        return {}
    raise NotYet("CreateContainerConfigError", f'{resource[:-1]} "{name}" not found')


def _value(pod: Object, container: Object, source: Object, find: Lookup) -> str | None:
    for field, resource in (("configMapKeyRef", "configmaps"), ("secretKeyRef", "secrets")):
        if reference := source.get(field):
            data, key = _data(pod, resource, reference, find), reference["key"]
            if key not in data and not reference.get("optional"):
                kind = "Secret" if resource == "secrets" else "ConfigMap"
                where = f"{kind} {pod['metadata']['namespace']}/{reference['name']}"
                raise NotYet("CreateContainerConfigError", f"couldn't find key {key} in {where}")
            return data.get(key)
    if reference := source.get("fieldRef"):
        return _field(pod, reference["fieldPath"])
    reference = source["resourceFieldRef"]
    kind, _, resource = reference["resource"].partition(".")
    amount = quantity(container["resources"].get(kind, {}).get(resource, 0))
    return str(-(-amount // quantity(reference.get("divisor") or 1)))


def _field(pod: Object, path: str) -> str:
    if match := re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path):
        return str((pod["metadata"].get(match[1]) or {}).get(match[2], ""))
    value: Any = pod
    for key in path.split("."):
        value = value.get(key, "")
    return str(value)


# -- processes


class Process(NamedTuple):
    """A process of the machine."""

    pid: int
    parent: int
    session: int
    resident: int  # bytes


def processes() -> Iterator[Process]:
    """Yield every process of the machine."""
    page = os.sysconf("SC_PAGE_SIZE")
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{entry}/stat").read_bytes().rpartition(b")")[2].split()
                parent, session, pages = (int(fields[n]) for n in (1, 3, 21))
                yield Process(int(entry), parent, session, pages * page)


def unreclaimable(pid: int) -> int:
    """Return the bytes that a control group would count: neither files nor shares of others."""
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        found = re.findall(r"^Pss_(?:Anon|Shmem):\s+(\d+) kB$", text, re.MULTILINE)
        if found:
            return 1024 * sum(map(int, found))
    return sum(it.resident for it in processes() if it.pid == pid)


def _with_default_signals() -> None:
    """Begin as a container does: whatever this process ignores or blocks, it would inherit."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


class Container:
    """A container, and the process that it is."""

    def __init__(self, spec: Object, folder: Path) -> None:
        self.spec, self.name = spec, str(spec["name"])
        self.folder = folder / self.name
        self.folder.mkdir(parents=True)
        self.log = Log(folder / f"{self.name}.log")
        self.log.file.touch()
        self.state: Object = {"waiting": {"reason": "ContainerCreating"}}
        self.process: subprocess.Popen[bytes] | None = None
        self.out_of_memory = False
        limit = (spec["resources"].get("limits") or {}).get("memory")
        self.limit = int(quantity(limit)) if limit is not None else None
        self._mark = f"{folder.name}/{self.name}"

    @property
    def is_over(self) -> bool:
        return "terminated" in self.state

    @property
    def exit_code(self) -> int:
        return int(self.state["terminated"]["exitCode"])

    def start(self, command: list[str], environment: Mapping[str, str]) -> None:
        """Start the process; one that cannot be started is over at once."""
        try:
            self.process = subprocess.Popen(
                command,
                cwd=self.spec.get("workingDir") or self.folder,
                env={**environment, MARK: self._mark},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_with_default_signals,
            )
        except (OSError, ValueError) as error:
            problem = f'exec: "{command[0]}": {error}'
            if isinstance(error, FileNotFoundError) and "/" not in command[0]:
                problem = f'exec: "{command[0]}": executable file not found in $PATH'
            self._end(
                128,
                "StartError",
                "failed to create containerd task: failed to create shim task: OCI runtime create "
                f"failed: runc create failed: unable to start container process: {problem}",
            )
        else:
            self.state = {"running": {"startedAt": stamp()}}

    def wait(self) -> None:
        """Return when the process is over, and everything that it started is gone."""
        if self.process is None:
            return
        assert self.process.stdout is not None
        reader = threading.Thread(target=self.log.fill, args=[self.process.stdout], daemon=True)
        reader.start()
        code = self.process.wait()
        self._kill_all()
        reader.join(5)
        code = 128 - code if code < 0 else code
        reason = "Error" if code else "Completed"
        if self.out_of_memory and code == 128 + signal.SIGKILL:
            reason = "OOMKilled"
        message = None
        if code and self.spec["terminationMessagePolicy"] == "FallbackToLogsOnError":
            lines = [line.partition(b" ")[2] for line in self.log.lines()]
            message = b"".join(lines[-80:])[-2048:].decode(errors="replace")
        self._end(code, reason, message)

    def never_started(self) -> None:
        self._end(
            137,
            "ContainerStatusUnknown",
            "The container could not be located when the pod was terminated",
        )

    def _end(self, code: int, reason: str, message: str | None) -> None:
        started = self.state.get("running", {}).get("startedAt", "1970-01-01T00:00:00Z")
        self.state = {
            "terminated": {
                "exitCode": code,
                "reason": reason,
                "startedAt": started,
                "finishedAt": stamp(),
                "containerID": f"double://{self.folder.parent.name}/{self.name}",
                **({"message": message} if message else {}),
            }
        }
        self.log.close()

    def signal(self, number: int) -> None:
        """Send a signal to the main process."""
        if self.process is not None:
            self.process.send_signal(number)

    def _kill_all(self) -> None:
        """Kill what the main process left behind, as the end of a container does."""
        assert self.process is not None
        wanted = f"{MARK}={self._mark}".encode()
        for it in processes():
            with contextlib.suppress(OSError):
                mine = it.session == self.process.pid
                if mine or wanted in Path(f"/proc/{it.pid}/environ").read_bytes().split(b"\0"):
                    os.kill(it.pid, signal.SIGKILL)

    def status(self) -> Object:
        return {
            "name": self.name,
            "image": self.spec["image"],
            "imageID": "" if "waiting" in self.state else self.spec["image"],
            "ready": "running" in self.state,
            "started": "running" in self.state,
            "restartCount": 0,
            "state": dict(self.state),
            "lastState": {},
        }


class PodWorker:
    """Brings one pod from `ContainerCreating` to its end, in a thread of its own."""

    def __init__(self, cluster: Cluster, pod: Object, folder: Path) -> None:
        self.cluster, self.pod = cluster, pod
        spec = pod["spec"]
        self.inits = [Container(it, folder) for it in spec.get("initContainers") or []]
        self.containers = [Container(it, folder) for it in spec["containers"]]
        for container in self.containers if self.inits else []:
            container.state = {"waiting": {"reason": "PodInitializing"}}
        self.stopping = False
        self.lost = False
        self.verdict: Object = {}
        """`reason` and `message` of the pod when it has been stopped."""
        self._waits_because = ("", "")
        self._timers: list[threading.Timer] = []
        self._thread = threading.Thread(target=self._run, daemon=True, name=folder.name)

    @property
    def everything(self) -> list[Container]:
        return [*self.inits, *self.containers]

    def start(self) -> None:
        with self.cluster.changed:
            self.pod["status"]["startTime"] = stamp()
            self.pod["status"]["podIP"] = "10.244.0.1"
            self._publish()
        if (deadline := self.pod["spec"].get("activeDeadlineSeconds")) is not None:
            self._later(deadline, self._past_deadline)
        self._thread.start()

    def join(self, timeout: float) -> bool:
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def terminate(self, grace: float, **verdict: str) -> None:
        """Send SIGTERM, and SIGKILL after a while; `verdict` is reason and message of the pod."""
        if self.cluster.longest_grace is not None:
            grace = min(grace, self.cluster.longest_grace)
        with self.cluster.changed:
            self.verdict = self.verdict or verdict
            first, self.stopping = not self.stopping, True
            self.cluster.changed.notify_all()
        if grace <= 0:
            self.kill()
            return
        if first:
            for container in self.everything:
                container.signal(signal.SIGTERM)
        self._later(grace, self.kill)

    def kill(self) -> None:
        """Send SIGKILL to the main processes."""
        for container in self.everything:
            container.signal(signal.SIGKILL)

    def vanish(self) -> None:
        """End the processes without a trace: the node is lost, and tells nothing any more."""
        self.lost = True
        self.terminate(0)

    def _past_deadline(self) -> None:
        message = "Pod was active on the node longer than the specified deadline"
        grace = self.pod["spec"]["terminationGracePeriodSeconds"]
        self.terminate(grace, reason="DeadlineExceeded", message=message)

    def _later(self, seconds: float, action: Callable[[], None]) -> None:
        timer = threading.Timer(seconds, action)
        timer.daemon = True
        self._timers.append(timer)
        timer.start()

    def _run(self) -> None:
        succeeded = True
        for container in self.inits:
            if succeeded and self._prepare(container):
                container.wait()
                self._publish()
            succeeded = succeeded and container.is_over and container.exit_code == 0
        threads = []
        for container in self.containers:
            if succeeded and self._prepare(container):
                threads.append(threading.Thread(target=self._wait, args=[container], daemon=True))
                threads[-1].start()
        for thread in threads:
            thread.join()
        for timer in self._timers:
            timer.cancel()
        with self.cluster.changed:
            if self.stopping:
                for container in self.everything:
                    if not container.is_over:
                        container.never_started()
            for container in self.everything:
                container.log.close()
            self._publish(over=True)
            self.cluster.stopped(self.pod)

    def _wait(self, container: Container) -> None:
        container.wait()
        self._publish()

    def _prepare(self, container: Container) -> bool:
        """Start a container as soon as it can be; return false if the pod is stopped before."""
        while True:
            with self.cluster.changed:
                if self.stopping:
                    return False
                try:
                    self._pull(container)
                    self._mount(container)
                    command, environment = self._command(container)
                except NotYet as why:
                    self._wait_because(container, why)
                    continue
                container.start(command, environment)
                self._publish()
                if container.process is None:
                    message = container.state["terminated"]["message"]
                    self._event("Warning", "Failed", f"Error: {message}")
                else:
                    self._event("Normal", "Started", f"Started container {container.name}")
                return True

    def _wait_because(self, container: Container, why: NotYet) -> None:
        """Tell why a container does not start, and wait until that may have changed."""
        again = (why.reason, why.message) == self._waits_because
        self._waits_because = (why.reason, why.message)
        state = {"reason": why.reason, "message": why.message}
        if again and why.reason == "ErrImagePull":
            image = container.spec["image"]
            message = f'Back-off pulling image "{image}": ErrImagePull: {why.message}'
            state = {"reason": "ImagePullBackOff", "message": message}
        elif why.reason == "FailedMount":  # which is told in an event alone
            state = {"reason": "ContainerCreating"}
        if not again:
            reason = why.reason if why.reason == "FailedMount" else "Failed"
            self._event("Warning", reason, f"Error: {why.message}")
        if container.state != {"waiting": state}:
            container.state = {"waiting": state}
            self._publish()
        self.cluster.changed.wait(0.2)

    def _pull(self, container: Container) -> None:
        image = container.spec["image"]
        name = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
        host = r"(?:[A-Za-z0-9.-]+(?::\d+)?/)?"
        tail = r"(?::[\w][\w.-]{0,127})?(?:@sha256:[0-9a-f]{64})?"
        if not re.fullmatch(rf"{host}{name}(?:/{name})*{tail}", image):
            raise NotYet(
                "InvalidImageName",
                f'Failed to apply default image tag "{image}": couldn\'t parse image name '
                f'"{image}": invalid reference format',
            )
        if self.cluster.can_pull(image):
            return
        if container.spec["imagePullPolicy"] == "Never":
            raise NotYet(
                "ErrImageNeverPull",
                f'Container image "{image}" is not present with pull policy of Never',
            )
        raise NotYet(
            "ErrImagePull",
            f'failed to pull and unpack image "{image}": failed to resolve reference '
            f'"{image}": {image}: not found',
        )

    def _mount(self, container: Container) -> None:
        """Write mounted ConfigMaps and Secrets whose place is below the double's folder."""
        volumes = {it["name"]: it for it in self.pod["spec"].get("volumes") or []}
        for mount in container.spec.get("volumeMounts") or []:
            volume = volumes[mount["name"]]
            for field, resource, key in (
                ("configMap", "configmaps", "name"),
                ("secret", "secrets", "secretName"),
            ):
                if (source := volume.get(field)) is None:
                    continue
                try:
                    reference = {"name": source.get(key), "optional": source.get("optional")}
                    data = _data(self.pod, resource, reference, self.cluster.find)
                except NotYet as missing:
                    raise NotYet(
                        "FailedMount",
                        f'MountVolume.SetUp failed for volume "{mount["name"]}" : {missing}',
                    ) from None
                if items := source.get("items"):
                    data = {it["path"]: data[it["key"]] for it in items if it["key"] in data}
                self._write(mount, data)

    def _write(self, mount: Object, data: Mapping[str, str]) -> None:
        target = Path(mount["mountPath"])
        if not target.is_relative_to(self.cluster.root):
            return
        if sub := mount.get("subPath"):
            if sub not in data:
                raise NotYet(
                    "CreateContainerConfigError",
                    f'failed to prepare subPath for volumeMount "{mount["name"]}" of container',
                )
            files = {target: data[sub]}
        else:
            files = {target / name: text for name, text in data.items()}
        for file, text in files.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            new = file.with_name(f".{file.name}.{self.pod['metadata']['uid']}")
            new.write_text(text)
            new.replace(file)

    def _command(self, container: Container) -> tuple[list[str], dict[str, str]]:
        spec = container.spec
        given = variables_of(self.pod, spec, self.cluster.find)
        words = [*(spec.get("command") or []), *(spec.get("args") or [])]
        if not words:
            problem = "failed to generate spec: no command specified"
            raise NotYet("CreateContainerError", f"failed to generate container: {problem}")
        environment = {
            "LANG": "C.UTF-8",
            "PATH": os.defpath,
            **self.cluster.environment,
            "HOME": str(container.folder),
            "HOSTNAME": self.pod["metadata"]["name"][:63],
        }
        if kubeconfig := self.cluster.kubeconfig_of(self.pod):
            home = container.folder / ".kube"
            home.mkdir(exist_ok=True)
            (home / "config").write_bytes(kubeconfig.read_bytes())
            environment["KUBECONFIG"] = str(kubeconfig)
        if GPU in (spec["resources"].get("limits") or {}):
            devices = self.cluster.devices_of(self.pod)
            environment["NVIDIA_VISIBLE_DEVICES"] = ",".join(map(str, devices))
        environment |= given
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        return [expand(it, given) for it in words], environment

    def _event(self, kind: str, reason: str, message: str) -> None:
        self.cluster.event(self.pod, kind, reason, message, "kubelet")

    def _publish(self, *, over: bool = False) -> None:
        """Write the status of the pod."""
        with self.cluster.changed:
            if self.lost:
                return
            status = self.pod["status"]
            status["containerStatuses"] = [it.status() for it in self.containers]
            if self.inits:
                status["initContainerStatuses"] = [it.status() for it in self.inits]
            initialized = all(it.is_over and it.exit_code == 0 for it in self.inits)
            set_condition(status, "Initialized", initialized)
            if over:
                ended = [it for it in self.everything if it.is_over]
                good = len(ended) == len(self.everything) and not any(it.exit_code for it in ended)
                status["phase"] = "Succeeded" if good and not self.verdict else "Failed"
                status |= self.verdict
            elif any("running" in it.state or it.is_over for it in self.containers):
                status["phase"] = "Running"
            ready = status["phase"] == "Running" and all(
                "running" in it.state for it in self.containers
            )
            reason = {"Succeeded": "PodCompleted", "Failed": "PodFailed"}.get(
                status["phase"], "ContainersNotReady"
            )
            for kind in ("ContainersReady", "Ready"):
                set_condition(status, kind, ready, None if ready else reason)
            self.cluster.touch(self.pod)


def kill_beyond_limit(containers: Iterable[Container]) -> bool:
    """Kill containers that take more memory than they may; return whether any has a limit."""
    limited = {
        it.process.pid: (it, it.limit)
        for it in containers
        if it.limit is not None and it.process is not None and not it.is_over
    }
    if not limited:
        return False
    # by descent: a step may give what it starts a session of its own
    parents = {it.pid: it for it in processes()}
    members: dict[int, list[Process]] = {}
    for it in parents.values():
        above: Process | None = it
        while above is not None and above.pid not in limited:
            above = parents.get(above.parent)
        if above is not None:
            members.setdefault(above.pid, []).append(it)
    for main, tree in members.items():
        container, limit = limited[main]
        if (
            sum(it.resident for it in tree) > limit
            and sum(unreclaimable(it.pid) for it in tree) > limit
        ):
            container.out_of_memory = True
            container.signal(signal.SIGKILL)
    return True
