"""What a backfill costs for each partition: many days with a tiny file each, scored in one run.

Run it from the project's folder, on a machine that does nothing else::

    python -m benchmarks.backfill --days 30 365

Each way scores the same files with the same model:

- `bare loop`: what one would write in a notebook: `read_csv`, scikit-learn, a Parquet file a day
- `in-process`: `p/predictions` for the range, in one run of this process, with a sqlite instance
- `in-process, reused`: the same again
- `in-process, with drift`: `p_scoring` for the range; comparing the days is work of its own
- `a run for each day`: as `in-process`, of the first days only
- `daemon`: a backfill of `p/predictions`, launched by `dagster-daemon run`, from the backfill's
  creation until it is over; all processes are counted, the daemon's own start too

Each in a process of its own, without its imports but for the daemon; CPU seconds are those of all
processes. A round of 365 days takes about two minutes on two cores, and there is one; of 30 days it
takes less than one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Spread, table
from mlops_assets_tests.servers import stop_group

if TYPE_CHECKING:
    from dagster import DagsterInstance, Definitions

ROOT = Path(__file__).resolve().parent.parent
PIPELINE = """\
data: {uri: customers.csv, target: left}
model: {estimator: sklearn.linear_model.LogisticRegression, params: {max_iter: 500}}
score: {uri: 'inbox/{date}/*.csv', start: 2020-01-01}
"""
FEW = 20  # days with a run each: they take long
MANY = 100  # days, of which one round is measured
LONGEST_WAIT = 3600  # seconds, for the daemon


@dataclass(frozen=True)
class Measured:
    """What a way took for a number of days."""

    days: int
    seconds: float
    cpu_seconds: float


def main() -> None:
    """Measure all ways, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--days", type=int, nargs="+", default=[30, 365])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument(
        "--child", nargs=3, metavar=("WAY", "FOLDER", "DAYS"), help=argparse.SUPPRESS
    )
    options = parser.parse_args()
    if options.child:
        way, folder, days = options.child
        print(json.dumps(asdict(WAYS[way](Path(folder), days_of(int(days))))))
        return
    print(report(measure(1, options.days, options.ways)))


def measure(
    rounds: int, sizes: Sequence[int] = (30, 365), ways: Sequence[str] = ()
) -> dict[str, Any]:
    """Backfill by all ways in turn, round by round.

    Returns
    -------
    dict
        By number of days and way, what each round took.
    """
    measured: dict[str, dict[str, list[Measured]]] = {}
    for days in sizes:
        of_size = measured.setdefault(str(days), {way: [] for way in ways or WAYS})
        for number in range(rounds if days < MANY else 1):
            with TemporaryDirectory(prefix="backfill-") as folder:
                prepare(Path(folder), days_of(days))
                for way, taken in of_size.items():
                    taken.append(_in_child(way, folder, days))
            print(f"{days} days, round {number + 1} of {rounds}: done", file=sys.stderr)
    return measured


def days_of(count: int) -> list[str]:
    """Return that many days."""
    return [(date(2020, 1, 1) + timedelta(n)).isoformat() for n in range(count)]


