"""Two daemons on one instance, daemons and workers that are killed, and runs that are cancelled."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import pytest
import yaml
from dagster import DagsterRun, DagsterRunStatus
from dagster._core.storage.tags import WILL_RETRY_TAG

from mlops_assets_tests.faults.sites import Site, Sites
from mlops_assets_tests.faults.trials import Trials
from mlops_assets_tests.servers import free_port, wait_for
from mlops_assets_tests.warm import Command

pytestmark = pytest.mark.daemon

LOCATION = "here"
SELECTOR = (
    f'{{repositoryLocationName: "{LOCATION}", repositoryName: "__repository__",'
    ' jobName: "customers_training"}'
)


@contextmanager
def running(command: Command) -> Iterator[Command]:
    """Give a server that is killed at the end, with all that it has started."""
    try:
        yield command
    finally:
        command.kill_all()
        command.wait()


@contextmanager
def code_server(site: Site, module: str) -> Iterator[Command]:
    port = free_port()
    workspace = [{"grpc_server": {"host": "127.0.0.1", "port": port, "location_name": LOCATION}}]
    (site.folder / "workspace.yaml").write_text(yaml.safe_dump({"load_from": workspace}))
    serve = ["api", "grpc", "-m", module, "--host", "127.0.0.1", "--port", str(port)]
    with running(site.start("dagster", *serve, "--inject-env-vars-from-instance")) as server:
        wait_for(port)
        yield server


def daemon(site: Site) -> Command:
    return site.start("dagster-daemon", "run", "-w", str(site.folder / "workspace.yaml"))


def until(is_so: Callable[[], object], *commands: Command, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "\n\n".join(it.output[-3000:] for it in commands)
        time.sleep(0.2)


def test_two_daemons_of_which_one_is_killed_at_random_run_everything_once(
    trials: Trials, sites: Sites
) -> None:
    for trial in trials("two daemons, one is killed and starts again", 1):
        with trial, sites.copy() as site, ExitStack() as stack:
            configuration = {
                "telemetry": {"enabled": False},
                "run_launcher": {
                    "module": "mlops_assets_tests.faults.launchers",
                    "class": "OverAtOnce",
                },
            }
            shutil.rmtree(site.home / "schedules", ignore_errors=True)
            (site.home / "dagster.yaml").write_text(yaml.safe_dump(configuration))
            server = stack.enter_context(code_server(site, f"{__package__}.code_location"))
            daemons = [stack.enter_context(running(daemon(site))) for _ in range(2)]
            until(partial(are_launched, site, 1), server, *daemons)
            time.sleep(trial.random.uniform(1, 6))
            daemons[trial.number % 2].kill_all()
            time.sleep(trial.random.uniform(0, 2))
            again = stack.enter_context(running(daemon(site)))
            more = len(launches(site)) + 5
            until(partial(are_launched, site, more), server, *daemons, again)
            stack.close()
            keys = Counter(run.tags.get("dagster/run_key") for run in new_runs(site))
            of_runs = Counter(launches(site))
            trial.facts |= {"run keys": len(keys), "runs launched": len(of_runs)}
            twice = sum(n - 1 for n in keys.values()), sum(n - 1 for n in of_runs.values())
            trial.facts["runs too many"], trial.facts["launches too many"] = twice
            trial.outcome = "everything once" if twice == (0, 0) else "some runs twice"


def launches(site: Site) -> list[str]:
    launched = site.home / "launched"
    return launched.read_text().split() if launched.exists() else []


def are_launched(site: Site, count: int) -> bool:
    return len(launches(site)) >= count


def new_runs(site: Site) -> list[DagsterRun]:
    before = (site.folder / "before.txt").read_text().split()
    return [run for run in site.runs() if run.run_id not in before]


def graphql(site: Site, query: str) -> dict[str, object]:
    workspace = str(site.folder / "workspace.yaml")
    command = site.start("dagster-graphql", "-w", workspace, "-t", query)
    assert command.wait() == 0, command.output
    found = re.search(r"^\{.*", command.output, re.MULTILINE | re.DOTALL)
    assert found, command.output
    answer: dict[str, object] = json.JSONDecoder().raw_decode(found.group())[0]["data"]
    return answer


def launch(site: Site) -> str:
    parameters = f'{{selector: {SELECTOR}, mode: "default"}}'
    success = "... on LaunchRunSuccess { run { runId } } ... on PythonError { message }"
    answer = graphql(
        site,
        f"mutation {{ launchRun(executionParams: {parameters}) {{ __typename {success} }} }}",
    )
    launched = answer["launchRun"]
    assert isinstance(launched, dict)
    assert launched["__typename"] == "LaunchRunSuccess", launched
    return str(launched["run"]["runId"])


def cancel(site: Site, run_id: str) -> str:
    answer = graphql(site, f'mutation {{ terminateRun(runId: "{run_id}") {{ __typename }} }}')
    terminated = answer["terminateRun"]
    assert isinstance(terminated, dict)
    return str(terminated["__typename"])


def status(site: Site, run_id: str) -> DagsterRunStatus:
    with site.instance() as instance:
        run = instance.get_run_by_id(run_id)
    assert run is not None
    return run.status


def is_idle(site: Site) -> bool:
    """Say whether no run is in progress, and none is to be tried again by the daemon."""
    runs = site.runs()
    retried = {run.parent_run_id for run in runs}
    return all(
        run.is_finished and (run.tags.get(WILL_RETRY_TAG) != "true" or run.run_id in retried)
        for run in runs
    )


def has_a_step(site: Site, run_id: str) -> bool:
    with site.instance() as instance:
        return any(
            event.is_dagster_event and event.get_dagster_event().is_step_start
            for event in instance.all_logs(run_id)
        )


def worker_of(site: Site, run_id: str) -> int:
    """Return the process of a run's worker."""
    with site.instance() as instance:
        told = "\n".join(event.message for event in instance.all_logs(run_id))
    found = re.search(r"Started process for run \(pid: (\d+)\)", told)
    assert found, told
    return int(found.group(1))


