"""What is changed in Dagster's executors; that steps are told or launched is in `execution/`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from dagster import DagsterEvent, DagsterEventType
from dagster._core.execution.plan.objects import StepFailureData, StepRetryData, StepSuccessData
from dagster._core.execution.retries import RetryMode
from dagster._core.executor.step_delegating import StepDelegatingExecutor
from dagster_shared.error import SerializableErrorInfo

from mlops_assets.dagster_internals.orchestration import ending_steps_once

SUCCESS, FAILURE = DagsterEventType.STEP_SUCCESS, DagsterEventType.STEP_FAILURE
RETRY, START = DagsterEventType.STEP_UP_FOR_RETRY, DagsterEventType.STEP_START

ERROR = SerializableErrorInfo("any", [], None)
DATA: dict[DagsterEventType, Any] = {
    SUCCESS: StepSuccessData(1.0),
    FAILURE: StepFailureData(ERROR, None),
    RETRY: StepRetryData(ERROR),
}


def told(*events: tuple[DagsterEventType, str]) -> list[tuple[DagsterEventType, str | None]]:
    """Return what an executor hears of these events, each read from the log by itself."""
    log = iter(events)

    class Log(StepDelegatingExecutor):
        def _pop_events(self, *_: Any) -> list[DagsterEvent]:
            kind, step = next(log)
            return [
                DagsterEvent(kind.value, "job", step_key=step, event_specific_data=DATA.get(kind))
            ]

    executor = ending_steps_once(Log(SimpleNamespace(name="any"), RetryMode.DISABLED))
    heard = [event for _ in events for event in executor._pop_events(None, "run", set())]
    return [(event.event_type, event.step_key) for event in heard]


@pytest.mark.parametrize("second", [SUCCESS, FAILURE, RETRY])
def test_a_step_that_ends_a_second_time_is_heard_of_once(second: DagsterEventType) -> None:
    assert told((START, "a"), (SUCCESS, "a"), (START, "a"), (second, "a"), (SUCCESS, "b")) == [
        (START, "a"),
        (SUCCESS, "a"),
        (START, "a"),
        (SUCCESS, "b"),
    ]


def test_a_retry_is_no_end() -> None:
    events = [(START, "a"), (RETRY, "a"), (START, "a"), (RETRY, "a"), (FAILURE, "a")]

    assert told(*events) == events
