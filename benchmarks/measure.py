"""Measuring whole processes: what they take, how much that varies, and on which machine.

What is measured, and what it is compared with, belongs in the benchmarks themselves.
"""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryFile


@dataclass(frozen=True)
class Cost:
    """What a command took."""

    wall: float
    """Seconds."""
    cpu: float
    """Seconds of user and system time, with those of the processes that it waited for."""


@dataclass(frozen=True)
class Spread:
    """Several measurements of the same."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Summarise measurements, of which there is at least one."""
        values = list(values)
        return cls(median(values), min(values), max(values))

    def __str__(self) -> str:
        """Show the median and the range."""
        return f"{self.median:.2f} ({self.least:.2f} to {self.most:.2f})"


@dataclass(frozen=True)
class Watched:
    """What was seen of a command and of the processes that descend from it."""

    output: str
    """Standard output."""
    started: list[str]
    """The descendants, by their programs; one that lives for less than a millisecond is missed."""
    peak: float
    """Megabytes of memory (10^6 bytes) that all of them had at once, what they share counted once.

    Looked at 50 times a second.
    """


def cost_of(
    command: Sequence[str], environment: Mapping[str, str], folder: Path | None = None
) -> Cost:
    """Run a command to its end, and return what it took; another exit code than 0 ends ours.

    Parameters
    ----------
    command, environment
        What to run, and all of its variables.
    folder
        Where to run it; by default where we are.
    """
    return timed(command, environment, folder)[0]


def timed(
    command: Sequence[str], environment: Mapping[str, str], folder: Path | None = None
) -> tuple[Cost, str]:
    """Do what `cost_of` does, and return the standard output, too."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, env={**environment}, cwd=folder, capture_output=True, text=True)
    wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    _require_success(command, done.returncode, done.stdout + done.stderr)
    return Cost(wall, sum(after[:2]) - sum(before[:2])), done.stdout


def processes_started(command: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """Run a command to its end and return the processes that descend from it, by their programs.

    They are looked for every millisecond, and one that ends sooner may be missed. Linux only.
    """
    return watched(command, environment).started


def watched(
    command: Sequence[str], environment: Mapping[str, str], folder: Path | None = None
) -> Watched:
    """Run a command to its end and watch it, which slows it down. Linux only."""
    found: dict[int, str] = {}
    peak, look_at_memory = 0.0, 0.0
    with (
        TemporaryFile("w+") as output,
        TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, env={**environment}, cwd=folder, stdout=output, stderr=errors
        ) as process,
    ):
        while process.poll() is None:
            for parent in (process.pid, *found):
                for child in _children(parent):
                    found[child] = _program(child) or found.get(child, "")
            if time.perf_counter() >= look_at_memory:
                peak = max(peak, sum(map(_megabytes, (process.pid, *found))))
                look_at_memory = time.perf_counter() + 0.02
            time.sleep(0.001)
        output.seek(0)
        errors.seek(0)
        told = output.read()
        _require_success(command, process.returncode, told + errors.read())
    return Watched(told, sorted(found.values()), peak)


def machine() -> dict[str, object]:
    """Describe the machine, and how busy others keep it."""
    cpu = platform.processor() or platform.machine()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line for line in lines if line.startswith("model name")).partition(": ")[2]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": cpu,
        "cores": cores,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "load": round(os.getloadavg()[0], 1),
    }


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Write a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _require_success(command: Sequence[str], code: int, output: str) -> None:
    if code:
        raise SystemExit(f"{' '.join(command)} ended with exit code {code}\n{output[-5000:]}")


def _children(pid: int) -> list[int]:
    with suppress(OSError):
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for one in threads for child in (one / "children").read_text().split()]
    return []


def _program(pid: int) -> str:
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        return " ".join(Path(word).name for word in words[:2])
    return ""


def _megabytes(pid: int) -> float:
    """Return a process's memory, and of what it shares with others its part."""
    with suppress(OSError, ValueError, StopIteration):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        share = next(line for line in lines if line.startswith("Pss:"))
        return int(share.split()[1]) * 1024 / 1e6
    return 0.0
