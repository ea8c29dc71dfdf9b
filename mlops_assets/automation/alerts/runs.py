"""The incidents of runs: steps that failed, and runs that were lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from dagster import DagsterEventType, RunStatusChangeRecordsFilter

from mlops_assets.automation.alerts.incidents import AT_ONCE, Incident, Watch, named
from mlops_assets.dagster_internals.events import (
    MARKED_FROM_OUTSIDE,
    events_after,
    latest_event,
    owners_of,
)
from mlops_assets.failures import reason_of
from mlops_assets.wording import first_line

if TYPE_CHECKING:
    from dagster import (
        AssetCheckEvaluation,
        AssetCheckKey,
        AssetKey,
        DagsterEvent,
        DagsterInstance,
        DagsterRun,
        EventLogEntry,
    )

LOOK_BACK = 600
"""Seconds before the first tick of all whose failed runs are told: a run may fail in the time that
a daemon takes to start."""


def failed_runs(watch: Watch, after: int | None) -> tuple[list[Incident], int]:
    """Find the steps that failed, and the runs that failed for another reason."""
    after = _where_to_start(watch) if after is None else after
    events = events_after(watch.instance, DagsterEventType.RUN_FAILURE, after, AT_ONCE)
    incidents: list[Incident] = []
    for entry in filter(watch.is_recent, events.values()):
        run = watch.instance.get_run_by_id(entry.run_id)
        if run is not None and watch.is_here(run):
            incidents += _incidents_of(watch, run, entry)
    return incidents, max(events, default=after)


def _where_to_start(watch: Watch) -> int:
    recent = watch.instance.fetch_run_status_changes(
        RunStatusChangeRecordsFilter(
            DagsterEventType.RUN_FAILURE, after_timestamp=watch.now - LOOK_BACK
        ),
        limit=1,
        ascending=True,
    ).records
    return recent[0].storage_id - 1 if recent else latest_event(watch.instance)


def _incidents_of(watch: Watch, run: DagsterRun, failure: EventLogEntry) -> list[Incident]:
    """Return one incident for each step that failed, or that the run was in when it was lost."""
    course = _Course.of(watch.instance, run.run_id)
    will_be_retried = run.tags.get("dagster/will_retry") == "true"
    why = _why(failure.get_dagster_event(), course.engine)
    ends = course.failed or dict.fromkeys(course.running, why)

    def incident(what: str, why: str, keys: Sequence[AssetKey], step: str | None) -> Incident:
        return Incident(
            title=f"{what} failed{', will be retried' if will_be_retried else ''}",
            details=why,
            kind="warning" if will_be_retried else "failure",
            page=watch.page(run.run_id),
            at=failure.timestamp,
            owners=owners_of(watch.repository, keys),
            step=step,
            # Dagster's own words name the run, which would make every one another trouble
            told_apart_by=first_line(why).replace(run.run_id, ""),
            **watch.about(run),
        )

    if ends:
        made_by = {step: course.planned.get(step, []) for step in ends}
        return [
            incident(_names(made_by[step]) or f"{step} of {run.job_name}", why, made_by[step], step)
            for step, why in ends.items()
        ]
    every_key = [key for keys in course.planned.values() for key in keys]
    pipelines = named(sorted({key.path[0] for key in every_key}))
    return [incident(f"a run of {pipelines or run.job_name}", why, every_key, None)]


@dataclass
class _Course:
    """What happened in a run until it failed."""

    planned: dict[str, list[AssetKey]] = field(default_factory=dict)
    """The assets of its steps."""
    running: dict[str, None] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    """Why, by step."""
    checks: dict[str, dict[AssetCheckKey, AssetCheckEvaluation]] = field(default_factory=dict)
    """The last evaluation of each, by step."""
    engine: str = ""
    """What Dagster said last of itself."""

    @classmethod
    def of(cls, instance: DagsterInstance, run_id: str) -> _Course:
        records = instance.get_records_for_run(
            run_id,
            of_type={
                DagsterEventType.ASSET_MATERIALIZATION_PLANNED,
                DagsterEventType.ASSET_CHECK_EVALUATION,
                DagsterEventType.ENGINE_EVENT,
                DagsterEventType.RUN_FAILURE,
                DagsterEventType.STEP_FAILURE,
                DagsterEventType.STEP_START,
                DagsterEventType.STEP_SUCCESS,
            },
        ).records
        course = cls()
        events = (record.event_log_entry.get_dagster_event() for record in records)
        for event in takewhile(lambda event: not event.is_run_failure, events):
            course._add(event)
        return course

    def _add(self, event: DagsterEvent) -> None:
        step = event.step_key or ""
        if event.event_type is DagsterEventType.ASSET_MATERIALIZATION_PLANNED and event.asset_key:
            self.planned.setdefault(step, []).append(event.asset_key)
        elif event.event_type is DagsterEventType.ASSET_CHECK_EVALUATION:
            check = event.asset_check_evaluation_data
            self.checks.setdefault(step, {})[check.asset_check_key] = check
        elif event.is_engine_event:
            self.engine = event.message or ""
        elif event.is_step_start:
            self.running[step] = None
        elif event.is_step_success:
            self.running.pop(step, None)
        elif event.is_step_failure:
            broken = [check for check in self.checks.get(step, {}).values() if not check.passed]
            self.failed[step] = reason_of(event, broken)


def _why(failure: DagsterEvent, engine: str) -> str:
    """Say why a run failed that no step has failed in."""
    data: Any = failure.event_specific_data
    message = failure.message or ""
    if data is not None and data.error is not None:
        return f"{(data.error.cause or data.error).message.strip()}\n{message}"
    return engine or message if message == MARKED_FROM_OUTSIDE else message


def _names(keys: Sequence[AssetKey]) -> str:
    return named([key.to_user_string() for key in keys])
