"""What an executor needs of Dagster beyond its public interface: a step's past, told in its place.

Whether a step is a hit, and what it did, is known to its IO manager. Which executor a run has is
decided in `mlops_assets.execution`.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.context import ForkServerContext
from types import FunctionType, SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from dagster import DagsterError, DagsterEvent, Executor, Failure
from dagster._core.definitions.reconstruct import ReconstructableJob
from dagster._core.execution.context_creation_job import scoped_job_context
from dagster._core.execution.plan.objects import step_failure_event_from_exc_info
from dagster._core.execution.resources_init import (
    get_transitive_required_resource_keys,
    resource_initialization_manager,
)
from dagster._core.execution.retries import RetryMode
from dagster._core.execution.step_dependency_config import StepDependencyConfig
from dagster._core.executor import multiprocess
from dagster._core.executor.step_delegating import (
    CheckStepHealthResult,
    StepDelegatingExecutor,
    StepHandler,
    StepHandlerContext,
)
from dagster._utils.error import serializable_error_info_from_exc_info

from mlops_assets.errors import UserError

if TYPE_CHECKING:
    from dagster import ExecutorDefinition, Field
    from dagster._core.definitions.job_base import IJob
    from dagster._core.execution.context.system import StepOrchestrationContext
    from dagster._core.execution.plan.state import KnownExecutionState
    from dagster._core.execution.plan.step import ExecutionStep

__all__ = [
    "CheckStepHealthResult",
    "MemoisingMultiprocessExecutor",
    "StepHandler",
    "StepHandlerContext",
    "checking_health_every",
    "config_fields",
    "ending_steps_once",
    "forkserver_executor",
    "module_of",
    "replay",
    "wrap_step_handler",
]


def replay(
    step_context: StepOrchestrationContext, known_state: KnownExecutionState
) -> Generator[DagsterEvent, None, bool]:
    """Tell again what a step did, where its run is orchestrated, if its IO manager knows.

    The IO manager is asked by its method ``reused(step_context)``: None means that the step has to
    run; otherwise it returns the events of the step, from its start to its success. No resource of
    the step is initialised but the IO managers of its outputs. A step with hooks is never told
    here, because hooks are code of the user's and are given all resources.

    Returns
    -------
    bool
        Whether the step is over. If it isn't, no event of it was told and it has to be launched;
        that is also so when the IO manager could not be asked, which is logged as a warning. An
        error once the events have begun ends the step: for good if it is Dagster's, else by its
        retry policy.
    """
    with ExitStack() as stack:
        try:
            events = stack.enter_context(_reused(step_context, known_state))
        except Exception as error:
            step_context.log.warning(
                "launching %s: whether it was computed before could not be found out: %s",
                step_context.step.key,
                error,
                exc_info=not isinstance(error, (UserError, OSError)),
            )
            return False
        if events is None:
            return False
        try:
            yield from events
        except (DagsterError, Failure):
            yield step_failure_event_from_exc_info(cast("Any", step_context), sys.exc_info())
        except Exception:
            yield step_context.executor.log_failure_or_retry_event_after_error(
                step_context, serializable_error_info_from_exc_info(sys.exc_info()), known_state
            )
        return True


@contextmanager
def _reused(
    step_context: StepOrchestrationContext, known_state: KnownExecutionState
) -> Iterator[Iterator[DagsterEvent] | None]:
    job, step = step_context.job.get_definition(), step_context.step
    definition = job.get_node(step.node_handle).definition
    io_managers = {
        output: definition.output_def_named(output.name).io_manager_key
        for output in step.step_outputs
    }
    asked = {key for output, key in io_managers.items() if not output.properties.asset_check_key}
    if len(asked) != 1 or job.get_all_hooks_for_handle(step.node_handle):
        yield None
        return
    with scoped_job_context(
        step_context.execution_plan,
        step_context.job,
        step_context.run_config,
        step_context.dagster_run,
        step_context.instance,
        scoped_resources_builder_cm=_initialising_only(
            get_transitive_required_resource_keys(set(io_managers.values()), job.resource_defs)
        ),
    ) as context:
        in_step = context.for_step(step, known_state)
        io_manager = getattr(in_step.resources, asked.pop())
        yield io_manager.reused(in_step) if hasattr(io_manager, "reused") else None


def _initialising_only(keys: Any) -> Callable[..., Any]:
    """Have Dagster initialise these resources alone, without events of it in the run's log."""

    def manager(**arguments: Any) -> Any:
        return resource_initialization_manager(
            **{**arguments, "resource_keys_to_init": keys, "emit_persistent_events": False}
        )

    return manager


