"""How a step ends when it cannot go on, explained and final or interrupted, and what is said of it.

Everything else that a step raises may pass, and is left to the retry policy.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dagster import DagsterExecutionInterruptedError, Failure

from mlops_assets.dagster_internals.steps import RunInterrupted
from mlops_assets.errors import UserError

if TYPE_CHECKING:
    from dagster import AssetCheckEvaluation, DagsterEvent

STEP_POD = "DAGSTER_RUN_STEP_KEY"
"""Variable that dagster-k8s sets in the pods of steps."""


@contextmanager
def explained() -> Iterator[None]:
    """Turn a user's mistake into a failure that is not retried, and let an interrupt end the run.

    Raises
    ------
    dagster.Failure
        With the mistake's own words, for a `UserError`.
    RunInterrupted
        For Ctrl-C, a termination from the UI, or SIGTERM.
    """
    try:
        yield
    except UserError as error:
        raise Failure(description=str(error), allow_retries=False) from error
    except (KeyboardInterrupt, DagsterExecutionInterruptedError) as interrupt:
        raise RunInterrupted("the run was interrupted") from interrupt


@contextmanager
def silent_when_its_pod_ends(log: logging.Logger) -> Iterator[None]:
    """End the process of a step whose pod was asked to end, without an event of it.

    Whoever asked knows why, and the run's worker finds out: an evicted or pre-empted step is
    launched again, which it could not be once it has told that it failed. Elsewhere than in the pod
    of a step this does nothing.
    """
    try:
        yield
    except (KeyboardInterrupt, DagsterExecutionInterruptedError):
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
