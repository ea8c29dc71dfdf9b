"""Runs whose process was killed: Dagster leaves those of commands in progress for ever.

A run names the process that it is run by in a tag, from its creation or its beginning on. Runs of
code servers and of Kubernetes have others who look after them beside.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from dagster import DagsterEvent, DagsterRunStatus, Executor, RunsFilter

from mlops_assets.dagster_internals.database import (
    LONGEST_BEGINNING,
    PROCESS,
    UNFINISHED,
    names_gone_process,
)
from mlops_assets.processes import this_process

if TYPE_CHECKING:
    from dagster import DagsterInstance, DagsterRun, RunRecord

WHY = "its process on this machine is gone: it was killed, or ended without a word"


def process_tags(run_id: str) -> dict[str, str]:
    """Return the tags of a run that this process runs. A run that copies them is not taken in."""
    process = this_process()
    return {PROCESS: f"{run_id} {process}"} if process else {}


def naming_its_process(executor: Executor) -> Executor:
    """Have the runs of an executor say by which process they are run, and return it."""
    execute = executor.execute

    def execute_named(plan_context: Any, execution_plan: Any) -> Iterator[DagsterEvent]:
        run_id = plan_context.run_id
        plan_context.instance.add_run_tags(run_id, process_tags(run_id))
        yield from execute(plan_context, execution_plan)

    cast(Any, executor).execute = execute_named
    return executor


def has_gone(run: DagsterRun) -> bool:
    """Say whether a run was run by a process of this machine that is no longer there."""
    return names_gone_process(run.run_id, run.tags.get(PROCESS, ""))


def _never_began(record: RunRecord) -> bool:
    """Say whether a run was made long ago in the process that was to run it, and not begun since.

    A run says by which process it is run when it begins. One that a code server or a pod is to run
    was made from a description of its job, which it names.
    """
    run = record.dagster_run
    return (
        run.status is DagsterRunStatus.NOT_STARTED
        and run.remote_job_origin is None
        and datetime.now(UTC) - record.create_timestamp > LONGEST_BEGINNING
    )


def end_gone_runs(instance: DagsterInstance) -> list[DagsterRun]:
    """Fail the runs whose process is gone, with an event that says why, and return them."""
    statuses = [DagsterRunStatus(status) for status in UNFINISHED]
    ended = []
    for record in instance.get_run_records(RunsFilter(statuses=statuses)):
        run = record.dagster_run
        if not has_gone(run) and not _never_began(record):
            continue
        now = instance.get_run_by_id(run.run_id)
        if now is None or now.is_finished:  # it ended by itself meanwhile
            continue
        if now.status is DagsterRunStatus.CANCELING:
            instance.report_run_canceled(now, f"The run was cancelled; {WHY}.")
        else:
            instance.report_run_failed(now, f"The run failed: {WHY}.")
        ended.append(run)
    return ended
