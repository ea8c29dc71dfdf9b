"""What memoisation costs and saves: first and unchanged runs, and the price of deciding.

Run it from the project's folder, on a machine that does nothing else::

    python -m benchmarks.reuse --rounds 5

The job is the shipped `iris` pipeline, and what it is compared with is `bare_iris`, the same work
as a plain script. Every command is a process of its own, measured from its start to its end.

Decisions are made on a local store and on the servers of `benchmarks.s3`. One is `far` away when
each request takes that much longer.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest.mock import patch

import obstore

from benchmarks.measure import Cost, Spread, cost_of, processes_started, table
from benchmarks.s3 import BUCKET, MOTO, s3_servers
from mlops_assets.code_version import look_again
from mlops_assets.pipeline_file import load_pipelines
from mlops_assets.plan import READERS, plan_pipelines
from mlops_assets.spec import PipelineSpec
from mlops_assets.stages import stages
from mlops_assets.store.artifacts import ArtifactStore
from mlops_assets.store.champions import Champions
from mlops_assets.store.memo import Computation, Computed, Memo, Outside

ROOT = Path(__file__).resolve().parent.parent
MLOPS = str(Path(sys.executable).with_name("mlops"))
HEAVY = ("dagster", "matplotlib", "mlflow", "numpy", "pandas", "pyarrow", "skops", "sklearn")
EXECUTORS = ("in_process", "forkserver")

BARE, FIRST, UNCHANGED = "bare script", "first `mlops run`", "unchanged `mlops run`"
FRESH, CREATED = "MLflow's database to be created", "MLflow's database there"
GOALS = {FIRST: "1.25", UNCHANGED: "0.15, and 0.65 s"}

PIPELINES = 167  # of 6 assets each: 1,002 decisions
FAR = 0.02  # seconds that a request takes longer
REQUESTS = ("head", "get", "get_range", "list", "list_with_delimiter")
CHEAP = """\
data: {uri: rows.csv, target: left}
split: {seed: %d}
model: {estimator: sklearn.dummy.DummyClassifier}
"""


class Place(NamedTuple):
    """A folder with everything that a run leaves behind, and the URL of its store."""

    folder: Path
    store: str
    endpoint: str | None = None

    @classmethod
    def new(cls, folder: Path, tracking: Path | None = None) -> Place:
        """Begin with a fresh instance and store, and a copy of a tracking database if given."""
        home = folder / "dagster"
        home.mkdir(parents=True)
        shutil.copy(ROOT / "dagster.yaml", home)
        if tracking is not None:
            shutil.copy(tracking, folder / "mlflow.db")
        return cls(folder, str(folder / "store"))

    @property
    def environment(self) -> dict[str, str]:
        """Variables for a process that works here."""
        mine = {name: value for name, value in os.environ.items() if not name.startswith("MLOPS_")}
        return mine | {
            "DAGSTER_HOME": str(self.folder / "dagster"),
            "MLFLOW_TRACKING_URI": f"sqlite:///{self.folder / 'mlflow.db'}",
            "MLOPS_STORE_URL": self.store,
            **({"MLOPS_S3_ENDPOINT_URL": self.endpoint} if self.endpoint else {}),
            **({"MLOPS_PIPELINES": str(pipelines)} if (pipelines := self.pipelines) else {}),
        }

    @property
    def pipelines(self) -> Path | None:
        """Folder of pipeline files other than the shipped ones."""
        folder = self.folder.parent / "pipelines"
        return folder if folder.is_dir() else None


def main() -> None:
    """Run the benchmark as the command line says, and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    if rounds < 1:
        parser.error("--rounds: 1 or more is allowed")
    print(report(measure(rounds)))


