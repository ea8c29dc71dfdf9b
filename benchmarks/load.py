"""What grows with how much there is: pipelines, materialisations and versions, by the thousand.

Every command is a process of its own, measured from outside: wall seconds, CPU seconds of the
process and of those that it waited for, and the peak of its memory. On a machine that others use
the CPU is the figure to compare. Sizes are worked through one after the other, so that each row can
be set against the one above it. Three rounds take about seven minutes on two cores: of the largest
sizes, which take minutes to prepare, everything but loading is measured once.

Usage::

    .venv/bin/python -m benchmarks.load
    .venv/bin/python -m benchmarks.load --rounds 3 --only versions --versions 1000 10000
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

from benchmarks.measure import Spread, table
from benchmarks.reuse import MLOPS, Place, empty_tracking_database, hand_on
from mlops_assets.code_version import Code
from mlops_assets.pipeline_file import load_pipelines
from mlops_assets.plan import plan_pipelines
from mlops_assets.spec import PipelineSpec
from mlops_assets.store.artifacts import Artifact, ArtifactStore
from mlops_assets.store.layout import VERSION_LENGTH
from mlops_assets.store.memo import Computation, Memo, Outside

PIPELINES = (10, 100, 1_000)
MATERIALISATIONS = (100, 1_000, 10_000)
VERSIONS = (1_000, 10_000, 100_000)
LARGE = 1_000
"""From this size on a round takes long, whatever it is of, or its preparation does."""

PARTS = ("pipelines", "materialisations", "versions")
SIZES = dict(zip(PARTS, (PIPELINES, MATERIALISATIONS, VERSIONS), strict=True))

ESTIMATORS = (
    "sklearn.dummy.DummyClassifier",
    "sklearn.linear_model.LogisticRegression",
    "sklearn.ensemble.RandomForestClassifier",
    "sklearn.ensemble.HistGradientBoostingClassifier",
    "sklearn.tree.DecisionTreeClassifier",
)
VERSIONS_OF_AN_ASSET = 100
OLD = timedelta(days=60)

LOAD = "import dagster, mlops_assets.definitions as it"
RESOLVE = f"{LOAD}; it.defs.get_repository_def().load_all_definitions()"
TELL = (
    f"{LOAD}; from dagster._core.remote_representation.external_data import RepositorySnap; "
    "from dagster_shared.serdes import serialize_value; "
    "all = it.defs.get_repository_def(); all.load_all_definitions(); "
    "serialize_value(RepositorySnap.from_def(all, defer_snapshots=True))"
)
TICKS = "import sys; from benchmarks.load import ticks; ticks(sys.argv[1])"


@dataclass(frozen=True)
class Measured:
    """What one process took."""

    wall: float
    """Seconds."""
    cpu: float
    """Seconds of user and system time, with those of the processes that it waited for."""
    peak: float
    """MiB of memory of the process itself, at its most."""


@dataclass(frozen=True)
class Row:
    """What one command took at one size."""

    what: str
    size: int
    measured: list[Measured]

    def spread(self, of: Callable[[Measured], float]) -> Spread:
        """Summarise the rounds."""
        return Spread.of(of(one) for one in self.measured)


CPU, WALL, PEAK = (attrgetter(name) for name in ("cpu", "wall", "peak"))


def main() -> None:
    """Run the benchmark as the command line says, and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--pipelines", nargs="+", type=int, default=PIPELINES)
    parser.add_argument("--materialisations", nargs="+", type=int, default=MATERIALISATIONS)
    parser.add_argument("--versions", nargs="+", type=int, default=VERSIONS)
    chosen = parser.parse_args()
    if chosen.rounds < 1:
        parser.error("--rounds: 1 or more is allowed")
    sizes = {part: getattr(chosen, part) for part in chosen.only}
    print(report(measure(chosen.rounds, sizes)))


def measure(rounds: int, sizes: Mapping[str, Sequence[int]] = SIZES) -> dict[str, Any]:
    """Work through the sizes of each part, in `rounds` rounds each; the rows of each part."""
    parts = {
        "pipelines": with_pipelines,
        "materialisations": with_materialisations,
        "versions": with_versions,
    }
    with TemporaryDirectory() as name:
        folder = Path(name)
        tracking = empty_tracking_database(folder)
        return {part: parts[part](folder, tracking, sizes[part], rounds) for part in sizes}


