"""What a step needs of Dagster beyond its public interface: versions of inputs and outputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from time import perf_counter
from typing import TYPE_CHECKING, Any

from dagster import (
    AssetCheckEvaluation,
    AssetCheckResult,
    AssetKey,
    AssetObservation,
    DagsterEvent,
    DagsterEventType,
    InputContext,
    Output,
)
from dagster._core.definitions.data_version import DATA_VERSION_TAG
from dagster._core.definitions.decorators.op_decorator import DecoratedOpFunction
from dagster._core.execution.context.data_version_cache import DataVersionCache
from dagster._core.execution.plan.execute_step import (
    _process_asset_results_to_events,
    _step_output_error_checked_user_event_sequence,
    _store_output,
    core_dagster_event_sequence_for_step,
)
from dagster._core.execution.plan.objects import StepSuccessData, TypeCheckData
from dagster._core.execution.plan.outputs import StepOutputData, StepOutputHandle
from dagster._utils.tags import normalize_tags

if TYPE_CHECKING:
    from dagster import (
        AssetExecutionContext,
        AssetRecord,
        AssetsDefinition,
        DagsterInstance,
        EventLogRecord,
        OutputContext,
    )
    from dagster._core.execution.context.system import StepExecutionContext


def record_data_version(context: OutputContext, key: AssetKey, version: str) -> None:
    """Give the materialisation that is being recorded its data version.

    Publicly only the asset's own function can do so, before the IO manager knows the content.
    """
    from dagster import DataVersion

    context.step_context.set_data_version(key, DataVersion(version))


def with_op_tags(asset: AssetsDefinition, tags: Mapping[str, Any]) -> AssetsDefinition:
    """Give the step of an asset these tags, and return the asset.

    Publicly the step of an observable source can have none.
    """
    asset.op._tags = normalize_tags({**asset.op.tags, **tags})
    return asset


def observe_input(context: AssetExecutionContext, key: AssetKey, version: str) -> None:
    """Record what an external upstream asset holds now, as the version that this step is given.

    Publicly the version of an input is that of the last observation before the step began.
    """
    context.log_event(AssetObservation(key, tags={"dagster/data_version": version}))
    context.get_step_execution_context().wipe_input_asset_version_info(key)


def is_in_step(context: InputContext) -> bool:
    """Say whether an input is loaded for a running step, rather than by hand."""
    return context._step_context is not None


def recorded_input_version(
    context: InputContext | AssetExecutionContext, key: AssetKey
) -> str | None:
    """Return the data version of an input that Dagster records for the running step.

    None when the upstream asset has neither a materialisation nor an observation.
    """
    if isinstance(context, InputContext):
        return version_for(context.step_context, key)
    return version_for(context.get_step_execution_context(), key)


MOST_AT_ONCE = 50
"""Events of other runs, after its own, that a run looks past."""


class _OwnRunFirst(DataVersionCache):
    """Dagster's versions of a step's inputs, but of what the step's own run has made, its own.

    They are asked for once: a step is run with what it was decided with.
    """

    def fetch_external_input_asset_version_info(self) -> None:
        if not self.is_external_input_asset_version_info_loaded:
            super().fetch_external_input_asset_version_info()

    def _get_input_asset_event(
        self, key: AssetKey, asset_record: AssetRecord | None
    ) -> EventLogRecord | None:
        latest = super()._get_input_asset_event(key, asset_record)
        step = self._context
        if latest is None or latest.run_id == step.run_id or self._has_partitions(key):
            return latest
        if latest.event_log_entry.asset_observation is not None:
            seen = step.instance.fetch_observations(key, limit=MOST_AT_ONCE)
        elif key in (step.dagster_run.asset_selection or {key}):
            seen = step.instance.fetch_materializations(key, limit=MOST_AT_ONCE)
        else:
            return latest
        return next((record for record in seen.records if record.run_id == step.run_id), latest)

    def _has_partitions(self, key: AssetKey) -> bool:
        step = self._context
        name = step.job_def.asset_layer.get_node_input_name(step.node_handle, key)
        return name is not None and step.has_asset_partitions_for_input(name)


def prefer_own_run(step: StepExecutionContext) -> None:
    """Give a step the inputs that its own run has made, whatever other runs have made since.

    Dagster takes the latest ones. Of two runs at once with different data, one would judge its
    model on the rows of the other.
    """
    step._data_version_cache = _OwnRunFirst(step)


def version_for(step: StepExecutionContext, key: AssetKey) -> str | None:
    """Return the data version of an upstream asset that a step is given; None if it has none."""
    info = step.maybe_fetch_and_get_input_asset_version_info(key)
    return info.data_version.value if info is not None and info.data_version else None


def recorded_partition_versions(
    context: InputContext, key: AssetKey, partitions: Iterable[str]
) -> dict[str, str]:
    """Return the versions of partitions of an input as they were when the running step began.

    Those that had never been materialised are left out.
    """
    return _partition_versions(context.step_context, key, list(partitions))


def asset_outputs(step: StepExecutionContext) -> dict[AssetKey, str]:
    """Return the assets that a step materialises, with the names of the op's outputs.

    Empty for steps that do something else: ops, observations, checks, parts of a graph but the ones
    that make its assets.
    """
    assets = step.assets_def
    if assets is None or not assets.is_materializable:
        return {}
    layer, made = step.job_def.asset_layer, step.get_output_asset_keys()
    return {
        key: output.name
        for output in step.step.step_outputs
        if (key := layer.get_asset_key_for_node_output(step.node_handle, output.name)) in made
        and key is not None
    }


def code_version(step: StepExecutionContext, key: AssetKey) -> str | None:
    """Return the code version that the definition of an asset of the step was given."""
    return step.job_def.asset_layer.get(key).code_version


def decorated_function(step: StepExecutionContext) -> object:
    """Return the function that was made an asset."""
    compute = step.op_def.compute_fn
    return compute.decorated_fn if isinstance(compute, DecoratedOpFunction) else compute


def op_config(step: StepExecutionContext) -> Any:
    """Return the configuration of the step's op with all defaults; None when it has none."""
    return step.op_config or None


