"""Whether a process is still there, told by what it wrote down."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mlops_assets.processes import is_gone, this_process

pytestmark = pytest.mark.skipif(this_process() is None, reason="nothing can be told without /proc")

TELL = "from mlops_assets.processes import this_process; print(this_process(), flush=True)"


def told_by_one_that_ended(*, collected: bool) -> tuple[str, subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", TELL], stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    assert process.stdout is not None
    told = process.stdout.readline().strip()
    if collected:
        process.wait()
    else:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    return told, process


def changed(told: str, **parts: str) -> str:
    names = ["host", "boot", "container", "number", "begun"]
    return " ".join({**dict(zip(names, told.split(" "), strict=True)), **parts}.values())


def test_a_process_that_runs_is_not_gone() -> None:
    told = this_process()
    assert told is not None
    assert told == this_process()
    assert not is_gone(told)


@pytest.mark.parametrize("collected", [True, False])
def test_a_process_that_ended_is_gone_whether_its_parent_has_looked_or_not(
    collected: bool,
) -> None:
    told, process = told_by_one_that_ended(collected=collected)
    assert is_gone(told)
    process.communicate()


def test_a_number_that_was_given_again_is_another_process() -> None:
    told = this_process()
    assert told is not None
    assert is_gone(changed(told, begun="1"))


@pytest.mark.parametrize("part", ["host", "boot", "container"])
def test_what_ran_elsewhere_or_before_a_restart_is_not_judged(part: str) -> None:
    told, process = told_by_one_that_ended(collected=True)
    assert not is_gone(changed(told, **{part: "other"}))
    process.communicate()


@pytest.mark.parametrize("text", ["", "nonsense", "a b c d e", "1 2"])
def test_what_is_no_description_is_not_judged(text: str) -> None:
    assert not is_gone(text)
