"""A frame of 1 GB through the store and back, against pyarrow alone: locally, and on S3.

    python -m benchmarks.frames --rounds 3 [--megabytes 1000]

Two frames: random floats, which nothing makes smaller, and mixed columns. `pyarrow` writes and
reads one Parquet file with the settings that are best for the frame, checks nothing and syncs
nothing; what a sync of its file adds is told beside it. On S3 the raw client is obstore: alone,
with the bytes of the same file and nothing else, and with pyarrow, which makes a frame of them. The
store digests what it writes, syncs it, and checks the digest before anything is parsed.

Every measurement is a process of its own. One writes a frame and reads it back, another one only
reads; both find the file in the page cache. Times are without imports and without making the frame.
The peak of memory is the largest resident set, less what it was before there was a frame, over the
frame's size; a text that is repeated is one object and counts as pointers.

The S3-compatible server is the fastest one that `benchmarks.s3` finds.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest.mock import patch

from benchmarks.measure import Spread, machine, table
from benchmarks.s3 import BUCKET, ENDPOINT, s3_servers

if TYPE_CHECKING:
    import pandas as pd
    from obstore.store import ObjectStore

ROOT = Path(__file__).resolve().parent.parent
CASES = {"floats": "random floats", "mixed": "mixed columns"}
SETTINGS: dict[str, dict[str, Any]] = {  # the best of those that were tried, for time
    "floats": {"compression": "NONE", "use_dictionary": False, "write_statistics": False},
    "mixed": {
        "compression": "NONE",
        "use_dictionary": ["label", "word"],
        "column_encoding": dict.fromkeys(["id", "count", "at"], "DELTA_BINARY_PACKED"),
        "write_statistics": False,
    },
}
LOCAL = {"store": "the store", "pyarrow": "pyarrow"}
REMOTE = {"store": "the store", "client": "obstore and pyarrow", "bytes": "obstore alone"}
GOALS = {"local": 0.9, "S3": 0.8}  # throughput of the store over that of the raw way
PEAK = 1.2


class Way(NamedTuple):
    """How a frame is written somewhere and read from there; seconds of a sync, if it is apart."""

    write: Callable[[pd.DataFrame], float]
    read: Callable[[], pd.DataFrame | None]


def main() -> None:
    """Measure as the command line says, and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        way, case, folder, what = options.child
        print(json.dumps(run_way(way, case, Path(folder), what, options.megabytes)))
    else:
        print(report({"machine": machine(), **measure(options.rounds, options.megabytes)}))


def measure(rounds: int, megabytes: int = 1000) -> dict[str, Any]:
    """Send frames through all ways in turn, round by round.

    Returns
    -------
    dict
        By place (`local`, `S3`), case and way: `write`, `read` and `sync` in seconds, `cpu` seconds
        of both, and the peaks `write_peak`, `read_peak` and `peak`; a `Spread` each.
    """
    measured: dict[str, Any] = {"rounds": rounds, "megabytes": megabytes}
    with TemporaryDirectory(dir=ROOT) as name:
        measured["local"] = _rounds("local", LOCAL, Path(name), rounds, megabytes)
        measured["server"], server = list(s3_servers(Path(name)).items())[-1]
        with server as endpoint, patch.dict(os.environ, {ENDPOINT: endpoint}):
            measured["S3"] = _rounds("S3", REMOTE, Path(name), rounds, megabytes)
    return measured