def partition_of(step: StepExecutionContext, output: str) -> str | None:
    """Return the partition that an output of the step is for; None when it isn't partitioned."""
    if not step.has_asset_partitions_for_output(output):
        return None
    return step.asset_partition_key_for_output(output)


def input_versions(step: StepExecutionContext) -> dict[AssetKey, str | dict[str, str] | None]:
    """Return the data versions of all that the assets of a step depend on, as Dagster records them.

    By partition for partitioned inputs, as they were when the step began. None for an input that
    has no version.
    """
    _look_at_inputs(step)
    layer, outputs = step.job_def.asset_layer, step.get_output_asset_keys()
    parents = {parent for key in outputs for parent in layer.get(key).parent_keys}
    versions: dict[AssetKey, str | dict[str, str] | None] = {}
    for parent in sorted(parents):
        name = layer.get_node_input_name(step.node_handle, parent)
        if name is not None and step.has_asset_partitions_for_input(name):
            subset = step.asset_partitions_subset_for_input(name, require_valid_partitions=False)
            versions[parent] = _partition_versions(step, parent, list(subset.get_partition_keys()))
        elif parent not in outputs:
            info = step.maybe_fetch_and_get_input_asset_version_info(parent)
            version = info.data_version if info is not None else None
            versions[parent] = version.value if version is not None else None
    return versions


def _look_at_inputs(step: StepExecutionContext) -> None:
    """Ask for the versions of all inputs of a step at once, if nobody has."""
    if not step.is_external_input_asset_version_info_loaded:
        step.fetch_external_input_asset_version_info()


def recorded_input_versions(
    context: AssetExecutionContext, key: AssetKey
) -> str | dict[str, str] | None:
    """Return what `input_versions` says of one input of the running step."""
    return input_versions(context.get_step_execution_context())[key]