# --- pipelines ----------------------------------------------------------------------------------


def with_pipelines(folder: Path, tracking: Path, sizes: Iterable[int], rounds: int) -> list[Row]:
    """Measure what reads pipeline files, the more the longer."""
    rows = []
    for size in sizes:
        few = rounds if size < LARGE else 1
        write_pipelines(folder / f"pipelines-{size}" / "pipelines", size)
        place = Place.new(folder / f"pipelines-{size}" / "here", tracking)
        for what, program, times in (
            ("import of the code location", LOAD, rounds),
            ("the same, with all jobs made", RESOLVE, rounds),
            ("the same, described for the UI and the daemon", TELL, few),
        ):
            rows.append(repeat(what, size, times, [sys.executable, "-c", program], place))
        names = make_unchanged(place)
        for what, command in (
            ("`mlops plan`", ["plan", *names]),
            ("`mlops plan` of one pipeline", ["plan", names[0]]),
            ("unchanged `mlops run`", ["run", *names]),
            ("unchanged `mlops run` of one pipeline", ["run", names[0]]),
        ):
            rows.append(repeat(what, size, few, [MLOPS, *command], place))
    return rows


def write_pipelines(folder: Path, count: int) -> None:
    """Write pipelines over one small file: five estimators, a quarter scores, one in 50 broken."""
    folder.mkdir(parents=True)
    rows = (f"{20 + row % 50},{'yes' if row % 50 < 25 else 'no'}" for row in range(200))
    (folder / "rows.csv").write_text("\n".join(["age,left", *rows]) + "\n")
    for number in range(count):
        (folder / f"p{number:04}.yaml").write_text(pipeline_file(number))


def pipeline_file(number: int) -> str:
    """Return one of the pipeline files."""
    target = "targt" if number % 50 == 7 else "target"
    text = (
        f"data: {{uri: rows.csv, {target}: left}}\n"
        f"split: {{seed: {number}}}\n"
        f"model: {{estimator: {ESTIMATORS[number % len(ESTIMATORS)]}}}\n"
    )
    if number % 4 == 1:
        text += 'evaluate: {metrics: [accuracy, roc_auc], gates: {accuracy: ">= 0.5"}}\n'
        text += f'train: {{schedule: "{number % 60} 6 * * *", on_new_data: true}}\n'
    if number % 4 == 2:
        text += f'score: {{uri: "inbox/{number}/{{date}}.csv", schedule: "0 7 * * *"}}\n'
    return text


def make_unchanged(place: Place) -> list[str]:
    """Run one pipeline and give the others its results, in the store and in the instance.

    Returns the names of those whose files are not broken.
    """
    from mlops_assets_tests.conftest import instance_of

    run_it([MLOPS, "run", "p0000"], place)
    outside = Outside(ArtifactStore(place.store), {})
    specs = load_pipelines(str(place.pipelines)).valid
    trained = [spec for spec in specs.values() if isinstance(spec, PipelineSpec)]
    hand_on(trained[0], trained[1:], outside)
    with instance_of(place.folder / "dagster") as instance:
        for plan in plan_pipelines(specs.values(), outside, {}).values():
            assert not plan.execute, plan
            for asset, computed in plan.computed.items():
                record(instance, asset, computed.artifact, computed.code, computed.fingerprint)
    return list(specs)


def record(
    instance: Any, asset: str, artifact: Artifact | None, code: Code, fingerprint: str
) -> None:
    """Have an instance take an artefact for the latest of an asset."""
    from dagster import AssetKey, AssetMaterialization

    assert artifact is not None
    instance.report_runless_asset_event(
        AssetMaterialization(
            AssetKey(asset.split("/")),
            metadata={"mlops/fingerprint": fingerprint, "rows": 200},
            tags={
                "dagster/data_version": artifact.version,
                "dagster/code_version": code.version,
            },
        )
    )


# --- materialisations ---------------------------------------------------------------------------


