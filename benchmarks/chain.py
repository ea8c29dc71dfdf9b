"""What one more trivial asset costs in a chain of 20 and of 200: executed, and reused.

    python -m benchmarks.chain --rounds 5

Each asset adds one to what the one before gave it. The same chain runs with this project's store
and its instance, as `dagster.yaml` makes it, and with Dagster's own: pickles in a folder, and the
sqlite instance of an empty configuration. Every chain is a process of its own, in which
`materialize` is timed: the first run executes everything, the second has nothing to do. What one
more asset costs is the slope from the short to the long chain, so that what a run costs once does
not count.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.measure import Cost, Spread, machine, table

ROOT = Path(__file__).resolve().parent.parent
LENGTHS = (20, 200)
WAYS = {"ours": "this project", "stock": "stock Dagster"}
RUNS = ("executed", "reused")
GOALS = {"executed": 15, "reused": 5}  # milliseconds


def main() -> None:
    """Measure as the command line says, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", nargs=2, metavar=("WAY", "LENGTH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        way, length = options.child
        print(json.dumps(run_chain(way, int(length))))
    else:
        print(report({"machine": machine(), **measure(options.rounds)}))


def measure(rounds: int) -> dict[str, Any]:
    """Run all chains in turn, round by round.

    Returns
    -------
    dict
        ``milliseconds`` of one more asset, by way and run: ``wall`` and ``cpu``, a `Spread` each.
    """
    slopes: dict[tuple[str, str], list[Cost]] = {(way, run): [] for way in WAYS for run in RUNS}
    for number in range(rounds):
        for way in sorted(WAYS, reverse=number % 2 == 1):
            short, long = (_in_a_process(way, length) for length in LENGTHS)
            more = LENGTHS[1] - LENGTHS[0]
            for run in RUNS:
                slopes[way, run].append(
                    Cost(
                        (long[run]["wall"] - short[run]["wall"]) / more,
                        (long[run]["cpu"] - short[run]["cpu"]) / more,
                    )
                )
            print(f"chain, round {number + 1} of {rounds}, {way}: done", file=sys.stderr)
    return {
        "rounds": rounds,
        "milliseconds": {
            way: {
                run: {
                    "wall": Spread.of(1000 * cost.wall for cost in slopes[way, run]),
                    "cpu": Spread.of(1000 * cost.cpu for cost in slopes[way, run]),
                }
                for run in RUNS
            }
            for way in WAYS
        },
    }


def report(results: dict[str, Any]) -> str:
    """Write the results as Markdown."""
    rows = [
        (WAYS[way], run, told["wall"], told["cpu"], GOALS[run] if way == "ours" else "")
        for way, runs in results["milliseconds"].items()
        for run, told in runs.items()
    ]
    return table(["one more asset", "", "wall ms", "CPU ms", "goal under"], rows)


def _in_a_process(way: str, length: int) -> dict[str, dict[str, float]]:
    with TemporaryDirectory() as home:
        configuration = (ROOT / "dagster.yaml").read_text() if way == "ours" else ""
        Path(home, "dagster.yaml").write_text(configuration or "telemetry: {enabled: false}\n")
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.chain", "--child", way, str(length)],
            env={**os.environ, "DAGSTER_HOME": home},
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(done.stderr[-5000:])
        measured: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
        return measured


def run_chain(way: str, length: int) -> dict[str, dict[str, float]]:
    """Materialise a chain twice in this process, in the instance of `DAGSTER_HOME`."""
    from dagster import (
        AssetIn,
        AssetsDefinition,
        DagsterInstance,
        FilesystemIOManager,
        asset,
        materialize,
    )

    from mlops_assets.store.io_manager import StoreIOManager

    @asset(name="link0", code_version="1")
    def first() -> int:
        return 1

    def after(number: int) -> AssetsDefinition:
        @asset(
            name=f"link{number}",
            ins={"before": AssetIn(f"link{number - 1}")},
            code_version="1",
        )
        def one_more(before: int) -> int:
            return before + 1

        return one_more

    store = f"{os.environ['DAGSTER_HOME']}/store"
    manager = StoreIOManager(url=store) if way == "ours" else FilesystemIOManager(base_dir=store)
    links = [first, *(after(number) for number in range(1, length))]
    measured = {}
    with DagsterInstance.get() as instance:
        for run in RUNS:
            begun, busy = time.perf_counter(), time.process_time()
            result = materialize(links, instance=instance, resources={"io_manager": manager})
            measured[run] = {
                "wall": time.perf_counter() - begun,
                "cpu": time.process_time() - busy,
            }
            assert result.output_for_node(f"link{length - 1}") == length
    return measured


if __name__ == "__main__":
    main()