def _partition_versions(
    step: StepExecutionContext, key: AssetKey, partitions: list[str]
) -> dict[str, str]:
    # Dagster's own version of such an input is a digest of all of them, and of a hundred and more
    # that of the latest event: which one that was is what is exact.
    info = step.maybe_fetch_and_get_input_asset_version_info(key)
    if info is None:
        return {}
    tags = step.instance.event_log_storage.get_latest_tags_by_partition(
        key,
        DagsterEventType.ASSET_MATERIALIZATION,
        [DATA_VERSION_TAG],
        partitions,
        before_cursor=info.storage_id + 1,
    )
    return {partition: found[DATA_VERSION_TAG] for partition, found in tags.items()}


def observed(step: StepExecutionContext, key: AssetKey, version: str) -> DagsterEvent:
    """Record what an external upstream asset holds now; see `observe_input`."""
    observation = AssetObservation(key, tags={DATA_VERSION_TAG: version})
    event = DagsterEvent.asset_observation(step, observation)
    step.wipe_input_asset_version_info(key)
    return event


def run_step(step: StepExecutionContext) -> Iterator[DagsterEvent]:
    """Run a step as Dagster would without a step launcher."""
    return core_dagster_event_sequence_for_step(step)


def replay_step(
    step: StepExecutionContext,
    results: Iterable[Output[Any] | AssetCheckResult],
    values: Mapping[str, Any],
) -> Iterator[DagsterEvent]:
    """Take a step's results for granted: no input is loaded and no function is called.

    The results go through Dagster's own code, so that events, tags and provenance are those of a
    step that ran. `values` by output are what a test is given that asks the run's result for them.
    """
    begun = perf_counter()
    yield DagsterEvent.step_start_event(step)
    _look_at_inputs(step)
    for result in _step_output_error_checked_user_event_sequence(
        step, _process_asset_results_to_events(step, iter(results))
    ):
        if isinstance(result, Output):
            handle = StepOutputHandle(step.step.key, result.output_name)
            if step.output_capture is not None:
                step.output_capture[handle] = values.get(result.output_name)
            yield output_told(step, result.output_name, result.metadata)
            yield from _store_output(step, handle, result)
        elif isinstance(result, AssetCheckEvaluation):
            yield DagsterEvent.asset_check_evaluation(step, result)
    yield success_told(step, begun)


def output_told(
    step: StepExecutionContext, name: str, metadata: Mapping[str, Any] | None = None
) -> DagsterEvent:
    """Tell of an output of a step whose type was checked when its value was computed."""
    checked = TypeCheckData(success=True, label=name)  # type: ignore[no-untyped-call]
    output = StepOutputData(StepOutputHandle(step.step.key, name), checked, metadata=metadata)
    return DagsterEvent.step_output_event(step, output)


def success_told(step: StepExecutionContext, begun: float) -> DagsterEvent:
    """Tell that a step has succeeded; `begun` is the `perf_counter` of when it began."""
    duration = StepSuccessData(duration_ms=(perf_counter() - begun) * 1000)  # type: ignore[no-untyped-call]
    return DagsterEvent.step_success_event(step, duration)


def together(instance: DagsterInstance) -> AbstractContextManager[None]:
    """Have all events that are told in the block stored at once, or none if it raises.

    For work that is over in milliseconds: nobody else can write to the instance meanwhile. Storages
    other than `sqlite_storage` keep every event by itself.
    """
    begin = getattr(instance.event_log_storage, "together", nullcontext)
    at_once: AbstractContextManager[None] = begin()
    return at_once


def outputs_without_value(step: StepExecutionContext) -> list[str]:
    """Return the names of the outputs of a step by which it only tells others to begin."""
    return [it.name for it in step.op_def.output_defs if it.dagster_type.is_nothing]


def captures_values(step: StepExecutionContext) -> bool:
    """Say whether the values of outputs are handed to whoever started the run, such as a test."""
    return step.output_capture is not None


def instance_id(instance: DagsterInstance) -> str | None:
    """Return what tells an instance from others; None for one that ends with the process."""
    if not instance.is_persistent:
        return None
    identify = getattr(instance.run_storage, "get_run_storage_id", None)
    return str(identify()) if identify is not None else None
