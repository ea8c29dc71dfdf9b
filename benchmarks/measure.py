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


def cost_of(command: Sequence[str], environment: Mapping[str, str]) -> Cost:
    """Run a command to its end and return what it took; another exit code than 0 ends ours."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, env={**environment}, capture_output=True, text=True)
    wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    _require_success(command, done.returncode, done.stdout + done.stderr)
    return Cost(wall, sum(after[:2]) - sum(before[:2]))


def processes_started(command: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """Run a command to its end and return the processes that descend from it, by their programs.

    They are looked for every millisecond, and one that ends sooner may be missed. Linux only.
    """
    found: dict[int, str] = {}
    with (
        TemporaryFile("w+") as output,
        subprocess.Popen(command, env={**environment}, stdout=output, stderr=output) as process,
    ):
        while process.poll() is None:
            for parent in (process.pid, *found):
                for child in _children(parent):
                    found[child] = _program(child) or found.get(child, "")
            time.sleep(0.001)
        output.seek(0)
        _require_success(command, process.returncode, output.read())
    return sorted(found.values())


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