def measure(rounds: int) -> dict[str, Any]:
    """Measure whole commands, what they import and start, and the price of deciding."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        tracking = empty_tracking_database(folder)
        costs, last = time_commands(folder / "commands", tracking, rounds)
        return {
            "commands": costs,
            "imports": imports_of([MLOPS, "run", "iris"], last),
            "processes": count_processes(last),
            "decisions": time_decisions(folder / "decisions", tracking),
        }


# --- whole commands -----------------------------------------------------------------------------


def time_commands(
    folder: Path, empty: Path, rounds: int
) -> tuple[dict[str, dict[str, list[Cost]]], Place]:
    """Run all commands in turn, round by round, so that a slow minute hits all of them.

    Parameters
    ----------
    folder
        Where to work.
    empty
        A tracking database with tables and without content.
    rounds
        How often; 1 or more.

    Returns
    -------
    costs, place
        By state of MLflow's database and command; and a place in which `iris` is unchanged.
    """
    costs: dict[str, dict[str, list[Cost]]] = {
        state: {command: [] for command in (BARE, FIRST, UNCHANGED)} for state in (FRESH, CREATED)
    }
    for number in range(rounds):
        for state, tracking in ((FRESH, None), (CREATED, empty)):
            name = f"{number}-{'created' if tracking else 'fresh'}"
            place = Place.new(folder / name, tracking)
            bare = Place.new(folder / f"{name}-bare", tracking)
            script = [sys.executable, str(ROOT / "benchmarks" / "bare_iris.py"), str(bare.folder)]
            pair = {BARE: partial(cost_of, script, bare.environment), FIRST: partial(run, place)}
            for command in sorted(pair, reverse=number % 2 == 1):
                costs[state][command].append(pair[command]())
            costs[state][UNCHANGED].append(run(place))
            print(f"round {number + 1} of {rounds}, {state}: done", file=sys.stderr)
    return costs, place


def run(place: Place) -> Cost:
    """Run `mlops run iris`."""
    return cost_of([MLOPS, "run", "iris"], place.environment)


def empty_tracking_database(folder: Path) -> Path:
    """Have MLflow create its tables, which takes more than a second."""
    database = folder / "empty.db"
    program = "import sys, mlflow; mlflow.MlflowClient(sys.argv[1]).search_experiments()"
    cost_of([sys.executable, "-c", program, f"sqlite:///{database}"], os.environ)
    return database


def imports_of(command: Sequence[str], place: Place) -> dict[str, Any]:
    """Say what a command imports: how many modules, the slowest packages, the heavy ones."""
    environment = {**place.environment, "PYTHONPROFILEIMPORTTIME": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    packages: Counter[str] = Counter()
    lines = re.findall(r"^import time: +(\d+) \| +\d+ \| +(\S+)$", done.stderr, re.MULTILINE)
    for microseconds, module in lines:
        packages[module.partition(".")[0]] += int(microseconds)
    return {
        "modules": len(lines),
        "seconds": sum(packages.values()) / 1e6,
        "slowest": {name: micro / 1e6 for name, micro in packages.most_common(8)},
        "heavy": sorted(set(HEAVY) & set(packages)),
    }


def count_processes(place: Place) -> dict[str, list[str]]:
    """Return the processes that an unchanged run starts, by the way in which it is run."""
    found = {UNCHANGED: processes_started([MLOPS, "run", "iris"], place.environment)}
    for executor in EXECUTORS:
        config = place.folder / f"{executor}.yaml"
        config.write_text(json.dumps({"execution": {"config": {executor: {}}}}))
        job = [sys.executable, "-m", "dagster", "job", "execute", "-m", "mlops_assets.definitions"]
        job += ["-j", "iris_training", "-c", str(config)]
        found[f"unchanged job, {executor}"] = processes_started(job, place.environment)
    return found


# --- the price of deciding ----------------------------------------------------------------------


def time_decisions(folder: Path, tracking: Path) -> dict[str, Any]:
    """Have many pipelines planned of which nothing has to run, on a local store and on S3."""
    write_pipelines(folder / "pipelines")
    local = Place.new(folder / "local", tracking)
    prepare(local)
    found = {"local folder": decide(local, repeats=5)}
    for name, server in s3_servers(folder).items():
        with server as endpoint:
            remote = Place.new(folder / name, tracking)
            remote = remote._replace(store=f"s3://{BUCKET}/store", endpoint=endpoint)
            prepare(remote)
            found[f"S3 ({name})"] = decide(remote, repeats=2 if name == MOTO else 5)
            if name != MOTO:
                found[f"S3 ({name}), {1000 * FAR:.0f} ms away"] = decide(remote, 5, far=FAR)
    return found


def write_pipelines(folder: Path) -> None:
    """Write pipelines over one small file that differ in a parameter."""
    folder.mkdir(parents=True)
    rows = (f"{20 + row % 50},{'yes' if row % 50 < 25 else 'no'}" for row in range(200))
    (folder / "rows.csv").write_text("\n".join(["age,left", *rows]) + "\n")
    for number in range(PIPELINES):
        (folder / f"p{number:03}.yaml").write_text(CHEAP % number)


def prepare(place: Place) -> None:
    """Run one pipeline, and give the others its results."""
    cost_of([MLOPS, "run", "p000"], place.environment)
    specs = load_pipelines(str(place.pipelines)).valid.values()
    first, *others = (spec for spec in specs if isinstance(spec, PipelineSpec))
    hand_on(first, others, Outside(ArtifactStore(place.store, place.endpoint), {}))


def decide(place: Place, repeats: int, far: float = 0) -> dict[str, Any]:
    """Have all pipelines planned, of which nothing has to run."""
    outside = Outside(ArtifactStore(place.store, place.endpoint), {})
    specs = list(load_pipelines(str(place.pipelines)).valid.values())
    seconds, cpu, bare = [], [], []
    with asking(far) as asked:
        for _ in range(repeats):
            look_again()
            asked.clear()
            begun, used = time.perf_counter(), time.process_time()
            plans = plan_pipelines(specs, outside, {})
            seconds.append(time.perf_counter() - begun)
            cpu.append(time.process_time() - used)
            begun = time.perf_counter()
            with ThreadPoolExecutor(READERS) as pool:
                list(pool.map(lambda request: request(), asked))
            bare.append(time.perf_counter() - begun)
    for plan in plans.values():
        if plan.execute or plan.error:
            raise SystemExit(f"not all are hits: {plan}")
    hits = sum(len(plan.reuse) for plan in plans.values())
    command = [MLOPS, "plan"]  # ends with 0, as nothing is to be executed
    costs = [cost_of(command, place.environment) for _ in range(0 if far else repeats)]
    return {
        "hits": hits,
        "seconds": Spread.of(seconds),
        "cpu": Spread.of(cpu),
        "requests_per_hit": len(asked) / hits,
        "bare": Spread.of(bare) if asked else None,
        "command": Spread.of(cost.wall for cost in costs) if costs else None,
    }


@contextmanager
def asking(far: float) -> Iterator[list[Callable[[], Any]]]:
    """Let requests to object stores take longer, and give those made, to be made again alone."""
    asked: list[Callable[[], Any]] = []

    def listening(name: str) -> AbstractContextManager[object]:
        original = getattr(obstore, name)

        def ask(*arguments: Any, **named: Any) -> Any:
            if far:
                time.sleep(far)
            return original(*arguments, **named)

        def ask_and_read(*arguments: Any, **named: Any) -> None:
            answer = ask(*arguments, **named)
            if name == "get":
                answer.bytes()

        def listen(*arguments: Any, **named: Any) -> Any:
            asked.append(partial(ask_and_read, *arguments, **named))
            return ask(*arguments, **named)

        return patch.object(obstore, name, listen)

    with ExitStack() as all_of_them:
        for name in REQUESTS:
            all_of_them.enter_context(listening(name))
        yield asked


def hand_on(first: PipelineSpec, others: Sequence[PipelineSpec], outside: Outside) -> None:
    """Give pipelines the results of another one, as if each had run."""
    known = plan_pipelines([first], outside, {})[first.name].computed
    told = {asset: json.dumps(Memo(outside.store).events(one)) for asset, one in known.items()}
    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(lambda spec: hand_on_to(spec, first.name, known, told, outside), others))


def hand_on_to(
    spec: PipelineSpec,
    first: str,
    known: Mapping[str, Computed],
    told: Mapping[str, str],
    outside: Outside,
) -> None:
    """Copy the objects of the pipeline `first` and remember them as computed by this one."""
    store = outside.store
    champion = Champions(store, first).current()
    assert champion is not None
    Champions(store, spec.name).promote(
        champion.version,
        expected=None,
        metrics=champion.metrics,
        reason=champion.reason,
        run_id=champion.run_id,
        at=champion.at,
    )
    versions: dict[str, str] = {}
    for stage in stages(spec).values():
        inputs = {name: seen.version for name, seen in stage.look(outside, None).items()}
        inputs |= {name: versions[name] for name in stage.inputs if name in versions}
        for asset in stage.outputs:
            original = asset.replace(spec.name, first)
            computed = known[original]
            assert computed.artifact is not None
            artifact = store.copy(computed.artifact, asset.split("/"))
            versions[asset] = artifact.version
            Memo(store).put(
                Computation(asset, None, stage.code, None, inputs),
                artifact,
                json.loads(told[original].replace(first, spec.name)),
                run_id=computed.run_id,
                seconds=computed.seconds,
            )


# --- telling ------------------------------------------------------------------------------------


def report(results: dict[str, Any]) -> str:
    """Write the results as Markdown."""
    rows = [
        (f"{command}, {state}", *told)
        for state, commands in results["commands"].items()
        for command, told in told_of(commands).items()
    ]
    imports = results["imports"]
    slowest = ", ".join(f"{name} {seconds:.3f}" for name, seconds in imports["slowest"].items())
    processes = [
        (way, len(programs), ", ".join(programs)) for way, programs in results["processes"].items()
    ]
    decisions = [
        (
            place,
            f"{one['hits']:,}",
            one["seconds"],
            one["cpu"],
            one["bare"] or "",
            f"{1000 * one['seconds'].median / one['hits']:.2f}",
            f"{one['requests_per_hit']:.2f}" if one["requests_per_hit"] else "",
            one["command"] or "",
        )
        for place, one in results["decisions"].items()
    ]
    return "\n\n".join(
        [
            table(
                ["command", "wall s", "CPU s", "wall / bare", "CPU / bare", "goal at most"], rows
            ),
            f"An unchanged `mlops run` imports {imports['modules']} modules in "
            f"{imports['seconds']:.2f} s; heavy ones: {', '.join(imports['heavy']) or 'none'}; the "
            f"slowest packages, in seconds: {slowest}",
            table(["unchanged run", "processes started", "which"], processes),
            table(
                [
                    "store",
                    "hits",
                    "deciding s",
                    "CPU s",
                    "the same requests alone s",
                    "ms per hit",
                    "requests per hit",
                    "`mlops plan` s",
                ],
                decisions,
            ),
        ]
    )


def told_of(commands: dict[str, list[Cost]]) -> dict[str, tuple[object, ...]]:
    """Return the cells of each command's row."""
    wall = {command: Spread.of(cost.wall for cost in costs) for command, costs in commands.items()}
    cpu = {command: Spread.of(cost.cpu for cost in costs) for command, costs in commands.items()}
    return {
        command: (
            wall[command],
            cpu[command],
            f"{wall[command].median / wall[BARE].median:.2f}",
            f"{cpu[command].median / cpu[BARE].median:.2f}",
            GOALS.get(command, ""),
        )
        for command in commands
    }


if __name__ == "__main__":
    main()
