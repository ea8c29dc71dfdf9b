"""Cases run in forked processes with a limit of memory and of time: what they end with, counted.

A case that ends its process, by a signal or by too much memory or time, is counted like any other,
and the next one goes on in another process. To be run as a program of its own, since what is forked
should have no threads::

    python -m mlops_assets_tests.fuzz.sandbox [TARGET…] [--seconds 60]
    python -m mlops_assets_tests.fuzz.sandbox TARGET --show 123
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlops_assets.errors import UserError

from .targets import TARGETS, Target

CASES_OF_A_PROCESS = 200
MEMORY = 2 * 1024**3  # bytes of address space beyond what the process has when it is forked
SECONDS = 60.0  # of one case, on a machine that others use too


@dataclass
class Result:
    """What the cases of a target ended with."""

    target: str
    cases: int = 0
    accepted: int = 0
    documented: Counter[str] = field(default_factory=Counter)
    """Errors that a user can mend, by their class."""
    undocumented: dict[str, list[int]] = field(default_factory=dict)
    """Numbers of cases by the error that came out, and where."""
    died: dict[str, list[int]] = field(default_factory=dict)
    """Numbers of cases that ended their process, by how."""
    seconds: float = 0.0


def run(target: Target, seconds: float) -> Result:
    """Run the usual cases of a target, or others for some time."""
    seeds = target.seeds()
    result = Result(target.name)
    begun, number = time.monotonic(), 0
    if seconds:
        number = time.time_ns() // 1000  # cases that nobody has tried
    while result.cases < target.cases or time.monotonic() - begun < seconds:
        end = number + CASES_OF_A_PROCESS if seconds else target.cases
        number = _fork(target, seeds, number, end, result)
    result.seconds = round(time.monotonic() - begun, 1)
    return result


def _fork(target: Target, seeds: Sequence[bytes], first: int, end: int, result: Result) -> int:
    """Run some cases in a process of their own; returns the number of the next one."""
    outgoing, incoming = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(outgoing)
        _work(target, seeds, first, end, incoming)
    os.close(incoming)
    number, buffer, how = first, b"", ""
    while True:
        ready, _, _ = select.select([outgoing], [], [], SECONDS)
        if not ready:
            os.kill(child, signal.SIGKILL)
            how = f"took more than {SECONDS:.0f} s"
            break
        if not (part := os.read(outgoing, 65536)):
            break
        buffer += part
        *lines, buffer = buffer.split(b"\n")
        for line in lines:
            _count(json.loads(line), number, result)
            number += 1
    os.close(outgoing)
    _, status = os.waitpid(child, 0)
    if how or status:
        code = os.waitstatus_to_exitcode(status)
        how = how or (signal.Signals(-code).name if code < 0 else f"exit code {code}")
        result.died.setdefault(how, []).append(number)
        result.cases += 1
        number += 1
    return number


def _count(outcome: tuple[str, str], number: int, result: Result) -> None:
    kind, what = outcome
    result.cases += 1
    if kind == "accepted":
        result.accepted += 1
    elif kind == "documented":
        result.documented[what] += 1
    else:
        result.undocumented.setdefault(what, []).append(number)


def _work(target: Target, seeds: Sequence[bytes], first: int, end: int, report: int) -> None:
    silent = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(silent, stream)
    limit = resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[0]) + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        with tempfile.TemporaryDirectory() as folder:
            for number in range(first, end):
                outcome = _outcome(target, made(target, seeds, number), Path(folder))
                if number < len(seeds) and outcome[0] == "documented":
                    outcome = ("undocumented", "a file without damage is refused")
                os.write(report, f"{json.dumps(outcome)}\n".encode())
        os._exit(0)
    finally:
        os._exit(1)


def made(target: Target, seeds: Sequence[bytes], number: int) -> bytes:
    """Make the content of a case: a seed for the first ones, a damaged seed for all others."""
    if number < len(seeds):
        return seeds[number]
    chance = random.Random(f"{target.name} {number}")
    return target.mutate(chance, chance.choice(seeds), seeds)


def _outcome(target: Target, content: bytes, folder: Path) -> tuple[str, str]:
    try:
        target.decode(content, folder)
    except UserError as error:
        if str(error).strip():
            return "documented", type(error).__name__
        return "undocumented", f"{type(error).__name__} without a word"
    except Exception as error:
        ours = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if "mlops_assets" in frame.filename
        ]
        place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "nowhere"
        return "undocumented", f"{type(error).__name__} at {place}: {str(error)[:120]}"
    return "accepted", ""


def _show(target: Target, number: int) -> None:
    content = made(target, target.seeds(), number)
    sys.stdout.write(f"{content!r}\n")
    sys.stdout.flush()
    with tempfile.TemporaryDirectory() as folder:
        target.decode(content, Path(folder))


def main() -> None:
    """Print a line of JSON for each target."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("targets", nargs="*", choices=[[], *TARGETS], metavar="TARGET")
    parser.add_argument("--seconds", type=float, default=0, help="for each target")
    parser.add_argument("--show", type=int, metavar="CASE", help="one case, in this process")
    asked = parser.parse_args()
    for name in asked.targets or TARGETS:
        if asked.show is not None:
            _show(TARGETS[name], asked.show)
        else:
            sys.stdout.write(json.dumps(vars(run(TARGETS[name], asked.seconds))) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
