"""Batch scoring against the bare loop: rows per second, and the memory that it takes.

    python -m benchmarks.score --rounds 3 [--rows 20000000] [--model linear|tree]

Both read the same Parquet file of ten numeric columns in batches of the same length, predict
classes and probabilities with the same model, and write the same columns as Parquet. The bare loop
is what one would write in a notebook: `iter_batches`, `to_pandas`, scikit-learn's own `predict` and
`predict_proba`, a writer. Each runs in a process of its own, in turn, without the imports.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.measure import Spread, machine, table

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = [f"x{number}" for number in range(10)]
DAY = "2026-01-05"
BATCH_ROWS = 131_072
WAYS = {"ours": "into the store, as `p/predictions` does", "bare": "bare loop"}
GOALS = {"ratio": 0.85, "megabytes": 1500}


def main() -> None:
    """Measure as the command line says, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--model", choices=["linear", "tree"], default="linear")
    parser.add_argument("--child", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        way, folder = options.child
        print(json.dumps(_measured({"ours": ours, "bare": bare}[way], Path(folder))))
    else:
        measured = measure(options.rounds, options.rows, options.model)
        print(report({"machine": machine(), **measured}))


def measure(rounds: int, rows: int = 20_000_000, model: str = "linear") -> dict[str, Any]:
    """Score a file both ways in turn, round by round.

    Returns
    -------
    dict
        ``rows``, ``model``, and by way `seconds`, `cpu` seconds and `megabytes` of the largest
        resident set: a `Spread` each.
    """
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with TemporaryDirectory(prefix="score-", dir=ROOT) as folder:
        prepare(Path(folder), rows, model)
        for number in range(rounds):
            for way in sorted(WAYS, reverse=number % 2 == 1):
                command = [sys.executable, "-m", "benchmarks.score", "--child", way, folder]
                done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
                if done.returncode:
                    raise SystemExit(done.stderr[-5000:])
                runs[way].append(json.loads(done.stdout.splitlines()[-1]))
                print(f"score, round {number + 1} of {rounds}, {way}: done", file=sys.stderr)
    return {
        "rows": rows,
        "model": model,
        "ways": {
            way: {what: Spread.of(one[what] for one in told) for what in told[0]}
            for way, told in runs.items()
        },
    }


def report(results: dict[str, Any]) -> str:
    """Write the results as Markdown."""
    bare = results["ways"]["bare"]["seconds"].median
    rows = [
        (
            f"{results['rows']:,} rows, {results['model']} model, {WAYS[way]}",
            f"{results['rows'] / told['seconds'].median:,.0f}",
            told["seconds"],
            told["cpu"],
            f"{told['megabytes'].median:,.0f}",
            f"{bare / told['seconds'].median:.2f}",
        )
        for way, told in results["ways"].items()
    ]
    goals = ("goal", "", "", "", f"under {GOALS['megabytes']:,}", f"at least {GOALS['ratio']}")
    header = ["", "rows per second", "wall s", "CPU s", "peak MB", "speed over the bare loop"]
    return table(header, [*rows, goals])


def prepare(folder: Path, rows: int, kind: str) -> None:
    """Write the file that is scored, and the model."""
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    from mlops_assets.ml.train import train
    from mlops_assets.spec import ModelSpec
    from mlops_assets.store.artifacts import ArtifactStore

    random = np.random.default_rng(0)

    def values(count: int) -> dict[str, Any]:
        return {name: random.normal(size=count) for name in COLUMNS}

    (folder / DAY).mkdir()
    schema = pa.schema(dict.fromkeys(COLUMNS, pa.float64()))
    with pq.ParquetWriter(folder / DAY / "rows.parquet", schema) as writer:
        for start in range(0, rows, 1_000_000):
            writer.write_table(pa.table(values(min(1_000_000, rows - start)), schema=schema))
    frame = pd.DataFrame(values(20_000))
    frame["y"] = np.where(frame["x0"] + frame["x1"] > 0, "yes", "no")
    linear = {"estimator": "sklearn.linear_model.LogisticRegression"}
    tree = {"estimator": "sklearn.tree.DecisionTreeClassifier", "params": {"max_depth": 8}}
    spec = ModelSpec(**(linear if kind == "linear" else tree))
    ArtifactStore(str(folder / "store")).write(["p", "champion"], train(frame, spec, target="y"))


def _model(folder: Path) -> tuple[Any, str]:
    from mlops_assets.store.artifacts import ArtifactStore

    store = ArtifactStore(str(folder / "store"))
    [artifact] = store.versions(["p", "champion"])
    return store.read(artifact), artifact.version


def ours(folder: Path) -> None:
    """Score the file into the store, as `p/predictions` does."""
    from mlops_assets.ml.inbox import files_of_day
    from mlops_assets.ml.score import score_batches
    from mlops_assets.spec import DataSpec
    from mlops_assets.store.artifacts import ArtifactStore

    model, version = _model(folder)
    files = files_of_day("{date}/*.parquet", folder, DAY)
    data = DataSpec(uri="unused.parquet", target="y")
    batches = score_batches(model, files, data, model_version=version)
    ArtifactStore(str(folder / "store")).write(["p", "predictions"], batches, DAY)


def bare(folder: Path) -> None:
    """Score the file as one would in a notebook."""
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    trained, version = _model(folder)
    model, classes = trained.pipeline, np.array(trained.classes)
    source, writer, row = folder / DAY / "rows.parquet", None, 0
    for batch in pq.ParquetFile(source).iter_batches(BATCH_ROWS):
        frame = batch.to_pandas()
        answers = pd.DataFrame(
            {
                "source_file": source.name,
                "row": range(row, row + len(frame)),
                "prediction": classes[model.predict(frame)],
                "probability_yes": model.predict_proba(frame)[:, 1],
                "model_version": version,
            }
        )
        row += len(frame)
        table = pa.Table.from_pandas(answers, preserve_index=False)
        writer = writer or pq.ParquetWriter(folder / "bare.parquet", table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def _measured(work: Callable[[Path], None], folder: Path) -> dict[str, float]:
    """Time a piece of work without the imports; it starts no process, which is checked."""
    _model(folder)  # imports nearly all
    begun, busy = time.perf_counter(), time.process_time()
    work(folder)
    seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - busy
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss == 0
    return {
        "seconds": seconds,
        "cpu": cpu_seconds,
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
    }


if __name__ == "__main__":
    main()