def with_materialisations(
    folder: Path, tracking: Path, sizes: Iterable[int], rounds: int
) -> list[Row]:
    """Measure what asks the instance, on 10 pipelines and ever more materialisations of them."""
    from mlops_assets_tests.conftest import instance_of

    write_pipelines(folder / "instance" / "pipelines", 10)
    place = Place.new(folder / "instance" / "here", tracking)
    names = make_unchanged(place)
    rows, so_far = [], len(names) * 6
    for size in sizes:
        few = rounds if size < LARGE else 1
        with instance_of(place.folder / "dagster") as instance:
            materialise_again(instance, names, max(0, size - so_far))
        so_far = max(size, so_far)
        for what, command in (
            ("`mlops plan`", ["plan", *names]),
            ("unchanged `mlops run`", ["run", *names]),
            ("`mlops prune --dry-run`", ["prune", "--dry-run"]),
        ):
            rows.append(repeat(what, so_far, few, [MLOPS, *command], place))
        for what, sensor in (
            ("loading, and a tick of 9 automation sensors", "_automation_sensor"),
            ("loading, and a tick of 5 new-data sensors", "_new_data_sensor"),
        ):
            command = [sys.executable, "-c", TICKS, sensor]
            rows.append(repeat(what, so_far, few, command, place))
    return rows


def materialise_again(instance: Any, names: Sequence[str], count: int) -> None:
    """Materialise the assets again and again, and at the end as they were before."""
    from dagster import AssetKey

    keys = [AssetKey([name, stage]) for name in names for stage in ("train", "model", "metrics")]
    made = [instance.get_latest_materialization_event(key).asset_materialization for key in keys]
    for number in range(count - len(made)):
        one = made[number % len(made)]
        tags = {**one.tags, "dagster/data_version": f"{number:016x}"}
        instance.report_runless_asset_event(one._replace(tags=tags))
    for one in made if count else ():
        instance.report_runless_asset_event(one)


def ticks(suffix: str) -> None:
    """Evaluate the sensors whose names end so, as the daemon has the code server do."""
    from dagster import DagsterInstance, build_sensor_context

    from mlops_assets.definitions import defs

    repository = defs.get_repository_def()
    with DagsterInstance.get() as instance:
        for sensor in repository.sensor_defs:
            if sensor.name.endswith(suffix):
                context = build_sensor_context(
                    instance,
                    repository_def=repository,
                    sensor_name=sensor.name,
                    resources=dict(repository.get_top_level_resources()),
                )
                sensor.evaluate_tick(context)


# --- versions -----------------------------------------------------------------------------------


def with_versions(folder: Path, tracking: Path, sizes: Iterable[int], rounds: int) -> list[Row]:
    """Measure what goes through a store with 100 versions of each of its assets, most of them old.

    What is deleted is so once: of `mlops prune` there is one round.
    """
    rows = []
    for size in sizes:
        few = rounds if size < LARGE else 1
        write_pipelines(folder / f"versions-{size}" / "pipelines", 10)
        place = Place.new(folder / f"versions-{size}" / "here", tracking)
        write_versions(Path(place.store), size)
        for what, command, times in (
            ("`mlops history` of an asset", ["history", "a0000/metrics"], few),
            ("`mlops plan` of one pipeline", ["plan", "p0000"], few),
            ("`mlops prune --dry-run`", ["prune", "--dry-run"], few),
            ("`mlops prune`", ["prune"], 1),
            ("`mlops prune` with nothing to delete", ["prune"], few),
        ):
            allowed = (0, 2) if command[0] == "plan" else (0,)
            rows.append(repeat(what, size, times, [MLOPS, *command], place, allowed))
    return rows


def write_versions(root: Path, count: int) -> None:
    """Write versions as the store would, apart from the time that it takes to make them last.

    Each has the record of its computation and of what Dagster was told. The versions of an asset
    are an hour apart, so that by far the most are old; the newest is the latest of an instance.
    """
    code = Code({"n": 1}, {"mlops_assets.ml.evaluate": "0" * 16}, {"scikit-learn": "1.0"})
    records_of = _records_like(code)
    first = (datetime.now(UTC) - OLD).timestamp()
    for number in range(count):
        asset = f"a{number // VERSIONS_OF_AN_ASSET:04}/metrics"
        content = json.dumps({"metrics": {"accuracy": number / count}, "number": number}).encode()
        version = hashlib.sha256(content).hexdigest()[:VERSION_LENGTH]
        made = first + 3600 * (number % VERSIONS_OF_AN_ASSET)
        _write(f"{root}/{asset}/{version}.json", content, made)
        computation = Computation(asset, None, code, None, {f"{asset}x": f"{number:016x}"})
        memo, events = records_of(computation, version, len(content), str(int(made * 1e9)))
        fingerprint = computation.fingerprint
        _write(f"{root}/.events/{asset}/{fingerprint}.json", events, made)
        _write(f"{root}/.memo/{fingerprint}.json", memo, made)
        if (number + 1) % VERSIONS_OF_AN_ASSET == 0:
            latest = {"version": version, "fingerprint": fingerprint, "run_id": "r"}
            _write(f"{root}/.latest/i/{asset}.json", json.dumps(latest).encode(), made)