def report(results: dict[str, Any]) -> str:
    """Write the results as Markdown."""
    rows = []
    places = {"local": "local", "S3": f"S3 ({results['server']})"}
    for place, goal in GOALS.items():
        for case, ways in results[place].items():
            store = _seconds(ways["store"])
            for way, told in ways.items():
                rows.append(
                    (
                        f"{CASES[case]}, {places[place]}",
                        (LOCAL | REMOTE)[way],
                        told["write"],
                        told["sync"] if way == "pyarrow" else "",
                        told["read"],
                        f"{results['megabytes'] / _seconds(told):.0f}",
                        "" if way == "store" else f"{_seconds(told) / store:.2f}",
                        goal if way in ("pyarrow", "client") else "",
                        f"{_seconds(told, 'sync') / store:.2f}" if way == "pyarrow" else "",
                        told["cpu"],
                        *(
                            f"{told[peak].median:.2f}" if way != "bytes" else ""
                            for peak in ("write_peak", "read_peak", "peak")
                        ),
                    )
                )
    header = ["frame", "way", "write s", "sync s", "read s", "MB/s, write and read"]
    header += ["the store's speed over it", "goal", "with its sync", "CPU s"]
    header += ["peak, writing", "reading", "both"]
    return table(header, rows)


def _seconds(told: Mapping[str, Spread], *more: str) -> float:
    return sum(told[what].median for what in ("write", "read", *more))


def _rounds(
    place: str, ways: Mapping[str, str], folder: Path, rounds: int, megabytes: int
) -> dict[str, dict[str, dict[str, Spread]]]:
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for number in range(rounds):
        for case in CASES:
            for way in sorted(ways, reverse=number % 2 == 1):
                there = folder / f"{place}-{case}-{way}-{number}"
                there.mkdir()
                name = way if place == "local" else f"s3-{way}"
                both = _in_a_process(name, case, there, "both", megabytes)
                read = _in_a_process(name, case, there, "read", megabytes)
                found.setdefault((case, way), []).append(
                    both | {"read": read["read"], "read_peak": read["peak"]}
                )
                subprocess.run(["rm", "-r", str(there)], check=True)
                print(f"frames, round {number + 1} of {rounds}, {case}, {name}", file=sys.stderr)
    return {
        case: {
            way: {what: Spread.of(one[what] for one in told) for what in told[0]}
            for way in ways
            for told in [found[case, way]]
        }
        for case in CASES
    }


def _in_a_process(way: str, case: str, folder: Path, what: str, megabytes: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.frames", "--megabytes", str(megabytes)]
    command += ["--child", way, case, str(folder), what]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-5000:])
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


# --- in a process of its own --------------------------------------------------------------------


def run_way(name: str, case: str, folder: Path, what: str, megabytes: int) -> dict[str, float]:
    """Write a frame and read it back in this process, or only read what another one has written."""
    way = WAYS[name](folder, case)
    _import_all(make_frame(case, 1))
    measured: dict[str, float] = {}
    before, size = _resident("VmRSS"), megabytes * 1e6
    begun = time.process_time()
    if what == "both":
        frame = make_frame(case, megabytes)
        size = float(frame.memory_usage().sum())
        gc.collect()
        _forget_peak()
        begun, started = time.process_time(), time.perf_counter()
        measured["sync"] = way.write(frame)
        measured["write"] = time.perf_counter() - started - measured["sync"]
        measured["write_peak"] = (_resident("VmHWM") - before) / size
        del frame
    started = time.perf_counter()
    back = way.read()
    measured["read"] = time.perf_counter() - started
    measured["cpu"] = time.process_time() - begun
    measured["peak"] = (_resident("VmHWM") - before) / size
    assert back is None or abs(back.memory_usage().sum() / (megabytes * 1e6) - 1) < 0.01
    return measured


def _import_all(frame: pd.DataFrame) -> None:
    """Have every way's modules imported before anything is measured."""
    from mlops_assets.store.artifacts import ArtifactStore

    store = ArtifactStore("memory://warm")
    store.read(store.write(["warm"], frame))


