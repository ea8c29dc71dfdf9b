"""Steps over a range of partitions: one partition after another, as if each had a run of its own.

A partition is a computation by itself: it has its version, its record for later runs, its
materialisation and its checks, and it is reused or computed whatever the others are. One that
fails is left out: the others go on, and the step fails at the end and names it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from time import perf_counter
from typing import TYPE_CHECKING

from dagster import DagsterEvent, Failure, RetryRequested

from mlops_assets.dagster_internals.attempts import INTERRUPTS, error_behind
from mlops_assets.dagster_internals.ranges import (
    Failed,
    begun,
    failed,
    failed_above,
    failures_told,
    for_partition,
    goes_on_below,
    has_attempts_left,
    made_before,
    of_partitions,
    partitions_in_range,
    succeeded,
)

if TYPE_CHECKING:
    from dagster._core.execution.context.system import StepExecutionContext

Launch = Callable[["StepExecutionContext"], Iterator[DagsterEvent]]
"""Runs a step for one partition, or tells what it did before."""

MOST_IN_A_ROW = 3
"""Partitions that fail one after another for a reason that may pass, before the attempt ends: what
they need is away, and the others would wait for it in vain."""

_MOST_NAMED = 20


def one_by_one(step: StepExecutionContext, launch: Launch) -> Iterator[DagsterEvent]:
    """Launch a step for each partition of its range that this run has not finished before.

    Raises
    ------
    dagster.RetryRequested
        Partitions failed for reasons that may pass, and the step has attempts left. The next one
        goes on with them, and with those that were not reached.
    dagster.Failure
        Partitions failed, with the reason of each; not if the steps of the run that wait for this
        one go through the partitions too. Then they do so with the others, and the last one fails.
    """
    began = perf_counter()
    yield begun(step)
    told = failures_told(step)
    before = told.get(step.step.key, {})
    failures = {partition: one for partition, one in before.items() if one.is_final}
    done = made_before(step) - before.keys()
    partitions = partitions_in_range(step)
    retry: RetryRequested | None = None
    in_a_row = 0
    for partition in partitions:
        if partition in done or partition in failures:
            continue
        if in_a_row == MOST_IN_A_ROW:
            break
        try:
            launched = _launched(for_partition(step, partition), launch, told)
            yield from of_partitions(step, launched)
        except INTERRUPTS:
            raise
        except Exception as error:
            may_pass = isinstance(error, RetryRequested)
            if isinstance(error, RetryRequested) and has_attempts_left(step, error):
                retry = error
            failures[partition] = Failed(_words(error), is_final=retry is not error)
            yield failed(step, partition, failures[partition], error)
            in_a_row = in_a_row + 1 if may_pass else 0
        else:
            done.add(partition)
            in_a_row = 0
    if retry is not None:
        raise retry from _failure(failures, partitions)
    for partition in partitions:
        if partition not in done and partition not in failures:
            failures[partition] = Failed(
                f"not tried, as the {MOST_IN_A_ROW} before it failed", True
            )
            yield failed(step, partition, failures[partition])
    if failures and not (done and goes_on_below(step)):
        raise _failure(failures, partitions)
    yield from succeeded(step, began)


def _launched(
    step: StepExecutionContext, launch: Launch, told: Mapping[str, Mapping[str, Failed]]
) -> Iterator[DagsterEvent]:
    if reason := failed_above(step, told):
        raise Failure(reason, allow_retries=False)
    yield from launch(step)


def _words(error: Exception) -> str:
    cause = error_behind(error) or error
    if isinstance(cause, Failure):
        return cause.description or "failed"
    return f"{type(cause).__name__}: {cause}".strip()


def _failure(failures: Mapping[str, Failed], partitions: Sequence[str]) -> Failure:
    lines = [f"{partition}: {one.reason}" for partition, one in sorted(failures.items())]
    more = [f"and {len(lines) - _MOST_NAMED} more"] if len(lines) > _MOST_NAMED else []
    said = f"{len(lines)} of {len(partitions)} partitions failed:"
    return Failure("\n".join([said, *lines[:_MOST_NAMED], *more]), allow_retries=False)