def _records_like(code: Code) -> Callable[[Computation, str, int, str], tuple[bytes, bytes]]:
    """Return what writes records in the form in which the memo has written one."""
    store = ArtifactStore("memory://load")
    computation = Computation("a/metrics", None, code, None, {})
    artifact = store.write(["a", "metrics"], {"metrics": {}})
    Memo(store).put(computation, artifact, {"checks": []}, run_id="r", seconds=0.1)
    [memo] = [store.get_record(path) for path, _ in store.records(".memo")]
    assert memo is not None

    def records(one: Computation, version: str, size: int, tag: str) -> tuple[bytes, bytes]:
        output = {**memo["output"], "version": version, "size": size, "tag": tag}
        record = {**memo, "asset": one.asset, "inputs": one.inputs, "output": output}
        return json.dumps(record).encode(), b'{"checks": []}'

    return records


def _write(path: str, content: bytes, modified: float) -> None:
    if not os.path.isdir(folder := os.path.dirname(path)):
        os.makedirs(folder)
    with open(path, "wb") as file:
        file.write(content)
    os.utime(path, (modified, modified))


# --- measuring and telling ----------------------------------------------------------------------


def repeat(
    what: str,
    size: int,
    rounds: int,
    command: Sequence[str],
    place: Place,
    allowed: Sequence[int] = (0,),
) -> Row:
    """Run a command several times."""
    row = Row(what, size, [run_it(command, place, allowed) for _ in range(rounds)])
    cpu, wall, peak = (row.spread(of).median for of in (CPU, WALL, PEAK))
    told = f"{size:>7} {what}: CPU {cpu:.2f} s, wall {wall:.2f} s, peak {peak:.0f} MiB"
    print(told, file=sys.stderr, flush=True)
    return row


def run_it(command: Sequence[str], place: Place, allowed: Sequence[int] = (0,)) -> Measured:
    """Run a command to its end; another exit code than those allowed ends ours."""
    begun = time.perf_counter()
    with TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, env=place.environment, stdout=output, stderr=subprocess.STDOUT
        )
        peak = 0.0
        while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
            peak = peak_of(process.pid) or peak
            time.sleep(0.01)
        _, status, used = ended
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - begun
        if process.returncode not in allowed:
            output.seek(0)
            told = output.read()[-3000:]
            raise SystemExit(f"{' '.join(command)[:200]} ended with {process.returncode}\n{told}")
    return Measured(wall, used.ru_utime + used.ru_stime, peak)


def peak_of(pid: int) -> float:
    """Return the most memory of a process so far, in MiB; what `wait` tells begins with ours."""
    with suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
    return 0.0


def report(results: Mapping[str, Any]) -> str:
    """Write the results as Markdown."""
    header = ["", "CPU s", "wall s", "peak MiB", "grows as n to the"]
    return "\n\n".join(table([part, *header], told_of(rows)) for part, rows in results.items())


def told_of(rows: Sequence[Row]) -> Iterator[tuple[object, ...]]:
    """Return the cells of a table, the sizes of a command below one another."""
    for what in dict.fromkeys(row.what for row in rows):
        of_it = [row for row in rows if row.what == what]
        grows = ["", *(f"{exponent(*pair):.1f}" for pair in pairwise(of_it))]
        for row, growth in zip(of_it, grows, strict=True):
            yield (
                f"{row.size:,}",
                what,
                row.spread(CPU),
                row.spread(WALL),
                f"{row.spread(PEAK).median:.0f}",
                growth,
            )


def exponent(less: Row, more: Row) -> float:
    """Say how the CPU time has grown: 1 in proportion to the size, 2 with its square."""
    before, after = (row.spread(CPU).median for row in (less, more))
    return math.log(after / before) / math.log(more.size / less.size)


if __name__ == "__main__":
    main()
