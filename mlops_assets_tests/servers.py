"""Starting real servers for tests: on free ports, waited for, stopped by those who start them."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory


def free_port() -> int:
    """Return a TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def wait_for(port: int, seconds: float = 60) -> None:
    """Return when somebody listens on a port; fail when nobody does in time."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


def stop_group(process: subprocess.Popen[bytes]) -> None:
    """Interrupt a process and those that it started; kill them if they do not end."""
    os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def running(command: list[str], port: int, log: str | Path = os.devnull) -> Iterator[str]:
    """Run a server until it listens on a port of 127.0.0.1, and for the block; gives its URL."""
    with open(log, "w") as file:
        server = subprocess.Popen(command, stdout=file, stderr=file)
        try:
            wait_for(port)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait()


@contextmanager
def moto_server(log: str | Path = os.devnull) -> Iterator[str]:
    """Start moto's S3-compatible server, with a line for each request in its log; gives its URL."""
    port = free_port()
    with running([sys.executable, "-m", "moto.server", "-p", str(port)], port, log) as endpoint:
        yield endpoint


@contextmanager
def mlflow_server(backend: str, artifacts: Path, port: int | None = None) -> Iterator[int]:
    """Start an MLflow server on a database; gives its port on 127.0.0.1."""
    port = port or free_port()
    process = subprocess.Popen(
        [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
            "--backend-store-uri", backend, "--artifacts-destination", str(artifacts),
            "--workers", "1",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        wait_for(port, 240)
        yield port
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def postgres_programs() -> Path | None:
    """Return the folder of the newest PostgreSQL server on this machine; None without one."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=_major_version)
    named = shutil.which("postgres")
    return found[-1].parent if found else Path(named).parent if named else None


@dataclass(frozen=True)
class Postgres:
    """A PostgreSQL server on 127.0.0.1 with a database `dagster`; user and password the same.

    As root, which PostgreSQL refuses to run as, it runs as nobody.
    """

    folder: Path
    port: int

    @property
    def url(self) -> str:
        return f"postgresql://dagster:dagster@127.0.0.1:{self.port}/dagster"

    def run(self, program: str, *arguments: str) -> str:
        """Run one of PostgreSQL's programs as the user that the server runs as."""
        programs = postgres_programs()
        assert programs is not None
        as_user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
        command = [*(as_user if os.geteuid() == 0 else []), str(programs / program), *arguments]
        done = subprocess.run(
            command,
            cwd=self.folder,
            env={**os.environ, "PGPASSWORD": "dagster"},
            check=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        return done.stdout

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -k {self.folder} -F"
        log = self.folder / "log"
        self.run("pg_ctl", "start", "-w", "-D", self._data, "-l", str(log), "-o", options)

    def stop(self, mode: str = "immediate") -> None:
        """Stop it; `fast` cuts all connections, `immediate` is as if it was killed."""
        self.run("pg_ctl", "stop", "-w", "-m", mode, "-D", self._data)

    def query(self, statement: str) -> str:
        where = ["-h", "127.0.0.1", "-p", str(self.port), "-U", "dagster", "-d", "dagster"]
        return self.run("psql", *where, "-t", "-A", "-c", statement)

    def pids(self) -> list[int]:
        """Return all of the server's processes, its main one first."""
        main = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
        children = Path(f"/proc/{main}/task/{main}/children").read_text().split()
        return [main, *map(int, children)]

    @property
    def _data(self) -> str:
        return str(self.folder / "data")


@contextmanager
def postgres() -> Iterator[Postgres]:
    """Start a PostgreSQL server with an empty database `dagster`."""
    # not below tmp_path, which other users may not enter
    with TemporaryDirectory(prefix="postgres-") as name:
        server = Postgres(Path(name), free_port())
        (server.folder / "password").write_text("dagster")
        if os.geteuid() == 0:
            for path in (server.folder, server.folder / "password"):
                shutil.chown(path, "nobody", "nogroup")
        server.run(
            "initdb",
            f"--pgdata={server.folder / 'data'}",
            "--username=dagster",
            "--auth=scram-sha-256",
            f"--pwfile={server.folder / 'password'}",
            "--no-sync",
        )
        server.start()
        try:
            create = ["-h", "127.0.0.1", "-p", str(server.port), "-U", "dagster", "dagster"]
            server.run("createdb", *create)
            yield server
        finally:
            server.stop()


def _major_version(initdb: Path) -> int:
    return int(initdb.parts[-3])
