"""How a step ends when it cannot go on: explained and final, or interrupted.

Everything else that a step raises may pass, and is left to the retry policy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dagster import DagsterExecutionInterruptedError, Failure

from mlops_assets.dagster_internals.steps import RunInterrupted
from mlops_assets.errors import UserError


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