def test_a_run_that_is_cancelled_as_it_waits_in_the_queue_never_begins(
    trials: Trials, sites: Sites
) -> None:
    with sites.copy() as site, code_server(site, "mlops_assets.definitions"):
        site.edit(rows=121)
        for trial in trials("cancelled in the queue", 1):
            with trial:
                run_id = launch(site)
                assert status(site, run_id) is DagsterRunStatus.QUEUED
                assert cancel(site, run_id) == "TerminateRunSuccess"
                assert status(site, run_id) is DagsterRunStatus.CANCELED
                trial.outcome = "cancelled"
        site.recovers()


@pytest.mark.parametrize("how", ["cancelled", "killed"])
def test_a_worker_that_is_cancelled_or_killed_is_no_success_and_leaves_nothing_in_progress(
    trials: Trials, sites: Sites, how: str
) -> None:
    with (
        sites.copy() as site,
        code_server(site, "mlops_assets.definitions") as server,
        running(daemon(site)) as ticking,
    ):
        for trial in trials(f"the worker of a run {how} at a random time", 1):
            with trial:
                site.edit(rows=121 + trial.number)
                run_id = launch(site)
                until(partial(has_a_step, site, run_id), server, ticking)
                time.sleep(trial.random.uniform(0, sites.usual / 2))
                was_over = status(site, run_id).name == "SUCCESS"
                if how == "cancelled":
                    trial.facts["answer"] = cancel(site, run_id)
                elif not was_over:
                    os.kill(worker_of(site, run_id), signal.SIGKILL)
                until(partial(is_idle, site), server, ticking)
                ended = status(site, run_id)
                trial.outcome = "was over" if was_over else ended.name.lower()
                if not was_over and trial.facts.get("answer") in (None, "TerminateRunSuccess"):
                    assert ended.name == ("CANCELED" if how == "cancelled" else "FAILURE")
                trial.facts["retried by Dagster"] = any(
                    run.parent_run_id == run_id for run in site.runs()
                )
                site.recovers()
