"""What a step over a range of partitions needs of Dagster beyond its public interface.

Dagster runs such a step once, and has one output of it for all partitions. Here the step is seen as
one step for each partition, by a context of its own that Dagster's code takes for that of a run for
this partition. How they are run one after another is `mlops_assets.store.ranges`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from dagster import (
    AssetKey,
    DagsterEvent,
    DagsterEventType,
    RetryRequested,
    partition_loading_context,
)
from dagster._core.definitions.partitions.utils.multi import (
    MultiPartitionKey,
    get_tags_from_multi_partition_key,
)
from dagster._core.events import EngineEventData
from dagster._core.execution.context.data_version_cache import DataVersionCache
from dagster._core.execution.context.system import StepExecutionContext
from dagster._core.log_manager import LOG_RECORD_EVENT_ATTR
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    PARTITION_NAME_TAG,
)
from dagster._utils.error import serializable_error_info_from_exc_info

from mlops_assets.dagster_internals.steps import output_told, success_told

if TYPE_CHECKING:
    from logging import LogRecord

_OF_THE_STEP = {
    DagsterEventType.STEP_START,
    DagsterEventType.STEP_RESTARTED,
    DagsterEventType.STEP_INPUT,
    DagsterEventType.LOADED_INPUT,
    DagsterEventType.STEP_OUTPUT,
    DagsterEventType.HANDLED_OUTPUT,
    DagsterEventType.STEP_SUCCESS,
}
"""Events that a step has once, or that tell nothing of a partition."""

_PARTITION, _REASON, _IS_FINAL = "partition", "reason", "is_final"


class Failed(NamedTuple):
    """What is told in a run's log of a partition that failed."""

    reason: str
    is_final: bool
    """Whether it is not tried again by the same step."""


def partitions_in_range(step: StepExecutionContext) -> Sequence[str]:
    """Return the partitions that a step has to fill; none for a step that isn't for a range.

    Nor for the parts of a graph, which hand values to one another.
    """
    assets = step.assets_def
    if step.has_partition_key or not step.has_partition_key_range or step.is_op_in_graph:
        return []
    if assets is None or not assets.is_materializable or assets.partitions_def is None:
        return []
    with partition_loading_context(dynamic_partitions_store=step.instance):
        return assets.partitions_def.get_partition_keys_in_range(step.partition_key_range)


def for_partition(step: StepExecutionContext, partition: str) -> StepExecutionContext:
    """Return the context of the step as if its run were for one partition of the range.

    Its log leaves out what is told once for the whole step, and its messages name the partition.
    Values are handed to nobody, so that memory stays flat.
    """
    run, ends = step.dagster_run, (ASSET_PARTITION_RANGE_START_TAG, ASSET_PARTITION_RANGE_END_TAG)
    tags = {name: tag for name, tag in run.tags.items() if name not in ends}
    tags[PARTITION_NAME_TAG] = partition
    if isinstance(partition, MultiPartitionKey):
        tags |= get_tags_from_multi_partition_key(partition)
    log = step.log.with_tags()
    log.addFilter(_OfPartition(partition))
    context = StepExecutionContext(
        plan_data=step.plan_data._replace(dagster_run=run.with_tags(tags)),
        execution_data=step._execution_data,
        log_manager=log,
        step=step.step,
        output_capture=None,
        known_state=step.get_known_state(),
        event_loop=step.event_loop,
    )
    context._data_version_cache = _InputVersions(context, step)
    return context


class _InputVersions(DataVersionCache):
    """The versions of inputs; those without partitions as they were when the step began."""

    def __init__(self, context: StepExecutionContext, step: StepExecutionContext) -> None:
        super().__init__(context)
        self._step = step

    def _fetch_input_asset_version_info(self, asset_keys: Sequence[AssetKey]) -> None:
        layer = self._step.job_def.asset_layer
        shared = [key for key in asset_keys if layer.get(key).partitions_def is None]
        for key in shared:
            info = self._step.maybe_fetch_and_get_input_asset_version_info(key)
            self.input_asset_version_info[key] = info
        super()._fetch_input_asset_version_info([key for key in asset_keys if key not in shared])

    def wipe_input_asset_version_info(self, key: AssetKey) -> None:
        super().wipe_input_asset_version_info(key)
        self._step.wipe_input_asset_version_info(key)


@dataclass(frozen=True)
class _OfPartition:
    """What the log of a step keeps of one of its partitions, as a filter of it."""

    partition: str

    def __call__(self, record: LogRecord) -> bool:
        event: DagsterEvent | None = getattr(record, LOG_RECORD_EVENT_ATTR, None)
        if event is not None:
            return event.event_type not in _OF_THE_STEP
        name = self.partition.replace("%", "%%") if record.args else self.partition
        record.msg = f"{name}: {record.msg}"
        return True