def _replay_or_execute(
    multiproc_ctx: Any,
    recon_job: Any,
    step_context: StepOrchestrationContext,
    step: ExecutionStep,
    errors: Any,
    processes: Any,
    term_events: dict[str, Any],
    retries: Any,
    known_state: KnownExecutionState,
    repository_load_data: Any,
) -> Iterator[DagsterEvent | None]:
    """Stand in for Dagster's `execute_step_out_of_process`."""
    if (yield from replay(step_context, known_state)):
        return
    term_events[step.key] = multiprocessing.get_context("forkserver").Event()
    yield from multiprocess.execute_step_out_of_process(
        multiproc_ctx,
        recon_job,
        step_context,
        step,
        errors,
        processes,
        term_events,
        retries,
        known_state,
        repository_load_data,
    )


class _ContextWithoutEvents(ForkServerContext):
    """The first event would start a process, the resource tracker, before a step needs any."""

    def Event(self) -> Any:
        return None


class MemoisingMultiprocessExecutor(multiprocess.MultiprocessExecutor):
    """Dagster's executor with a fork server, without a process for a step that is a hit.

    The fork server itself starts with the first step that has to run.
    """

    # Dagster's own function, in which two of the names that it refers to mean something else.
    execute = FunctionType(
        multiprocess.MultiprocessExecutor.execute.__code__,
        {
            **vars(multiprocess),
            "execute_step_out_of_process": _replay_or_execute,
            "multiprocessing": SimpleNamespace(get_context=lambda _: _ContextWithoutEvents()),
        },
    )


def forkserver_executor(config: Mapping[str, Any], preload: Sequence[str]) -> Executor:
    """Return the memoising executor.

    Parameters
    ----------
    config
        What Dagster's `multiprocess_executor` is configured with, `start_method` left out.
    preload
        Modules that the fork server imports before its first step, and the steps then have.
    """
    return MemoisingMultiprocessExecutor(
        retries=cast("RetryMode", RetryMode.from_config(config["retries"])),
        max_concurrent=config["max_concurrent"],
        tag_concurrency_limits=config.get("tag_concurrency_limits"),
        start_method="forkserver",
        explicit_forkserver_preload=preload,
        step_dependency_config=StepDependencyConfig.from_config(
            config.get("step_dependency_config")
        ),
    )


def config_fields(executor: ExecutorDefinition, without: str) -> dict[str, Field]:
    """Return the fields of an executor's config but one."""
    fields = cast("Any", executor.config_schema.as_field().config_type).fields
    return {name: field for name, field in fields.items() if name != without}


def module_of(job: IJob) -> list[str]:
    """Return the module that a step process loads the job from; none if it is a file."""
    module = job.get_module() if isinstance(job, ReconstructableJob) else None
    return [module] if module else []


def wrap_step_handler(executor: Executor, wrap: Callable[[StepHandler], StepHandler]) -> Executor:
    """Have the step handler of a step-delegating executor wrapped, and return the executor.

    Raises
    ------
    TypeError
        The executor has no step handler.
    """
    if not isinstance(executor, StepDelegatingExecutor):
        raise TypeError(f"{type(executor).__name__} has no step handler to wrap")
    executor._step_handler = wrap(executor._step_handler)
    return executor


def checking_health_every(executor: Executor, seconds: int) -> Executor:
    """Have a step-delegating executor look after its steps this often, and return it."""
    assert isinstance(executor, StepDelegatingExecutor)
    executor._check_step_health_interval_seconds = seconds
    return executor


def ending_steps_once(executor: Executor) -> Executor:
    """Have a step-delegating executor overlook that a step ends a second time, and return it.

    A step that was given up for lost, and launched again, may have gone on where nobody saw it.
    Dagster's executor breaks off the run when it hears of the second end.
    """
    assert isinstance(executor, StepDelegatingExecutor)
    pop, ended = executor._pop_events, set[str | None]()

    def is_news(event: DagsterEvent) -> bool:
        if not (event.is_step_success or event.is_step_failure or event.is_step_up_for_retry):
            return True
        if event.step_key in ended:
            return False
        if not event.is_step_up_for_retry:
            ended.add(event.step_key)
        return True

    def pop_news(*arguments: Any) -> Sequence[DagsterEvent]:
        return [event for event in pop(*arguments) if is_news(event)]

    cast(Any, executor)._pop_events = pop_news
    return executor
