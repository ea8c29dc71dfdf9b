"""The executor of the project on one machine: in one process, or in a process for each step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dagster import (
    DagsterInvariantViolationError,
    Executor,
    ExecutorRequirement,
    Field,
    InitExecutorContext,
    Selector,
    executor,
    in_process_executor,
    multiple_process_executor_requirements,
    multiprocess_executor,
)

from mlops_assets.dagster_internals.gone_runs import naming_its_process
from mlops_assets.dagster_internals.orchestration import (
    config_fields,
    forkserver_executor,
    module_of,
)

PRELOAD = (
    "dagster._cli",  # where the script `dagster` begins, which every step process runs again
    "dagster._core.storage.local_compute_log_manager",
    "mlops_assets.dagster_internals.sqlite_storage",
    "pandas",
    "sklearn.ensemble",
    "skops.io",
    "upath",  # every process that opens the instance imports it, with fsspec
    "upath.core",
)
"""What most step processes would import by themselves, beside the code location.

Each costs the first step as much as it saves every later one. MLflow is left out: it saved nothing.
"""

MAKES_REPOSITORIES = "mlops_assets.dagster_internals.preloaded"
"""What a fork server imports after the code location."""

_one_of: Any = Selector  # its constructor has no types


def _requirements(config: Mapping[str, Any]) -> list[ExecutorRequirement]:
    return list(multiple_process_executor_requirements()) if "forkserver" in config else []


@executor(
    name="in_process_or_forkserver",
    config_schema=Field(
        _one_of(
            {
                "in_process": Field(
                    config_fields(in_process_executor, without="marker_to_close"),
                    description="All steps in the run's own process, one after the other.",
                ),
                "forkserver": Field(
                    config_fields(multiprocess_executor, without="start_method"),
                    description="Every step that has to run in a process of its own, several at "
                    "once: `max_concurrent`, or one for each usable CPU.",
                ),
            }
        ),
        default_value={"in_process": {}},
    ),
    requirements=_requirements,
)
def local_executor(context: InitExecutorContext) -> Executor:
    """Run steps in the run's process, or with `forkserver` in processes of their own.

    Either way no process is started for a step whose result is known already.

    Raises
    ------
    DagsterInvariantViolationError
        `max_concurrent` is negative.
    """
    config: Any
    ((kind, config),) = context.executor_config.items()
    if kind == "in_process":
        create = in_process_executor.executor_creation_fn
        assert create is not None
        return naming_its_process(create(context._replace(executor_config=config)))
    return naming_its_process(
        forkserver_executor(
            {**config, "max_concurrent": _max_concurrent(config["max_concurrent"])},
            preload=[*PRELOAD, *module_of(context.job), MAKES_REPOSITORIES],
        )
    )


def _max_concurrent(chosen: int | None) -> int:
    import joblib

    if chosen is not None and chosen < 0:
        raise DagsterInvariantViolationError(
            f"execution.config.forkserver.max_concurrent is {chosen}; 1 or more is allowed"
        )
    # Dagster's own default is the number of the machine's CPUs, whatever a container may use.
    return chosen or int(joblib.cpu_count())
