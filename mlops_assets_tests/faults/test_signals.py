"""Signals to whatever runs a pipeline, at every stage and at random times."""

from __future__ import annotations

import os
import signal
import time
from random import Random

import pytest

from mlops_assets_tests.faults.sites import JOB, RUN, STAGES, Site, Sites
from mlops_assets_tests.faults.trials import Trials
from mlops_assets_tests.warm import Command

FORKSERVER = "execution: {config: {forkserver: {max_concurrent: 2}}}"


def disturbed(site: Site, command: Command, number: signal.Signals, after: float) -> str:
    """Send a signal to a command after some seconds, let it end, and check what holds then."""
    time.sleep(after)
    was_running = command.poll() is None
    command.send_signal(number)
    code = command.wait()
    command.kill_all()
    if was_running and number is signal.SIGKILL:
        assert code != 0
    return site.is_sound(command)


@pytest.mark.parametrize(
    ("number", "count"), [(signal.SIGKILL, 10), (signal.SIGTERM, 4), (signal.SIGINT, 4)]
)
def test_mlops_run_that_gets_a_signal_is_no_success_and_the_next_one_finishes_it(
    trials: Trials, sites: Sites, number: signal.Signals, count: int
) -> None:
    for trial in trials(f"{number.name} to mlops run at a random time", count):
        with trial, sites.copy() as site:
            site.edit(rows=121 + trial.number)
            delay = trial.random.uniform(0, 1.2 * sites.usual)
            trial.facts["after"] = delay
            command = site.start(*RUN)
            trial.outcome = disturbed(site, command, number, delay)
            report = site.recovers()
            trial.facts["executed then"] = report["pipelines"]["customers"]["executed"]


def test_mlops_run_that_is_killed_as_an_artefact_appears_finishes_in_the_next_one(
    trials: Trials, sites: Sites
) -> None:
    for trial in trials("SIGKILL between an artefact and its event", 6):
        with trial, sites.copy() as site:
            stage = STAGES[trial.number % len(STAGES)]
            trial.facts["stage"] = stage
            site.edit(rows=121 + trial.number)
            before = written(site, stage)
            command = site.start(*RUN)
            while command.poll() is None and written(site, stage) == before:
                time.sleep(0.0005)
            command.send_signal(signal.SIGKILL)
            command.wait()
            command.kill_all()
            trial.outcome = site.is_sound(command)
            site.recovers()


def written(site: Site, stage: str) -> set[str]:
    return {path.name for path in (site.store / "customers" / stage).glob("*")}


@pytest.mark.parametrize(
    ("executor", "number", "count"),
    [
        ("in_process", signal.SIGKILL, 3),
        ("in_process", signal.SIGTERM, 3),
        ("forkserver", signal.SIGKILL, 1),
        ("forkserver", signal.SIGTERM, 1),
    ],
)
def test_a_job_that_gets_a_signal_is_no_success_and_the_next_run_finishes_it(
    trials: Trials, sites: Sites, executor: str, number: signal.Signals, count: int
) -> None:
    for trial in trials(f"{number.name} to dagster job execute, {executor}", count):
        with trial, sites.copy() as site:
            site.edit(rows=121 + trial.number)
            arguments = [*JOB]
            if executor == "forkserver":
                (site.folder / "run.yaml").write_text(FORKSERVER)
                arguments += ["-c", str(site.folder / "run.yaml")]
            longest = sites.usual * (4 if executor == "forkserver" else 1.2)
            delay = trial.random.uniform(0, longest)
            trial.facts["after"] = delay
            command = site.start(*arguments)
            trial.outcome = disturbed(site, command, number, delay)
            site.recovers()


def test_a_step_process_that_is_killed_is_run_again_within_its_run(
    trials: Trials, sites: Sites
) -> None:
    for trial in trials("SIGKILL to the process of a step, forkserver", 1):
        with trial, sites.copy() as site:
            site.edit(rows=121 + trial.number)
            (site.folder / "run.yaml").write_text(FORKSERVER)
            command = site.start(*JOB, "-c", str(site.folder / "run.yaml"))
            trial.facts["step"] = killed_step(command, trial.random)
            code = command.wait()
            assert code == 0, command.output
            assert site.is_sound(command) == "succeeded"
            trial.outcome = "recovered"
            site.recovers()


def killed_step(command: Command, chance: Random) -> str:
    """Kill one of the step processes of a command, and return its step."""
    skipped = chance.randrange(4)
    seen: set[str] = set()
    while command.poll() is None:
        for line in command.output.splitlines():
            if "STEP_WORKER_STARTED" in line and "(pid:" not in line and line not in seen:
                seen.add(line)
                if len(seen) <= skipped:
                    continue
                pid = int(line.split(" - ")[5])
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                return line.rpartition('"')[0].rpartition('"')[2]
        time.sleep(0.01)
    raise AssertionError(f"no step was running\n{command.output}")


def test_a_machine_that_sleeps_in_the_middle_goes_on_where_it_was(
    trials: Trials, sites: Sites
) -> None:
    for trial in trials("SIGSTOP for a second, then SIGCONT", 1):
        with trial, sites.copy() as site:
            site.edit(rows=121 + trial.number)
            command = site.start(*RUN)
            time.sleep(trial.random.uniform(0, sites.usual))
            if command.poll() is None:
                os.killpg(command.pid, signal.SIGSTOP)
                time.sleep(1)
                os.killpg(command.pid, signal.SIGCONT)
            assert command.wait() == 0, command.output
            assert site.is_sound(command) == "succeeded"
            trial.outcome = "went on"
            site.recovers()
