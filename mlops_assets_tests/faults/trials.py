"""Faults that are injected and counted: each trial is one fault and what was found after it.

The table at the end of a run counts the trials of every scenario by outcome.
`MLOPS_TEST_FAULTS=20` makes twenty times as many (the long mode), and `MLOPS_TEST_FAULTS_LOG=FILE`
keeps every trial as a line of JSON.
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from time import perf_counter
from types import TracebackType
from typing import Any

import pytest

LONGER = int(os.environ.get("MLOPS_TEST_FAULTS", "1"))
_PROPERTY = "trial"


@dataclass
class Trial:
    """One fault; as a context, it is counted when it ends, and as failed when it raises."""

    scenario: str
    number: int
    record: Callable[[str, object], None]
    outcome: str = "recovered"
    """What became of the work, in few words: they are the columns of the table."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What else is kept in the log: where the process was killed, how many requests failed."""
    _begun: float = 0.0

    @property
    def random(self) -> Random:
        """The trial's own source of chance: the same in every run of the suite."""
        return Random(f"{self.scenario}:{self.number}")

    def __enter__(self) -> Trial:
        self._begun = perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if error is not None:
            self.outcome = "FAILED"
            self.facts["error"] = f"{type(error).__name__}: {error}"[:2000]
        told = {
            "scenario": self.scenario,
            "trial": self.number,
            "outcome": self.outcome,
            "seconds": round(perf_counter() - self._begun, 3),
            **self.facts,
        }
        self.record(_PROPERTY, json.dumps(told, default=str))


class Trials:
    """The trials of one test."""

    def __init__(self, record: Callable[[str, object], None]) -> None:
        self._record = record

    def __call__(self, scenario: str, count: int) -> Iterator[Trial]:
        """Return the trials of a scenario, `count` of them in the usual run."""
        return (Trial(scenario, number, self._record) for number in range(count * LONGER))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many trials of every scenario ended how."""
    trials = [
        json.loads(str(value))
        for reports in terminalreporter.stats.values()
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "call"
        for name, value in report.user_properties
        if name == _PROPERTY
    ]
    if not trials:
        return
    if log := os.environ.get("MLOPS_TEST_FAULTS_LOG"):
        Path(log).write_text("".join(f"{json.dumps(trial)}\n" for trial in trials))
    terminalreporter.section("faults")
    for line in table(trials):
        terminalreporter.write_line(line)


def table(trials: list[dict[str, Any]]) -> list[str]:
    """Return a Markdown table of trials, a line for each scenario, and their number at the end."""
    by_scenario: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for trial in trials:
        by_scenario[trial["scenario"]].append(trial)
    lines = ["| scenario | trials | outcomes | slowest |", "|---|---:|---|---:|"]
    for scenario, ones in sorted(by_scenario.items()):
        outcomes = Counter(trial["outcome"] for trial in ones).most_common()
        told = ", ".join(f"{count} {outcome}" for outcome, count in outcomes)
        slowest = max(trial["seconds"] for trial in ones)
        lines.append(f"| {scenario} | {len(ones)} | {told} | {slowest:.1f} s |")
    failed = sum(trial["outcome"] == "FAILED" for trial in trials)
    return [*lines, "", f"{len(trials)} trials, {failed} failed"]
