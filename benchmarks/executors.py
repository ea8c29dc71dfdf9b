"""What the executors cost: whole `dagster asset materialize` processes, on fresh instances.

Run it from the project's folder on a machine that does nothing else::

    python -m benchmarks.executors --rounds 5 --executors in_process forkserver

In each round every case runs twice with each executor: the first time, and once more with nothing
changed. CPU seconds are those of all processes that the command started, on Linux.

The module is also the code location that is measured: the shipped pipelines, and two wide graphs.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import os
import platform
import random
import re
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from dagster import AssetsDefinition, Definitions, asset, multiprocess_executor

from benchmarks.measure import table
from mlops_assets.assets.common import STORE
from mlops_assets.definitions import build_defs
from mlops_assets.execution.executors import local_executor

ROOT = Path(__file__).resolve().parent.parent
CASES = {
    "iris": "one pipeline, 5 steps",
    "iris+churn": "two pipelines, 10 steps",
    "busy": "20 independent assets of half a CPU second",
    "trivial": "20 independent assets that do nothing",
}
EXECUTORS = ("in_process", "forkserver", "spawn")
RUNS = ("first", "unchanged")
WIDTH = 20
HALF_A_SECOND = 1_000_000  # rounds of PBKDF2, in 2020s' hardware


class Run(NamedTuple):
    """What one process cost."""

    wall: float  # seconds
    cpu: float | None  # seconds, with all descendants; None where it cannot be measured
    processes: int  # that were started for steps


def definitions(executor: str) -> Definitions:
    """Return the code location with one of the `EXECUTORS`; `spawn` is Dagster's own default."""
    shipped = build_defs()
    return Definitions(
        assets=[
            *(shipped.assets or ()),
            *(_asset("busy", number, HALF_A_SECOND) for number in range(WIDTH)),
            *(_asset("trivial", number, 1) for number in range(WIDTH)),
        ],
        resources=shipped.resources,
        executor=multiprocess_executor if executor == "spawn" else local_executor,
    )


def _asset(group: str, number: int, work: int) -> AssetsDefinition:
    @asset(key=[group, str(number)], group_name=group, io_manager_key=STORE, code_version="1")
    def one_of_many() -> str:
        return hashlib.pbkdf2_hmac("sha256", str(number).encode(), group.encode(), work).hex()

    return one_of_many


if executor_of_this_process := os.environ.get("BENCHMARKED_EXECUTOR"):
    defs = definitions(executor_of_this_process)


def main() -> None:
    """Run the benchmark as the command line says, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--executors", nargs="+", choices=EXECUTORS, default=list(EXECUTORS))
    options = parser.parse_args()
    print(report(measure(options.rounds, options.cases, options.executors)))


def measure(
    rounds: int, cases: Sequence[str] = tuple(CASES), executors: Sequence[str] = EXECUTORS
) -> dict[str, Any]:
    """Run all cases with all executors, round by round.

    Returns
    -------
    dict
        ``runs``: a list with case, executor, run (first or unchanged) and the `Run` of each round.
    """
    runs: dict[tuple[str, str, str], list[Run]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        tracking = _empty_tracking_database(Path(folder))
        for number in range(rounds):
            pairs = [(case, name) for case in cases for name in executors]
            random.shuffle(pairs)  # so that a slow minute of the machine hits any of them
            for case, name in pairs:
                state = Path(folder, f"{case}-{name}-{number}")
                state.mkdir()
                (state / "mlflow.db").write_bytes(tracking)
                for which in RUNS:
                    run = _materialise(case, name, state)
                    runs[case, name, which].append(run)
                    print(f"round {number + 1}: {case}, {name}, {which}: {run}", file=sys.stderr)
    return {
        "runs": [
            {"case": case, "executor": name, "run": which, "rounds": rounds_}
            for (case, name, which), rounds_ in runs.items()
        ]
    }


def _materialise(case: str, executor: str, state: Path) -> Run:
    """Run a case in a folder that keeps the instance and the store from one run to the next."""
    shutil.copy(ROOT / "dagster.yaml", state)
    environment = {
        **os.environ,
        "BENCHMARKED_EXECUTOR": executor,
        "DAGSTER_HOME": str(state),
        "MLOPS_STORE_URL": str(state / "store"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{state / 'mlflow.db'}",
    }
    config = '{"execution": {"config": {"forkserver": {}}}}' if executor == "forkserver" else "{}"
    command = [sys.executable, "-m", "dagster", "asset", "materialize"]
    command += ["-m", "benchmarks.executors", "--config-json", config]
    command += ["--select", " or ".join(f"group:{group}" for group in case.split("+"))]
    return _measured(command, environment, state / "log")


def _measured(command: list[str], environment: dict[str, str], log: Path) -> Run:
    """Run a command to its end; its descendants that survive it are waited for, too."""
    can_adopt = platform.system() == "Linux"
    if can_adopt:
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans become ours
    begun, wall, cpu = time.perf_counter(), 0.0, 0.0
    to_log = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    pid = os.posix_spawn(
        command[0],
        command,
        environment,
        file_actions=[(os.POSIX_SPAWN_OPEN, 1, log, to_log, 0o600), (os.POSIX_SPAWN_DUP2, 1, 2)],
    )
    while True:
        try:
            ended, status, used = os.wait4(-1, 0)
        except ChildProcessError:
            break
        cpu += used.ru_utime + used.ru_stime
        if ended == pid:
            wall = time.perf_counter() - begun
            if status:
                sys.exit(f"{' '.join(command)} failed:\n{log.read_text()[-5000:]}")
    started = len(re.findall(r"STEP_WORKER_STARTING", log.read_text()))
    return Run(round(wall, 2), round(cpu, 2) if can_adopt else None, started)


def _empty_tracking_database(folder: Path) -> bytes:
    """MLflow takes seconds to create its tables, which is no executor's business."""
    from mlflow import MlflowClient

    database = folder / "mlflow.db"
    MlflowClient(f"sqlite:///{database}").search_experiments()
    return database.read_bytes()


def report(results: dict[str, Any]) -> str:
    """Write the results as Markdown."""
    runs = {(it["case"], it["executor"], it["run"]): it["rounds"] for it in results["runs"]}
    rows = [
        (CASES[case], f"`{name}`", *(_cell(runs[case, name, run]) for run in RUNS))
        for case, name in dict.fromkeys((case, name) for case, name, _ in sorted(runs))
    ]
    return "\n\n".join(
        [
            "Wall seconds, median and range; CPU seconds, median; processes started for steps.",
            table(["", "executor", "first run", "unchanged run"], rows),
        ]
    )


def _cell(runs: list[Run]) -> str:
    walls = [run.wall for run in runs]
    cpus = [run.cpu for run in runs if run.cpu is not None]
    cpu = f", CPU {median(cpus):.1f}" if cpus else ""
    spread = f"({min(walls):.1f} to {max(walls):.1f})"
    return f"**{median(walls):.1f}** {spread}{cpu}, {runs[-1].processes} processes"


if __name__ == "__main__":
    main()
