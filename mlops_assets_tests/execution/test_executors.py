from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import util

import pytest
from dagster import DagsterEventType, DagsterInstance, DagsterRunStatus

from mlops_assets_tests.execution.conftest import (
    CODE_LOCATION,
    FORKSERVER,
    Location,
    helpers_running,
    stop_helpers,
)

CHAIN = ["first", "second", "third"]


def test_steps_run_in_the_runs_own_process_unless_configured_otherwise(
    location: Location,
) -> None:
    stop_helpers()

    result = location.run("chain")

    assert result.success
    assert result.ran == CHAIN
    assert result.processes_started == []
    assert not helpers_running()


def test_under_forkserver_each_step_that_has_to_run_has_a_process(location: Location) -> None:
    result = location.run("chain", FORKSERVER)

    assert result.success
    assert result.ran == result.processes_started == CHAIN
    assert result.initialised == ["gpu", "gpu", "gpu"]
    pids = {path.name.split(".")[1] for path in (location.folder / "ran").iterdir()}
    assert len(pids) == 3
    assert str(os.getpid()) not in pids


def test_under_forkserver_a_run_starts_two_processes_beside_those_of_its_steps(
    location: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_helpers()
    started, really = [], util.spawnv_passfds

    def counting(path: bytes, arguments: list[str], *rest: object) -> int:
        started.append(re.findall(r"multiprocessing\.(\w+) import", str(arguments)))
        return really(path, arguments, *rest)

    monkeypatch.setattr(util, "spawnv_passfds", counting)

    assert location.run("chain", FORKSERVER).success

    assert sorted(started) == [["forkserver"], ["resource_tracker"]]


def test_under_forkserver_an_unchanged_run_starts_no_process_and_no_resource(
    location: Location,
) -> None:
    location.run("chain")
    stop_helpers()

    result = location.run("chain", FORKSERVER)

    assert result.success
    assert result.reused == result.succeeded == CHAIN
    assert result.processes_started == []
    assert result.initialised == []  # a resource may need what only some machines have
    assert not helpers_running()


def test_under_forkserver_a_change_starts_processes_for_what_it_concerns(
    location: Location,
) -> None:
    location.run("chain")
    location.put("code/first", "2")

    result = location.run("chain", FORKSERVER)

    # What `second` is computed from has changed, what it is has not.
    assert result.ran == result.processes_started == ["first", "second"]
    assert result.reused == ["third"]
    assert result.succeeded == CHAIN


def test_a_step_with_hooks_is_told_in_its_own_process_where_the_hooks_have_their_resources(
    location: Location,
) -> None:
    location.run("chain")

    result = location.run("with_hook", FORKSERVER)

    assert result.success
    assert result.ran == []
    assert result.processes_started == result.reused == location.noted("hooked") == ["first"]


def test_a_step_is_launched_and_the_log_says_why_when_the_store_cannot_be_asked(
    location: Location,
) -> None:
    location.run("chain")
    location.put("away")

    result = location.run("chain", FORKSERVER)

    assert result.success
    assert result.ran == []  # the step's process asks a second time
    assert result.processes_started == ["first"]
    assert any("the store is away" in line and "launching first" in line for line in result.logs)


def test_a_step_whose_telling_breaks_off_fails_with_the_reason(location: Location) -> None:
    location.run("chain")
    location.put("broken")

    result = location.run("chain", FORKSERVER)

    assert not result.success
    assert result.steps(DagsterEventType.STEP_FAILURE) == ["first"]
    assert result.succeeded == []
    (failure,) = [e for e in result.events if e.is_step_failure]
    assert failure.step_failure_data.error is not None
    assert "the store went away" in failure.step_failure_data.error.message


def test_under_forkserver_failed_and_killed_steps_are_retried(location: Location) -> None:
    both = ["fails_once", "killed_once"]
    result = location.run("troubled", FORKSERVER)

    assert result.success
    assert result.ran == ["fails_once", "fails_once", "killed_once", "killed_once"]
    assert result.steps(DagsterEventType.STEP_UP_FOR_RETRY) == both

    location.put("broken")  # and so is a step whose telling breaks off
    result = location.run("troubled", FORKSERVER)

    assert not result.success
    assert result.steps(DagsterEventType.STEP_UP_FOR_RETRY) == both
    assert result.steps(DagsterEventType.STEP_FAILURE) == both


def test_under_forkserver_a_defect_is_executed_once_and_a_lost_process_counts_as_an_attempt(
    location: Location,
) -> None:
    result = location.run("hopeless", FORKSERVER)

    assert not result.success
    assert result.ran == ["always_killed", "always_killed", "defective"]


def test_under_forkserver_no_step_outlives_its_timeout_whatever_its_code_does(
    location: Location,
) -> None:
    result = location.run("endless", FORKSERVER)

    assert not result.success
    assert result.ran == ["never_ends", "never_lets_go", "too_slow"]
    said = [
        event.step_failure_data.error.to_string()
        for event in result.events
        if event.is_step_failure and event.step_failure_data.error is not None
    ]
    assert any("too_slow took longer than the 5s that `timeout`" in text for text in said)
    assert [log for log in result.logs if log.startswith("never_ends took longer than the 5s")]
    assert not any(_is_alive(pid) for pid in _pids_of_steps(location))


def test_no_step_outlives_the_run_that_started_it(
    location: Location, slow_run: subprocess.Popen[bytes]
) -> None:
    slow_run.kill()

    slow_run.wait()
    _wait_until(lambda: not _is_alive(_pid_of_step(location)))


def test_retries_can_be_switched_off(location: Location) -> None:
    config = {"execution": {"config": {"forkserver": {"retries": {"disabled": {}}}}}}

    result = location.run("troubled", config)

    assert not result.success
    assert result.ran == ["fails_once", "killed_once"]


def test_max_concurrent_below_one_is_refused(location: Location) -> None:
    config = {"execution": {"config": {"forkserver": {"max_concurrent": -1}}}}

    result = location.run("chain", config)

    assert not result.success
    assert result.ran == []
    errors = [e.job_failure_data.error for e in result.events if e.is_job_failure]
    assert "max_concurrent is -1; 1 or more is allowed" in str(errors)


DAGSTER_WITHOUT_PRELOADING = """
from dagster._cli import main
from mlops_assets.execution import executors
executors.PRELOAD = ()
main()
"""


@pytest.fixture
def slow_run(location: Location) -> Iterator[subprocess.Popen[bytes]]:
    """`dagster job execute` of a step that sleeps, under forkserver, once it does."""
    config = location.folder / "config.yaml"
    config.write_text("execution: {config: {forkserver: {}}}")
    command = [sys.executable, "-c", DAGSTER_WITHOUT_PRELOADING, "job", "execute"]
    with subprocess.Popen(
        [*command, "-m", CODE_LOCATION, "-j", "slow", "-c", str(config)],
        env={**os.environ, "DAGSTER_HOME": location.instance.root_directory},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            _wait_until(lambda: location.noted("ran") or process.poll() is not None)
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def test_ctrl_c_ends_the_run_and_its_step_processes_without_a_retry(
    location: Location, slow_run: subprocess.Popen[bytes]
) -> None:
    os.killpg(slow_run.pid, signal.SIGINT)

    assert slow_run.wait(timeout=30) != 0
    assert _status_of_only_run(location.instance) is DagsterRunStatus.FAILURE
    assert location.noted("ran") == ["slow"]
    _wait_until(lambda: not _is_alive(_pid_of_step(location)))


def test_a_termination_from_the_ui_cancels_the_run_and_ends_its_step_processes(
    location: Location, slow_run: subprocess.Popen[bytes]
) -> None:
    location.instance.report_run_canceling(location.instance.get_runs()[0])
    slow_run.send_signal(signal.SIGTERM)

    slow_run.wait(timeout=30)
    assert _status_of_only_run(location.instance) is DagsterRunStatus.CANCELED
    assert location.noted("ran") == ["slow"]
    _wait_until(lambda: not _is_alive(_pid_of_step(location)))


def _status_of_only_run(instance: DagsterInstance) -> DagsterRunStatus:
    (run,) = instance.get_runs()
    return run.status


def _pid_of_step(location: Location) -> int:
    (pid,) = _pids_of_steps(location)
    return pid


def _pids_of_steps(location: Location) -> list[int]:
    return [int(path.name.split(".")[1]) for path in (location.folder / "ran").iterdir()]


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)
