"""Writes what a run of the fault suite found into `docs/reliability.md`; see `make faults`.

    python -m mlops_assets_tests.faults.report LOG

The table between the two marks is replaced, and the log itself is kept beside the page, compressed.
"""

from __future__ import annotations

import gzip
import json
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlops_assets_tests.faults.trials import LONGER, table

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "reliability.md"
RAW = DOCS / "reliability-trials.jsonl.gz"
BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"


def with_figures(page: str, trials: list[dict[str, Any]], measured: str) -> str:
    """Return the page with the figures of these trials in place of others."""
    before, _, rest = page.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"{PAGE} has no {BEGIN} with {END} after it")
    *lines, total = table(trials)
    figures = "\n".join([f"{total}. {measured}", "", *lines]).strip()
    return f"{before}{BEGIN}\n{figures}\n{END}{after}"


def measured() -> str:
    """Say when and where."""
    cores = len(os.sched_getaffinity(0))
    return (
        f"Measured on {datetime.now(UTC):%Y-%m-%d}, {cores} cores, {platform.system()}, "
        f"Python {platform.python_version()}, "
        f"{LONGER} times the trials of CI."
    )


def main(log: Path) -> None:
    """Rewrite the page from a log that `MLOPS_TEST_FAULTS_LOG` named."""
    text = log.read_text()
    trials = [json.loads(line) for line in text.splitlines()]
    PAGE.write_text(with_figures(PAGE.read_text(), trials, measured()))
    RAW.write_bytes(gzip.compress(text.encode(), mtime=0))
    print(f"{len(trials)} trials are in {PAGE} and {RAW}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
