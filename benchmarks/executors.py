"""What the executors cost: one more step, and whole `dagster asset materialize` processes.

Run it from the project's folder on a machine that does nothing else::

    python -m benchmarks.executors --rounds 5 --executors in_process forkserver

One more step is the slope from a few to many steps that do nothing, one after the other and side by
side: of the run's own time, and of the CPU seconds of all processes that the command started, on
Linux. `spawn` is Dagster's own default with the same definitions, measured in the first round: it
takes more than a minute. A round of the others takes two on two cores. Steps that are pods are not
measured here: what those take is the cluster's.

Every case runs on an instance and a store of its own, and once more with nothing changed, but for
`spawn`, which has nothing to reuse by. The module is also the code location that is measured: the
shipped pipelines, and wide and long graphs.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import os
import platform
import random
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from dagster import AssetsDefinition, Definitions, asset, multiprocess_executor

from benchmarks.measure import Spread, table
from mlops_assets.assets.common import STORE
from mlops_assets.definitions import build_defs
from mlops_assets.execution.executors import local_executor
from mlops_assets_tests.conftest import instance_of

ROOT = Path(__file__).resolve().parent.parent
EXECUTORS = ("in_process", "forkserver", "spawn")
RUNS = ("first", "unchanged")

SHAPES = {"chain": "one after the other", "wide": "side by side"}
SHORT, LONG = 2, 10
"""Steps of a graph. Both give every core of a small machine the same to do."""

BUSY, HALF_A_SECOND = 20, 1_000_000  # steps, and rounds of PBKDF2 on 2020s' hardware
WHOLE = {
    "iris": "one pipeline, 6 assets",
    "busy": f"{BUSY} independent assets of half a CPU second",
}
CASES = ("steps", *WHOLE)
GOAL = "1,000"  # milliseconds until a step of forkserver runs


@dataclass(frozen=True)
class Run:
    """What one process took."""

    wall: float
    """Seconds, from its start to its end."""
    cpu: float | None
    """Seconds, with all descendants; None where it cannot be measured."""
    of_run: float
    """Seconds of the run by itself, without imports and definitions."""
    starts: list[float]
    """Seconds of each step from its launch in a process until it runs; the first ones have waited
    for the fork server."""


def definitions(executor: str) -> Definitions:
    """Return the code location with one of the `EXECUTORS`; `spawn` is Dagster's own default."""
    shipped = build_defs()
    return Definitions(
        assets=[
            *(shipped.assets or ()),
            *_graph("busy", BUSY, HALF_A_SECOND),
            *(one for shape in SHAPES for length in (SHORT, LONG) for one in _graph(shape, length)),
        ],
        resources=shipped.resources,
        executor=multiprocess_executor if executor == "spawn" else local_executor,
    )


def _graph(shape: str, length: int, work: int = 1) -> Iterator[AssetsDefinition]:
    group = f"{shape}{length}"
    for number in range(length):
        before = [[group, str(number - 1)]] if shape == "chain" and number else []
        yield _asset(group, number, before, work)


def _asset(group: str, number: int, before: Any, work: int) -> AssetsDefinition:
    @asset(
        key=[group, str(number)],
        deps=before,
        group_name=group,
        io_manager_key=STORE,
        code_version="1",
    )
    def one_of_many() -> str:
        return hashlib.pbkdf2_hmac("sha256", str(number).encode(), group.encode(), work).hex()

    return one_of_many


if executor_of_this_process := os.environ.get("BENCHMARKED_EXECUTOR"):
    defs = definitions(executor_of_this_process)


