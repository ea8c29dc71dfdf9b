"""Starting real servers for tests: on free ports, waited for, stopped by those who start them."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
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


def postgres_programs() -> Path | None:
    """Return the folder of the newest PostgreSQL server on this machine; None without one."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=_major_version)
    named = shutil.which("postgres")
    return found[-1].parent if found else Path(named).parent if named else None


@contextmanager
def postgres() -> Iterator[int]:
    """Start a PostgreSQL server with an empty database `dagster`; gives its port on 127.0.0.1.

    User and password are `dagster`. As root, which PostgreSQL refuses to run as, it runs as nobody.
    """
    programs = postgres_programs()
    assert programs is not None
    port, is_root = free_port(), os.geteuid() == 0
    as_user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"] if is_root else []
    # not below tmp_path, which other users may not enter
    with TemporaryDirectory(prefix="postgres-") as name:
        folder = Path(name)
        (folder / "password").write_text("dagster")
        if is_root:
            for path in (folder, folder / "password"):
                shutil.chown(path, "nobody", "nogroup")

        def run(program: str, *arguments: str) -> None:
            command = [*as_user, str(programs / program), *arguments]
            subprocess.run(command, cwd=folder, check=True, capture_output=True)

        data = str(folder / "data")
        run(
            "initdb",
            f"--pgdata={data}",
            "--username=dagster",
            "--auth=scram-sha-256",
            f"--pwfile={folder / 'password'}",
            "--no-sync",
        )
        options = f"-p {port} -c listen_addresses=127.0.0.1 -k {folder} -F"
        run("pg_ctl", "start", "-w", "-D", data, "-l", str(folder / "log"), "-o", options)
        try:
            environment = {**os.environ, "PGPASSWORD": "dagster"}
            create = ["-h", "127.0.0.1", "-p", str(port), "-U", "dagster", "dagster"]
            subprocess.run([str(programs / "createdb"), *create], env=environment, check=True)
            yield port
        finally:
            run("pg_ctl", "stop", "-w", "-m", "immediate", "-D", data)


def _major_version(initdb: Path) -> int:
    return int(initdb.parts[-3])
