"""Commands as processes of their own that need not import anything: for many of them.

The process that this module is has imported what `mlops`, `dagster` and the steps need, and forks a
child for every command that it is asked for, with the environment and the output of that command.
What is left to a child is what differs from project to project: the definitions.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from mlops_assets_tests.faults.effects import kill_when_asked

PRELOAD = (
    "dagster._cli",
    "dagster._core.storage.sqlite_storage",
    "pandas",
    "sklearn.ensemble",
    "skops.io",
    "mlflow",
    "dagster_mlflow.resources",
    "mlflow.store.model_registry.rest_store",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.rest_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "matplotlib.backends.backend_agg",
    "upath.implementations.local",
    "watchdog.observers.polling",
    "mlops_assets.automation.alerts",
    "mlops_assets.tracking",
    "mlops_assets.assets",
    "mlops_assets.automation.jobs",
    "mlops_assets.execution.kubernetes",
    "mlops_assets.cli.planning",
    "mlops_assets.ml.evaluate",
    "mlops_assets.ml.figures",
    "mlops_assets.ml.model_card",
    "mlops_assets.ml.promote",
    "mlops_assets.ml.train",
)

MAIN = {
    "mlops": "mlops_assets.cli",
    "dagster": "dagster._cli",
    "dagster-daemon": "dagster._daemon.cli",
    "dagster-graphql": "dagster_graphql.cli",
    "tick": "mlops_assets_tests.faults.tick",
}


class Command:
    """A command that runs; a session of its own, so that all that it starts can be killed."""

    def __init__(self, server: Warm, pid: int, log: Path) -> None:
        self._server, self.pid, self._log = server, pid, log
        self.returncode: int | None = None
        """As of `subprocess.Popen`: negative for a signal."""

    def poll(self) -> int | None:
        if self.returncode is None:
            status = self._server.ask({"poll": self.pid})
            self.returncode = None if status is None else os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, seconds: float = 240) -> int:
        deadline = time.monotonic() + seconds
        while self.poll() is None:
            assert time.monotonic() < deadline, f"still running:\n{self.output[-4000:]}"
            time.sleep(0.01)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill_all(self) -> None:
        """Kill it with all that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    @property
    def output(self) -> str:
        """What was printed, errors included unless they have a file."""
        return self._log.read_text(errors="replace")


class Warm:
    """Starts commands."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        self._lock = threading.Lock()

    def start(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        cwd: Path,
        errors: Path | None = None,
    ) -> Command:
        """Start `mlops …` or `dagster …`; its errors go to the file of its output by default."""
        files = {"log": str(log), "errors": str(errors or log), "cwd": str(cwd)}
        return Command(self, self.ask({"argv": argv, "environment": {**environment}, **files}), log)

    def ask(self, request: Mapping[str, Any]) -> Any:
        with self._lock:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())


@cache
def warm() -> Warm:
    """Return the one of this process, which ends with it."""
    return Warm()


def _serve() -> None:
    for module in PRELOAD:
        import_module(module)
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = status if pid else None
        else:
            answer = os.fork()
            if answer == 0:
                _be(**request)
        print(json.dumps(answer), flush=True)


def _be(
    argv: Sequence[str], environment: Mapping[str, str], log: str, errors: str, cwd: str
) -> None:
    """Become the command, in a child of this process."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, path in ((1, log), (2, errors)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = list(argv)
    kill_when_asked(environment)
    code = 1
    try:
        import_module(MAIN[argv[0]]).main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        import atexit

        atexit._run_exitfuncs()
        os._exit(code)


if __name__ == "__main__":
    _serve()
