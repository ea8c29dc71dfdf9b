"""Executors that launch a step elsewhere, on Kubernetes say: only the steps that have to run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from dagster import DagsterEvent, Executor, ExecutorDefinition, InitExecutorContext

from mlops_assets.dagster_internals.orchestration import (
    CheckStepHealthResult,
    StepHandler,
    StepHandlerContext,
    replay,
    wrap_step_handler,
)

if TYPE_CHECKING:
    from dagster._core.execution.context.system import StepOrchestrationContext
    from dagster._core.execution.plan.state import KnownExecutionState


class MemoisingStepHandler(StepHandler):
    """Tells a step that is a hit in the run worker, and has another handler launch the others.

    Parameters
    ----------
    launcher
        The handler that launches what has to run.
    """

    def __init__(self, launcher: StepHandler) -> None:
        self._launcher = launcher
        self._replayed: set[str] = set()

    @property
    def name(self) -> str:
        """Name in the run's log."""
        return f"Memoising{self._launcher.name}"

    def launch_step(self, context: StepHandlerContext) -> Iterator[DagsterEvent]:
        """Tell the step or launch it."""
        key = _step_key(context)
        step_context = cast("StepOrchestrationContext", context.get_step_context(key))
        known_state = cast("KnownExecutionState", context.execute_step_args.known_state)
        if (yield from replay(step_context, known_state)):
            self._replayed.add(key)
        else:
            self._replayed.discard(key)  # of a replay that failed and is retried by a launch
            yield from self._launcher.launch_step(context)

    def check_step_health(self, context: StepHandlerContext) -> CheckStepHealthResult:
        """Ask the launcher; a replayed step is over, and the executor reads so in the log next."""
        if _step_key(context) in self._replayed:
            return CheckStepHealthResult.healthy()
        return self._launcher.check_step_health(context)

    def terminate_step(self, context: StepHandlerContext) -> Iterator[DagsterEvent]:
        """Terminate what was launched."""
        if _step_key(context) not in self._replayed:
            yield from self._launcher.terminate_step(context)


def memoising(definition: ExecutorDefinition) -> ExecutorDefinition:
    """Return the same executor, that launches nothing for a step that is a hit.

    Parameters
    ----------
    definition
        Of an executor that delegates to a step handler, like `dagster_k8s.k8s_job_executor`.
        Name, config and requirements stay what they are.

    Raises
    ------
    TypeError
        When a run starts, if the executor has no step handler.
    """

    def create(context: InitExecutorContext) -> Executor:
        assert definition.executor_creation_fn is not None
        executor = definition.executor_creation_fn(context)
        return wrap_step_handler(executor, MemoisingStepHandler)

    return ExecutorDefinition(
        name=definition.name,
        config_schema=cast("Any", definition.config_schema),
        requirements=definition.get_requirements,
        executor_creation_fn=create,
        description=definition.description,
    )


def _step_key(context: StepHandlerContext) -> str:
    (key,) = context.execute_step_args.step_keys_to_execute or ()
    return key