def prepare(folder: Path, days: list[str]) -> None:
    """Write the pipeline and the files, and train the model in a process of its own."""
    pipelines = folder / "pipelines"
    for number, day in enumerate(days):
        file = pipelines / "inbox" / day / "a.csv"
        file.parent.mkdir(parents=True)
        file.write_text(f"age,plan\n{20 + number % 60},basic\n{60 - number % 40},plus\n")
    rows = [
        f"{20 + row % 50},{'basic' if row % 3 else 'plus'},{row % 50 < 25}" for row in range(150)
    ]
    (pipelines / "customers.csv").write_text("\n".join(["age,plan,left", *rows]) + "\n")
    (pipelines / "customers.yaml").write_text(PIPELINE)
    home = folder / "dagster"
    home.mkdir()
    home.joinpath("dagster.yaml").write_text((ROOT / "dagster.yaml").read_text())
    command = [str(Path(sys.executable).with_name("mlops")), "run", "customers"]
    subprocess.run(command, env=environment(folder), check=True, capture_output=True)


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of a process that works on the files of `prepare`."""
    return {
        **os.environ,
        "DAGSTER_HOME": str(folder / "dagster"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "MLOPS_PIPELINES": str(folder / "pipelines"),
        "MLOPS_STORE_URL": str(folder / "store"),
    }


def bare(folder: Path, days: list[str]) -> Measured:
    """Score the days as one would in a notebook."""
    import numpy as np
    import pandas as pd

    from mlops_assets.store.artifacts import ArtifactStore

    store = ArtifactStore(str(folder / "store"))
    [champion] = store.versions(["customers", "champion"])
    trained = store.read(champion)
    model, classes = trained.pipeline, np.array(trained.classes)
    target = folder / "bare"
    target.mkdir()

    def score(day: str) -> None:
        frame = pd.read_csv(folder / "pipelines" / "inbox" / day / "a.csv")
        answers = pd.DataFrame(
            {
                "prediction": classes[model.predict(frame)],
                "probability": model.predict_proba(frame)[:, 1],
            }
        )
        answers.to_parquet(target / f"{day}.parquet")

    score(days[0])  # imports the rest
    with _measuring(days) as measure:
        for day in days:
            score(day)
    return measure()


def in_process(folder: Path, days: list[str], *assets: str) -> Measured:
    """Score the days in one run of this process."""
    from dagster import AssetKey

    from mlops_assets_tests.ranges import materialize_range

    with _instance(folder) as (instance, definitions):
        keys = [AssetKey(["customers", asset]) for asset in assets or ("predictions",)]
        with _measuring(days) as measure:
            result = materialize_range(definitions, instance, keys, days[0], days[-1])
        assert result.success
        return measure()


def run_for_each(folder: Path, days: list[str]) -> Measured:
    """Score the first days, each in a run of its own."""
    from dagster import AssetKey

    days = days[:FEW]
    with _instance(folder) as (instance, definitions):
        job = definitions.resolve_job_def("customers_scoring")
        with _measuring(days) as measure:
            for day in days:
                job.execute_in_process(
                    instance=instance,
                    partition_key=day,
                    asset_selection=[AssetKey(["customers", "predictions"])],
                    tags={"mlops/refresh": "true"},
                )
        return measure()


def daemon(folder: Path, days: list[str]) -> Measured:
    """Have the daemon backfill the days."""
    from dagster import AssetKey

    from mlops_assets_tests.ranges import backfill_of, is_over

    with _instance(folder) as (instance, definitions):
        key = AssetKey(["customers", "predictions"])
        backfill = backfill_of(definitions, instance, [key], days, tags={"mlops/refresh": "true"})
        instance.add_backfill(backfill)
        command = [str(Path(sys.executable).with_name("dagster-daemon")), "run"]
        begun, spent = time.perf_counter(), dict[int, float]()
        process = subprocess.Popen(
            [*command, "--module-name", "mlops_assets.definitions"],
            env=environment(folder),
            stdout=subprocess.DEVNULL,
            stderr=(folder / "daemon.log").open("w"),
            start_new_session=True,
        )
        try:
            while not is_over(instance, backfill.backfill_id):
                if time.perf_counter() - begun > LONGEST_WAIT:
                    raise SystemExit((folder / "daemon.log").read_text()[-5000:])
                spent |= _cpu_seconds_in(folder / "dagster")
                time.sleep(0.2)
            seconds = time.perf_counter() - begun
            assert instance.get_materialized_partitions(key) == set(days)
            return Measured(len(days), seconds, sum(spent.values()))
        finally:
            stop_group(process)


WAYS: dict[str, Callable[[Path, list[str]], Measured]] = {
    "bare loop": bare,
    "in-process": in_process,
    "in-process, reused": in_process,
    "in-process, with drift": lambda folder, days: in_process(folder, days, "predictions", "drift"),
    "a run for each day": run_for_each,
    "daemon": daemon,
}


@contextmanager
def _instance(folder: Path) -> Iterator[tuple[DagsterInstance, Definitions]]:
    for name in ("matplotlib.figure", "pandas", "pyarrow.parquet", "sklearn.pipeline", "skops.io"):
        import_module(name)  # what a run would import is not measured
    from dagster import DagsterInstance

    from mlops_assets.definitions import defs

    defs.resolve_job_def("customers_scoring")
    with DagsterInstance.get() as instance:
        yield instance, defs


@contextmanager
def _measuring(days: list[str]) -> Iterator[Callable[[], Measured]]:
    begun, busy = time.perf_counter(), time.process_time()
    ended: list[float] = []
    yield lambda: Measured(len(days), *ended)
    ended += [time.perf_counter() - begun, time.process_time() - busy]


def _cpu_seconds_in(home: Path) -> dict[int, float]:
    """Return what the processes of a Dagster home have spent so far, by process."""
    mine, tick = f"DAGSTER_HOME={home}".encode(), os.sysconf("SC_CLK_TCK")
    spent = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int(process.name) != os.getpid() and mine in (process / "environ").read_bytes():
                fields = (process / "stat").read_text().rpartition(")")[2].split()
                spent[int(process.name)] = (int(fields[11]) + int(fields[12])) / tick
    return spent


def _in_child(way: str, folder: str, days: int) -> Measured:
    command = [sys.executable, "-m", "benchmarks.backfill", "--child", way, folder, str(days)]
    done = subprocess.run(
        command, env=environment(Path(folder)), cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{way}: {done.stderr[-5000:]}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def report(results: dict[str, dict[str, list[Measured]]]) -> str:
    """Write the results as Markdown."""
    header = ["", "days", "ms a day", "CPU ms a day", "over the bare loop, ms", "CPU, ms"]
    rows = [row for measured in results.values() for row in _rows(measured)]
    return table(header, rows)


def _rows(measured: dict[str, list[Measured]]) -> Iterator[list[object]]:
    bare_ = [_each_day(one) for one in measured.get("bare loop", [])]
    for way, rounds in measured.items():
        each = [_each_day(one) for one in rounds]
        wall, cpu = (Spread.of(1000 * one[n] for one in each) for n in (0, 1))
        row: list[object] = [way, rounds[0].days, wall, cpu]
        for n in (0, 1):
            over = [1000 * (one[n] - plain[n]) for one, plain in zip(each, bare_, strict=False)]
            row.append(Spread.of(over) if over and way != "bare loop" else "")
        yield row


def _each_day(measured: Measured) -> tuple[float, float]:
    return measured.seconds / measured.days, measured.cpu_seconds / measured.days


if __name__ == "__main__":
    main()
