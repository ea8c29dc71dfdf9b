"""The benchmark suite: every case in turn, into `results.json` and the tables of the documentation.

    make bench
    python -m benchmarks --rounds 5 --only chain frames

It takes long on purpose: rounds alternate what is compared, so that a slow minute of the machine
hits both sides. Let the machine do nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.measure import machine

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results.json"
DOCUMENT = ROOT / "docs" / "benchmarks.md"
CASES = ("reuse", "chain", "frames", "score", "load", "backfill", "executors", "peers")
"""Modules beside this one with `measure(rounds)` and `report(results)`."""


def main() -> None:
    """Run the cases that the command line names, all of them by default."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=CASES, default=CASES)
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds: 1 or more is allowed")
    os.chdir(ROOT)
    for case in options.only:
        print(f"{case}: {options.rounds} rounds", file=sys.stderr)
        results = run(case, options.rounds)
        print(results["report"], end="\n\n")
        keep(case, results)


def run(case: str, rounds: int) -> dict[str, Any]:
    """Measure a case; the results say on what machine, when, and what the report of them is."""
    module = import_module(f"benchmarks.{case}")
    about = {
        "machine": machine(),
        "at": time.strftime("%Y-%m-%d %H:%M %Z"),
        "rounds": rounds,
    }
    results: dict[str, Any] = module.measure(rounds)
    return {**about, "results": results, "report": f"{_about(about)}\n\n{module.report(results)}"}


def keep(case: str, results: dict[str, Any]) -> None:
    """Replace a case's part of the results and of the documentation, and leave the others."""
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    told = results.pop("report")
    RESULTS.write_text(json.dumps({**kept, case: results}, indent=1, default=_plain) + "\n")
    DOCUMENT.write_text(with_report(DOCUMENT.read_text(), case, told))


def with_report(document: str, case: str, report: str) -> str:
    """Return a document with a report between the marks `<!-- case -->` and `<!-- /case -->`."""
    begin, end = f"<!-- {case} -->", f"<!-- /{case} -->"
    pattern = f"{re.escape(begin)}.*?{re.escape(end)}"
    replaced, count = re.subn(pattern, lambda _: f"{begin}\n{report}\n{end}", document, flags=re.S)
    if count != 1:
        raise SystemExit(f"{DOCUMENT.name} needs {begin} and {end} once each")
    return replaced


def _about(results: dict[str, Any]) -> str:
    it = results["machine"]
    return (
        f"*{results['at']}: {it['cpu']}, {it['cores']} cores, Python {it['python']}, load "
        f"{it['load']} before the start; rounds: {results['rounds']}, median and range.*"
    )


def _plain(value: Any) -> Any:
    return asdict(value) if hasattr(value, "__dataclass_fields__") else str(value)


if __name__ == "__main__":
    main()