def of_partitions(
    step: StepExecutionContext, events: Iterator[DagsterEvent]
) -> Iterator[DagsterEvent]:
    """Leave out what is told once for the whole step, and what nobody asks for.

    Dagster keeps all events of a step until it ends, for its hooks and for the result of a run in
    this process. They are in the log anyway; with the partitions, memory would grow.
    """
    hooks = step.job_def.get_all_hooks_for_handle(step.node_handle)
    is_asked = step.output_capture is not None or bool(hooks)
    for event in events:
        if is_asked and event.event_type not in _OF_THE_STEP:
            yield event


def begun(step: StepExecutionContext) -> DagsterEvent:
    """Tell that a step has begun."""
    if step.previous_attempt_count > 0:
        return DagsterEvent.step_restarted_event(step, step.previous_attempt_count)
    return DagsterEvent.step_start_event(step)


def succeeded(step: StepExecutionContext, began: float) -> Iterator[DagsterEvent]:
    """Tell that a step has ended well, so that the steps that wait for it go on.

    `began` is the `perf_counter` of when it did.
    """
    for name in sorted(step.selected_output_names):
        yield output_told(step, name)
    yield success_told(step, began)


def failed(
    step: StepExecutionContext, partition: str, told: Failed, error: Exception | None = None
) -> DagsterEvent:
    """Tell of a partition that it failed, where `failures_told` finds it."""
    trace: Any = (type(error), error, error and error.__traceback__)
    about = EngineEventData(
        {_PARTITION: partition, _REASON: told.reason, _IS_FINAL: told.is_final},
        error=serializable_error_info_from_exc_info(trace) if error is not None else None,
    )
    return DagsterEvent.engine_event(step, f"{partition} failed: {told.reason}", about)


def has_attempts_left(step: StepExecutionContext, request: RetryRequested) -> bool:
    """Whether a step that raises this is tried again."""
    return not step.retry_mode.disabled and step.previous_attempt_count < request.max_retries


def failures_told(step: StepExecutionContext) -> Mapping[str, Mapping[str, Failed]]:
    """Return the partitions of which the step's run has told that they failed, by step key.

    Of several times the last one.
    """
    found: dict[str, dict[str, Failed]] = defaultdict(dict)
    for entry in step.instance.all_logs(step.run_id, of_type=DagsterEventType.ENGINE_EVENT):
        event = entry.dagster_event
        if event is not None and event.step_key is not None:
            about = {name: one.value for name, one in event.engine_event_data.metadata.items()}
            if _IS_FINAL in about:
                told = Failed(str(about[_REASON]), bool(about[_IS_FINAL]))
                found[event.step_key][str(about[_PARTITION])] = told
    return found


def made_before(step: StepExecutionContext) -> set[str]:
    """Return the partitions that earlier attempts of the step, in the same run, have finished.

    The last one that was made may have been broken off before its checks were told, and is left
    out.
    """
    made: list[set[str]] = []
    for key in step.get_output_asset_keys():
        records = step.instance.get_asset_event_summary_records(
            DagsterEventType.ASSET_MATERIALIZATION, key, run_id=step.run_id, ascending=True
        )
        made.append({str(record.partition) for record in records[:-1]})
    return set.intersection(*made) if made else set()


def failed_above(
    step: StepExecutionContext, failures: Mapping[str, Mapping[str, Failed]]
) -> str | None:
    """Return why an input of a step for one partition was not made by the same run, if so."""
    layer = step.job_def.asset_layer
    for name, step_input in step.step.step_input_dict.items():
        told = {
            partition: one
            for key in step_input.dependency_keys
            for partition, one in failures.get(key, {}).items()
            if one.is_final
        }
        if told and step.has_asset_partitions_for_input(name):
            key = layer.get_asset_key_for_node_input(step.node_handle, name)
            subset = step.asset_partitions_subset_for_input(name, require_valid_partitions=False)
            for partition in subset.get_partition_keys():
                if partition in told and key is not None:
                    return f"{key.to_user_string()} failed: {told[partition].reason}"
    return None


def goes_on_below(step: StepExecutionContext) -> bool:
    """Whether all steps of the run that wait for this one go through the partitions like this one.

    Then partitions that failed need not keep the others from them. False if there is no such step.
    """
    steps: Mapping[str, Any] = step.execution_plan.step_dict_by_key
    waiting = [
        other for other in steps.values() if step.step.key in other.get_execution_dependency_keys()
    ]
    chosen = step.dagster_run.step_keys_to_execute
    return bool(waiting) and all(
        (chosen is None or other.key in chosen) and _has_partitions(step, other)
        for other in waiting
    )


def _has_partitions(step: StepExecutionContext, other: Any) -> bool:
    layer, keeper = step.job_def.asset_layer, _io_managers(step, step.step)
    assets = layer.get_assets_def_for_node(other.node_handle)
    return (
        other.node_handle.parent is None
        and assets is not None
        and assets.partitions_def is not None
        and _io_managers(step, other) == keeper
    )


def _io_managers(step: StepExecutionContext, other: Any) -> set[str]:
    definition = step.job_def.get_node(other.node_handle).definition
    return {
        definition.output_def_named(output.name).io_manager_key
        for output in other.step_outputs
        if not output.properties.asset_check_key
    }