def make_frame(case: str, megabytes: int) -> pd.DataFrame:
    """Make a frame of a size in memory."""
    import numpy as np
    import pandas as pd

    random = np.random.default_rng(0)
    if case == "floats":
        rows = megabytes * 1_000_000 // 80
        return pd.DataFrame(random.random((rows, 10)), columns=[f"x{n}" for n in range(10)])
    rows = megabytes * 1_000_000 // 65
    words = np.array([f"word {number:04}" for number in range(2000)], dtype=object)
    labels = random.integers(0, 8, rows, dtype="int8")
    return pd.DataFrame(
        {
            **{f"x{number}": random.random(rows) for number in range(4)},
            "id": np.arange(rows),
            "count": random.integers(0, 1000, rows),
            "label": pd.Categorical.from_codes(labels, [f"label {number}" for number in range(8)]),
            "word": words[random.integers(0, len(words), rows)],
            "at": pd.Timestamp("2026-01-05") + pd.to_timedelta(np.arange(rows), unit="s"),
        }
    )


def _resident(field: str) -> int:
    """Return bytes that are resident now (`VmRSS`) or were at most (`VmHWM`). Linux only."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _store(url: str, endpoint: str | None, note: Path) -> Way:
    from mlops_assets.store.artifacts import ArtifactStore

    store = ArtifactStore(url, endpoint)

    def write(frame: pd.DataFrame) -> float:
        note.write_text(store.write(["benchmark"], frame).version)
        return 0

    def read() -> pd.DataFrame:
        back: pd.DataFrame = store.read(store.find(["benchmark"], note.read_text()))
        return back

    return Way(write, read)


def _local_store(folder: Path, case: str) -> Way:
    return _store(str(folder / "store"), None, folder / "version")


def _pyarrow(folder: Path, case: str) -> Way:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = folder / "frame.parquet"

    def write(frame: pd.DataFrame) -> float:
        pq.write_table(pa.Table.from_pandas(frame), file, **SETTINGS[case])
        begun = time.perf_counter()
        with file.open("rb+") as written:
            os.fsync(written.fileno())
        return time.perf_counter() - begun

    def read() -> pd.DataFrame:
        frame: pd.DataFrame = pq.read_table(file).to_pandas()
        return frame

    return Way(write, read)


def _remote_store(folder: Path, case: str) -> Way:
    endpoint = os.environ[ENDPOINT]
    return _store(f"s3://{BUCKET}/{folder.name}", endpoint, folder / "version")


def _raw_client() -> ObjectStore:
    from obstore.store import S3Store

    endpoint = os.environ[ENDPOINT]
    options = {"allow_http": True, "timeout": "600s"}
    return S3Store(BUCKET, endpoint=endpoint, client_options=options)  # type: ignore[arg-type]


def _client(folder: Path, case: str) -> Way:
    import obstore
    import pyarrow as pa
    import pyarrow.parquet as pq

    bucket, path = _raw_client(), f"{folder.name}/frame.parquet"

    def write(frame: pd.DataFrame) -> float:
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pandas(frame), sink, **SETTINGS[case])
        obstore.put(bucket, path, sink.getvalue())
        return 0

    def read() -> pd.DataFrame:
        content = pa.py_buffer(obstore.get(bucket, path).bytes())
        frame: pd.DataFrame = pq.read_table(pa.BufferReader(content)).to_pandas()
        return frame

    return Way(write, read)


def _bytes(folder: Path, case: str) -> Way:
    import obstore
    import pyarrow as pa
    import pyarrow.parquet as pq

    bucket, path = _raw_client(), f"{folder.name}/frame.parquet"

    def write(frame: pd.DataFrame) -> float:
        begun = time.perf_counter()
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pandas(frame), sink, **SETTINGS[case])
        encoded = time.perf_counter() - begun  # not counted: what is left is the client's own
        obstore.put(bucket, path, sink.getvalue())
        return encoded

    def read() -> None:
        obstore.get(bucket, path).bytes()

    return Way(write, read)


WAYS: dict[str, Callable[[Path, str], Way]] = {
    "store": _local_store,
    "pyarrow": _pyarrow,
    "s3-store": _remote_store,
    "s3-client": _client,
    "s3-bytes": _bytes,
}


if __name__ == "__main__":
    main()
