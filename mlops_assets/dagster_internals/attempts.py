"""What Dagster knows of the attempts of a step, and what it is told to do about one that failed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dagster import (
    DagsterError,
    DagsterEventType,
    DagsterExecutionInterruptedError,
    DagsterExecutionStepExecutionError,
    Failure,
    RetryRequested,
)
from dagster._core.errors import DagsterUserCodeExecutionError
from dagster._core.execution.plan.utils import RetryRequestedFromPolicy
from dagster._core.storage.tags import RETRY_NUMBER_TAG

if TYPE_CHECKING:
    from dagster import DagsterRun
    from dagster._core.execution.context.system import StepExecutionContext

INTERRUPTS = (KeyboardInterrupt, DagsterExecutionInterruptedError)

_BEGINNINGS = {DagsterEventType.STEP_START, DagsterEventType.STEP_RESTARTED}


class RunInterrupted(DagsterError, DagsterExecutionInterruptedError):
    """Ends the run at once.

    A step with a retry policy that is interrupted would be tried again, after Ctrl-C too. As a
    `DagsterError` this gets past the policy, and as an interrupt it stops all other steps.
    """


def error_behind(raised: Exception) -> BaseException | None:
    """Return the error for which a step is about to be tried again, or to fail without a policy.

    None for what says by itself how the step ends: a `Failure`, a `RetryRequested` that code raised
    by itself, and Dagster's own errors.
    """
    cause: BaseException | None
    if isinstance(raised, RetryRequested):
        cause = raised.__cause__
        by_policy = isinstance(raised, RetryRequestedFromPolicy) or isinstance(cause, INTERRUPTS)
        return cause if by_policy else None
    if isinstance(raised, DagsterUserCodeExecutionError):
        cause = raised.user_exception
        return cause
    return None if isinstance(raised, (DagsterError, Failure)) else raised


def another_attempt(
    step: StepExecutionContext, error: BaseException, attempts: int | None
) -> Exception:
    """Return what has a step tried again, up to so many attempts; without a policy it is final."""
    policy = step.op_retry_policy
    if policy is None or attempts is None:
        return final(step, error)
    return RetryRequestedFromPolicy(
        max_retries=attempts - 1,
        seconds_to_wait=policy.calculate_delay(step.previous_attempt_count + 1),
    )


def final(step: StepExecutionContext, error: BaseException) -> Exception:
    """Return what fails a step as if it had no retry policy, with the stack trace of the error."""
    assert isinstance(error, Exception)
    create: Any = DagsterExecutionStepExecutionError  # its constructor has no types
    made: Exception = create(
        f"Error occurred while executing {step.describe_op()}:",
        user_exception=error,
        original_exc_info=(type(error), error, error.__traceback__),
        step_key=step.step.key,
        op_def_name=step.op_def.name,
        op_name=step.op.name,
    )
    return made


def attempts_left(step: StepExecutionContext) -> int | None:
    """Return how many attempts this run has for a step; None for a step without a retry policy.

    The runs that Dagster's daemon launched, because the worker of the one before was lost, share
    the attempts of the first one.
    """
    policy = step.op_retry_policy
    if policy is None:
        return None
    return policy.max_retries + 1 - sum(_attempts_in(step, run) for run in _retried_by(step))


def earlier_runs_left_none(step: StepExecutionContext, attempts: int | None) -> bool:
    """Say whether a step has had the `attempts` that earlier runs, which had some, have left it.

    A run on its own is limited by its policy, or by the code that asks for a retry.
    """
    policy = step.op_retry_policy
    if policy is None or attempts is None or attempts > policy.max_retries:
        return False
    return step.previous_attempt_count >= attempts


def _retried_by(step: StepExecutionContext) -> Iterator[DagsterRun]:
    """Yield the runs that this one is an automatic retry of, the latest first."""
    run: DagsterRun | None = step.dagster_run
    while run is not None and RETRY_NUMBER_TAG in run.tags and run.parent_run_id is not None:
        run = step.instance.get_run_by_id(run.parent_run_id)
        if run is not None:
            yield run


def _attempts_in(step: StepExecutionContext, run: DagsterRun) -> int:
    logs = step.instance.all_logs(run.run_id, of_type=_BEGINNINGS)
    return sum(entry.step_key == step.step.key for entry in logs)
