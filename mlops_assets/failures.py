"""How a step ends when it cannot go on, and what is said of it.

Which errors are worth another attempt is the table in `mlops_assets.retries`.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dagster import Failure

from mlops_assets.dagster_internals.attempts import (
    INTERRUPTS,
    RunInterrupted,
    another_attempt,
    attempts_left,
    earlier_runs_left_none,
    error_behind,
    final,
)
from mlops_assets.errors import UserError
from mlops_assets.retries import may_pass
from mlops_assets.time_limit import StepTimeoutError, TimeIsUp

if TYPE_CHECKING:
    from dagster import AssetCheckEvaluation, DagsterEvent
    from dagster._core.execution.context.system import StepExecutionContext

STEP_POD = "DAGSTER_RUN_STEP_KEY"
"""Variable that dagster-k8s sets in the pods of steps."""


@contextmanager
def explained(step: StepExecutionContext) -> Iterator[None]:
    """Decide how an attempt of a step ends that cannot go on: with another attempt, or for good.

    By the table in `mlops_assets.retries`, whatever code raised the error: a step's own, that of a
    user, or the store's. A `Failure` and a `RetryRequested` that code raises by itself are obeyed.

    Raises
    ------
    dagster.RetryRequested
        For an error that may pass, while the retry policy of the step has attempts left.
    dagster.Failure
        With the mistake's own words, for a `UserError`; and when the runs that this one retries
        have used up the attempts.
    dagster.DagsterError
        For any other error that is final, with its stack trace.
    RunInterrupted
        For Ctrl-C, a termination from the UI, or SIGTERM.
    """
    attempts = attempts_left(step)
    if earlier_runs_left_none(step, attempts):
        raise Failure(
            f"{step.step.key} has had all attempts that `retries.max` of the pipeline file allows, "
            "in the runs that this one retries: their workers were lost. Mend what ended them, and "
            "run it again",
            allow_retries=False,
        )
    try:
        yield
    except RunInterrupted:
        raise
    except INTERRUPTS as interrupt:
        raise RunInterrupted("the run was interrupted") from interrupt
    except TimeIsUp as time_is_up:
        error = StepTimeoutError(str(time_is_up)).with_traceback(time_is_up.__traceback__)
        raise another_attempt(step, error, attempts) from error
    except Exception as raised:
        cause = error_behind(raised)
        if cause is None:
            raise
        if isinstance(cause, INTERRUPTS):
            raise RunInterrupted("the run was interrupted") from cause
        raise _end_of(step, cause, attempts) from cause


def _end_of(step: StepExecutionContext, error: BaseException, attempts: int | None) -> Exception:
    """Return what a step raises for Dagster to do what has to be done about an error."""
    if isinstance(error, UserError):
        return Failure(description=str(error), allow_retries=False)
    if isinstance(error, Failure) or may_pass(error):
        return another_attempt(step, error, attempts)
    return final(step, error)


@contextmanager
def silent_when_its_pod_ends(log: logging.Logger) -> Iterator[None]:
    """End the process of a step whose pod was asked to end, without an event of it.

    Whoever asked knows why, and the run's worker finds out: an evicted or pre-empted step is
    launched again, which it could not be once it has told that it failed. Elsewhere than in the pod
    of a step this does nothing.
    """
    try:
        yield
    except INTERRUPTS:
        if STEP_POD not in os.environ:
            raise
        log.info("the pod of this step was asked to end")
        logging.shutdown()
        os._exit(128 + signal.SIGTERM)


def said_of(check: AssetCheckEvaluation) -> str:
    """Return what is said of a check that did not pass."""
    return f"{check.check_name}: {check.description or 'failed'}"


def reason_of(event: DagsterEvent, broken: Sequence[AssetCheckEvaluation]) -> str:
    """Return why a step failed, in the words of whoever raised the failure.

    `broken` are the step's checks that did not pass; of those that block, Dagster's own error gives
    the names only.
    """
    data = event.step_failure_data
    blocking = [check for check in broken if check.blocking and check.severity.name == "ERROR"]
    if blocking:
        return "\n".join(map(said_of, blocking))
    if data.user_failure_data is not None and data.user_failure_data.description:
        return data.user_failure_data.description
    if data.error_source is not None and data.error_source.name == "INTERRUPT":
        return "interrupted"
    if data.error is None:
        return event.message or "unknown"
    error = data.error.cause or data.error
    return error.message.strip()