def main() -> None:
    """Run the benchmark as the command line says, and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--executors", nargs="+", choices=EXECUTORS, default=list(EXECUTORS))
    options = parser.parse_args()
    print(report(measure(options.rounds, options.cases, options.executors)))


def measure(
    rounds: int, cases: Sequence[str] = CASES, executors: Sequence[str] = EXECUTORS
) -> dict[str, Any]:
    """Run all cases with all executors, round by round.

    Returns
    -------
    dict
        ``runs``: a list with group of assets, executor, run (first or unchanged) and the `Run` of
        each round.
    """
    groups = [
        group for case in cases for group in (_graphs_of_steps() if case == "steps" else [case])
    ]
    runs: dict[tuple[str, str, str], list[Run]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        tracking = _empty_tracking_database(Path(folder))
        for number in range(rounds):
            pairs = [(group, name) for group in groups for name in executors]
            random.shuffle(pairs)  # so that a slow minute of the machine hits any of them
            for group, name in pairs:
                if name == "spawn" and (number or group == "busy"):
                    continue  # busy steps would say what the steps that do nothing say
                state = Path(folder, f"{group}-{name}-{number}")
                state.mkdir()
                (state / "mlflow.db").write_bytes(tracking)
                for which in RUNS[: 1 if name == "spawn" else None]:
                    run = _materialise(group, name, state)
                    runs[group, name, which].append(run)
                    told = f"{run.wall:.2f} s, the run {run.of_run:.2f} s"
                    print(f"round {number + 1}: {group}, {name}, {which}: {told}", file=sys.stderr)
    return {
        "runs": [
            {"group": group, "executor": name, "run": which, "rounds": rounds_}
            for (group, name, which), rounds_ in runs.items()
        ]
    }


def _graphs_of_steps() -> list[str]:
    return [f"{shape}{length}" for shape in SHAPES for length in (SHORT, LONG)]


def _materialise(group: str, executor: str, state: Path) -> Run:
    """Run a group in a folder that keeps the instance and the store from one run to the next."""
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
    command += ["--select", f"group:{_group_name(group)}"]
    wall, cpu = _measured(command, environment, state / "log")
    return Run(wall, cpu, *_told_by_log(state))


def _group_name(group: str) -> str:
    return f"busy{BUSY}" if group == "busy" else group


def _told_by_log(state: Path) -> tuple[float, list[float]]:
    """Return the seconds of the latest run, and those that its steps took to start."""
    launched: dict[str | None, float] = {}
    starts: list[float] = []
    with instance_of(state) as instance:
        [record] = instance.get_run_records(limit=1)
        for entry in instance.all_logs(record.dagster_run.run_id):
            event = entry.dagster_event
            if event is not None and event.event_type_value == "STEP_WORKER_STARTING":
                launched[event.step_key] = entry.timestamp
            elif event is not None and event.is_step_start and event.step_key in launched:
                starts.append(entry.timestamp - launched[event.step_key])
    assert record.start_time is not None
    assert record.end_time is not None
    return record.end_time - record.start_time, starts


def _measured(
    command: list[str], environment: dict[str, str], log: Path
) -> tuple[float, float | None]:
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
    return wall, cpu if can_adopt else None


def _empty_tracking_database(folder: Path) -> bytes:
    """MLflow takes seconds to create its tables, which is no executor's business."""
    from mlflow import MlflowClient

    database = folder / "mlflow.db"
    MlflowClient(f"sqlite:///{database}").search_experiments()
    return database.read_bytes()


def report(results: dict[str, Any]) -> str:
    """Write the results as Markdown."""
    runs = {(it["group"], it["executor"], it["run"]): it["rounds"] for it in results["runs"]}
    parts = [
        table(
            [
                "one more step that does nothing",
                "executor",
                "ms",
                "CPU ms",
                "ms until it runs",
                "reused, ms",
                "goal for it to run, under",
            ],
            _steps(runs),
        ),
        table(["whole process", "executor", "first run", "unchanged run"], _whole(runs)),
    ]
    return "\n\n".join(part for part in parts if part.count("\n") > 1)


def _steps(runs: dict[tuple[str, str, str], list[Run]]) -> Iterator[tuple[object, ...]]:
    for shape, told in SHAPES.items():
        for name in EXECUTORS:
            if (f"{shape}{LONG}", name, "first") not in runs:
                continue
            pairs = {
                run: list(
                    zip(
                        runs.get((f"{shape}{SHORT}", name, run), []),
                        runs.get((f"{shape}{LONG}", name, run), []),
                        strict=True,
                    )
                )
                for run in RUNS
            }
            wall = [_slope(short.of_run, long.of_run) for short, long in pairs["first"]]
            cpu = [
                _slope(short.cpu, long.cpu)
                for short, long in pairs["first"]
                if short.cpu is not None and long.cpu is not None
            ]
            reused = [_slope(short.of_run, long.of_run) for short, long in pairs["unchanged"]]
            starts = [1000 * median(long.starts) for _, long in pairs["first"] if long.starts]
            goal = GOAL if name == "forkserver" else ""
            yield (told, f"`{name}`", *map(_milliseconds, (wall, cpu, starts, reused)), goal)


def _slope(short: float, long: float) -> float:
    return 1000 * (long - short) / (LONG - SHORT)


def _milliseconds(values: list[float]) -> str:
    if not values:
        return ""
    spread = Spread.of(values)
    return f"**{spread.median:.0f}** ({spread.least:.0f} to {spread.most:.0f})"


def _whole(runs: dict[tuple[str, str, str], list[Run]]) -> Iterator[tuple[object, ...]]:
    for case, told in WHOLE.items():
        for name in EXECUTORS:
            if (case, name, "first") in runs:
                yield (told, f"`{name}`", *(_cell(runs.get((case, name, run), [])) for run in RUNS))


def _cell(runs: list[Run]) -> str:
    if not runs:
        return ""
    cpus = [run.cpu for run in runs if run.cpu is not None]
    cpu = f", CPU {median(cpus):.1f} s" if cpus else ""
    processes = f", {len(runs[-1].starts)} processes for steps"
    return f"{Spread.of(run.wall for run in runs)} s{cpu}{processes}"


if __name__ == "__main__":
    main()
